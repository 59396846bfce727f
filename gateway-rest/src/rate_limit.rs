//! How many calls a caller may make: a bucket a user, and one an address for callers without a token
//! (<https://datatracker.ietf.org/doc/draft-ietf-httpapi-ratelimit-headers/>).

use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    net::IpAddr,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use boxoffice_proto::common::v1::ErrorReason;
use http::{HeaderMap, HeaderName, HeaderValue};
use mesh::id::UserId;
use tokio::time::Instant;

use crate::problem::{Problem, whole_seconds};

/// The time over which a quota is counted. A caller who was quiet that long may use all of it at once.
const WINDOW: Duration = Duration::from_secs(10);
const SHARDS: usize = 16;
/// Callers remembered in a shard before those whose bucket is full again are forgotten.
const SHARD_LIMIT: usize = 8192;

const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

/// Whose calls are counted together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Caller {
    /// A user, by a verified token.
    User(UserId),
    /// Whoever calls from an address.
    Address(IpAddr),
}

impl Caller {
    /// The caller at an address. One customer of a provider has at least a /64 of IPv6.
    pub fn at(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Self::Address(address.into()),
            IpAddr::V6(address) => Self::Address(IpAddr::V6((address.to_bits() & (!0 << 64)).into())),
        }
    }
}

/// Counts the calls of every caller.
#[derive(Debug)]
pub struct RateLimits {
    users: Buckets,
    addresses: Buckets,
}

impl RateLimits {
    /// Limits, in calls a second.
    pub fn new(calls_per_user: u32, calls_per_address: u32) -> Self {
        Self {
            users: Buckets::new("user", calls_per_user),
            addresses: Buckets::new("address", calls_per_address),
        }
    }

    /// Counts a call.
    pub fn take(&self, caller: Caller) -> Decision<'_> {
        let buckets = match caller {
            Caller::User(_) => &self.users,
            Caller::Address(_) => &self.addresses,
        };
        buckets.take(caller)
    }
}

/// Buckets with the same quota. A bucket is the time at which it will be full again (the generic cell rate algorithm).
#[derive(Debug)]
struct Buckets {
    name: &'static str,
    quota: u32,
    policy: HeaderValue,
    hasher: RandomState,
    shards: [Mutex<HashMap<Caller, Instant>>; SHARDS],
}

/// What came of counting a call.
#[derive(Debug)]
pub struct Decision<'a> {
    buckets: &'a Buckets,
    /// Calls left right now.
    remaining: u32,
    /// How long until the bucket is full, or until there is a call in it for one who was refused.
    reset: Duration,
    is_refused: bool,
}

impl Buckets {
    fn new(name: &'static str, calls_per_second: u32) -> Self {
        let quota = calls_per_second.saturating_mul(WINDOW.as_secs() as u32).max(1);
        let policy = format!("\"{name}\";q={quota};w={}", WINDOW.as_secs());
        let policy = HeaderValue::try_from(policy).expect("a name and numbers");
        Self { name, quota, policy, hasher: RandomState::new(), shards: Default::default() }
    }

    fn take(&self, caller: Caller) -> Decision<'_> {
        let now = Instant::now();
        let cost = WINDOW / self.quota;
        let shard = &self.shards[self.hasher.hash_one(caller) as usize % SHARDS];
        let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
        if shard.len() >= SHARD_LIMIT {
            shard.retain(|_, full_time| *full_time > now);
        }
        let full_time = shard.entry(caller).or_insert(now);
        let debt = full_time.saturating_duration_since(now) + cost;
        if debt > WINDOW {
            return Decision { buckets: self, remaining: 0, reset: debt - WINDOW, is_refused: true };
        }
        *full_time = now + debt;
        let remaining = ((WINDOW - debt).as_nanos() / cost.as_nanos()) as u32;
        Decision { buckets: self, remaining, reset: debt, is_refused: false }
    }
}

impl Decision<'_> {
    /// Refuses the call, if it was one too many.
    ///
    /// # Errors
    /// `RATE_LIMITED`.
    pub fn admit(&self) -> Result<(), Problem> {
        if !self.is_refused {
            return Ok(());
        }
        let quota = self.buckets.quota;
        let detail = format!("more than {quota} calls in {} s", WINDOW.as_secs());
        Err(Problem::new(ErrorReason::RateLimited, detail).with("limit", quota).retry_after(self.reset))
    }

    /// Tells the caller how many calls are left.
    pub fn write(&self, headers: &mut HeaderMap) {
        let Self { buckets: Buckets { name, policy, .. }, remaining, reset, .. } = self;
        let state = format!("\"{name}\";r={remaining};t={}", whole_seconds(*reset));
        headers.insert(RATE_LIMIT, HeaderValue::try_from(state).expect("a name and numbers"));
        headers.insert(RATE_LIMIT_POLICY, policy.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::response::IntoResponse;
    use http::header::RETRY_AFTER;

    fn caller(number: u32) -> Caller {
        Caller::at(IpAddr::V4(number.into()))
    }

    #[tokio::test(start_paused = true)]
    async fn a_quota_is_refilled_over_time() {
        let limits = RateLimits::new(5, 2);
        for left in (0..20).rev() {
            assert_eq!(limits.take(caller(1)).remaining, left);
        }
        let refused = limits.take(caller(1));
        let response = refused.admit().unwrap_err().into_response();
        assert_eq!(
            (response.status().as_u16(), &response.headers()[RETRY_AFTER]),
            (429, &"1".parse().unwrap())
        );
        assert!(limits.take(caller(2)).admit().is_ok(), "another caller is not affected");
        assert!(limits.take(Caller::User(UserId::new())).admit().is_ok());

        tokio::time::advance(Duration::from_millis(499)).await;
        assert!(limits.take(caller(1)).admit().is_err());
        tokio::time::advance(Duration::from_millis(1)).await;
        assert!(limits.take(caller(1)).admit().is_ok());
        assert!(limits.take(caller(1)).admit().is_err());
        tokio::time::advance(WINDOW * 10).await;
        assert_eq!(limits.take(caller(1)).remaining, 19, "a bucket never holds more than the quota");
    }

    #[tokio::test(start_paused = true)]
    async fn callers_are_told_what_is_left() {
        let limits = RateLimits::new(5, 2);
        let mut headers = HeaderMap::new();
        limits.take(Caller::User(UserId::new())).write(&mut headers);
        assert_eq!(headers["ratelimit-policy"], "\"user\";q=50;w=10");
        assert_eq!(headers["ratelimit"], "\"user\";r=49;t=1");
    }

    #[tokio::test(start_paused = true)]
    async fn memory_is_bounded_by_the_callers_of_one_window() {
        let limits = RateLimits::new(1, 1);
        for round in 0..4 {
            for number in 0..SHARD_LIMIT * SHARDS / 2 {
                limits.take(caller((round * 10_000_000 + number) as u32));
            }
            tokio::time::advance(WINDOW).await;
        }
        let remembered: usize = limits.addresses.shards.iter().map(|shard| shard.lock().unwrap().len()).sum();
        assert!(remembered <= SHARD_LIMIT * SHARDS, "{remembered}");
    }

    #[test]
    fn a_customer_of_ipv6_is_one_caller() {
        let at = |address: &str| Caller::at(address.parse().unwrap());
        assert_eq!(at("2001:db8::1"), at("2001:db8::ffff:1"));
        assert_ne!(at("2001:db8::1"), at("2001:db8:0:1::1"));
        assert_eq!(at("::ffff:192.0.2.1"), at("192.0.2.1"));
        assert_ne!(at("192.0.2.1"), at("192.0.2.2"));
    }
}
