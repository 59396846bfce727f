//! Whose time it is.

use chrono::TimeDelta;
use mesh::{clock::Clock, shutdown::Shutdown};

/// How far the clock of another machine is off.
const SKEW: TimeDelta = TimeDelta::minutes(5);
/// How far a clock may be off that follows.
const NEAR: TimeDelta = TimeDelta::seconds(1);

#[tokio::test]
#[ignore = "needs Postgres: scripts/test runs it"]
async fn machines_whose_clocks_differ_take_the_database_s_time() {
    let database = mesh_test::postgres::create_database().await;
    let database = super::open(database.url()).await;
    let truth = Clock::system();
    for skew in [SKEW, -SKEW] {
        let clock = Clock::skewed(skew);
        assert!((clock.now() - truth.now()).abs() > SKEW - NEAR);
        clock.follow(&database, &Shutdown::new()).await;
        assert!((clock.now() - truth.now()).abs() < NEAR, "{skew}");
        assert!((clock.clone().now() - truth.now()).abs() < NEAR, "who had it before follows too");
    }
}

#[tokio::test]
async fn a_file_has_no_time_of_its_own() {
    let database = mesh_test::sqlite::create_database();
    let clock = Clock::skewed(SKEW);
    clock.follow(&super::open(database.url()).await, &Shutdown::new()).await;
    assert!(clock.now() - Clock::system().now() > SKEW - NEAR);
}
