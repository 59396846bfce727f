//! A release that rolls out during a sale: one process after the other is replaced, and no call fails.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use crate::{
    deployment::{Plan, report},
    stage::Process,
};

/// How often a process is replaced: each has some seconds to live.
const PACE: Duration = Duration::from_millis(500);
/// What a fan may be told in any sale.
const EXPECTED: [&str; 7] = [
    "SEAT_TAKEN",
    "NOT_ENOUGH_SEATS",
    "RACE_LOST",
    "HOLD_EXPIRED",
    "HOLD_BOOKED",
    "REQUEST_IN_PROGRESS",
    "INSUFFICIENT_BALANCE",
];

#[tokio::test]
#[ignore = "needs Postgres and Redis: scripts/test runs it"]
async fn processes_are_replaced_all_through_a_sale_and_no_call_fails() {
    let services = ["user", "concert", "booking", "payment", "gateway"];
    let two = |plan: Plan, service| plan.with_replicas(service, 2);
    let mut mesh = services.into_iter().fold(Plan::default(), two).start().await;
    let mut sellout = Command::new(env!("CARGO_BIN_EXE_boxoffice"));
    let mut sellout = Process::start(sellout.args(mesh.sellout_arguments()));
    let (begin, mut replaced, mut pace) = (Instant::now(), 0, tokio::time::interval(PACE));
    let each_replica = || services.into_iter().flat_map(|service| [(service, 0), (service, 1)]);
    let all = each_replica().count();
    // From the first sign-up to the last seat.
    for (service, index) in std::iter::repeat_with(each_replica).flatten() {
        let is_over = sellout.output.get().iter().any(|line| line.starts_with("Accepted"));
        if is_over || sellout.ended().is_some() {
            break;
        }
        let has_begun = mesh.count_bookings("true", []).await.unwrap() > 0;
        pace.tick().await;
        let replica = mesh.replica(service, index);
        replica.stop().await;
        replica.start();
        replica.ready().await;
        replaced += usize::from(has_begun);
    }
    report(&format!("{all} processes replaced, {replaced} times in all during a sale"), begin);
    let status = sellout.end().await;
    let output = sellout.output.get().join("\n");
    assert!(status.success() && output.contains("PASSED"), "{output}; {:?}", *sellout.errors.get());
    let refused = output.lines().skip_while(|line| !line.starts_with("Refused")).skip(3);
    for line in refused.take_while(|line| !line.starts_with("Invariants")) {
        assert!(EXPECTED.iter().any(|reason| line.trim_end().ends_with(reason)), "{line} in {output}");
    }
    assert!(replaced > all, "the sale was too short: {replaced} processes were replaced, of {all}");
}
