//! What happened in a sale, counted: accepted and refused work apart.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    time::Duration,
};

use hdrhistogram::Histogram;
use mesh::id::BookingId;
use tokio::time::Instant;

use crate::sweep::{HoldsSeen, Witness};

/// The longest latency told apart, in microseconds: two minutes.
const LONGEST_LATENCY: u64 = 120_000_000;

/// Something that happened to a fan.
#[derive(Debug)]
pub(super) enum Event {
    /// A hold was answered; latency from when it was due.
    HoldAnswered { latency: Duration, is_good: bool },
    /// Seats are held until then, as far as is known now.
    Held { hold: String, end: Instant },
    /// A hold is no more: it was given back, or a booking has its places, of which these are the sections.
    HoldOver { hold: String, taken: Vec<String> },
    /// A fan left held seats behind.
    Abandoned,
    /// A booking was answered; latency from when it was due.
    BookingAnswered { latency: Duration, is_good: bool },
    /// A booking is confirmed.
    Booked { id: BookingId, seats: usize, at: Instant },
    /// A booking was made and is not confirmed.
    NotConfirmed { id: BookingId, state: String },
    /// Something was refused for a reason that belongs to a rush.
    Refused(String),
    /// Something went wrong that should not have.
    Error(String),
}

/// What happened, counted.
pub(super) struct Tally {
    start: Instant,
    last_booking: Instant,
    /// The holds that were neither booked nor given back, and when they end.
    left_holds: HashMap<String, Instant>,
    /// How many places bookings have, by section.
    taken: BTreeMap<String, usize>,
    holds: usize,
    abandoned: usize,
    booked: Vec<BookingId>,
    booked_at: Vec<Instant>,
    seats: usize,
    not_confirmed: Vec<BookingId>,
    refused: BTreeMap<String, usize>,
    errors: BTreeMap<String, usize>,
    accepted_holds: Latencies,
    refused_holds: Latencies,
    accepted_bookings: Latencies,
    refused_bookings: Latencies,
}

/// Latencies in microseconds, to three digits.
struct Latencies(Histogram<u64>);

impl Latencies {
    fn new() -> Self {
        Self(Histogram::new_with_max(LONGEST_LATENCY, 3).expect("three digits are possible"))
    }

    fn note(&mut self, latency: Duration) {
        self.0.saturating_record(latency.as_micros() as u64);
    }
}

impl fmt::Display for Latencies {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return write!(formatter, "none");
        }
        let at = |quantile| self.0.value_at_quantile(quantile) as f64 / 1000.0;
        write!(
            formatter,
            "{:>6}   p50 {:8.1}   p95 {:8.1}   p99 {:8.1}   max {:8.1} ms",
            self.0.len(),
            at(0.5),
            at(0.95),
            at(0.99),
            self.0.max() as f64 / 1000.0
        )
    }
}

impl Tally {
    pub(super) fn new(start: Instant) -> Self {
        Self {
            start,
            last_booking: start,
            left_holds: HashMap::new(),
            taken: BTreeMap::new(),
            holds: 0,
            abandoned: 0,
            booked: Vec::new(),
            booked_at: Vec::new(),
            seats: 0,
            not_confirmed: Vec::new(),
            refused: BTreeMap::new(),
            errors: BTreeMap::new(),
            accepted_holds: Latencies::new(),
            refused_holds: Latencies::new(),
            accepted_bookings: Latencies::new(),
            refused_bookings: Latencies::new(),
        }
    }

    pub(super) fn note(&mut self, event: Event) {
        match event {
            Event::HoldAnswered { latency, is_good: true } => {
                self.holds += 1;
                self.accepted_holds.note(latency);
            }
            Event::HoldAnswered { latency, is_good: false } => self.refused_holds.note(latency),
            Event::BookingAnswered { latency, is_good: true } => self.accepted_bookings.note(latency),
            Event::BookingAnswered { latency, is_good: false } => self.refused_bookings.note(latency),
            Event::Held { hold, end } => {
                self.left_holds.insert(hold, end);
            }
            Event::HoldOver { hold, taken } => {
                self.left_holds.remove(&hold);
                for section in taken {
                    *self.taken.entry(section).or_default() += 1;
                }
            }
            Event::Abandoned => self.abandoned += 1,
            Event::Booked { id, seats, at } => {
                self.booked.push(id);
                self.booked_at.push(at);
                self.seats += seats;
                self.last_booking = self.last_booking.max(at);
            }
            Event::NotConfirmed { id, state } => {
                self.not_confirmed.push(id);
                *self.refused.entry(format!("booking left {state}")).or_default() += 1;
            }
            Event::Refused(reason) => *self.refused.entry(reason).or_default() += 1,
            Event::Error(text) => *self.errors.entry(text).or_default() += 1,
        }
    }

    pub(super) fn seats_sold(&self) -> usize {
        self.seats
    }

    pub(super) fn errors(&self) -> usize {
        self.errors.values().sum()
    }

    pub(super) fn holds(&self) -> usize {
        self.holds
    }

    /// When the last of the holds ends that were neither booked nor given back.
    pub(super) fn last_hold_end(&self) -> Option<Instant> {
        self.left_holds.values().copied().max()
    }

    /// How many places bookings have, by section.
    pub(super) fn taken(&self) -> &BTreeMap<String, usize> {
        &self.taken
    }

    /// The most bookings within any one second.
    fn best_second(&self) -> usize {
        let mut times = self.booked_at.clone();
        times.sort_unstable();
        let within = |first: usize| {
            times[first..].partition_point(|time| *time < times[first] + Duration::from_secs(1))
        };
        (0..times.len()).map(within).max().unwrap_or_default()
    }

    /// What was seen, for the sweep.
    pub(super) fn witness(&self, holds: HoldsSeen) -> Witness {
        Witness { confirmed: self.booked.clone(), made: self.not_confirmed.clone(), holds }
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = (self.last_booking - self.start).as_secs_f64().max(0.001);
        writeln!(
            formatter,
            "Accepted, latency from the scheduled send: {} holds ({} abandoned), {} bookings of {} seats",
            self.holds,
            self.abandoned,
            self.booked.len(),
            self.seats
        )?;
        writeln!(
            formatter,
            "  {:.0} bookings/s until the last of them, after {seconds:.2} s",
            self.booked.len() as f64 / seconds
        )?;
        writeln!(formatter, "  {} bookings within the best second", self.best_second())?;
        writeln!(formatter, "  hold     {}", self.accepted_holds)?;
        writeln!(formatter, "  booking  {}", self.accepted_bookings)?;
        writeln!(formatter, "Refused, latency from the scheduled send:")?;
        writeln!(formatter, "  hold     {}", self.refused_holds)?;
        writeln!(formatter, "  booking  {}", self.refused_bookings)?;
        for (reason, count) in &self.refused {
            writeln!(formatter, "  {count:>6}   {reason}")?;
        }
        for (text, count) in &self.errors {
            writeln!(formatter, "ERROR {count} times: {text}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hold_is_left_until_it_is_booked_or_given_back() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let held = |hold: &str, seconds| Event::Held { hold: hold.into(), end: after(seconds) };
        let over = |hold: &str, taken: &[&str]| Event::HoldOver {
            hold: hold.into(),
            taken: taken.iter().map(ToString::to_string).collect(),
        };
        let mut tally = Tally::new(start);
        assert_eq!(tally.last_hold_end(), None);
        for event in [held("booked", 9), held("left", 3), held("given back", 8), held("kept longer", 3)] {
            tally.note(event);
        }
        for event in
            [over("booked", &["A", "FLOOR", "FLOOR"]), over("given back", &[]), held("kept longer", 5)]
        {
            tally.note(event);
        }
        assert_eq!(tally.last_hold_end(), Some(after(5)));
        assert_eq!(tally.taken(), &BTreeMap::from([("A".to_owned(), 1), ("FLOOR".to_owned(), 2)]));
    }
}
