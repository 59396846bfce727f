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

/// A login that is being tried. Dropped, it was never decided, as when the caller left: it does not count.
#[derive(Debug)]
pub(crate) struct Attempt<'a> {
    throttle: &'a LoginThrottle,
    email: &'a EmailAddress,
    is_decided: bool,
}

#[derive(Debug, Clone, Copy)]
struct Failures {
    count: u32,
    last: DateTime<Utc>,
}

impl LoginThrottle {
    /// Lets a login be tried, or says how long to wait. An attempt counts as failed until it has ended, so that many at
    /// once are no way around.
    pub(crate) fn admit<'a>(
        &'a self,
        email: &'a EmailAddress,
        now: DateTime<Utc>,
    ) -> Result<Attempt<'a>, Duration> {
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
        Ok(Attempt { throttle: self, email, is_decided: false })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<EmailAddress, Failures>> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Attempt<'_> {
    /// Forgets the failures: whoever tried has the password.
    pub(crate) fn succeed(mut self) {
        self.is_decided = true;
        self.throttle.lock().remove(self.email);
    }

    /// Counts the attempt: the password was wrong.
    pub(crate) fn fail(mut self) {
        self.is_decided = true;
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        if !self.is_decided
            && let Some(failures) = self.throttle.lock().get_mut(self.email)
        {
            failures.count = failures.count.saturating_sub(1);
        }
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
            throttle.admit(email, now).unwrap().fail();
        }
    }

    #[test]
    fn waits_grow_to_a_minute_and_no_further() {
        let (throttle, fan, mut now) = (LoginThrottle::default(), email("fan"), start());
        fail(&throttle, &fan, FREE_FAILURES, now);
        for expected in [1, 2, 4, 8, 16, 32, 60, 60, 60] {
            assert_eq!(throttle.admit(&fan, now).unwrap_err(), Duration::from_secs(expected));
            now += TimeDelta::seconds(expected as i64);
            throttle.admit(&fan, now).unwrap().fail();
        }
    }

    #[test]
    fn other_e_mails_are_not_slowed_down() {
        let throttle = LoginThrottle::default();
        fail(&throttle, &email("fan"), FREE_FAILURES, start());
        assert!(throttle.admit(&email("fan"), start()).is_err());
        assert!(throttle.admit(&email("other"), start()).is_ok());
    }

    #[test]
    fn success_a_quiet_while_and_an_abandoned_attempt_make_room() {
        let (throttle, fan, now) = (LoginThrottle::default(), email("fan"), start());
        fail(&throttle, &fan, FREE_FAILURES - 1, now);
        for _ in 0..3 {
            let attempt = throttle.admit(&fan, now).unwrap();
            assert!(throttle.admit(&fan, now).is_err(), "it may fail yet");
            drop(attempt);
        }
        fail(&throttle, &fan, 1, now);
        assert!(throttle.admit(&fan, now).is_err());
        let forgotten = throttle.admit(&fan, now + MEMORY).unwrap();
        forgotten.succeed();
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
            throttle.admit(&email(&number.to_string()), start()).unwrap().fail();
        }
        assert!(throttle.lock().len() <= EMAIL_LIMIT);
    }
}
