//! How many calls a caller may make: a bucket a user, and one an address for callers without a token
//! (<https://datatracker.ietf.org/doc/draft-ietf-httpapi-ratelimit-headers/>).

mod callers;
#[cfg(test)]
mod contract;
mod leases;
mod memory;

use std::{net::IpAddr, time::Duration};

use boxoffice_proto::common::v1::ErrorReason;
use http::{HeaderMap, HeaderName, HeaderValue};
use mesh::{id::UserId, redis::Redis};

use self::{leases::LeasedQuotas, memory::MemoryQuotas};
use crate::problem::{Problem, whole_seconds};

/// The time over which a quota is counted. A caller who was quiet that long may use all of it at once.
const WINDOW: Duration = Duration::from_secs(10);

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
    users: Limit,
    addresses: Limit,
}

impl RateLimits {
    /// Limits, in calls a second. With Redis they hold for all gateways together, without it for each.
    pub fn new(calls_per_user: u32, calls_per_address: u32, redis: Option<&Redis>) -> Self {
        Self {
            users: Limit::new("user", calls_per_user, redis),
            addresses: Limit::new("address", calls_per_address, redis),
        }
    }

    /// Counts a call.
    pub async fn take(&self, caller: Caller) -> Decision<'_> {
        let limit = match caller {
            Caller::User(_) => &self.users,
            Caller::Address(_) => &self.addresses,
        };
        Decision { limit, taken: limit.quotas.take(caller).await }
    }
}

/// The same quota for many callers.
#[derive(Debug)]
struct Limit {
    name: &'static str,
    quota: u32,
    policy: HeaderValue,
    quotas: Quotas,
}

impl Limit {
    fn new(name: &'static str, calls_per_second: u32, redis: Option<&Redis>) -> Self {
        let quota = calls_per_second.saturating_mul(WINDOW.as_secs() as u32).max(1);
        let policy = format!("\"{name}\";q={quota};w={}", WINDOW.as_secs());
        let policy = HeaderValue::try_from(policy).expect("a name and numbers");
        let quotas = match redis {
            Some(redis) => Quotas::Leased(Box::new(LeasedQuotas::new(redis.clone(), quota))),
            None => Quotas::Memory(Box::new(MemoryQuotas::new(quota))),
        };
        Self { name, quota, policy, quotas }
    }
}

/// The port for quotas: how many calls each caller has left. One set of tests (`contract`) is run against each adapter.
#[derive(Debug)]
enum Quotas {
    /// In this process.
    Memory(Box<MemoryQuotas>),
    /// In Redis, for all gateways.
    Leased(Box<LeasedQuotas>),
}

impl Quotas {
    /// Takes one call from a caller's quota, if one is left.
    async fn take(&self, caller: Caller) -> Taken {
        match self {
            Self::Memory(quotas) => quotas.take(caller),
            Self::Leased(quotas) => quotas.take(caller).await,
        }
    }
}

/// What came of taking a call from a quota.
#[derive(Debug, Clone, Copy)]
struct Taken {
    is_granted: bool,
    /// Calls left right now.
    remaining: u32,
    /// How long until the quota is whole again, or until there is a call in it for one who was refused.
    reset: Duration,
}

/// What came of counting a call.
#[derive(Debug)]
pub struct Decision<'a> {
    limit: &'a Limit,
    taken: Taken,
}

impl Decision<'_> {
    /// Refuses the call, if it was one too many.
    ///
    /// # Errors
    /// `RATE_LIMITED`.
    pub fn admit(&self) -> Result<(), Problem> {
        if self.taken.is_granted {
            return Ok(());
        }
        let quota = self.limit.quota;
        let detail = format!("more than {quota} calls in {} s", WINDOW.as_secs());
        Err(Problem::new(ErrorReason::RateLimited, detail).with("limit", quota).retry_after(self.taken.reset))
    }

    /// Tells the caller how many calls are left.
    pub fn write(&self, headers: &mut HeaderMap) {
        let Limit { name, policy, .. } = self.limit;
        let state = format!("\"{name}\";r={};t={}", self.taken.remaining, whole_seconds(self.taken.reset));
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
        let limits = RateLimits::new(5, 2, None);
        for left in (0..20).rev() {
            assert_eq!(limits.take(caller(1)).await.taken.remaining, left);
        }
        let refused = limits.take(caller(1)).await;
        let response = refused.admit().unwrap_err().into_response();
        assert_eq!(
            (response.status().as_u16(), &response.headers()[RETRY_AFTER]),
            (429, &"1".parse().unwrap())
        );
        assert!(limits.take(caller(2)).await.admit().is_ok(), "another caller is not affected");
        assert!(limits.take(Caller::User(UserId::new())).await.admit().is_ok());

        tokio::time::advance(Duration::from_millis(499)).await;
        assert!(limits.take(caller(1)).await.admit().is_err());
        tokio::time::advance(Duration::from_millis(1)).await;
        assert!(limits.take(caller(1)).await.admit().is_ok());
        assert!(limits.take(caller(1)).await.admit().is_err());
        tokio::time::advance(WINDOW * 10).await;
        assert_eq!(
            limits.take(caller(1)).await.taken.remaining,
            19,
            "a bucket never holds more than the quota"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn callers_are_told_what_is_left() {
        let limits = RateLimits::new(5, 2, None);
        let mut headers = HeaderMap::new();
        limits.take(Caller::User(UserId::new())).await.write(&mut headers);
        assert_eq!(headers["ratelimit-policy"], "\"user\";q=50;w=10");
        assert_eq!(headers["ratelimit"], "\"user\";r=49;t=1");
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
