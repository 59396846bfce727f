//! Each invariant is broken on purpose, and the sweep must say so; and only that one.

use mesh::{
    database::{Database, sql},
    id::{BookingId, ConcertId, Id, UserId},
};
use sea_orm::{ConnectionTrait, Value};
use tempfile::TempDir;
use uuid::Uuid;

use super::*;

/// A confirmed and paid booking of two seats, and a cancelled one whose refund was made.
struct Sold {
    directory: TempDir,
    booking: Database,
    payment: Database,
    confirmed: BookingId,
    concert: ConcertId,
}

const PRICE: i64 = 200;

impl Sold {
    async fn healthy() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let open = async |service| {
            Database::open(&database_url(directory.path(), service).unwrap(), 1).await.unwrap()
        };
        let (booking, payment) = (open("booking").await, open("payment").await);
        booking.migrate(svc_booking::MIGRATIONS).await.unwrap();
        payment.migrate(svc_payment::MIGRATIONS).await.unwrap();
        let sold =
            Self { directory, booking, payment, confirmed: BookingId::new(), concert: ConcertId::new() };
        sold.book(sold.confirmed, 3, &[1, 2]).await;
        sold.pay(sold.confirmed, 0).await;
        let cancelled = BookingId::new();
        sold.book(cancelled, 5, &[]).await;
        sold.pay(cancelled, PRICE).await;
        sold
    }

    async fn book(&self, id: BookingId, state: i16, claims: &[i32]) {
        let seats: Vec<_> = [1, 2].map(|seat| serde_json::json!({"ordinal": seat})).into();
        let seats = serde_json::Value::from(seats).to_string();
        let refunded = if state == 5 { PRICE } else { 0 };
        let now = mesh::clock::Clock::system().now();
        write(
            &self.booking,
            "INSERT INTO booking (id, fan, concert, hold, request_key, fingerprint, state, lease_epoch, lease_until,
             seats, total, refunded, create_time) VALUES ($1, $2, $3, $4, $5, $6, $7, 1, $8, $9, $10, $11, $8)",
            vec![
                id.uuid().into(),
                UserId::new().uuid().into(),
                self.concert.uuid().into(),
                Uuid::now_v7().into(),
                "key".into(),
                vec![0_u8].into(),
                state.into(),
                now.into(),
                seats.into(),
                PRICE.into(),
                refunded.into(),
            ],
        )
        .await;
        for seat in claims {
            let values = vec![self.concert.uuid().into(), (*seat).into(), id.uuid().into()];
            write(&self.booking, "INSERT INTO claim (concert, seat, booking) VALUES ($1, $2, $3)", values)
                .await;
        }
    }

    /// A payment out of a wallet that was filled with just as much.
    async fn pay(&self, booking: BookingId, refunded: i64) {
        let (fan, now) = (UserId::new(), mesh::clock::Clock::system().now());
        write(
            &self.payment,
            "INSERT INTO payment (booking, state, fan, concert, amount, refunded, create_time)
             VALUES ($1, 1, $2, $3, $4, $5, $6)",
            vec![
                booking.uuid().into(),
                fan.uuid().into(),
                self.concert.uuid().into(),
                PRICE.into(),
                refunded.into(),
                now.into(),
            ],
        )
        .await;
        write(
            &self.payment,
            "INSERT INTO wallet (fan, balance) VALUES ($1, $2)",
            vec![fan.uuid().into(), refunded.into()],
        )
        .await;
        let top_up = Uuid::now_v7();
        self.enter(top_up, 1, 1, Some(fan.uuid()), None, PRICE).await;
        self.enter(top_up, 1, 2, None, None, -PRICE).await;
        let payment = Uuid::now_v7();
        self.enter(payment, 2, 1, Some(fan.uuid()), Some(booking), -PRICE).await;
        self.enter(payment, 2, 3, Some(self.concert.uuid()), Some(booking), PRICE).await;
        if refunded > 0 {
            let refund = Uuid::now_v7();
            self.enter(refund, 3, 3, Some(self.concert.uuid()), Some(booking), -refunded).await;
            self.enter(refund, 3, 1, Some(fan.uuid()), Some(booking), refunded).await;
        }
    }

    async fn enter(
        &self,
        transaction: Uuid,
        movement: i16,
        account: i16,
        owner: Option<Uuid>,
        booking: Option<BookingId>,
        amount: i64,
    ) {
        write(
            &self.payment,
            "INSERT INTO entry (id, transaction_id, movement, account, owner, booking, amount, create_time)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
            vec![
                Uuid::now_v7().into(),
                transaction.into(),
                movement.into(),
                account.into(),
                owner.into(),
                booking.map(Id::uuid).into(),
                amount.into(),
                mesh::clock::Clock::system().now().into(),
            ],
        )
        .await;
    }

    async fn report(&self, witness: &Witness) -> Report {
        let databases = Databases {
            data_dir: self.directory.path().into(),
            booking_database_url: None,
            payment_database_url: None,
        };
        sweep(&databases, witness).await.unwrap()
    }

    async fn broken(&self) -> Vec<&'static str> {
        self.report(&Witness::default()).await.broken()
    }
}

async fn write(database: &Database, text: &str, values: Vec<Value>) {
    database.writer().execute_raw(sql(database.writer(), text, values)).await.unwrap();
}

/// A table without the constraints that keep us from breaking it.
async fn drop_constraints(database: &Database, table: &str) {
    for text in [
        "PRAGMA foreign_keys = off".to_owned(),
        format!("CREATE TABLE loose AS SELECT * FROM {table}"),
        format!("DROP TABLE {table}"),
        format!("ALTER TABLE loose RENAME TO {table}"),
    ] {
        write(database, &text, Vec::new()).await;
    }
}

#[tokio::test]
async fn what_is_healthy_is_clean() {
    let sold = Sold::healthy().await;
    let witness = Witness {
        confirmed: vec![sold.confirmed],
        made: vec![sold.confirmed],
        holds: HoldsSeen { watched: Some(2), breaches: Vec::new() },
    };
    let report = sold.report(&witness).await;
    assert!(report.is_clean() && report.not_watched().is_empty(), "{report}");
}

#[tokio::test]
async fn i1_a_seat_sold_twice_is_reported() {
    let sold = Sold::healthy().await;
    let other = BookingId::new();
    sold.book(other, 3, &[]).await;
    sold.pay(other, 0).await;
    assert_eq!(sold.broken().await, ["I1"]);
}

#[tokio::test]
async fn i1_a_seat_without_a_claim_is_reported() {
    let sold = Sold::healthy().await;
    write(&sold.booking, "DELETE FROM claim WHERE seat = 1", Vec::new()).await;
    assert_eq!(sold.broken().await, ["I1"]);
}

#[tokio::test]
async fn i1_a_claim_made_twice_is_reported() {
    let sold = Sold::healthy().await;
    drop_constraints(&sold.booking, "claim").await;
    write(&sold.booking, "INSERT INTO claim SELECT * FROM claim WHERE seat = 1", Vec::new()).await;
    assert_eq!(sold.broken().await, ["I1"]);
}

#[tokio::test]
async fn i3_a_ledger_that_does_not_sum_to_zero_is_reported() {
    let sold = Sold::healthy().await;
    write(&sold.payment, "UPDATE entry SET amount = amount + 1 WHERE account = 3", Vec::new()).await;
    assert_eq!(sold.broken().await, ["I3"]);
}

#[tokio::test]
async fn i3_a_wallet_that_its_entries_deny_is_reported() {
    let sold = Sold::healthy().await;
    write(&sold.payment, "UPDATE wallet SET balance = balance + 1", Vec::new()).await;
    assert_eq!(sold.broken().await, ["I3"]);
}

#[tokio::test]
async fn i3_money_kept_for_no_booking_is_reported() {
    let sold = Sold::healthy().await;
    sold.pay(BookingId::new(), 0).await;
    assert_eq!(sold.broken().await, ["I3"]);
}

#[tokio::test]
async fn i3_a_booking_confirmed_for_nothing_is_reported() {
    let sold = Sold::healthy().await;
    write(&sold.payment, "DELETE FROM payment WHERE refunded = 0", Vec::new()).await;
    assert_eq!(sold.broken().await, ["I3"]);
}

#[tokio::test]
async fn i3_a_refund_that_was_never_made_is_reported() {
    let sold = Sold::healthy().await;
    write(&sold.payment, "UPDATE payment SET refunded = 0", Vec::new()).await;
    assert_eq!(sold.broken().await, ["I3"]);
}

#[tokio::test]
async fn i4_a_lost_booking_is_reported() {
    let sold = Sold::healthy().await;
    for witness in [
        Witness { confirmed: vec![BookingId::new()], ..Witness::default() },
        Witness { made: vec![BookingId::new()], ..Witness::default() },
    ] {
        assert_eq!(sold.report(&witness).await.broken(), ["I4"]);
    }
}

#[tokio::test]
async fn i4_a_booking_that_was_confirmed_to_the_fan_only_is_reported() {
    let sold = Sold::healthy().await;
    write(&sold.booking, "UPDATE booking SET state = 1 WHERE state = 3", Vec::new()).await;
    let witness = Witness { confirmed: vec![sold.confirmed], ..Witness::default() };
    assert_eq!(sold.report(&witness).await.broken(), ["I4"]);
}

#[tokio::test]
async fn i6_a_number_given_twice_is_reported() {
    let sold = Sold::healthy().await;
    drop_constraints(&sold.payment, "entry").await;
    write(&sold.payment, "UPDATE entry SET id = (SELECT min(id) FROM entry)", Vec::new()).await;
    assert_eq!(sold.broken().await, ["I6"]);
}

#[tokio::test]
async fn i6_a_hold_booked_twice_is_reported() {
    let sold = Sold::healthy().await;
    drop_constraints(&sold.booking, "booking").await;
    write(&sold.booking, "UPDATE booking SET hold = (SELECT min(hold) FROM booking)", Vec::new()).await;
    assert_eq!(sold.broken().await, ["I6"]);
}

#[tokio::test]
async fn i7_a_hold_that_does_not_end_is_reported() {
    let sold = Sold::healthy().await;
    // What was not freed at once is known, though nobody watched to the end.
    for watched in [Some(3), None] {
        let holds = HoldsSeen { watched, breaches: vec!["3 places were still held".to_owned()] };
        let report = sold.report(&Witness { holds, ..Witness::default() }).await;
        assert_eq!(report.broken(), ["I7"]);
        assert!(report.to_string().contains("I7  BROKEN"), "{report}");
    }
}

#[tokio::test]
async fn what_nobody_watched_is_said() {
    let report = Sold::healthy().await.report(&Witness::default()).await;
    assert_eq!((report.is_clean(), report.not_watched()), (true, vec!["I4", "I7"]));
    for line in ["I4  not watched", "I7  not watched"] {
        assert!(report.to_string().contains(line), "{report}");
    }
}
