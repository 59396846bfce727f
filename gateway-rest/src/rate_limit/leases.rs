//! Quotas in Redis, for all gateways. Calls are leased from them in bulk, so that most are counted without asking Redis.

use std::{
    sync::{Arc, LazyLock},
    time::Duration,
};

use fred::types::scripts::Script;
use mesh::{
    id::Id,
    redis::{Redis, RedisError},
};
use tokio::{sync::Mutex, time::Instant};

use super::{Caller, Taken, WINDOW, callers::Callers, memory::MemoryQuotas};

/// Calls that are leased at once are this part of the quota: half a second of calls.
const LEASES_IN_A_QUOTA: u32 = 20;
/// How long Redis is waited for, before this gateway counts for itself.
const PATIENCE: Duration = Duration::from_millis(100);
/// How long it then does so, before it asks again for the same caller.
const RESPITE: Duration = Duration::from_secs(1);

static LEASE: LazyLock<Script> = LazyLock::new(|| Script::from_lua(include_str!("lease.lua")));

/// The quotas of callers.
#[derive(Debug)]
pub(super) struct LeasedQuotas {
    redis: Redis,
    quota: u32,
    leases: Callers<Arc<Mutex<Lease>>>,
    /// While Redis is away.
    own: MemoryQuotas,
}

/// Calls of a caller that this gateway may grant without asking.
#[derive(Debug)]
struct Lease {
    calls: u32,
    /// Whether Redis did not answer: this gateway counts for itself.
    is_own: bool,
    /// Calls that were left in Redis when it was asked last.
    left: u32,
    /// When the quota is whole again, or when there will be a call in it for one who was refused.
    reset_time: Instant,
    /// When the lease is worth nothing any more, or Redis may be asked again.
    end_time: Instant,
}

impl LeasedQuotas {
    /// So many calls in a window for each caller.
    pub(super) fn new(redis: Redis, quota: u32) -> Self {
        Self { redis, quota, leases: Callers::new(), own: MemoryQuotas::new(quota) }
    }

    pub(super) async fn take(&self, caller: Caller) -> Taken {
        let lease = self.lease_of(caller);
        // Whoever else calls for this caller now waits for the same answer.
        let mut lease = lease.lock().await;
        let now = Instant::now();
        if lease.end_time <= now {
            match tokio::time::timeout(PATIENCE, self.ask(caller)).await {
                Ok(Ok(leased)) => *lease = leased,
                Ok(Err(_)) | Err(_) => (lease.is_own, lease.end_time) = (true, now + RESPITE),
            }
        }
        if lease.is_own {
            return self.own.take(caller);
        }
        let reset = lease.reset_time.saturating_duration_since(now);
        if lease.calls == 0 {
            return Taken { is_granted: false, remaining: 0, reset };
        }
        lease.calls -= 1;
        if lease.calls == 0 {
            lease.end_time = now;
        }
        Taken { is_granted: true, remaining: lease.calls + lease.left, reset }
    }

    fn lease_of(&self, caller: Caller) -> Arc<Mutex<Lease>> {
        let now = Instant::now();
        let none = || {
            Arc::new(Mutex::new(Lease { calls: 0, is_own: false, left: 0, reset_time: now, end_time: now }))
        };
        // One that can't be looked at is in use.
        let is_over = |lease: &Arc<Mutex<Lease>>| lease.try_lock().is_ok_and(|lease| lease.end_time <= now);
        self.leases.with(caller, none, is_over, |lease| Arc::clone(lease))
    }

    /// Leases calls.
    async fn ask(&self, caller: Caller) -> Result<Lease, RedisError> {
        let cost = WINDOW / self.quota;
        let wanted = (self.quota / LEASES_IN_A_QUOTA).max(1);
        let arguments =
            vec![wanted.into(), (WINDOW.as_micros() as i64).into(), (cost.as_micros() as i64).into()];
        let (calls, left, reset): (u32, u32, u64) =
            self.redis.run(&LEASE, vec![key(caller)], arguments).await?;
        let now = Instant::now();
        let reset_time = now + Duration::from_micros(reset);
        let end_time = if calls == 0 { reset_time } else { now + WINDOW };
        Ok(Lease { calls, is_own: false, left, reset_time, end_time })
    }
}

fn key(caller: Caller) -> String {
    match caller {
        Caller::User(user) => format!("gateway:calls:user:{}", user.uuid().simple()),
        Caller::Address(address) => format!("gateway:calls:address:{address}"),
    }
}
