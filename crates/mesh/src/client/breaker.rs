//! The breaker of a neighbour: Closed = healthy; Open = refusing; HalfOpen = probing with one call.
//!
//! It opens when at least half of the last [`WINDOW`] calls were faults, refuses for [`OPEN_PERIOD`], then lets one call
//! through: an answer closes it, a fault opens it again.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// How many calls it looks back.
const WINDOW: u32 = 20;
/// How long it refuses before it probes.
const OPEN_PERIOD: Duration = Duration::from_secs(5);
/// When to come back while another call is the probe.
const PROBE_PAUSE: Duration = Duration::from_secs(1);

/// What a call says about the neighbour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It answered, good or bad.
    Answer,
    /// It did not answer, or not as a healthy service does.
    Fault,
}

#[derive(Debug, Clone, Copy)]
enum State {
    /// The last outcomes, newest in the lowest bit, a fault a one; and how many there are.
    Closed {
        faults: u32,
        calls: u32,
    },
    Open {
        since: Instant,
    },
    HalfOpen,
}

const HEALTHY: State = State::Closed { faults: 0, calls: 0 };

pub(super) struct Breaker {
    neighbour: &'static str,
    state: Mutex<State>,
}

/// Leave for one call. Dropped unfinished (the caller left), it says nothing about the neighbour.
pub(super) struct Permit<'a> {
    breaker: &'a Breaker,
    is_probe: bool,
    is_finished: bool,
}

impl Breaker {
    pub(super) fn new(neighbour: &'static str) -> Self {
        Self { neighbour, state: Mutex::new(HEALTHY) }
    }

    /// Leave to call, or how long to wait before asking again.
    pub(super) fn admit(&self) -> Result<Permit<'_>, Duration> {
        let mut state = self.lock();
        let is_probe = match *state {
            State::Closed { .. } => false,
            State::Open { since } if since.elapsed() < OPEN_PERIOD => {
                return Err(OPEN_PERIOD - since.elapsed());
            }
            State::Open { .. } => {
                *state = State::HalfOpen;
                true
            }
            State::HalfOpen => return Err(PROBE_PAUSE),
        };
        Ok(Permit { breaker: self, is_probe, is_finished: false })
    }

    /// Whether a call would be refused now.
    pub(super) fn is_refusing(&self) -> bool {
        match *self.lock() {
            State::Closed { .. } => false,
            State::Open { since } => since.elapsed() < OPEN_PERIOD,
            State::HalfOpen => true,
        }
    }

    /// 0: Closed; 1: HalfOpen; 2: Open.
    pub(super) fn level(&self) -> u64 {
        match *self.lock() {
            State::Closed { .. } => 0,
            State::HalfOpen => 1,
            State::Open { .. } => 2,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Permit<'_> {
    /// The call is over. None: it says nothing about the neighbour.
    pub(super) fn finish(mut self, outcome: Option<Outcome>) {
        self.settle(outcome);
    }

    fn settle(&mut self, outcome: Option<Outcome>) {
        self.is_finished = true;
        let mut state = self.breaker.lock();
        let before = *state;
        *state = match (before, outcome) {
            (State::HalfOpen, Some(Outcome::Answer)) if self.is_probe => HEALTHY,
            (State::HalfOpen, Some(Outcome::Fault)) if self.is_probe => State::Open { since: Instant::now() },
            // A probe that says nothing makes room for the next one at once.
            (State::HalfOpen, None) if self.is_probe => State::Open { since: Instant::now() - OPEN_PERIOD },
            (State::Closed { faults, calls }, Some(outcome)) => {
                let faults = (faults << 1 | u32::from(outcome == Outcome::Fault)) & ((1 << WINDOW) - 1);
                let calls = (calls + 1).min(WINDOW);
                if calls == WINDOW && faults.count_ones() * 2 >= WINDOW {
                    State::Open { since: Instant::now() }
                } else {
                    State::Closed { faults, calls }
                }
            }
            // A call that began before the breaker opened comes too late to say anything.
            (unchanged, _) => unchanged,
        };
        let after = *state;
        // Whoever writes the log may be slow; nobody is to wait for that.
        drop(state);
        let neighbour = self.breaker.neighbour;
        match (before, after) {
            (State::Closed { .. }, State::Open { .. }) => {
                tracing::warn!(neighbour, "a breaker has opened: its neighbour is not called for a while");
            }
            (State::HalfOpen, State::Closed { .. }) => tracing::info!(neighbour, "a breaker has closed"),
            _ => {}
        }
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        if !self.is_finished {
            self.settle(None);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(breaker: &Breaker, outcome: Outcome) -> bool {
        let permit = breaker.admit();
        let is_admitted = permit.is_ok();
        if let Ok(permit) = permit {
            permit.finish(Some(outcome));
        }
        is_admitted
    }

    fn open(breaker: &Breaker) {
        for _ in 0..WINDOW {
            call(breaker, Outcome::Fault);
        }
        assert!(breaker.is_refusing());
    }

    #[tokio::test(start_paused = true)]
    async fn it_opens_on_half_and_closes_on_one_answer() {
        let breaker = Breaker::new("neighbour");
        for turn in 0..WINDOW - 1 {
            let outcome = if turn % 2 == 0 { Outcome::Fault } else { Outcome::Answer };
            assert!(call(&breaker, outcome));
        }
        assert!(!breaker.is_refusing(), "nineteen calls say too little");
        call(&breaker, Outcome::Answer);
        assert_eq!(breaker.admit().err(), Some(OPEN_PERIOD));

        tokio::time::advance(OPEN_PERIOD).await;
        let probe = breaker.admit().expect("one probe");
        assert_eq!(breaker.admit().err(), Some(PROBE_PAUSE), "and only one");
        probe.finish(Some(Outcome::Answer));
        assert!(call(&breaker, Outcome::Answer));
    }

    #[tokio::test(start_paused = true)]
    async fn the_window_slides() {
        let breaker = Breaker::new("neighbour");
        for _ in 0..2000 {
            call(&breaker, Outcome::Answer);
        }
        for _ in 0..9 {
            call(&breaker, Outcome::Fault);
        }
        assert!(!breaker.is_refusing());
        call(&breaker, Outcome::Fault);
        assert!(breaker.is_refusing(), "ten of the last twenty");
    }

    #[tokio::test(start_paused = true)]
    async fn a_failed_probe_opens_it_again() {
        let breaker = Breaker::new("neighbour");
        open(&breaker);
        tokio::time::advance(OPEN_PERIOD).await;
        assert!(call(&breaker, Outcome::Fault));
        assert!(!call(&breaker, Outcome::Answer));
        tokio::time::advance(OPEN_PERIOD).await;
        assert!(call(&breaker, Outcome::Answer));
        assert!(!breaker.is_refusing());
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_whose_caller_left_makes_room() {
        let breaker = Breaker::new("neighbour");
        open(&breaker);
        tokio::time::advance(OPEN_PERIOD).await;
        drop(breaker.admit());
        assert!(call(&breaker, Outcome::Answer));
    }
}
