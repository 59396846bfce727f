//! Quotas in this process.

use tokio::time::Instant;

use super::{Caller, Taken, WINDOW, callers::Callers};

/// The quotas of callers. Each is the time at which it will be whole again (the generic cell rate algorithm).
#[derive(Debug)]
pub(super) struct MemoryQuotas {
    quota: u32,
    whole_times: Callers<Instant>,
}

impl MemoryQuotas {
    /// So many calls in a window for each caller.
    pub(super) fn new(quota: u32) -> Self {
        Self { quota, whole_times: Callers::new() }
    }

    pub(super) fn take(&self, caller: Caller) -> Taken {
        let now = Instant::now();
        let cost = WINDOW / self.quota;
        self.whole_times.with(
            caller,
            || now,
            |whole_time| *whole_time <= now,
            |whole_time| {
                let debt = whole_time.saturating_duration_since(now) + cost;
                if debt > WINDOW {
                    return Taken { is_granted: false, remaining: 0, reset: debt - WINDOW };
                }
                *whole_time = now + debt;
                let remaining = ((WINDOW - debt).as_nanos() / cost.as_nanos()) as u32;
                Taken { is_granted: true, remaining, reset: debt }
            },
        )
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn memory_is_bounded_by_the_callers_of_one_window() {
        let quotas = MemoryQuotas::new(10);
        for round in 0..4 {
            for number in 0..Callers::<Instant>::LIMIT / 2 {
                quotas.take(Caller::at(IpAddr::V4(((round * 10_000_000 + number) as u32).into())));
            }
            tokio::time::advance(WINDOW).await;
        }
        let remembered = quotas.whole_times.count();
        assert!(remembered <= Callers::<Instant>::LIMIT, "{remembered}");
    }
}
