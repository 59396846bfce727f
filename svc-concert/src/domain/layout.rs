//! The layout of a venue: sections in the order in which fans see them.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

/// Places in a venue at the most.
pub(crate) const MAX_PLACES: u32 = 100_000;
/// Rows in a section, and seats in a row, at the most.
pub(crate) const MAX_ROWS_OR_SEATS: i64 = 1_000;
/// Sections in a venue at the most.
pub(crate) const MAX_SECTIONS: usize = 200;
/// Letters in a section's id at the most.
const MAX_SECTION_ID: usize = 12;

/// A part of a venue that is sold at one price.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Section {
    pub(crate) id: String,
    pub(crate) display_name: String,
    pub(crate) arrangement: Arrangement,
}

/// How the places of a section are arranged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Arrangement {
    /// Rows of numbered seats. `accessible` are the seats kept for wheelchair users, as (row, seat) from 1.
    Seated { rows: u32, seats_per_row: u32, accessible: Vec<(u32, u32)> },
    /// An area without numbered seats.
    Standing { capacity: u32 },
}

impl Section {
    /// How many fans it takes.
    pub(crate) fn places(&self) -> u32 {
        match self.arrangement {
            Arrangement::Seated { rows, seats_per_row, .. } => rows * seats_per_row,
            Arrangement::Standing { capacity } => capacity,
        }
    }

    /// The id of a seat of this section.
    pub(crate) fn seat_id(&self, row: u32, seat: u32) -> String {
        format!("{}-{row}-{seat}", self.id)
    }

    /// The (row, seat) that a seat id of this section names, if it is one.
    pub(crate) fn parse_seat_id(&self, seat_id: &str) -> Option<(u32, u32)> {
        let Arrangement::Seated { rows, seats_per_row, .. } = self.arrangement else { return None };
        let (row, seat) = seat_id.strip_prefix(&self.id)?.strip_prefix('-')?.split_once('-')?;
        let number = |text: &str| text.parse::<u32>().ok().filter(|number| number.to_string() == text);
        let (row, seat) = (number(row)?, number(seat)?);
        ((1..=rows).contains(&row) && (1..=seats_per_row).contains(&seat)).then_some((row, seat))
    }
}

/// Whether a text can be the id of a section.
pub(crate) fn is_section_id(text: &str) -> bool {
    (1..=MAX_SECTION_ID).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit())
}

/// The first section whose id stands twice.
pub(crate) fn duplicate_section(sections: &[Section]) -> Option<usize> {
    let mut seen = HashSet::new();
    sections.iter().position(|section| !seen.insert(section.id.as_str()))
}

/// How many fans a venue takes. None: more than a venue may.
pub(crate) fn total_places(sections: &[Section]) -> Option<u32> {
    sections
        .iter()
        .try_fold(0u32, |sum, section| sum.checked_add(section.places()))
        .filter(|places| *places <= MAX_PLACES)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seated(id: &str, rows: u32, seats_per_row: u32) -> Section {
        let arrangement = Arrangement::Seated { rows, seats_per_row, accessible: Vec::new() };
        Section { id: id.into(), display_name: id.into(), arrangement }
    }

    #[test]
    fn a_seat_id_names_one_seat() {
        let section = seated("A", 2, 10);
        assert_eq!(section.parse_seat_id(&section.seat_id(2, 10)), Some((2, 10)));
        for foreign in ["A-0-1", "A-3-1", "A-1-11", "A-01-1", "A-1", "B-1-1", "AA-1-1", "A--1", "A-1-1-1"] {
            assert_eq!(section.parse_seat_id(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn a_venue_has_a_limit() {
        assert_eq!(total_places(&[seated("A", 1000, 100)]), Some(MAX_PLACES));
        assert_eq!(total_places(&[seated("A", 1000, 100), seated("B", 1, 1)]), None);
        assert_eq!(total_places(&vec![seated("A", 1000, 1000); 5000]), None);
    }

    #[test]
    fn section_ids_are_short_and_plain() {
        assert!(is_section_id("A") && is_section_id("FLOOR2"));
        assert!(
            !is_section_id("")
                && !is_section_id("a")
                && !is_section_id("A-1")
                && !is_section_id("ABCDEFGHIJKLM")
        );
    }
}
