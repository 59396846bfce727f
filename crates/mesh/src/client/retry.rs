//! How often a call is tried again: at most [`TRIES`] times, and all calls together at most a fifth more than were
//! made (or a few a second), so that a neighbour in trouble is not buried.

use std::time::Duration;

use tower::retry::budget::{Budget, TpsBudget};

/// How often a call is tried at the most.
pub(super) const TRIES: u32 = 3;
const FIRST_PAUSE: Duration = Duration::from_millis(10);
/// Retries that are always allowed, a second: a lone call after a quiet hour may be tried again.
const MINIMUM_PER_SECOND: u32 = 5;
/// Retries beside these: one for seven calls (of this, tower cuts off what is no whole number of calls). Together they
/// are a fifth at the most from a hundred calls a second on.
const SHARE: f32 = 1.0 / 7.1;
const WINDOW: Duration = Duration::from_secs(10);

/// What all calls to a neighbour may be tried again.
pub(super) struct RetryBudget(TpsBudget);

impl RetryBudget {
    pub(super) fn new() -> Self {
        Self(TpsBudget::new(WINDOW, MINIMUM_PER_SECOND, SHARE))
    }

    /// A call was made.
    pub(super) fn deposit(&self) {
        self.0.deposit();
    }

    /// Whether one more retry is within the budget.
    pub(super) fn withdraw(&self) -> bool {
        self.0.withdraw()
    }
}

/// How long to wait before the next try: twice as long each time, somewhere between half and all of it, so that
/// callers that failed together don't come back together.
pub(super) fn pause(tries: u32) -> Duration {
    let longest = FIRST_PAUSE * 2u32.pow(tries - 1);
    longest.mul_f64(rand::random_range(0.5..=1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn retries_stay_within_their_share() {
        let budget = RetryBudget::new();
        for _ in 0..1000 {
            budget.deposit();
        }
        let granted = (0..1000).filter(|_| budget.withdraw()).count();
        assert!((150..=200).contains(&granted), "{granted}");
    }

    #[test]
    fn pauses_grow_and_differ() {
        assert!((1..20).all(|_| pause(1) <= FIRST_PAUSE && pause(3) >= 2 * FIRST_PAUSE));
        assert_ne!(pause(2), pause(2));
    }
}
