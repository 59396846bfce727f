//! Finds the best free seats of a section on a snapshot. Whether they are still free, the hold decides.
//!
//! In this order: next to each other without leaving a single free seat alone beside them; next to each other; split.
//! Nearer rows first, and in a row the middle first.

use super::layout::{Arrangement, Layout, Ordinal, Section};

/// Seats found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) seats: Vec<Ordinal>,
    pub(crate) is_adjacent: bool,
}

/// The best `quantity` places of a section among those that `is_free` says are. Only seats kept for wheelchair users if
/// `accessible`, none of those otherwise. `skip` leaves out so many of the best choices, so that fans who lost a race
/// don't run for the same seats again.
pub(crate) fn find(
    layout: &Layout,
    section: &Section,
    quantity: usize,
    accessible: bool,
    skip: usize,
    is_free: impl Fn(Ordinal) -> bool,
) -> Option<Found> {
    let is_open = |ordinal: Ordinal| layout.is_accessible(ordinal) == accessible && is_free(ordinal);
    match section.arrangement {
        Arrangement::Standing { .. } => {
            let free: Vec<Ordinal> = section.range().filter(|ordinal| is_open(*ordinal)).collect();
            let start = if free.len() > quantity { skip * quantity % (free.len() - quantity + 1) } else { 0 };
            let seats: Vec<Ordinal> = free.into_iter().skip(start).take(quantity).collect();
            (seats.len() == quantity).then_some(Found { seats, is_adjacent: true })
        }
        Arrangement::Seated { rows, seats_per_row } => {
            let row_range = |row: u32| {
                let first = section.first + row * seats_per_row;
                first..first + seats_per_row
            };
            let mut blocks = Vec::new();
            for row in 0..rows {
                let free: Vec<bool> = row_range(row).map(&is_open).collect();
                blocks.extend(blocks_in_row(&free, quantity).into_iter().map(|block| Block { row, ..block }));
                // Enough of the best kind: further rows can only be worse.
                if blocks.iter().filter(|block| !block.leaves_orphan).count() > skip {
                    break;
                }
            }
            blocks.sort_by_key(|block| (block.leaves_orphan, block.row, block.from_middle, block.start));
            if !blocks.is_empty() {
                let block = &blocks[skip % blocks.len()];
                let first = section.first + block.row * seats_per_row + block.start as u32;
                let seats = (first..first + quantity as u32).collect();
                return Some(Found { seats, is_adjacent: true });
            }
            let seats: Vec<Ordinal> =
                section.range().filter(|ordinal| is_open(*ordinal)).take(quantity).collect();
            (seats.len() == quantity).then_some(Found { seats, is_adjacent: quantity == 1 })
        }
    }
}

/// Whether places are next to each other: in one row, or anywhere in one standing area.
pub(crate) fn are_adjacent(layout: &Layout, seats: &[Ordinal]) -> bool {
    let mut sorted = seats.to_vec();
    sorted.sort_unstable();
    let Some(section) = layout.sections.iter().find(|section| section.range().contains(&sorted[0])) else {
        return false;
    };
    if !sorted.iter().all(|ordinal| section.range().contains(ordinal)) {
        return false;
    }
    match section.arrangement {
        Arrangement::Standing { .. } => true,
        Arrangement::Seated { seats_per_row, .. } => {
            let row = |ordinal: Ordinal| (ordinal - section.first) / seats_per_row;
            let is_run = sorted.windows(2).all(|pair| pair[1] == pair[0] + 1);
            is_run && row(sorted[0]) == row(sorted[sorted.len() - 1])
        }
    }
}

#[derive(Debug)]
struct Block {
    row: u32,
    start: usize,
    leaves_orphan: bool,
    /// Twice the distance of its middle from the row's.
    from_middle: usize,
}

/// Every run of `quantity` free seats in a row.
fn blocks_in_row(free: &[bool], quantity: usize) -> Vec<Block> {
    let is_free = |seat: Option<usize>| seat.and_then(|seat| free.get(seat)).copied().unwrap_or(false);
    let before = |seat: usize, by: usize| seat.checked_sub(by);
    (0..(free.len() + 1).saturating_sub(quantity))
        .filter(|start| free[*start..start + quantity].iter().all(|free| *free))
        .map(|start| {
            let end = start + quantity;
            let orphan_left = is_free(before(start, 1)) && !is_free(before(start, 2));
            let orphan_right = is_free(Some(end)) && !is_free(Some(end + 1));
            let from_middle = (2 * start + quantity).abs_diff(free.len());
            Block { row: 0, start, leaves_orphan: orphan_left || orphan_right, from_middle }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::layout::SectionPlan;

    fn layout(rows: u32, seats_per_row: u32) -> Layout {
        let arrangement = Arrangement::Seated { rows, seats_per_row };
        let accessible_seat_ids = vec!["A-1-1".into()];
        let plan = SectionPlan {
            id: "A".into(),
            display_name: "A".into(),
            arrangement,
            price: 1,
            accessible_seat_ids,
        };
        Layout::new("v".into(), vec![plan])
    }

    fn find_in(layout: &Layout, quantity: usize, accessible: bool, taken: &[Ordinal]) -> Option<Found> {
        find(layout, &layout.sections[0], quantity, accessible, 0, |ordinal| !taken.contains(&ordinal))
    }

    #[test]
    fn the_middle_of_the_nearest_row_comes_first() {
        let found = find_in(&layout(2, 11), 3, false, &[]).unwrap();
        assert_eq!(found, Found { seats: vec![4, 5, 6], is_adjacent: true });
    }

    #[test]
    fn no_seat_is_left_alone_if_it_can_be_helped() {
        // Seat 0 is for wheelchair users, so 1 to 4 are free: taking 2 and 3 would leave two alone.
        let found = find_in(&layout(1, 5), 2, false, &[]).unwrap();
        assert_eq!(found.seats, [1, 2]);
        // With 1 to 3 free, two seats always leave one alone: still together.
        let found = find_in(&layout(1, 4), 2, false, &[]).unwrap();
        assert!(found.is_adjacent);
    }

    #[test]
    fn split_seats_are_better_than_none_and_said_to_be_split() {
        let found = find_in(&layout(1, 6), 2, false, &[2, 4]).unwrap();
        assert_eq!(found, Found { seats: vec![1, 3], is_adjacent: false });
        assert_eq!(find_in(&layout(1, 6), 4, false, &[2, 4]), None);
    }

    #[test]
    fn accessible_seats_are_given_only_when_asked_for() {
        assert_eq!(find_in(&layout(1, 2), 2, false, &[]), None);
        assert_eq!(find_in(&layout(1, 2), 1, true, &[]).unwrap().seats, [0]);
        assert_eq!(find_in(&layout(1, 2), 1, true, &[0]), None);
    }

    #[test]
    fn whoever_skips_gets_other_seats() {
        let layout = layout(3, 10);
        let seats = |skip| find(&layout, &layout.sections[0], 2, false, skip, |_| true).unwrap().seats;
        assert_ne!(seats(0), seats(1));
        assert!((0..200).all(|skip| seats(skip).len() == 2));
    }

    #[test]
    fn adjacency_is_within_a_row() {
        let layout = layout(2, 4);
        assert!(are_adjacent(&layout, &[2, 1]));
        assert!(!are_adjacent(&layout, &[3, 4]), "the end of one row and the start of the next");
        assert!(!are_adjacent(&layout, &[1, 3]));
    }
}
