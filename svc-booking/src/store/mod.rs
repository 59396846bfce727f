//! Bookings in the database: functions named for what they mean, each one transaction. Reads take who reads.

mod hot;
#[cfg(test)]
mod tests;

use std::collections::HashMap;

use chrono::{DateTime, TimeDelta, Utc};
use mesh::{
    Failure,
    database::{Database, KeptConnection, sql},
    id::{BookingId, ConcertId, HoldId, Id, RefundId, UserId},
    lane::Lane,
    page::Page,
};
use sea_orm::{ConnectionTrait, DbErr, QueryResult, SqlErr, Value};
use uuid::Uuid;

use self::hot::{Answer, HotWrites, Job};
pub(crate) use self::hot::{Conflict, NewBooking};
use crate::{
    domain::{
        booking::{Booking, Lease, PaymentFailure, State},
        layout::{Ordinal, Seat},
    },
    error::Error,
    holds::Sold,
};

/// How long whoever works on a booking has it for itself.
pub(crate) const LEASE: TimeDelta = TimeDelta::seconds(5);

/// Tries after which a refund that is still not made is an operator's affair.
pub(crate) const REFUND_ALARM: i32 = 6;

const COLUMNS: &str =
    "id, fan, concert, hold, state, lease_epoch, lease_until, seats, total, refunded, failure, create_time";

/// What became of an order before, all at one moment.
#[derive(Debug, Default)]
pub(crate) struct Earlier {
    /// The booking that the fan's key made, and the hash of what was asked.
    pub(crate) by_key: Option<(Booking, Vec<u8>)>,
    /// The booking that the hold became.
    pub(crate) by_hold: Option<BookingId>,
}

/// The bookings.
#[derive(Clone)]
pub(crate) struct Store {
    database: Database,
    hot: Lane<HotWrites>,
}

/// Money to be given back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Refund {
    pub(crate) id: RefundId,
    pub(crate) booking: BookingId,
    /// In minor units.
    pub(crate) amount: i64,
    /// How often it was tried in vain.
    pub(crate) tries: i32,
}

impl Refund {
    /// How long to wait after one more try in vain: twice as long each time, half a minute at the most.
    fn pause(self) -> TimeDelta {
        TimeDelta::seconds(1 << self.tries.clamp(0, 5)).min(TimeDelta::seconds(30))
    }
}

/// What came of a cancellation.
#[derive(Debug)]
pub(crate) struct Cancelled {
    pub(crate) booking: Booking,
    /// Whether the same key had cancelled it before.
    pub(crate) is_replay: bool,
}

impl Store {
    pub(crate) fn new(database: Database) -> Self {
        let hot = Lane::start(HotWrites { connection: KeptConnection::new(database.clone()) });
        Self { database, hot }
    }

    pub(crate) async fn close(self) {
        self.database.close().await;
    }

    /// How many batches the lane has begun.
    #[cfg(test)]
    pub(crate) fn batches(&self) -> u64 {
        self.hot.counts().0
    }

    /// Makes a booking and claims its seats: all of it, or nothing and why.
    pub(crate) async fn claim(&self, new: NewBooking) -> Result<Result<(), Conflict>, Failure> {
        match self.hot.submit(Job::Claim(Box::new(new))).await? {
            Answer::Done => Ok(Ok(())),
            Answer::Conflict(conflict) => Ok(Err(conflict)),
            Answer::Fenced => Err(Failure::internal("a claim has no lease to lose")),
        }
    }

    /// Writes that a booking is paid, if the lease is still ours. Whether it was.
    pub(crate) async fn confirm(&self, booking: &Booking) -> Result<bool, Failure> {
        let job = Job::Confirm { booking: booking.id, epoch: booking.lease.epoch };
        Ok(matches!(self.hot.submit(job).await?, Answer::Done))
    }

    /// Writes that a booking failed and gives its seats back, if the lease is still ours. Whether it was.
    pub(crate) async fn fail(&self, booking: &Booking, failure: PaymentFailure) -> Result<bool, Failure> {
        let job = Job::Fail { booking: Box::new(booking.clone()), failure };
        Ok(matches!(self.hot.submit(job).await?, Answer::Done))
    }

    /// A booking of a fan.
    pub(crate) async fn find_own(&self, fan: UserId, id: BookingId) -> Result<Booking, Error> {
        let booking = find(self.database.reader(), id).await?;
        booking.filter(|booking| booking.fan == fan).ok_or(Error::BookingNotFound)
    }

    /// The booking that a fan's key made, and the hash of what was asked.
    pub(crate) async fn find_by_key(
        &self,
        fan: UserId,
        key: &str,
    ) -> Result<Option<(Booking, Vec<u8>)>, Error> {
        Ok(find_by_key(self.database.reader(), fan, key).await?)
    }

    /// The booking that a hold became.
    pub(crate) async fn find_by_hold(&self, hold: HoldId) -> Result<Option<BookingId>, Error> {
        Ok(find_by_hold(self.database.reader(), hold).await?)
    }

    /// What became of an order before.
    pub(crate) async fn find_earlier(&self, fan: UserId, key: &str, hold: HoldId) -> Result<Earlier, Error> {
        Ok(find_earlier(self.database.reader(), fan, key, Some(hold)).await?)
    }

    /// A fan's bookings, the newest first, one more than the page has.
    pub(crate) async fn list_own(
        &self,
        fan: UserId,
        concert: Option<ConcertId>,
        page: &Page<BookingId>,
    ) -> Result<Vec<Booking>, Error> {
        let reader = self.database.reader();
        let mut values: Vec<Value> = vec![fan.uuid().into(), page.after.map_or(Uuid::max(), Id::uuid).into()];
        let mut text = format!("SELECT {COLUMNS} FROM booking WHERE fan = $1 AND id < $2");
        if let Some(concert) = concert {
            values.push(concert.uuid().into());
            text.push_str(" AND concert = $3");
        }
        text.push_str(&format!(" ORDER BY id DESC LIMIT {}", page.rows()));
        let rows = reader.query_all_raw(sql(reader, text, values)).await?;
        Ok(rows.iter().map(booking_from).collect::<Result<_, _>>()?)
    }

    /// Which seats of a concert are sold, and how many each fan has.
    pub(crate) async fn find_sold(&self, concert: ConcertId, places: u32) -> Result<Sold, Error> {
        let reader = self.database.reader();
        // One statement: of a booking that is made meanwhile both are seen, or neither.
        let statement = sql(
            reader,
            "SELECT claim.seat, booking.fan FROM claim JOIN booking ON booking.id = claim.booking
             WHERE claim.concert = $1",
            [concert.uuid().into()],
        );
        let rows = reader.query_all_raw(statement).await?;
        let mut seats = Vec::with_capacity(rows.len());
        let mut fans: HashMap<UserId, u32> = HashMap::new();
        for row in &rows {
            seats.push(row.try_get::<i32>("", "seat")?.max(0) as u32);
            *fans.entry(UserId::from_uuid(row.try_get("", "fan")?)).or_default() += 1;
        }
        Ok(Sold { places, seats, fans: fans.into_iter().collect() })
    }

    /// Which of these seats of a concert are sold.
    pub(crate) async fn find_sold_of(
        &self,
        concert: ConcertId,
        seats: &[Ordinal],
    ) -> Result<Vec<Ordinal>, Error> {
        Ok(find_sold_of(self.database.reader(), concert, seats).await?)
    }

    /// How many seats are sold of each concert that ever had a booking: the newest that are older than one, so many of them.
    pub(crate) async fn count_sold(
        &self,
        before: ConcertId,
        limit: usize,
    ) -> Result<Vec<(ConcertId, u32)>, Error> {
        let reader = self.database.reader();
        // By the primary key, so that it ends with the last of these concerts. A bigint on both databases.
        let text = format!(
            "SELECT concert, CAST(SUM(seats) AS bigint) AS sold FROM fan_seats WHERE concert < $1
             GROUP BY concert ORDER BY concert DESC LIMIT {limit}"
        );
        let rows = reader.query_all_raw(sql(reader, text, [before.uuid().into()])).await?;
        let count = |row: &QueryResult| {
            let sold: i64 = row.try_get("", "sold")?;
            Ok((ConcertId::from_uuid(row.try_get("", "concert")?), sold.max(0) as u32))
        };
        Ok(rows.iter().map(count).collect::<Result<_, DbErr>>()?)
    }

    /// Bookings that are PAYING, from an id on, whoever works on them. Some of them: ask again from after the last one.
    pub(crate) async fn list_paying(&self, from: Uuid) -> Result<Vec<Booking>, Error> {
        let reader = self.database.reader();
        let text = format!(
            "SELECT {COLUMNS} FROM booking WHERE id >= $1 AND state = {} ORDER BY id LIMIT 256",
            State::Paying.number()
        );
        let rows = reader.query_all_raw(sql(reader, text, [from.into()])).await?;
        Ok(rows.iter().map(booking_from).collect::<Result<_, _>>()?)
    }

    /// Takes over a booking whose lease has run out. None: someone else did.
    pub(crate) async fn take_over(
        &self,
        booking: Booking,
        now: DateTime<Utc>,
    ) -> Result<Option<Booking>, Error> {
        let lease = Lease { epoch: booking.lease.epoch + 1, until: now + LEASE };
        let writer = self.database.writer();
        let updated = writer
            .execute_raw(sql(
                writer,
                "UPDATE booking SET lease_epoch = $1, lease_until = $2 WHERE id = $3 AND lease_epoch = $4 AND state = $5",
                [
                    lease.epoch.into(),
                    lease.until.into(),
                    booking.id.uuid().into(),
                    booking.lease.epoch.into(),
                    State::Paying.number().into(),
                ],
            ))
            .await?;
        Ok((updated.rows_affected() == 1).then_some(Booking { lease, ..booking }))
    }

    /// Cancels a fan's confirmed booking: its seats are free, and its price is to be given back.
    pub(crate) async fn cancel(
        &self,
        fan: UserId,
        id: BookingId,
        key: &str,
        now: DateTime<Utc>,
    ) -> Result<Cancelled, Error> {
        let transaction = self.database.begin().await?;
        let booking = find(&transaction, id)
            .await?
            .filter(|booking| booking.fan == fan)
            .ok_or(Error::BookingNotFound)?;
        match find_by_cancel_key(&transaction, fan, key).await? {
            Some(known) if known == id => return Ok(Cancelled { booking, is_replay: true }),
            Some(_) => return Err(Error::KeyReused),
            None => {}
        }
        let updated = transaction
            .execute_raw(sql(
                &transaction,
                "UPDATE booking SET state = $1, cancel_key = $2 WHERE id = $3 AND state = $4",
                [
                    State::Cancelled.number().into(),
                    key.into(),
                    id.uuid().into(),
                    State::Confirmed.number().into(),
                ],
            ))
            .await
            .map_err(|error| match error.sql_err() {
                // Another booking was cancelled by this key meanwhile.
                Some(SqlErr::UniqueConstraintViolation(_)) => Error::KeyReused,
                _ => error.into(),
            })?;
        if updated.rows_affected() == 0 {
            let booking = find(&transaction, id).await?.ok_or(Error::BookingNotFound)?;
            // The same request may have come twice at once, and the other was first.
            let is_replay = find_by_cancel_key(&transaction, fan, key).await? == Some(id);
            // If it has been confirmed since, it was being paid when it was to be cancelled.
            let was = if booking.state == State::Confirmed { State::Paying } else { booking.state };
            let refused = Error::NotCancellable(was);
            return if is_replay { Ok(Cancelled { booking, is_replay }) } else { Err(refused) };
        }
        hot::release_claims(&transaction, &booking).await?;
        if booking.total > 0 {
            let values = [
                RefundId::new().uuid().into(),
                id.uuid().into(),
                booking.total.into(),
                false.into(),
                now.into(),
            ];
            let text =
                "INSERT INTO refund (id, booking, amount, is_done, create_time) VALUES ($1, $2, $3, $4, $5)";
            transaction.execute_raw(sql(&transaction, text, values)).await?;
        }
        transaction.commit().await?;
        Ok(Cancelled { booking: Booking { state: State::Cancelled, ..booking }, is_replay: false })
    }

    /// Refunds that are to be made now, the oldest first; of one booking, if it is named.
    pub(crate) async fn list_refunds_to_do(
        &self,
        booking: Option<BookingId>,
        now: DateTime<Utc>,
    ) -> Result<Vec<Refund>, Error> {
        let reader = self.database.reader();
        let text = "SELECT id, booking, amount, tries FROM refund WHERE NOT is_done";
        let statement = match booking {
            Some(booking) => sql(reader, format!("{text} AND booking = $1"), [booking.uuid().into()]),
            None => {
                let is_due = "(next_try_time IS NULL OR next_try_time <= $1)";
                sql(reader, format!("{text} AND {is_due} ORDER BY id LIMIT 256"), [now.into()])
            }
        };
        let rows = reader.query_all_raw(statement).await?;
        let refund = |row: &QueryResult| {
            Ok(Refund {
                id: RefundId::from_uuid(row.try_get("", "id")?),
                booking: BookingId::from_uuid(row.try_get("", "booking")?),
                amount: row.try_get("", "amount")?,
                tries: row.try_get("", "tries")?,
            })
        };
        Ok(rows.iter().map(refund).collect::<Result<_, DbErr>>()?)
    }

    /// Notes that a refund was tried in vain: it waits, and the others come first.
    pub(crate) async fn postpone_refund(&self, refund: Refund, now: DateTime<Utc>) -> Result<(), Error> {
        let writer = self.database.writer();
        let text = "UPDATE refund SET tries = tries + 1, next_try_time = $1 WHERE id = $2 AND NOT is_done";
        let values = [(now + refund.pause()).into(), refund.id.uuid().into()];
        writer.execute_raw(sql(writer, text, values)).await?;
        Ok(())
    }

    /// Notes why an operator must look at a booking, if the lease is still ours.
    pub(crate) async fn flag(&self, booking: &Booking, why: &str) -> Result<(), Error> {
        let writer = self.database.writer();
        let text = "UPDATE booking SET attention = $1 WHERE id = $2 AND lease_epoch = $3 AND state = $4
             AND attention IS NULL";
        let values =
            [why.into(), booking.id.uuid().into(), booking.lease.epoch.into(), State::Paying.number().into()];
        writer.execute_raw(sql(writer, text, values)).await?;
        Ok(())
    }

    /// How many bookings and refunds an operator must look at. `from` is where to begin with bookings.
    pub(crate) async fn count_attention(&self, from: Uuid) -> Result<i64, Error> {
        let reader = self.database.reader();
        let text = format!(
            "SELECT (SELECT COUNT(*) FROM booking WHERE id >= $1 AND state = {} AND attention IS NOT NULL)
                  + (SELECT COUNT(*) FROM refund WHERE NOT is_done AND tries >= {REFUND_ALARM}) AS count",
            State::Paying.number(),
        );
        let row = reader.query_one_raw(sql(reader, text, [from.into()])).await?;
        Ok(row.map(|row| row.try_get("", "count")).transpose()?.unwrap_or_default())
    }

    /// Notes that a refund was made.
    pub(crate) async fn finish_refund(&self, refund: Refund) -> Result<(), Error> {
        let transaction = self.database.begin().await?;
        let statement = sql(
            &transaction,
            "UPDATE refund SET is_done = $1 WHERE id = $2 AND NOT is_done",
            [true.into(), refund.id.uuid().into()],
        );
        if transaction.execute_raw(statement).await?.rows_affected() == 1 {
            let statement = sql(
                &transaction,
                "UPDATE booking SET refunded = refunded + $1 WHERE id = $2",
                [refund.amount.into(), refund.booking.uuid().into()],
            );
            transaction.execute_raw(statement).await?;
        }
        transaction.commit().await?;
        Ok(())
    }
}

async fn find(connection: &impl ConnectionTrait, id: BookingId) -> Result<Option<Booking>, DbErr> {
    let text = format!("SELECT {COLUMNS} FROM booking WHERE id = $1");
    let row = connection.query_one_raw(sql(connection, text, [id.uuid().into()])).await?;
    row.as_ref().map(booking_from).transpose()
}

async fn find_by_key(
    connection: &impl ConnectionTrait,
    fan: UserId,
    key: &str,
) -> Result<Option<(Booking, Vec<u8>)>, DbErr> {
    let text = format!("SELECT {COLUMNS}, fingerprint FROM booking WHERE fan = $1 AND request_key = $2");
    let row = connection.query_one_raw(sql(connection, text, [fan.uuid().into(), key.into()])).await?;
    row.map(|row| Ok((booking_from(&row)?, row.try_get("", "fingerprint")?))).transpose()
}

async fn find_by_cancel_key(
    connection: &impl ConnectionTrait,
    fan: UserId,
    key: &str,
) -> Result<Option<BookingId>, DbErr> {
    let text = "SELECT id FROM booking WHERE fan = $1 AND cancel_key = $2";
    let row = connection.query_one_raw(sql(connection, text, [fan.uuid().into(), key.into()])).await?;
    row.map(|row| Ok(BookingId::from_uuid(row.try_get("", "id")?))).transpose()
}

async fn find_sold_of(
    connection: &impl ConnectionTrait,
    concert: ConcertId,
    seats: &[Ordinal],
) -> Result<Vec<Ordinal>, DbErr> {
    let mut sold = Vec::new();
    for seat in seats {
        let text = "SELECT booking FROM claim WHERE concert = $1 AND seat = $2";
        let statement = sql(connection, text, [concert.uuid().into(), (*seat as i32).into()]);
        if connection.query_one_raw(statement).await?.is_some() {
            sold.push(*seat);
        }
    }
    Ok(sold)
}

async fn find_by_hold(connection: &impl ConnectionTrait, hold: HoldId) -> Result<Option<BookingId>, DbErr> {
    let statement = sql(connection, "SELECT id FROM booking WHERE hold = $1", [hold.uuid().into()]);
    let row = connection.query_one_raw(statement).await?;
    row.map(|row| Ok(BookingId::from_uuid(row.try_get("", "id")?))).transpose()
}

/// One statement: between two, a booking may be made, or fail and give its key and its hold back.
async fn find_earlier(
    connection: &impl ConnectionTrait,
    fan: UserId,
    key: &str,
    hold: Option<HoldId>,
) -> Result<Earlier, DbErr> {
    let text = format!(
        "SELECT {COLUMNS}, fingerprint, request_key FROM booking
         WHERE (fan = $1 AND request_key = $2) OR hold = $3"
    );
    let values = [fan.uuid().into(), key.into(), hold.map(HoldId::uuid).into()];
    let mut earlier = Earlier::default();
    for row in connection.query_all_raw(sql(connection, text, values)).await? {
        let booking = booking_from(&row)?;
        if hold.is_some() && booking.hold == hold {
            earlier.by_hold = Some(booking.id);
        }
        let own_key: Option<String> = row.try_get("", "request_key")?;
        if booking.fan == fan && own_key.as_deref() == Some(key) {
            earlier.by_key = Some((booking, row.try_get("", "fingerprint")?));
        }
    }
    Ok(earlier)
}

fn booking_from(row: &QueryResult) -> Result<Booking, DbErr> {
    let corrupt = |what: &str| DbErr::Type(format!("a booking's {what} can't be read"));
    let seats: String = row.try_get("", "seats")?;
    let failure: Option<i16> = row.try_get("", "failure")?;
    let hold: Option<Uuid> = row.try_get("", "hold")?;
    Ok(Booking {
        id: BookingId::from_uuid(row.try_get("", "id")?),
        fan: UserId::from_uuid(row.try_get("", "fan")?),
        concert: ConcertId::from_uuid(row.try_get("", "concert")?),
        hold: hold.map(HoldId::from_uuid),
        state: State::from_number(row.try_get("", "state")?).ok_or_else(|| corrupt("state"))?,
        seats: serde_json::from_str(&seats).map_err(|_| corrupt("seats"))?,
        total: row.try_get("", "total")?,
        refunded: row.try_get("", "refunded")?,
        failure: failure.and_then(PaymentFailure::from_number),
        create_time: row.try_get("", "create_time")?,
        lease: Lease { epoch: row.try_get("", "lease_epoch")?, until: row.try_get("", "lease_until")? },
    })
}

fn seats_json(seats: &[Seat]) -> String {
    serde_json::to_string(seats).expect("seats are plain values")
}
