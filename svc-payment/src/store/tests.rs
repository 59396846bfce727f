//! The store on SQLite and on Postgres: the same bodies on both.

use std::time::Duration;

use chrono::{DateTime, TimeDelta};
use futures_util::future::{join_all, poll_immediate};
use mesh::{
    Failure,
    clock::Clock,
    database::Database,
    id::{ConcertId, RefundId},
    lane::{BATCH_LIMIT, Lane},
};
use mesh_test::wait_until;

use super::{audit::broken_rules, cashier::Cashier, *};
use crate::domain::books::{Charge, Command, Payment, PaymentState, Refund, Refusal, WALLET_LIMIT};

/// Runs each body on a fresh database of either kind.
macro_rules! on_both_databases {
    ($($body:ident),* $(,)?) => {
        mod sqlite {
            $(
                #[tokio::test]
                async fn $body() {
                    let file = mesh_test::sqlite::create_database();
                    super::$body(super::Till::open(file.url()).await).await;
                }
            )*
        }
        mod postgres {
            $(
                #[tokio::test]
                #[ignore = "needs Postgres: scripts/test runs it"]
                async fn $body() {
                    let database = mesh_test::postgres::create_database().await;
                    super::$body(super::Till::open(database.url()).await).await;
                }
            )*
        }
    };
}

on_both_databases!(
    a_payment_is_taken_once,
    another_charge_for_a_paid_booking_is_refused,
    nothing_is_written_for_a_refused_payment,
    a_booking_that_costs_nothing_needs_no_wallet,
    of_sixty_four_at_once_exactly_the_impossible_fail,
    one_booking_paid_sixty_four_times_at_once_is_taken_once,
    two_processes_take_a_payment_once,
    two_processes_do_not_overdraw_a_wallet,
    two_processes_give_back_no_more_than_was_taken,
    two_processes_may_pay_and_void_at_once,
    a_voided_booking_is_never_charged,
    voiding_gives_back_what_is_left,
    a_refund_is_made_once,
    a_refund_gives_back_no_more_than_was_taken,
    a_batch_is_carried_out_in_its_order,
    who_leaves_in_time_is_not_charged_and_who_leaves_too_late_is,
    first_top_ups_at_once_all_count,
    a_wallet_is_not_topped_up_beyond_its_limit,
    entries_are_listed_newest_first_and_only_to_their_fan,
    a_database_that_is_gone_is_a_503,
    the_schema_refuses_what_the_rules_forbid,
    the_audit_finds_each_breach,
);

/// A payment service without its gRPC.
struct Till {
    database: Database,
    clock: Clock,
    payments: Lane<Cashier>,
}

impl Till {
    async fn open(url: &str) -> Self {
        let database = Database::open(&url.parse().unwrap(), 10).await.unwrap();
        database.migrate(crate::MIGRATIONS).await.unwrap();
        let clock = Clock::manual(DateTime::from_timestamp(1_800_000_000, 0).unwrap());
        let payments = Lane::start(Cashier::new(database.clone(), clock.clone()));
        Self { database, clock, payments }
    }

    /// What another process on the same database would be.
    fn second_process(&self) -> Lane<Cashier> {
        Lane::start(Cashier::new(self.database.clone(), self.clock.clone()))
    }

    async fn top_up(&self, fan: UserId, amount: i64) -> Result<(), Error> {
        let transaction = self.database.begin().await?;
        let top_up = TopUp { id: TopUpId::new(), fan, amount, create_time: self.clock.now() };
        record_top_up(&transaction, &top_up).await?;
        Ok(transaction.commit().await?)
    }

    /// A new fan with so much to spend.
    async fn fan_with(&self, balance: i64) -> UserId {
        let fan = UserId::new();
        self.top_up(fan, balance).await.unwrap();
        fan
    }

    async fn balance(&self, fan: UserId) -> i64 {
        wallet_balance(self.database.reader(), fan).await.unwrap()
    }

    async fn entries(&self, fan: UserId) -> Vec<(Movement, i64)> {
        let page = Page::read(None, "", &[]).unwrap();
        let entries = list_wallet_entries(self.database.reader(), fan, &page).await.unwrap();
        entries.into_iter().map(|entry| (entry.movement, entry.amount)).collect()
    }

    async fn execute(&self, statement: &str) -> Result<u64, DbErr> {
        Ok(self.database.writer().execute_unprepared(statement).await?.rows_affected())
    }

    async fn assert_books_add_up(&self) {
        assert_eq!(broken_rules(&self.database).await, [""; 0]);
    }
}

fn charge(fan: UserId, amount: i64) -> Charge {
    Charge { fan, concert: ConcertId::new(), amount }
}

/// The reason in an answer, such as `PAYMENT_VOIDED`; `OK` for a payment.
fn outcome(answer: &Result<Payment, Failure>) -> &'static str {
    match answer {
        Ok(_) => "OK",
        Err(failure) => failure.info().reason,
    }
}

async fn a_payment_is_taken_once(till: Till) {
    let fan = till.fan_with(1_000).await;
    let (booking, charge) = (BookingId::new(), charge(fan, 700));
    let paid = Payment { booking, state: PaymentState::Captured, charge: Some(charge), refunded: 0 };
    for _ in 0..3 {
        assert_eq!(till.payments.submit(Command::Pay(booking, charge)).await.unwrap(), paid);
    }
    assert_eq!(till.balance(fan).await, 300);
    assert_eq!(till.entries(fan).await, [(Movement::Payment, -700), (Movement::TopUp, 1_000)]);
    till.assert_books_add_up().await;
}

async fn another_charge_for_a_paid_booking_is_refused(till: Till) {
    let (fan, other) = (till.fan_with(1_000).await, till.fan_with(1_000).await);
    let (booking, paid) = (BookingId::new(), charge(fan, 400));
    till.payments.submit(Command::Pay(booking, paid)).await.unwrap();
    let others = [
        Charge { amount: 401, ..paid },
        Charge { fan: other, ..paid },
        Charge { concert: ConcertId::new(), ..paid },
    ];
    for charge in others {
        let answer = till.payments.submit(Command::Pay(booking, charge)).await;
        assert_eq!(outcome(&answer), "PAYMENT_CONFLICT", "{charge:?}");
    }
    assert_eq!((till.balance(fan).await, till.balance(other).await), (600, 1_000));
    till.assert_books_add_up().await;
}

async fn nothing_is_written_for_a_refused_payment(till: Till) {
    let fan = till.fan_with(100).await;
    let pay = Command::Pay(BookingId::new(), charge(fan, 101));
    for _ in 0..2 {
        assert_eq!(outcome(&till.payments.submit(pay).await), "INSUFFICIENT_BALANCE");
    }
    assert_eq!(till.balance(fan).await, 100);
    assert_eq!(till.entries(fan).await, [(Movement::TopUp, 100)]);
    till.top_up(fan, 1).await.unwrap();
    assert_eq!(outcome(&till.payments.submit(pay).await), "OK", "the booking can still be paid");
    assert_eq!(till.balance(fan).await, 0);
    let broke = Command::Pay(BookingId::new(), charge(UserId::new(), i64::MAX));
    assert_eq!(outcome(&till.payments.submit(broke).await), "INSUFFICIENT_BALANCE");
    till.assert_books_add_up().await;
}

async fn a_booking_that_costs_nothing_needs_no_wallet(till: Till) {
    let fan = UserId::new();
    let (booking, charge) = (BookingId::new(), charge(fan, 0));
    for _ in 0..2 {
        let payment = till.payments.submit(Command::Pay(booking, charge)).await.unwrap();
        assert_eq!((payment.state, payment.amount()), (PaymentState::Captured, 0));
    }
    let voided = till.payments.submit(Command::Void(booking)).await.unwrap();
    assert_eq!(voided.state, PaymentState::Voided);
    assert_eq!((till.balance(fan).await, till.entries(fan).await), (0, Vec::new()));
    till.assert_books_add_up().await;
}

async fn of_sixty_four_at_once_exactly_the_impossible_fail(till: Till) {
    let mut commands = Vec::new();
    let mut fans = Vec::new();
    for _ in 0..BATCH_LIMIT - 5 {
        let fan = till.fan_with(500).await;
        fans.push(fan);
        commands.push(Command::Pay(BookingId::new(), charge(fan, 500)));
    }
    // One wallet is empty.
    let broke = Command::Pay(BookingId::new(), charge(UserId::new(), 500));
    commands.insert(7, broke);
    // One booking comes twice: it is paid once, and both callers hear so.
    let twice = Command::Pay(BookingId::new(), charge(till.fan_with(1_000).await, 500));
    let twice_payer = twice.payer().unwrap();
    commands.insert(11, twice);
    commands.insert(40, twice);
    // One fan comes twice with enough for one.
    let torn = till.fan_with(999).await;
    commands.insert(20, Command::Pay(BookingId::new(), charge(torn, 500)));
    commands.insert(50, Command::Pay(BookingId::new(), charge(torn, 500)));
    assert_eq!(commands.len(), BATCH_LIMIT);

    let answers = join_all(commands.iter().map(|command| till.payments.submit(*command))).await;
    assert_eq!(till.payments.counts(), (1, BATCH_LIMIT as u64), "one batch, or this test tests nothing");
    for (place, answer) in answers.iter().enumerate() {
        let expected = if [7, 50].contains(&place) { "INSUFFICIENT_BALANCE" } else { "OK" };
        assert_eq!(outcome(answer), expected, "command {place}");
    }
    for fan in fans {
        assert_eq!(till.balance(fan).await, 0);
    }
    assert_eq!((till.balance(twice_payer).await, till.balance(torn).await), (500, 499));
    till.assert_books_add_up().await;
}

async fn one_booking_paid_sixty_four_times_at_once_is_taken_once(till: Till) {
    let fan = till.fan_with(10_000).await;
    let pay = Command::Pay(BookingId::new(), charge(fan, 100));
    let answers = join_all((0..64).map(|_| till.payments.submit(pay))).await;
    assert!(answers.iter().all(Result::is_ok));
    assert_eq!(till.balance(fan).await, 9_900);
    till.assert_books_add_up().await;
}

async fn two_processes_take_a_payment_once(till: Till) {
    let mut commands = Vec::new();
    for _ in 0..32 {
        commands.push(Command::Pay(BookingId::new(), charge(till.fan_with(100).await, 60)));
    }
    // In opposite orders, so that each is first with some of them.
    let (here, there) = (till.payments.clone(), till.second_process());
    let (ours, theirs) = tokio::join!(
        join_all(commands.iter().map(|command| here.submit(*command))),
        join_all(commands.iter().rev().map(|command| there.submit(*command))),
    );
    for answer in ours.iter().chain(&theirs) {
        assert_eq!(outcome(answer), "OK", "{answer:?}");
    }
    for command in commands {
        assert_eq!(till.balance(command.payer().unwrap()).await, 40);
    }
    till.assert_books_add_up().await;
}

async fn two_processes_do_not_overdraw_a_wallet(till: Till) {
    let fan = till.fan_with(1_000).await;
    let (here, there) = (till.payments.clone(), till.second_process());
    let pay = || Command::Pay(BookingId::new(), charge(fan, 100));
    let (ours, theirs) = tokio::join!(
        join_all((0..8).map(|_| here.submit(pay()))),
        join_all((0..8).map(|_| there.submit(pay())))
    );
    let outcomes: Vec<_> = ours.iter().chain(&theirs).map(outcome).collect();
    assert_eq!(outcomes.iter().filter(|outcome| **outcome == "OK").count(), 10);
    assert_eq!(outcomes.iter().filter(|outcome| **outcome == "INSUFFICIENT_BALANCE").count(), 6);
    assert_eq!(till.balance(fan).await, 0);
    till.assert_books_add_up().await;
}

async fn two_processes_give_back_no_more_than_was_taken(till: Till) {
    let fan = till.fan_with(1_000).await;
    let booking = BookingId::new();
    till.payments.submit(Command::Pay(booking, charge(fan, 1_000))).await.unwrap();
    let (here, there) = (till.payments.clone(), till.second_process());
    let mut refunded = 0;
    for _ in 0..8 {
        let refund = || Command::Refund(Refund { id: RefundId::new(), booking, amount: 100 });
        let (ours, theirs) = tokio::join!(here.submit(refund()), there.submit(refund()));
        for answer in [ours, theirs] {
            assert!(["OK", "REFUND_EXCEEDS_PAYMENT"].contains(&outcome(&answer)), "{answer:?}");
            refunded += i64::from(answer.is_ok()) * 100;
        }
    }
    assert_eq!((refunded, till.balance(fan).await), (1_000, 1_000));
    till.assert_books_add_up().await;
}

async fn two_processes_may_pay_and_void_at_once(till: Till) {
    let mut pays = Vec::new();
    for _ in 0..32 {
        pays.push(Command::Pay(BookingId::new(), charge(till.fan_with(100).await, 100)));
    }
    let (here, there) = (till.payments.clone(), till.second_process());
    let (paid, voided) = tokio::join!(
        join_all(pays.iter().map(|pay| here.submit(*pay))),
        join_all(pays.iter().rev().map(|pay| there.submit(Command::Void(pay.booking())))),
    );
    for answer in &paid {
        assert!(["OK", "PAYMENT_VOIDED"].contains(&outcome(answer)), "{answer:?}");
    }
    for answer in voided {
        assert_eq!(answer.unwrap().state, PaymentState::Voided);
    }
    for pay in pays {
        assert_eq!(till.balance(pay.payer().unwrap()).await, 100);
    }
    till.assert_books_add_up().await;
}

async fn a_voided_booking_is_never_charged(till: Till) {
    let fan = till.fan_with(100).await;
    let booking = BookingId::new();
    let tombstone = Payment { booking, state: PaymentState::Voided, charge: None, refunded: 0 };
    for _ in 0..2 {
        assert_eq!(till.payments.submit(Command::Void(booking)).await.unwrap(), tombstone);
        let late = till.payments.submit(Command::Pay(booking, charge(fan, 100))).await;
        assert_eq!(outcome(&late), "PAYMENT_VOIDED");
    }
    assert_eq!(till.balance(fan).await, 100);
    till.assert_books_add_up().await;
}

async fn voiding_gives_back_what_is_left(till: Till) {
    let fan = till.fan_with(1_000).await;
    let (booking, charge) = (BookingId::new(), charge(fan, 800));
    till.payments.submit(Command::Pay(booking, charge)).await.unwrap();
    let part = Refund { id: RefundId::new(), booking, amount: 300 };
    till.payments.submit(Command::Refund(part)).await.unwrap();
    let voided = Payment { booking, state: PaymentState::Voided, charge: Some(charge), refunded: 800 };
    for _ in 0..2 {
        assert_eq!(till.payments.submit(Command::Void(booking)).await.unwrap(), voided);
        assert_eq!(till.balance(fan).await, 1_000);
    }
    let late = till.payments.submit(Command::Pay(booking, charge)).await;
    assert_eq!(outcome(&late), "PAYMENT_VOIDED");
    let repeated = till.payments.submit(Command::Refund(part)).await;
    assert_eq!(repeated.unwrap(), voided, "a refund made before stays made");
    let another = Refund { id: RefundId::new(), booking, amount: 1 };
    assert_eq!(outcome(&till.payments.submit(Command::Refund(another)).await), "REFUND_EXCEEDS_PAYMENT");
    let movements: Vec<_> = till.entries(fan).await;
    assert_eq!(movements[..2], [(Movement::Refund, 500), (Movement::Refund, 300)]);
    till.assert_books_add_up().await;
}

async fn a_refund_is_made_once(till: Till) {
    let fan = till.fan_with(1_000).await;
    let (booking, other_booking) = (BookingId::new(), BookingId::new());
    for booking in [booking, other_booking] {
        till.payments.submit(Command::Pay(booking, charge(fan, 500))).await.unwrap();
    }
    let refund = Refund { id: RefundId::new(), booking, amount: 200 };
    let answers = join_all((0..8).map(|_| till.payments.submit(Command::Refund(refund)))).await;
    for answer in answers {
        assert_eq!(answer.unwrap().refunded, 200);
    }
    for conflicting in [Refund { amount: 201, ..refund }, Refund { booking: other_booking, ..refund }] {
        let answer = till.payments.submit(Command::Refund(conflicting)).await;
        assert_eq!(outcome(&answer), "PAYMENT_CONFLICT", "{conflicting:?}");
    }
    assert_eq!(till.balance(fan).await, 200);
    till.assert_books_add_up().await;
}

async fn a_refund_gives_back_no_more_than_was_taken(till: Till) {
    let fan = till.fan_with(1_000).await;
    let booking = BookingId::new();
    let refund = |amount| Command::Refund(Refund { id: RefundId::new(), booking, amount });
    assert_eq!(outcome(&till.payments.submit(refund(1)).await), "PAYMENT_NOT_FOUND");
    till.payments.submit(Command::Pay(booking, charge(fan, 500))).await.unwrap();
    for amount in [501, i64::MAX] {
        assert_eq!(outcome(&till.payments.submit(refund(amount)).await), "REFUND_EXCEEDS_PAYMENT");
    }
    // Ten at once of 100 each: five are all that was taken.
    let answers = join_all((0..10).map(|_| till.payments.submit(refund(100)))).await;
    assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 5);
    assert_eq!(till.balance(fan).await, 1_000);
    till.assert_books_add_up().await;
}

async fn a_batch_is_carried_out_in_its_order(till: Till) {
    let fan = till.fan_with(100).await;
    let (first, second) = (BookingId::new(), BookingId::new());
    let commands = [
        Command::Pay(first, charge(fan, 100)),
        Command::Pay(second, charge(fan, 100)),
        Command::Refund(Refund { id: RefundId::new(), booking: first, amount: 40 }),
        Command::Void(first),
        Command::Pay(second, charge(fan, 100)),
        Command::Void(second),
        Command::Void(BookingId::new()),
    ];
    let answers = join_all(commands.map(|command| till.payments.submit(command))).await;
    let outcomes: Vec<_> = answers.iter().map(outcome).collect();
    assert_eq!(outcomes, ["OK", "INSUFFICIENT_BALANCE", "OK", "OK", "OK", "OK", "OK"]);
    assert_eq!(till.payments.counts().0, 1, "one batch, or this test tests nothing");
    assert_eq!(till.balance(fan).await, 100);
    till.assert_books_add_up().await;
}

async fn who_leaves_in_time_is_not_charged_and_who_leaves_too_late_is(till: Till) {
    let fan = till.fan_with(1_000).await;
    let [begun, waiting, staying] = [(); 3].map(|()| Command::Pay(BookingId::new(), charge(fan, 100)));
    let other_writer = till.database.begin().await.unwrap();
    books::lock_wallets(&other_writer, [fan]).await.unwrap();
    let [mut first, mut second, mut third] =
        [begun, waiting, staying].map(|command| Box::pin(till.payments.submit(command)));
    assert!(poll_immediate(&mut first).await.is_none());
    wait_until("its batch to begin", Duration::from_secs(10), async || match till.payments.counts() {
        (1, 1) => Ok(()),
        counts => Err(format!("{counts:?}")),
    })
    .await;
    assert!(poll_immediate(&mut second).await.is_none());
    assert!(poll_immediate(&mut third).await.is_none());
    drop((first, second));
    other_writer.rollback().await.unwrap();
    third.await.unwrap();
    assert_eq!(till.balance(fan).await, 800);

    till.payments.submit(begun).await.unwrap();
    assert_eq!(till.balance(fan).await, 800, "it is found by its key");
    till.payments.submit(waiting).await.unwrap();
    assert_eq!(till.balance(fan).await, 700, "it was not charged");
    till.assert_books_add_up().await;
}

async fn first_top_ups_at_once_all_count(till: Till) {
    let fan = UserId::new();
    let outcomes = join_all((0..8).map(|_| till.top_up(fan, 10))).await;
    assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
    assert_eq!(till.balance(fan).await, 80);
    till.assert_books_add_up().await;
}

async fn a_wallet_is_not_topped_up_beyond_its_limit(till: Till) {
    let fan = till.fan_with(WALLET_LIMIT - 10).await;
    // Three at once, of which only one fits.
    let outcomes = join_all((0..3).map(|_| till.top_up(fan, 10))).await;
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 1);
    assert!(matches!(till.top_up(fan, 1).await, Err(Error::Refused(Refusal::WalletLimitExceeded))));
    assert!(matches!(till.top_up(fan, i64::MAX).await, Err(Error::Refused(Refusal::WalletLimitExceeded))));
    assert_eq!(till.balance(fan).await, WALLET_LIMIT);
    let booking = BookingId::new();
    till.payments.submit(Command::Pay(booking, charge(fan, 5))).await.unwrap();
    till.top_up(fan, 5).await.unwrap();
    till.payments.submit(Command::Void(booking)).await.unwrap();
    assert_eq!(till.balance(fan).await, WALLET_LIMIT + 5, "a fan's own money always comes back");
    till.assert_books_add_up().await;
}

async fn entries_are_listed_newest_first_and_only_to_their_fan(till: Till) {
    let (fan, other) = (till.fan_with(1).await, till.fan_with(1_000).await);
    let begin = till.clock.now();
    for amount in 2..=5 {
        till.clock.advance(TimeDelta::seconds(1));
        till.top_up(fan, amount).await.unwrap();
    }
    let first = Page::read(Some(2), "", &[]).unwrap();
    let mut entries = list_wallet_entries(till.database.reader(), fan, &first).await.unwrap();
    assert_eq!(entries.iter().map(|entry| entry.amount).collect::<Vec<_>>(), [5, 4, 3]);
    assert_eq!(entries[0].create_time, begin + TimeDelta::seconds(4));
    assert_eq!((entries[0].movement, entries[0].booking), (Movement::TopUp, None));
    let token = first.next_token(&mut entries, |entry| entry.id);

    // A new entry does not shift the pages.
    let booking = BookingId::new();
    till.payments.submit(Command::Pay(booking, charge(fan, 6))).await.unwrap();
    let second = Page::read(Some(2), &token, &[]).unwrap();
    let rest = list_wallet_entries(till.database.reader(), fan, &second).await.unwrap();
    assert_eq!(rest.iter().map(|entry| entry.amount).collect::<Vec<_>>(), [3, 2, 1]);
    let newest = list_wallet_entries(till.database.reader(), fan, &first).await.unwrap();
    assert_eq!(
        (newest[0].movement, newest[0].booking, newest[0].amount),
        (Movement::Payment, Some(booking), -6)
    );
    assert_eq!(till.entries(other).await, [(Movement::TopUp, 1_000)]);
}

async fn a_database_that_is_gone_is_a_503(till: Till) {
    till.database.clone().close().await;
    let commands = (0..3).map(|_| till.payments.submit(Command::Void(BookingId::new())));
    for answer in join_all(commands).await {
        assert_eq!(outcome(&answer), "DATABASE_UNAVAILABLE");
    }
}

async fn the_schema_refuses_what_the_rules_forbid(till: Till) {
    let fan = till.fan_with(100).await;
    till.payments.submit(Command::Pay(BookingId::new(), charge(fan, 50))).await.unwrap();
    for statement in [
        "UPDATE wallet SET balance = -1",
        "UPDATE payment SET refunded = 51",
        "UPDATE payment SET refunded = -1",
        "UPDATE payment SET state = 2",
        "UPDATE payment SET fan = NULL, concert = NULL",
        "INSERT INTO payment SELECT * FROM payment",
        "UPDATE entry SET amount = 0",
        "UPDATE entry SET owner = NULL WHERE account = 1",
    ] {
        let error = till.execute(statement).await.expect_err(statement);
        assert!(error.to_string().to_lowercase().contains("constraint"), "{statement}: {error}");
    }
    till.assert_books_add_up().await;
}

async fn the_audit_finds_each_breach(till: Till) {
    let fan = till.fan_with(1_000).await;
    let booking = BookingId::new();
    till.payments.submit(Command::Pay(booking, charge(fan, 500))).await.unwrap();
    let refund = Refund { id: RefundId::new(), booking, amount: 100 };
    till.payments.submit(Command::Refund(refund)).await.unwrap();
    for (breach, mending, rules) in [
        (
            "UPDATE entry SET amount = amount + 1 WHERE account = 2",
            "UPDATE entry SET amount = amount - 1 WHERE account = 2",
            &["the entries of a transaction sum to zero"][..],
        ),
        (
            "UPDATE wallet SET balance = balance + 1",
            "UPDATE wallet SET balance = balance - 1",
            &["a wallet is the sum of its entries"],
        ),
        (
            "UPDATE payment SET amount = amount + 1",
            "UPDATE payment SET amount = amount - 1",
            &["what is left of a payment is payable for its concert"],
        ),
        (
            "UPDATE refund SET amount = amount + 1",
            "UPDATE refund SET amount = amount - 1",
            &["a captured payment's refunds are the refunds made"],
        ),
        (
            "UPDATE top_up SET amount = amount + 1",
            "UPDATE top_up SET amount = amount - 1",
            &["what came from providers is what was topped up"],
        ),
    ] {
        assert_eq!(till.execute(breach).await.unwrap(), 1, "{breach}");
        assert_eq!(broken_rules(&till.database).await, rules, "{breach}");
        assert_eq!(till.execute(mending).await.unwrap(), 1, "{mending}");
    }
    till.assert_books_add_up().await;
}
