//! `kill -9` of booking and of payment at each step of the saga: whoever comes back, or is there, finishes it.

use std::{collections::BTreeSet, fs, path::Path, time::Instant};

use futures_util::future::join_all;

use crate::{
    crowd::Crowd,
    deployment::{Deployment, Plan, RECOVERY},
};

/// Where booking dies while fans buy and give back, and whether it leaves a booking to whoever takes over its lease.
const BOOKING: [(&str, bool); 12] = [
    ("booking.claim.before", false),
    ("booking.claim.after", true),
    ("booking.charge.before", true),
    ("booking.charge.after", true),
    ("booking.confirm.before", true),
    ("booking.confirm.after", false),
    ("booking.fail.before", true),
    ("booking.fail.after", false),
    ("booking.cancel.before", false),
    ("booking.cancel.after", false),
    ("booking.refund.before", false),
    ("booking.refund.after", false),
];

/// Where booking dies while it commits what several callers want.
const COMMITTING: [&str; 2] = ["booking.commit.before", "booking.commit.after"];

/// Where payment dies meanwhile.
const PAYMENT: [&str; 4] =
    ["payment.pay.before", "payment.pay.after", "payment.refund.before", "payment.refund.after"];

/// Where payment dies when what booking left behind is voided.
const VOIDING: [&str; 2] = ["payment.void.before", "payment.void.after"];

/// What the metrics of separate processes have counted after booking was killed, each by itself.
const TOLD: [(&str, &str); 4] = [
    ("gateway", r#"rpc_client_ejections_total{neighbour="booking",service="gateway"}"#),
    ("gateway", r#"rpc_client_retries_total{neighbour="booking",service="gateway"}"#),
    ("booking", r#"lane_batch_jobs_count{lane="hot",service="booking"}"#),
    ("payment", r#"lane_batch_jobs_count{lane="cashier",service="payment"}"#),
];

#[test]
fn every_crash_point_is_among_them() {
    let booking = BOOKING.map(|(at, _)| at);
    let covered: BTreeSet<String> =
        [&booking[..], &COMMITTING, &PAYMENT, &VOIDING].concat().into_iter().map(Into::into).collect();
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut there = BTreeSet::new();
    for entry in fs::read_dir(workspace).unwrap() {
        let source = entry.unwrap().path().join("src");
        if source.is_dir() {
            find_crash_points(&source, &mut there);
        }
    }
    assert_eq!(there, covered);
}

/// Notes the crash points in the Rust files of a directory.
fn find_crash_points(directory: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            find_crash_points(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            let calls = text.split("crash::point(").skip(1);
            found.extend(
                calls.map(|call| call.split('"').nth(1).unwrap_or("one without a literal name").to_owned()),
            );
        }
    }
}

/// Who goes on with what a process was doing when it died.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Successor {
    Itself,
    /// Its other replica, while it stays away.
    Other,
}

/// Stops a replica of a service while fans buy, has it die at a point, and waits until what it did is settled.
async fn crash(
    mesh: &mut Deployment,
    crowd: &Crowd,
    (service, index): (&'static str, usize),
    at: &str,
    successor: Successor,
) {
    die(mesh, (service, index), at).await;
    recover(mesh, crowd, (service, index), at, successor).await;
}

/// Stops a replica as an operator would, so that what is left afterwards was left by the crash, and has it die at a point.
async fn die(mesh: &mut Deployment, (service, index): (&'static str, usize), at: &str) {
    let replica = mesh.replica(service, index);
    replica.stop().await;
    replica.start_to_crash(at);
    replica.crashed().await;
}

/// Waits until what a replica did that died is settled, by itself or by the other.
async fn recover(
    mesh: &mut Deployment,
    crowd: &Crowd,
    (service, index): (&'static str, usize),
    at: &str,
    successor: Successor,
) {
    if successor == Successor::Other {
        mesh.converges(&format!("svc-{service} killed at {at}, taken over"), RECOVERY, crowd).await;
    }
    let begin = Instant::now();
    mesh.replica(service, index).start();
    mesh.replica(service, index).ready().await;
    if successor == Successor::Itself {
        let fault = format!("svc-{service} killed at {at}, restarted");
        mesh.converges_since(begin, &fault, RECOVERY, crowd).await;
    }
}

/// Bookings that somebody took over so far.
async fn count_taken_over(mesh: &Deployment) -> i64 {
    mesh.count_bookings("lease_epoch > 1", []).await.unwrap()
}

/// Waits until the metrics tell what a killed booking means to the gateway, and that lanes commit.
async fn metrics_tell(mesh: &Deployment) {
    for (service, series) in TOLD {
        mesh.counts(service, 0, series).await;
    }
}

/// Has booking die at each of these points.
async fn booking_dies(points: &[(&str, bool)], replicas: usize, successor: Successor) {
    let mut mesh = Plan::default().with_replicas("booking", replicas).start().await;
    let crowd = Crowd::gather(&mesh, 4, 1).await;
    for ((at, leaves_lease), index) in points.iter().zip((0..replicas).cycle()) {
        let taken_over = count_taken_over(&mesh).await;
        crash(&mut mesh, &crowd, ("booking", index), at, successor).await;
        let now = count_taken_over(&mesh).await;
        assert!(!leaves_lease || now > taken_over, "{at}: no lease was taken over");
    }
    metrics_tell(&mesh).await;
    mesh.assert_sound(crowd).await;
}

#[tokio::test]
#[ignore = "needs Postgres and Redis: scripts/test runs it"]
async fn booking_killed_at_a_step_settles_it_when_it_is_back() {
    join_all(BOOKING.chunks(4).map(|points| booking_dies(points, 1, Successor::Itself))).await;
}

#[tokio::test]
#[ignore = "needs Postgres and Redis: scripts/test runs it"]
async fn booking_killed_at_a_step_is_replaced_by_its_other_replica() {
    join_all(BOOKING.chunks(4).map(|points| booking_dies(points, 2, Successor::Other))).await;
}

/// Has booking die at each point of committing for several.
async fn booking_dies_while_it_commits(replicas: usize, successor: Successor) {
    let mut mesh = Plan::default().with_replicas("booking", replicas).start().await;
    let crowd = Crowd::gather(&mesh, 48, 0).await;
    for (at, index) in COMMITTING.into_iter().zip((0..replicas).cycle()) {
        let taken_over = count_taken_over(&mesh).await;
        // While nobody is there all of them come to wait.
        for replica in 0..replicas {
            mesh.replica("booking", replica).stop().await;
        }
        mesh.replica("booking", index).start_to_crash(at);
        for heir in (0..replicas).filter(|replica| *replica != index) {
            mesh.replica("booking", heir).start();
            mesh.replica("booking", heir).ready().await;
        }
        mesh.replica("booking", index).crashed().await;
        if at == "booking.commit.after" && successor == Successor::Itself {
            // One of the very last transactions; others, as of those who cancel, may have come after it.
            let batch = "xmin IN (SELECT xmin FROM booking GROUP BY xmin HAVING count(*) > 1)
                 AND age(xmin) < 10 + (SELECT min(age(xmin)) FROM booking)";
            let jobs = mesh.count_bookings(batch, []).await.unwrap();
            assert!(jobs > 1, "one batch for several, or this test tests nothing: {jobs}");
        }
        recover(&mut mesh, &crowd, ("booking", index), at, successor).await;
        let now = count_taken_over(&mesh).await;
        assert!(at != "booking.commit.after" || now > taken_over, "{at}: no lease was taken over");
    }
    metrics_tell(&mesh).await;
    mesh.assert_sound(crowd).await;
}

#[tokio::test]
#[ignore = "needs Postgres and Redis: scripts/test runs it"]
async fn booking_killed_while_it_commits_for_many_settles_it_when_it_is_back() {
    booking_dies_while_it_commits(1, Successor::Itself).await;
}

#[tokio::test]
#[ignore = "needs Postgres and Redis: scripts/test runs it"]
async fn booking_killed_while_it_commits_for_many_is_replaced_by_its_other_replica() {
    booking_dies_while_it_commits(2, Successor::Other).await;
}

/// Has payment die at each point of taking money and giving it back.
async fn payment_dies(replicas: usize, successor: Successor) {
    let mut mesh = Plan::default().with_replicas("payment", replicas).start().await;
    let crowd = Crowd::gather(&mesh, 4, 1).await;
    // Turn by turn: whoever has just died is left alone by its callers for a while.
    for (at, index) in PAYMENT.into_iter().zip((0..replicas).cycle()) {
        crash(&mut mesh, &crowd, ("payment", index), at, successor).await;
    }
    mesh.assert_sound(crowd).await;
}

#[tokio::test]
#[ignore = "needs Postgres and Redis: scripts/test runs it"]
async fn payment_killed_at_a_step_is_asked_again() {
    tokio::join!(payment_dies(1, Successor::Itself), payment_dies(2, Successor::Other));
}

/// Has the first payment die at each point of voiding, while there is no other; whether it is back afterwards, or another one is.
async fn payment_dies_while_it_voids(replicas: usize) {
    let mut mesh = Plan::default().with_replicas("payment", replicas).start().await;
    let crowd = Crowd::gather(&mesh, 1, 4).await;
    // What somebody bought before must outlive this. A charge that goes through is not voided, so nobody buys meanwhile.
    crowd.leave_it_to_the_poor().await;
    let heir = replicas - 1;
    for at in VOIDING {
        for index in 0..replicas {
            mesh.replica("payment", index).kill().await;
        }
        let payment = mesh.replica("payment", 0);
        payment.start_to_crash(at);
        payment.ready().await;
        // A charge that was refused and asked for again is voided: nobody knows what became of it the first time.
        let booking = mesh.replica("booking", 0);
        booking.kill().await;
        booking.start_to_crash("booking.charge.after");
        booking.crashed().await;
        booking.start();
        mesh.replica("payment", 0).crashed().await;
        let begin = Instant::now();
        mesh.replica("payment", heir).start();
        mesh.replica("payment", heir).ready().await;
        let how = if heir == 0 { "restarted" } else { "taken over" };
        mesh.converges_since(begin, &format!("svc-payment killed at {at}, {how}"), RECOVERY, &crowd).await;
        if heir != 0 {
            mesh.replica("payment", 0).start();
            mesh.replica("payment", 0).ready().await;
        }
    }
    mesh.assert_sound(crowd).await;
}

#[tokio::test]
#[ignore = "needs Postgres and Redis: scripts/test runs it"]
async fn payment_killed_while_it_voids_is_asked_again() {
    tokio::join!(payment_dies_while_it_voids(1), payment_dies_while_it_voids(2));
}

#[tokio::test]
#[ignore = "needs Postgres and Redis: scripts/test runs it"]
async fn whoever_has_no_part_in_the_saga_may_be_killed_too() {
    let mut mesh = Plan::default().start().await;
    let crowd = Crowd::gather(&mesh, 4, 1).await;
    for service in ["user", "concert", "gateway"] {
        mesh.replica(service, 0).kill().await;
        let begin = Instant::now();
        mesh.replica(service, 0).start();
        mesh.replica(service, 0).ready().await;
        mesh.converges_since(begin, &format!("{service} killed, restarted"), RECOVERY, &crowd).await;
    }
    mesh.assert_sound(crowd).await;
}
