//! Slows down whoever guesses passwords: after some failed logins with an e-mail, the next try has to wait, a little
//! longer each time and a minute at the most. So a guesser gets about 60 tries an hour, and the owner is never locked
//! out for good. Unknown e-mails are treated alike.
//!
//! Kept in memory: each process counts for itself, and forgets when it ends. Guessing many e-mails from one place is the
//! gateway's to limit.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use chrono::{DateTime, TimeDelta, Utc};

use crate::email::EmailAddress;

/// Failed logins that cost no wait.
const FREE_FAILURES: u32 = 10;
/// Failures are forgotten when so long nobody tried.
const MEMORY: TimeDelta = TimeDelta::minutes(15);
/// The longest wait.
const LONGEST_PAUSE: TimeDelta = TimeDelta::seconds(60);
/// E-mails remembered. Filling it takes an attacker hours, since each failure costs a password check.
const EMAIL_LIMIT: usize = 100_000;

/// The failed logins of late.
#[derive(Debug, Default)]
pub(crate) struct LoginThrottle {
    failures: Mutex<HashMap<EmailAddress, Failures>>,
}

#[derive(Debug, Clone, Copy)]
struct Failures {
    count: u32,
    last: DateTime<Utc>,
}

impl LoginThrottle {
    /// Lets a login be tried, or says how long to wait. A try counts as failed until it [`succeeded`](Self::succeeded),
    /// so that many at once are no way around.
    pub(crate) fn admit(&self, email: &EmailAddress, now: DateTime<Utc>) -> Result<(), Duration> {
        let mut failures = self.lock();
        let before = failures.get(email).filter(|failures| now - failures.last < MEMORY).copied();
        let count = before.map_or(0, |failures| failures.count);
        if let Some(before) = before {
            // Never more than the pause, even if the clock was set back.
            let wait = (before.last + pause_after(count) - now).min(LONGEST_PAUSE);
            if let Ok(wait) = wait.to_std()
                && !wait.is_zero()
            {
                return Err(wait);
            }
        }
        if before.is_none() && failures.len() >= EMAIL_LIMIT {
            make_room(&mut failures, now);
        }
        failures.insert(email.clone(), Failures { count: count.saturating_add(1), last: now });
        Ok(())
    }

    /// Forgets the failures: whoever tried has the password.
    pub(crate) fn succeeded(&self, email: &EmailAddress) {
        self.lock().remove(email);
    }

    /// Doesn't count a try: the password was never checked.
    pub(crate) fn take_back(&self, email: &EmailAddress) {
        if let Some(failures) = self.lock().get_mut(email) {
            failures.count = failures.count.saturating_sub(1);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<EmailAddress, Failures>> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How long after so many failures the next try has to wait: 1 s, 2 s, 4 s, … 60 s.
fn pause_after(failures: u32) -> TimeDelta {
    match failures.checked_sub(FREE_FAILURES) {
        None => TimeDelta::zero(),
        Some(more @ 0..=5) => TimeDelta::seconds(1 << more),
        Some(_) => LONGEST_PAUSE,
    }
}

fn make_room(failures: &mut HashMap<EmailAddress, Failures>, now: DateTime<Utc>) {
    failures.retain(|_, failures| now - failures.last < MEMORY);
    if failures.len() >= EMAIL_LIMIT {
        failures.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn email(name: &str) -> EmailAddress {
        EmailAddress::parse(&format!("{name}@example.com")).unwrap()
    }

    fn start() -> DateTime<Utc> {
        DateTime::from_timestamp(1_800_000_000, 0).unwrap()
    }

    fn fail(throttle: &LoginThrottle, email: &EmailAddress, times: u32, now: DateTime<Utc>) {
        for _ in 0..times {
            throttle.admit(email, now).unwrap();
        }
    }

    #[test]
    fn waits_grow_to_a_minute_and_no_further() {
        let (throttle, fan, mut now) = (LoginThrottle::default(), email("fan"), start());
        fail(&throttle, &fan, FREE_FAILURES, now);
        for expected in [1, 2, 4, 8, 16, 32, 60, 60, 60] {
            assert_eq!(throttle.admit(&fan, now), Err(Duration::from_secs(expected)));
            now += TimeDelta::seconds(expected as i64);
            throttle.admit(&fan, now).unwrap();
        }
    }

    #[test]
    fn other_e_mails_are_not_slowed_down() {
        let throttle = LoginThrottle::default();
        fail(&throttle, &email("fan"), FREE_FAILURES, start());
        assert!(throttle.admit(&email("fan"), start()).is_err());
        assert_eq!(throttle.admit(&email("other"), start()), Ok(()));
    }

    #[test]
    fn success_a_quiet_while_and_a_try_taken_back_make_room_for_tries() {
        let (throttle, fan, now) = (LoginThrottle::default(), email("fan"), start());
        fail(&throttle, &fan, FREE_FAILURES - 1, now);
        throttle.admit(&fan, now).unwrap();
        throttle.take_back(&fan);
        throttle.admit(&fan, now).unwrap();
        assert!(throttle.admit(&fan, now).is_err());
        assert_eq!(throttle.admit(&fan, now + MEMORY), Ok(()), "forgotten");
        throttle.succeeded(&fan);
        fail(&throttle, &fan, FREE_FAILURES, now + MEMORY);
        assert!(throttle.admit(&fan, now + MEMORY).is_err());
    }

    #[test]
    fn a_clock_set_back_locks_nobody_out() {
        let (throttle, fan, now) = (LoginThrottle::default(), email("fan"), start());
        fail(&throttle, &fan, FREE_FAILURES, now);
        let wait = throttle.admit(&fan, now - TimeDelta::hours(1)).unwrap_err();
        assert_eq!(wait, Duration::from_secs(60));
    }

    #[test]
    fn memory_is_bounded() {
        let throttle = LoginThrottle::default();
        for number in 0..EMAIL_LIMIT + 10 {
            throttle.admit(&email(&number.to_string()), start()).unwrap();
        }
        assert!(throttle.lock().len() <= EMAIL_LIMIT);
    }
}
