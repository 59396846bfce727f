//! A concert's places. Inside the service a place is its ordinal: its number in layout order, from 0. Ids and labels
//! appear only at the edge.

use std::{collections::HashSet, ops::Range};

/// A place in layout order.
pub(crate) type Ordinal = u32;

/// The places of a concert, frozen at its publication.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Layout {
    pub(crate) version: String,
    pub(crate) sections: Vec<Section>,
    places: u32,
    accessible: HashSet<Ordinal>,
}

/// A part of a venue that is sold at one price.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Section {
    pub(crate) id: String,
    pub(crate) display_name: String,
    pub(crate) arrangement: Arrangement,
    /// All a fan pays for one place, in minor units.
    pub(crate) price: i64,
    /// The ordinal of its first place.
    pub(crate) first: Ordinal,
}

/// How the places of a section are arranged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Arrangement {
    /// Rows of numbered seats; the first row is the nearest to the stage.
    Seated { rows: u32, seats_per_row: u32 },
    /// An area without numbered seats.
    Standing { capacity: u32 },
}

/// A place, as people know it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Seat {
    pub(crate) ordinal: Ordinal,
    pub(crate) seat_id: String,
    pub(crate) section_id: String,
    /// Empty for a standing area.
    pub(crate) row_label: String,
    pub(crate) seat_label: String,
    /// In minor units.
    pub(crate) price: i64,
}

/// A section before its place in the layout is known, with the ids of its seats for wheelchair users.
#[derive(Debug, Clone)]
pub(crate) struct SectionPlan {
    pub(crate) id: String,
    pub(crate) display_name: String,
    pub(crate) arrangement: Arrangement,
    pub(crate) price: i64,
    pub(crate) accessible_seat_ids: Vec<String>,
}

impl Layout {
    pub(crate) fn new(version: String, plans: Vec<SectionPlan>) -> Self {
        let mut layout = Self {
            version,
            sections: Vec::with_capacity(plans.len()),
            places: 0,
            accessible: HashSet::new(),
        };
        for plan in plans {
            let section = Section {
                id: plan.id,
                display_name: plan.display_name,
                arrangement: plan.arrangement,
                price: plan.price,
                first: layout.places,
            };
            layout.places += section.places();
            let accessible = plan.accessible_seat_ids.iter().filter_map(|seat_id| section.ordinal(seat_id));
            layout.accessible.extend(accessible);
            layout.sections.push(section);
        }
        layout
    }

    /// How many places there are.
    pub(crate) fn places(&self) -> u32 {
        self.places
    }

    /// Whether a place is kept for wheelchair users.
    pub(crate) fn is_accessible(&self, ordinal: Ordinal) -> bool {
        self.accessible.contains(&ordinal)
    }

    /// The section with this id.
    pub(crate) fn section(&self, id: &str) -> Option<&Section> {
        self.sections.iter().find(|section| section.id == id)
    }

    /// The place with this id.
    pub(crate) fn ordinal(&self, seat_id: &str) -> Option<Ordinal> {
        let (section_id, _) = seat_id.split_once('-')?;
        self.section(section_id)?.ordinal(seat_id)
    }

    /// The place as people know it.
    ///
    /// # Panics
    /// If the layout has no such place.
    pub(crate) fn seat(&self, ordinal: Ordinal) -> Seat {
        assert!(ordinal < self.places, "place {ordinal} of {}", self.places);
        let index = self.sections.partition_point(|section| section.first <= ordinal) - 1;
        let section = &self.sections[index];
        let (row_label, seat_label) = match section.arrangement {
            Arrangement::Seated { seats_per_row, .. } => {
                let place = ordinal - section.first;
                ((place / seats_per_row + 1).to_string(), (place % seats_per_row + 1).to_string())
            }
            Arrangement::Standing { .. } => (String::new(), (ordinal - section.first + 1).to_string()),
        };
        Seat {
            ordinal,
            seat_id: section.seat_id(ordinal),
            section_id: section.id.clone(),
            row_label,
            seat_label,
            price: section.price,
        }
    }

    /// The id of a place.
    pub(crate) fn seat_id(&self, ordinal: Ordinal) -> String {
        let index = self.sections.partition_point(|section| section.first <= ordinal) - 1;
        self.sections[index].seat_id(ordinal)
    }
}

impl Section {
    /// How many places it has.
    pub(crate) fn places(&self) -> u32 {
        match self.arrangement {
            Arrangement::Seated { rows, seats_per_row } => rows * seats_per_row,
            Arrangement::Standing { capacity } => capacity,
        }
    }

    /// The ordinals of its places.
    pub(crate) fn range(&self) -> Range<Ordinal> {
        self.first..self.first + self.places()
    }

    fn seat_id(&self, ordinal: Ordinal) -> String {
        let place = ordinal - self.first;
        match self.arrangement {
            Arrangement::Seated { seats_per_row, .. } => {
                format!("{}-{}-{}", self.id, place / seats_per_row + 1, place % seats_per_row + 1)
            }
            Arrangement::Standing { .. } => format!("{}-{}", self.id, place + 1),
        }
    }

    fn ordinal(&self, seat_id: &str) -> Option<Ordinal> {
        let numbers = seat_id.strip_prefix(self.id.as_str())?.strip_prefix('-')?;
        // Only the way we write a number counts: no sign, no leading zero.
        let number = |text: &str| text.parse::<u32>().ok().filter(|number| number.to_string() == text);
        match self.arrangement {
            Arrangement::Seated { rows, seats_per_row } => {
                let (row, seat) = numbers.split_once('-')?;
                let (row, seat) = (number(row)?, number(seat)?);
                let exists = (1..=rows).contains(&row) && (1..=seats_per_row).contains(&seat);
                exists.then(|| self.first + (row - 1) * seats_per_row + seat - 1)
            }
            Arrangement::Standing { capacity } => {
                let place = number(numbers)?;
                (1..=capacity).contains(&place).then(|| self.first + place - 1)
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Section A: 3 rows of 5 at 100, the first two seats for wheelchair users; FLOOR: 4 standing at 50.
    pub(crate) fn example() -> Layout {
        let seated = SectionPlan {
            id: "A".into(),
            display_name: "Stalls".into(),
            arrangement: Arrangement::Seated { rows: 3, seats_per_row: 5 },
            price: 100,
            accessible_seat_ids: vec!["A-1-1".into(), "A-1-2".into()],
        };
        let standing = SectionPlan {
            id: "FLOOR".into(),
            display_name: "Floor".into(),
            arrangement: Arrangement::Standing { capacity: 4 },
            price: 50,
            accessible_seat_ids: Vec::new(),
        };
        Layout::new("v1".into(), vec![seated, standing])
    }

    #[test]
    fn every_place_has_one_id() {
        let layout = example();
        assert_eq!(layout.places(), 19);
        for ordinal in 0..layout.places() {
            assert_eq!(layout.ordinal(&layout.seat(ordinal).seat_id), Some(ordinal));
            assert_eq!(layout.seat_id(ordinal), layout.seat(ordinal).seat_id);
        }
        assert_eq!(layout.seat(7).seat_id, "A-2-3");
        assert_eq!(layout.seat(18).seat_id, "FLOOR-4");
        assert!(layout.is_accessible(1) && !layout.is_accessible(2));
    }

    #[test]
    fn other_texts_name_no_place() {
        let layout = example();
        for text in [
            "",
            "A",
            "A-1",
            "A-0-1",
            "A-4-1",
            "A-1-6",
            "A-01-1",
            "A-+1-1",
            "B-1-1",
            "FLOOR-0",
            "FLOOR-5",
            "FLOOR-1-1",
        ] {
            assert_eq!(layout.ordinal(text), None, "{text}");
        }
    }
}
