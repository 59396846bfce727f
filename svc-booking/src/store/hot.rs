//! The hot writes: claim, confirm and fail, in a lane. A batch is a transaction of a few set-based statements, and on Postgres
//! one statement if nothing fails; if one of its jobs is in conflict with what is there, the batch is done again job by job,
//! each behind a savepoint.

use mesh::{
    Failure, crash,
    database::{
        Insert, KeptConnection, Rows, is_conflict, is_unavailable, postgres_rows, race_lost, rows_of, sql,
    },
    id::{BookingId, ConcertId, Id, UserId},
    lane::Work,
};
use sea_orm::{ConnectionTrait, DatabaseBackend, DbErr, QueryResult, Statement, Value};
use std::collections::{BTreeMap, HashSet};
use uuid::Uuid;

use super::{find_earlier, find_sold_of, seats_json};
use crate::domain::{
    booking::{Booking, PaymentFailure, State},
    layout::Ordinal,
};

/// How often a job is tried that other writers got in the way of.
const TRIES: u32 = 3;

/// A booking to be made.
#[derive(Debug, Clone)]
pub(crate) struct NewBooking {
    pub(crate) booking: Booking,
    pub(crate) request_key: String,
    pub(crate) fingerprint: [u8; 32],
    /// Seats of the concert that the fan may have.
    pub(crate) seat_limit: u32,
}

/// What the lane does.
#[derive(Debug)]
pub(super) enum Job {
    /// Makes a booking and claims its seats.
    Claim(Box<NewBooking>),
    /// Writes that a booking is paid.
    Confirm { booking: BookingId, epoch: i32 },
    /// Writes that a booking failed, and gives its seats back.
    Fail { booking: Box<Booking>, failure: PaymentFailure },
}

/// What became of a job.
#[derive(Debug)]
pub(super) enum Answer {
    Done,
    /// Someone else has the lease, or the booking is no longer PAYING: nothing was written.
    Fenced,
    /// The claim is in conflict: nothing was written.
    Conflict(Conflict),
}

/// Why a claim is refused.
#[derive(Debug)]
pub(crate) enum Conflict {
    /// The fan's key has made a booking before.
    Replay { booking: Box<Booking>, fingerprint: Vec<u8> },
    /// The hold has become a booking.
    HoldBooked(BookingId),
    /// These seats are sold.
    SeatTaken(Vec<Ordinal>),
    /// The fan has too many seats.
    LimitExceeded { remaining: u32 },
}

/// The lane's work.
pub(super) struct HotWrites {
    pub(super) connection: KeptConnection,
}

impl Work for HotWrites {
    type Job = Job;
    type Answer = Answer;

    const NAME: (&'static str, &'static str) = ("booking", "hot");

    async fn run(&mut self, jobs: Vec<Job>) -> Vec<Result<Answer, Failure>> {
        let together = self.run_together(&jobs).await;
        let outcome = match together {
            Err(error) if !is_unavailable(&error) => self.run_one_by_one(&jobs).await,
            outcome => outcome.map(|answers| answers.into_iter().map(Ok).collect()),
        };
        outcome.unwrap_or_else(|error| {
            // One cause, told to everyone who waits.
            let cause = error.to_string();
            let info = Failure::from(error);
            jobs.iter().map(|_| Err(info.copy_without_cause().caused_by(cause.clone()))).collect()
        })
    }
}

impl HotWrites {
    async fn run_together(&mut self, jobs: &[Job]) -> Result<Vec<Answer>, DbErr> {
        let all: Vec<&Job> = jobs.iter().collect();
        let is_for_several = jobs.len() > 1;
        let fails_none = !jobs.iter().any(|job| matches!(job, Job::Fail { .. }));
        if self.connection.backend() == DatabaseBackend::Postgres
            && fails_none
            && let Some(statement) = statement_of(&all)?
        {
            if is_for_several {
                crash::point("booking.commit.before");
            }
            let confirmed = confirmed_of(&self.connection.commit_alone(statement).await?)?;
            if is_for_several {
                crash::point("booking.commit.after");
            }
            return Ok(jobs.iter().map(|job| answer(job, &confirmed)).collect());
        }
        let transaction = self.connection.begin().await?;
        let written = write(&transaction, &all).await;
        let is_for_several = is_for_several && written.is_ok();
        if is_for_several {
            crash::point("booking.commit.before");
        }
        let answers = transaction.end(written).await;
        if is_for_several {
            crash::point("booking.commit.after");
        }
        answers
    }

    async fn run_one_by_one(&mut self, jobs: &[Job]) -> Result<Vec<Result<Answer, Failure>>, DbErr> {
        let transaction = self.connection.begin().await?;
        let written = async {
            let mut answers = Vec::with_capacity(jobs.len());
            for job in jobs {
                answers.push(run_alone(&transaction, job).await?);
            }
            Ok(answers)
        };
        let written = written.await;
        transaction.end(written).await
    }
}

/// Does one job of a batch behind a savepoint.
async fn run_alone(transaction: &impl ConnectionTrait, job: &Job) -> Result<Result<Answer, Failure>, DbErr> {
    let mut tries = 1;
    loop {
        transaction.execute_unprepared("SAVEPOINT job").await?;
        let error = match write(transaction, &[job]).await {
            Ok(mut answers) => {
                transaction.execute_unprepared("RELEASE SAVEPOINT job").await?;
                return Ok(Ok(answers.remove(0)));
            }
            Err(error) => error,
        };
        transaction.execute_unprepared("ROLLBACK TO SAVEPOINT job").await?;
        if !is_conflict(&error) {
            return Ok(Err(Failure::from(error)));
        }
        if let Job::Claim(new) = job
            && let Some(conflict) = diagnose(transaction, new).await?
        {
            return Ok(Ok(Answer::Conflict(conflict)));
        }
        // What it was in conflict with has gone since, as a booking that was cancelled; or it was a deadlock.
        if tries == TRIES {
            return Ok(Err(race_lost(error)));
        }
        tries += 1;
    }
}

/// Does the jobs of a batch in a transaction: claims and confirms first, then failures.
async fn write(transaction: &impl ConnectionTrait, jobs: &[&Job]) -> Result<Vec<Answer>, DbErr> {
    let confirmed = claim_and_confirm(transaction, jobs).await?;
    let mut answers = Vec::with_capacity(jobs.len());
    for job in jobs {
        answers.push(match job {
            Job::Fail { booking, failure } if fail(transaction, booking, *failure).await? => Answer::Done,
            job => answer(job, &confirmed),
        });
    }
    Ok(answers)
}

/// Writes the claims and confirms of a batch; which bookings were confirmed.
async fn claim_and_confirm(
    transaction: &impl ConnectionTrait,
    jobs: &[&Job],
) -> Result<HashSet<Uuid>, DbErr> {
    if transaction.get_database_backend() == DatabaseBackend::Postgres {
        return match statement_of(jobs)? {
            Some(statement) => confirmed_of(&transaction.query_all_raw(statement).await?),
            None => Ok(HashSet::new()),
        };
    }
    for insert in inserts_of(&claims_of(jobs)) {
        insert.run(transaction).await?;
    }
    confirm(transaction, &confirms_of(jobs)).await
}

/// The claims and confirms of a batch as one statement of Postgres, which gives the confirmed bookings. None: there are none.
///
/// It is the only way in which they are written there: Postgres goes through the parts in an order of its own, which is the
/// same each time, so that two transactions lock rows in the same order.
fn statement_of(jobs: &[&Job]) -> Result<Option<Statement>, DbErr> {
    let mut values = Vec::new();
    let mut parts = Vec::new();
    for insert in inserts_of(&claims_of(jobs)) {
        parts.extend(insert.part(&mut values)?);
    }
    let mut select = "SELECT NULL::uuid AS id WHERE false";
    let confirms = confirms_of(jobs);
    if !confirms.is_empty() {
        let query = postgres_rows(&mut values, &confirm_rows(&confirms))?;
        parts.push(format!("confirmed AS ({})", confirm_text(&query)));
        select = "SELECT id FROM confirmed";
    }
    if parts.is_empty() {
        return Ok(None);
    }
    let text = format!("WITH {} {select}", parts.join(", "));
    Ok(Some(Statement::from_sql_and_values(DatabaseBackend::Postgres, text, values)))
}

fn claims_of<'j>(jobs: &[&'j Job]) -> Vec<&'j NewBooking> {
    let claim = |job: &&'j Job| match job {
        Job::Claim(new) => Some(&**new),
        _ => None,
    };
    jobs.iter().filter_map(claim).collect()
}

fn confirms_of(jobs: &[&Job]) -> Vec<(BookingId, i32)> {
    let confirm = |job: &&Job| match job {
        Job::Confirm { booking, epoch } => Some((*booking, *epoch)),
        _ => None,
    };
    jobs.iter().filter_map(confirm).collect()
}

/// What became of a job, if it did not fail a booking.
fn answer(job: &Job, confirmed: &HashSet<Uuid>) -> Answer {
    match job {
        Job::Claim(_) => Answer::Done,
        Job::Confirm { booking, .. } if confirmed.contains(&booking.uuid()) => Answer::Done,
        Job::Confirm { .. } | Job::Fail { .. } => Answer::Fenced,
    }
}

/// What a batch of claims inserts.
fn inserts_of(claims: &[&NewBooking]) -> [Insert; 3] {
    // Sorted, so that two transactions lock the rows of a table in the same order.
    let mut fans: BTreeMap<(ConcertId, UserId), (usize, u32)> = BTreeMap::new();
    let mut seats: Vec<(ConcertId, Ordinal, BookingId)> = Vec::new();
    for new in claims {
        let booking = &new.booking;
        let fan = fans.entry((booking.concert, booking.fan)).or_insert((0, new.seat_limit));
        fan.0 += booking.seats.len();
        seats.extend(booking.seats.iter().map(|seat| (booking.concert, seat.ordinal, booking.id)));
    }
    seats.sort_unstable();
    let fan_rows = fans.into_iter().map(|((concert, fan), (count, limit))| {
        vec![concert.uuid().into(), fan.uuid().into(), (count as i32).into(), (limit as i32).into()]
    });
    let seat_rows = seats.into_iter().map(|(concert, seat, booking)| {
        vec![concert.uuid().into(), (seat as i32).into(), booking.uuid().into()]
    });
    [
        Insert {
            table: "fan_seats",
            columns: &["concert", "fan", "seats", "seat_limit"],
            tail: "ON CONFLICT (concert, fan) DO UPDATE
                   SET seats = fan_seats.seats + excluded.seats, seat_limit = excluded.seat_limit",
            rows: fan_rows.collect(),
        },
        Insert {
            table: "booking",
            columns: &[
                "id",
                "fan",
                "concert",
                "hold",
                "request_key",
                "fingerprint",
                "state",
                "lease_epoch",
                "lease_until",
                "seats",
                "total",
                "create_time",
            ],
            tail: "",
            rows: claims.iter().map(|new| booking_row(new)).collect(),
        },
        Insert {
            table: "claim",
            columns: &["concert", "seat", "booking"],
            tail: "",
            rows: seat_rows.collect(),
        },
    ]
}

fn booking_row(new: &NewBooking) -> Vec<Value> {
    let booking = &new.booking;
    vec![
        booking.id.uuid().into(),
        booking.fan.uuid().into(),
        booking.concert.uuid().into(),
        booking.hold.map(Id::uuid).into(),
        new.request_key.clone().into(),
        new.fingerprint.to_vec().into(),
        booking.state.number().into(),
        booking.lease.epoch.into(),
        booking.lease.until.into(),
        seats_json(&booking.seats).into(),
        booking.total.into(),
        booking.create_time.into(),
    ]
}

/// Confirms bookings on SQLite; which of them were PAYING under the lease.
async fn confirm(
    transaction: &impl ConnectionTrait,
    confirms: &[(BookingId, i32)],
) -> Result<HashSet<Uuid>, DbErr> {
    let mut confirmed = HashSet::with_capacity(confirms.len());
    for Rows { query, values, .. } in rows_of(transaction.get_database_backend(), confirm_rows(confirms))? {
        let statement = sql(transaction, confirm_text(&query), values);
        confirmed.extend(confirmed_of(&transaction.query_all_raw(statement).await?)?);
    }
    Ok(confirmed)
}

fn confirm_rows(confirms: &[(BookingId, i32)]) -> Vec<Vec<Value>> {
    confirms.iter().map(|(booking, epoch)| vec![booking.uuid().into(), (*epoch).into()]).collect()
}

/// Confirms the bookings that a query gives with their epochs, and gives those that were PAYING under the lease.
fn confirm_text(query: &str) -> String {
    format!(
        "UPDATE booking SET state = {} WHERE state = {} AND (id, lease_epoch) IN ({query}) RETURNING id",
        State::Confirmed.number(),
        State::Paying.number(),
    )
}

fn confirmed_of(rows: &[QueryResult]) -> Result<HashSet<Uuid>, DbErr> {
    rows.iter().map(|row| row.try_get("", "id")).collect()
}

async fn fail(
    transaction: &impl ConnectionTrait,
    booking: &Booking,
    failure: PaymentFailure,
) -> Result<bool, DbErr> {
    let updated = transaction
        .execute_raw(sql(
            transaction,
            "UPDATE booking SET state = $1, failure = $2, hold = NULL, request_key = NULL
             WHERE id = $3 AND lease_epoch = $4 AND state = $5",
            [
                State::Failed.number().into(),
                failure.number().into(),
                booking.id.uuid().into(),
                booking.lease.epoch.into(),
                State::Paying.number().into(),
            ],
        ))
        .await?;
    if updated.rows_affected() == 0 {
        return Ok(false);
    }
    release_claims(transaction, booking).await?;
    Ok(true)
}

/// Gives the seats of a booking back.
pub(super) async fn release_claims(
    transaction: &impl ConnectionTrait,
    booking: &Booking,
) -> Result<(), DbErr> {
    for seat in &booking.seats {
        transaction
            .execute_raw(sql(
                transaction,
                "DELETE FROM claim WHERE concert = $1 AND seat = $2 AND booking = $3",
                [booking.concert.uuid().into(), (seat.ordinal as i32).into(), booking.id.uuid().into()],
            ))
            .await?;
    }
    transaction
        .execute_raw(sql(
            transaction,
            "UPDATE fan_seats SET seats = seats - $1 WHERE concert = $2 AND fan = $3",
            [(booking.seats.len() as i32).into(), booking.concert.uuid().into(), booking.fan.uuid().into()],
        ))
        .await?;
    Ok(())
}

/// Finds out what a claim is in conflict with.
async fn diagnose(connection: &impl ConnectionTrait, new: &NewBooking) -> Result<Option<Conflict>, DbErr> {
    let booking = &new.booking;
    let earlier = find_earlier(connection, booking.fan, &new.request_key, booking.hold).await?;
    if let Some((booking, fingerprint)) = earlier.by_key {
        return Ok(Some(Conflict::Replay { booking: Box::new(booking), fingerprint }));
    }
    if let Some(booking) = earlier.by_hold {
        return Ok(Some(Conflict::HoldBooked(booking)));
    }
    let taken = find_sold_of(connection, booking.concert, &booking.ordinals()).await?;
    if !taken.is_empty() {
        return Ok(Some(Conflict::SeatTaken(taken)));
    }
    let statement = sql(
        connection,
        "SELECT seats FROM fan_seats WHERE concert = $1 AND fan = $2",
        [booking.concert.uuid().into(), booking.fan.uuid().into()],
    );
    let has: i32 = match connection.query_one_raw(statement).await? {
        Some(row) => row.try_get("", "seats")?,
        None => 0,
    };
    let remaining = new.seat_limit.saturating_sub(has.max(0) as u32);
    Ok((booking.seats.len() as u32 > remaining).then_some(Conflict::LimitExceeded { remaining }))
}
