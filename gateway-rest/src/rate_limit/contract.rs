//! What every adapter of the port must do, and what several gateways do together.

use std::time::Duration;

use mesh::{id::UserId, redis::Redis, shutdown::Shutdown};
use mesh_test::{RedisCluster, wait_until};

use super::{Caller, LeasedQuotas, MemoryQuotas, Quotas, Taken, WINDOW};

/// Calls in a window: eight a second.
const QUOTA: u32 = 80;
const PATIENCE: Duration = Duration::from_secs(10);

async fn open(url: &str) -> Quotas {
    let redis = Redis::start(&url.parse().unwrap());
    redis.wait(&Shutdown::new()).await;
    Quotas::Leased(Box::new(LeasedQuotas::new(redis, QUOTA)))
}

fn new_caller() -> Caller {
    Caller::User(UserId::new())
}

/// Takes until it is refused: how many were granted, and the refusal.
async fn exhaust(quotas: &Quotas, caller: Caller) -> (u32, Taken) {
    for granted in 0.. {
        let taken = quotas.take(caller).await;
        if !taken.is_granted {
            return (granted, taken);
        }
    }
    unreachable!()
}

/// Whether about the quota was granted: what came back meanwhile may be more.
fn is_quota(granted: u32) -> bool {
    (QUOTA..QUOTA + QUOTA / 4).contains(&granted)
}

async fn a_quota_ends_and_comes_back(quotas: Quotas) {
    let caller = new_caller();
    let first = quotas.take(caller).await;
    assert!(first.is_granted && first.remaining == QUOTA - 1, "{first:?}");
    let (granted, refused) = exhaust(&quotas, caller).await;
    assert!(is_quota(granted + 1), "{granted}");
    assert_eq!(refused.remaining, 0);
    assert!(refused.reset > Duration::ZERO && refused.reset <= WINDOW / QUOTA, "{refused:?}");
    wait_until("a call to come back", PATIENCE, async || {
        let taken = quotas.take(caller).await;
        if taken.is_granted { Ok(()) } else { Err(format!("{taken:?}")) }
    })
    .await;
}

async fn callers_don_t_share(quotas: Quotas) {
    exhaust(&quotas, new_caller()).await;
    let (granted, _) = exhaust(&quotas, new_caller()).await;
    assert!(is_quota(granted), "{granted}");
    let address = Caller::at([192, 0, 2, 1].into());
    let (granted, _) = exhaust(&quotas, address).await;
    assert!(is_quota(granted), "{granted}");
}

async fn many_at_once_are_counted_each(quotas: Quotas) {
    let caller = new_caller();
    let taken = futures_util::future::join_all((0..4 * QUOTA).map(|_| quotas.take(caller))).await;
    let granted = taken.iter().filter(|taken| taken.is_granted).count() as u32;
    assert!(is_quota(granted), "{granted}");
}

/// How often a server was asked for calls since it was told to forget it (`CONFIG RESETSTAT`).
fn asked(redis: &mesh_test::Redis) -> u32 {
    let stats = redis.ask("INFO commandstats");
    let count = stats.iter().find_map(|line| line.strip_prefix("cmdstat_evalsha:calls=")?.split(',').next());
    count.map_or(0, |count| count.parse().unwrap())
}

/// Asserts that all servers of a cluster count callers, and not the gateway for want of them.
async fn assert_callers_are_spread(cluster: &mut RedisCluster) {
    const CALLERS: u32 = 64;
    let quotas = open(&cluster.url()).await;
    for node in cluster.nodes() {
        assert_eq!(node.command("CONFIG RESETSTAT"), "+OK");
    }
    for _ in 0..CALLERS {
        quotas.take(new_caller()).await;
    }
    let asked = cluster.nodes().each_ref().map(asked);
    assert!(!asked.contains(&0) && asked.iter().sum::<u32>() >= CALLERS, "{asked:?}");
}

macro_rules! contract {
    ($($name:ident),* $(,)?) => {
        mod memory {
            use super::{MemoryQuotas, QUOTA, Quotas};

            $(#[tokio::test]
            async fn $name() {
                super::$name(Quotas::Memory(Box::new(MemoryQuotas::new(QUOTA)))).await;
            })*
        }

        mod leased {
            $(#[tokio::test]
            #[ignore = "needs Redis: scripts/test runs it"]
            async fn $name() {
                let redis = mesh_test::Redis::start().await;
                super::$name(super::open(&redis.url()).await).await;
            })*
        }

        /// All on one cluster, as it takes a while to start.
        #[tokio::test]
        #[ignore = "needs Redis: scripts/test runs it"]
        async fn quotas_in_a_cluster() {
            let mut cluster = RedisCluster::start().await;
            let url = cluster.url();
            $($name(open(&url).await).await;)*
            assert_callers_are_spread(&mut cluster).await;
        }
    };
}

contract! {
    a_quota_ends_and_comes_back,
    callers_don_t_share,
    many_at_once_are_counted_each,
}

#[tokio::test]
#[ignore = "needs Redis: scripts/test runs it"]
async fn gateways_share_a_quota() {
    let redis = mesh_test::Redis::start().await;
    let (one, other) = (open(&redis.url()).await, open(&redis.url()).await);
    let caller = new_caller();
    let mut granted = 0;
    for _ in 0..QUOTA {
        for quotas in [&one, &other] {
            granted += u32::from(quotas.take(caller).await.is_granted);
        }
    }
    assert!(is_quota(granted), "{granted}");
}

#[tokio::test]
#[ignore = "needs Redis: scripts/test runs it"]
async fn a_gateway_counts_for_itself_while_redis_is_away() {
    let mut redis = mesh_test::Redis::start().await;
    let quotas = open(&redis.url()).await;
    redis.stop();
    let (granted, _) = exhaust(&quotas, new_caller()).await;
    assert!(is_quota(granted), "{granted}");

    redis.run().await;
    let caller = new_caller();
    wait_until("the gateway to ask Redis again", PATIENCE, async || {
        quotas.take(caller).await;
        match redis.command("DBSIZE").as_str() {
            ":0" => Err("it counts for itself".to_owned()),
            _ => Ok(()),
        }
    })
    .await;
}

#[tokio::test]
#[ignore = "needs Redis: scripts/test runs it"]
async fn most_calls_are_counted_without_asking_redis() {
    let redis = mesh_test::Redis::start().await;
    let (quotas, caller) = (open(&redis.url()).await, new_caller());
    // The script is there.
    quotas.take(caller).await;
    assert_eq!(redis.command("CONFIG RESETSTAT"), "+OK");
    for _ in 0..QUOTA / 2 {
        assert!(quotas.take(caller).await.is_granted);
    }
    let asked = asked(&redis);
    assert!((1..=QUOTA / 2 / 3).contains(&asked), "asked {asked} times for {} calls", QUOTA / 2);
}
