//! A database that is away, or busy: calls that need it are refused in time, and nobody has to help when it is back.

use std::{
    io::ErrorKind,
    time::{Duration, Instant},
};

use boxoffice::api::{Api, Login, Reply};
use futures_util::future::join_all;
use mesh_test::{Mode, wait_until};
use sea_orm::ConnectionTrait;
use tokio::net::TcpStream;

use crate::{
    crowd::Crowd,
    deployment::{Plan, RECOVERY, calls, report},
    stage::fan,
};

/// Within which a pool heals.
const HEALING: Duration = Duration::from_secs(5);
/// Within which a call is refused that finds no free connection: one is waited for for a second, and the rest of the call
/// takes a moment on a machine that others use, too.
const REFUSAL: Duration = Duration::from_millis(1500);
/// Calls that need a database: booking's and payment's.
const NEEDY: [&str; 2] = ["/v1/bookings", "/v1/wallet"];

async fn get(api: &Api, fan: &Login, path: &str) -> Reply {
    api.get(path, Some(&fan.access_token)).await.unwrap()
}

#[tokio::test]
#[ignore = "needs Postgres and Redis: scripts/test runs it"]
async fn a_postgres_that_was_restarted_is_used_again_without_help() {
    let mut mesh = Plan::default().with_own_postgres().start().await;
    let (api, crowd) = (mesh.api.clone(), Crowd::gather(&mesh, 5, 1).await);
    let fan = fan(&api, 1).await;
    let server = mesh.server.take().unwrap();
    server.stop();
    for _ in 0..3 {
        for path in NEEDY {
            let reply = get(&api, &fan, path).await;
            assert_eq!((reply.status.as_u16(), reply.reason()), (503, "DATABASE_UNAVAILABLE"), "{path}");
            assert!(reply.headers.contains_key("retry-after"), "{path}");
        }
    }
    server.start_again();
    let begin = Instant::now();
    wait_until("the pools to heal", HEALING, async || {
        for reply in [get(&api, &fan, NEEDY[0]).await, get(&api, &fan, NEEDY[1]).await] {
            reply.expect_success("reading").map_err(|error| error.to_string())?;
        }
        Ok(())
    })
    .await;
    report("Postgres restarted, answers again", begin);
    mesh.converges("Postgres restarted", RECOVERY, &crowd).await;
    mesh.assert_all_run();
    mesh.assert_sound(crowd).await;
}

#[tokio::test]
#[ignore = "needs Postgres and Redis: scripts/test runs it"]
async fn a_pool_without_a_free_connection_refuses_in_time_and_the_process_is_healthy() {
    let mut mesh = Plan::default().with_setting("booking", "DATABASE_CONNECTIONS", 2).start().await;
    let (api, crowd) = (mesh.api.clone(), Crowd::gather(&mesh, 5, 1).await);
    let fan = fan(&api, 1).await;
    // Whoever reads or writes bookings waits for this, with a connection of the pool.
    let lock = mesh.bookings.begin().await.unwrap();
    // As long as it takes, though it does nothing meanwhile.
    lock.execute_unprepared("SET LOCAL idle_in_transaction_session_timeout = 0").await.unwrap();
    lock.execute_unprepared("LOCK TABLE booking IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let timed = async || {
        let begin = Instant::now();
        let reply = get(&api, &fan, NEEDY[0]).await;
        (reply.reason().to_owned(), begin.elapsed())
    };
    let refused = join_all((0..8).map(|_| timed())).await;
    let without_connection = |(reason, _): &&(String, Duration)| reason == "DATABASE_UNAVAILABLE";
    let (unavailable, others): (Vec<_>, Vec<_>) = refused.iter().partition(without_connection);
    assert!(!unavailable.is_empty(), "{refused:?}");
    assert!(unavailable.iter().all(|(_, time)| *time <= REFUSAL), "{refused:?}");
    // Those that had one waited for the lock.
    assert!(others.iter().all(|(reason, _)| reason == "DEADLINE_EXCEEDED"), "{refused:?}");
    let booking = mesh.replica("booking", 0);
    booking.is_ready().await.unwrap();
    let health = reqwest::get(format!("http://{}/healthz", booking.admin)).await.unwrap();
    assert_eq!(health.status(), 200);
    for path in ["/v1/wallet", "/v1/concerts"] {
        assert_eq!(get(&api, &fan, path).await.status, 200, "{path}");
    }

    lock.rollback().await.unwrap();
    let begin = Instant::now();
    wait_until("the pool to heal", HEALING, async || {
        let replies = join_all((0..8).map(|_| get(&api, &fan, NEEDY[0]))).await;
        match replies.iter().find(|reply| !reply.status.is_success()) {
            None => Ok(()),
            Some(refused) => Err(refused.body.to_string()),
        }
    })
    .await;
    report("a pool exhausted, answers again", begin);
    mesh.converges("a pool exhausted", RECOVERY, &crowd).await;
    mesh.assert_all_run();
    mesh.assert_sound(crowd).await;
}

#[tokio::test]
#[ignore = "needs Postgres and Redis: scripts/test runs it"]
async fn a_process_that_waits_for_what_it_needs_refuses_calls_and_has_none_wait() {
    let plan = Plan::default().with_replicas("booking", 2);
    let mut mesh = plan.with_line("booking", "postgres").with_line("booking", "redis").start().await;
    let (api, crowd) = (mesh.api.clone(), Crowd::gather(&mesh, 3, 0).await);
    let fan = fan(&api, 1).await;
    for absent in ["postgres", "redis"] {
        mesh.replica("booking", 1).stop().await;
        mesh.line("booking", 1, absent).set_mode(Mode::Blackhole);
        let waiting = mesh.replica("booking", 1);
        waiting.start();
        waiting
            .says(&format!("waiting for {}", if absent == "redis" { "Redis" } else { "the database" }))
            .await;
        let refused = TcpStream::connect(waiting.address).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "{absent}");
        let health = reqwest::get(format!("http://{}/healthz", waiting.admin)).await.unwrap();
        assert_eq!(health.status(), 200, "{absent}");
        // The other one has them, whichever is tried first.
        for _ in 0..20 {
            get(&api, &fan, NEEDY[0]).await.expect_success(absent).unwrap();
        }
        mesh.replica("booking", 0).stop().await;
        let reply = get(&api, &fan, NEEDY[0]).await;
        let reasons = ["TRANSPORT_CONNECT_FAILED", "TRANSPORT_BREAKER_OPEN"];
        assert!(reasons.contains(&reply.reason()), "{absent}: {}", reply.body);
        // A series is there from its first event on.
        let counted = async |outcome| mesh.metric("gateway", 0, &calls("gateway", "booking", outcome)).await;
        assert!(counted("not_sent").await.is_some_and(|calls| calls > 0.0), "{absent}");
        assert_eq!(counted("deadline_exceeded").await, None, "{absent}");

        let begin = Instant::now();
        mesh.line("booking", 1, absent).set_mode(Mode::Pass);
        mesh.replica("booking", 1).ready().await;
        let fault = format!("svc-booking started without {absent}");
        mesh.converges_since(begin, &fault, RECOVERY, &crowd).await;
        mesh.replica("booking", 0).start();
        mesh.replica("booking", 0).ready().await;
    }
    mesh.assert_sound(crowd).await;
}
