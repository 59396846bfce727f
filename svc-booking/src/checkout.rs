//! The saga of a booking: claim → pay → confirm, three commits. Its state is columns of the booking's row, so whoever
//! finds the row can go on with it; every write carries the lease's epoch, so whoever lost the lease writes nothing.
//!
//! No lock or transaction is held across a call. In `holds`, the seats of a booking count as sold just before it is
//! confirmed (docs/decisions/0010).

use std::time::Duration;

use chrono::TimeDelta;
use mesh::{
    Failure,
    context::Context,
    crash,
    failure::chain,
    id::{BookingId, HoldId, UserId},
};
use tokio::time::{Instant, timeout_at};

use crate::{
    Shared,
    domain::{
        booking::{Booking, Charge, Lease, PaymentFailure, State, Step},
        hold::{self, Hold},
        sale::Sale,
    },
    error::Error,
    store::{Cancelled, Conflict, LEASE, NewBooking, REFUND_ALARM},
};

/// What a booking that can't be paid right now adds to its hold.
const KEPT_WHILE_DOWN: TimeDelta = TimeDelta::minutes(5);
/// How long a hold is kept at least while it is being booked.
const KEPT_WHILE_BOOKING: TimeDelta = TimeDelta::seconds(15);
/// How long the fan waits for the outcome before hearing PAYING.
const PATIENCE: Duration = Duration::from_secs(8);
/// What is kept of the time that was given, to answer in.
const ANSWER_MARGIN: Duration = Duration::from_millis(250);
/// How long a refund is waited for.
const REFUND_PATIENCE: Duration = Duration::from_secs(4);

/// A fan's wish to book a hold.
#[derive(Debug, Clone)]
pub(crate) struct Order {
    pub(crate) fan: UserId,
    pub(crate) hold: HoldId,
    pub(crate) request_key: String,
    pub(crate) fingerprint: [u8; 32],
}

/// What the fan is told.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) booking: Booking,
    /// Whether the same key had booked it before.
    pub(crate) is_replay: bool,
}

/// Whether a booking was worked on before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Attempt {
    /// By whoever made it.
    First,
    /// By a worker that found it. An earlier charge may have been taken, or be on its way.
    Again,
}

impl Shared {
    /// Books a hold.
    pub(crate) async fn book(&self, order: Order) -> Result<Outcome, Error> {
        if !hold::belongs_to(order.hold, order.fan) {
            return Err(Error::HoldNotFound);
        }
        let hold = match self.holds.begin_booking(order.hold, KEPT_WHILE_BOOKING).await {
            Ok(Some(hold)) => hold,
            // What was booked is found without its hold. Boxed, as all that is rare here: each booking would be as large.
            Ok(None) => return Box::pin(self.find_earlier(&order)).await?.ok_or(Error::HoldExpired),
            Err(error) => return Box::pin(self.find_earlier(&order)).await?.ok_or(error.into()),
        };
        let outcome = self.book_hold(&hold, &order).await;
        // After these there is no booking of it that is alive.
        if let Err(Error::PaymentFailed { .. } | Error::SeatLimitExceeded { .. } | Error::NotOnSale(_)) =
            outcome
        {
            self.end_booking(&hold).await;
        }
        outcome
    }

    /// Lets a hold be given back again. If that fails, it can be when it would have been booked long ago.
    async fn end_booking(&self, hold: &Hold) {
        if let Err(error) = self.holds.end_booking(hold).await {
            tracing::debug!(hold.id = %hold.id, error = chain(&error), "a hold stays as if it were being booked");
        }
    }

    async fn book_hold(&self, hold: &Hold, order: &Order) -> Result<Outcome, Error> {
        // The mark in the id is only a hint (docs/decisions/0004): the owner decides.
        if hold.fan != order.fan {
            return Err(Error::HoldNotFound);
        }
        if self.neighbours.is_payment_refusing() {
            // A payment of this hold may be under way: then it is not so that nothing was charged.
            if let Some(earlier) = Box::pin(self.find_earlier(order)).await? {
                return Ok(earlier);
            }
            // Counted from the hold's making, so that it is kept longer once and not with each try.
            if let Err(error) = self.holds.extend(hold, self.hold_life() + KEPT_WHILE_DOWN).await {
                tracing::debug!(hold.id = %hold.id, error = chain(&error), "a hold is not kept longer");
            }
            return Err(Error::PaymentFailed { failure: PaymentFailure::Unavailable, booking: None });
        }
        let sale = self.catalog.find(hold.concert).await?;
        if sale.is_cancelled {
            return Err(crate::domain::sale::NotOnSale::Cancelled.into());
        }
        self.catalog.begin_sale(hold.concert).await?;

        let booking = new_booking(hold, &sale, self.clock.now());
        let new = NewBooking {
            booking: booking.clone(),
            request_key: order.request_key.clone(),
            fingerprint: order.fingerprint,
            seat_limit: sale.max_seats_per_fan,
        };
        let patience = patience(PATIENCE);
        crash::point("booking.claim.before");
        // In the caller's own task: whoever leaves before the lane takes it has claimed nothing. If they leave later, a
        // worker goes on.
        let Ok(claimed) = timeout_at(patience, self.store.claim(new)).await else {
            // Whether there is a row is not known: the same key will tell.
            return Err(Error::InProgress);
        };
        if let Err(conflict) = claimed? {
            return Box::pin(self.explain_conflict(conflict, hold, &sale, order)).await;
        }
        crash::point("booking.claim.after");
        // The row is there: the work goes on when the caller stops waiting.
        let work = {
            let (shared, booking) = (self.clone(), booking.clone());
            let context = Context::current().without_deadline();
            // Boxed, as a large future is copied on its way into a task.
            tokio::spawn(context.scope(Box::pin(async move { shared.run(booking, Attempt::First).await })))
        };
        let booking = match timeout_at(patience, work).await {
            Ok(Ok(Ok(settled))) => settled,
            // Too slow, or the database went away: the row says PAYING, and a worker goes on.
            Ok(Ok(Err(error))) => {
                tracing::warn!(booking.id = %booking.id, error = chain(&error), "a booking is left to the worker");
                booking
            }
            Ok(Err(panic)) => {
                tracing::error!(booking.id = %booking.id, error = %panic, "a booking is left to the worker");
                booking
            }
            Err(_) => booking,
        };
        match booking.failure {
            Some(failure) => Err(Error::PaymentFailed { failure, booking: Some(booking.id) }),
            None => Ok(Outcome { booking, is_replay: false }),
        }
    }

    /// Goes on with a booking until nothing is left to do, or until it has to wait. The booking as it is then.
    pub(crate) async fn run(&self, mut booking: Booking, attempt: Attempt) -> Result<Booking, Error> {
        let mut step = booking.first_step(self.clock.now());
        loop {
            step = match step {
                Step::Charge => {
                    crash::point("booking.charge.before");
                    let charge = self.neighbours.charge(&booking).await;
                    crash::point("booking.charge.after");
                    if charge == Charge::Contradicted {
                        self.store.flag(&booking, "payment refuses the charge: see the log").await?;
                    }
                    charge.next(attempt == Attempt::Again)
                }
                Step::Void(failure) => match self.neighbours.void(&booking).await {
                    Ok(()) => Step::Fail(failure),
                    Err(error) => {
                        tracing::warn!(booking.id = %booking.id, error = chain(&error), "a payment could not be voided yet");
                        Step::Wait
                    }
                },
                // Whoever has the lease now goes on: the seats may be another's by then.
                Step::Confirm if self.clock.now() >= booking.lease.until => {
                    return self.store.find_own(booking.fan, booking.id).await;
                }
                Step::Confirm => {
                    // Before the database says so: whoever sees it confirmed may cancel it at once, and what is given
                    // back must be known as sold by then.
                    self.settle(&booking).await;
                    crash::point("booking.confirm.before");
                    if !self.store.confirm(&booking).await? {
                        let current = self.store.find_own(booking.fan, booking.id).await?;
                        if matches!(current.state, State::Failed | State::Cancelled) {
                            self.give_back(&current).await;
                        }
                        return Ok(current);
                    }
                    crash::point("booking.confirm.after");
                    booking.state = State::Confirmed;
                    return Ok(booking);
                }
                Step::Fail(failure) => {
                    crash::point("booking.fail.before");
                    if !self.store.fail(&booking, failure).await? {
                        return self.store.find_own(booking.fan, booking.id).await;
                    }
                    crash::point("booking.fail.after");
                    // Only what was shown as sold: in a first attempt the hold keeps the seats, if it still is there.
                    self.give_back(&booking).await;
                    booking.state = State::Failed;
                    booking.hold = None;
                    booking.failure = Some(failure);
                    return Ok(booking);
                }
                Step::Wait => {
                    // The seats are the fan's until it is known: nobody else is to be offered them. If the lease ran out,
                    // whoever has it now may have given them back already.
                    if self.clock.now() < booking.lease.until {
                        self.settle(&booking).await;
                    }
                    return Ok(booking);
                }
            };
        }
    }

    /// Notes that a booking has its seats, and no longer the hold they were kept by.
    async fn settle(&self, booking: &Booking) {
        let seats = booking.ordinals();
        let settled = self.holds.settle(booking.concert, booking.fan, &seats, booking.hold).await;
        if let Err(error) = settled {
            // Who holds them meanwhile can't book them: the database knows better.
            tracing::warn!(booking.id = %booking.id, error = chain(&error), "sold seats are not shown as sold until they are audited");
        }
    }

    /// Cancels a booking and gives its price back. What was begun is finished when the caller stops waiting.
    pub(crate) async fn cancel(&self, fan: UserId, id: BookingId, key: String) -> Result<Outcome, Error> {
        let shared = self.clone();
        let context = Context::current().without_deadline();
        let work = tokio::spawn(context.scope(async move { shared.cancel_and_refund(fan, id, &key).await }));
        work.await.map_err(Failure::internal)?
    }

    async fn cancel_and_refund(&self, fan: UserId, id: BookingId, key: &str) -> Result<Outcome, Error> {
        crash::point("booking.cancel.before");
        let Cancelled { booking, is_replay } = self.store.cancel(fan, id, key, self.clock.now()).await?;
        crash::point("booking.cancel.after");
        if !is_replay {
            self.give_back(&booking).await;
        }
        // A refund that fails now, or takes too long, is made later by a worker.
        match timeout_at(patience(REFUND_PATIENCE), self.make_refunds(Some(id))).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => {
                tracing::warn!(booking.id = %id, error = chain(&error), "a refund is left to the worker")
            }
            Err(_) => tracing::warn!(booking.id = %id, "a refund takes long and is left to the worker"),
        }
        let booking = self.store.find_own(fan, id).await?;
        Ok(Outcome { booking, is_replay })
    }

    /// Makes the refunds that are to be made; of one booking, if it is named. How many were made.
    pub(crate) async fn make_refunds(&self, booking: Option<BookingId>) -> Result<usize, Error> {
        let mut made = 0;
        for refund in self.store.list_refunds_to_do(booking, self.clock.now()).await? {
            if self.neighbours.is_payment_refusing() {
                break;
            }
            crash::point("booking.refund.before");
            match self.neighbours.refund(refund).await {
                Ok(()) => {
                    crash::point("booking.refund.after");
                    self.store.finish_refund(refund).await?;
                    made += 1;
                }
                Err(status) => {
                    if refund.tries < REFUND_ALARM {
                        tracing::warn!(booking.id = %refund.booking, error = chain(&status), "a refund has to wait");
                    } else {
                        tracing::error!(booking.id = %refund.booking, error = chain(&status), "a refund needs an operator");
                    }
                    self.store.postpone_refund(refund, self.clock.now()).await?;
                }
            }
        }
        Ok(made)
    }

    /// What became of an order before: it was made by the same key, or its hold was booked by another one.
    async fn find_earlier(&self, order: &Order) -> Result<Option<Outcome>, Error> {
        let earlier = self.store.find_earlier(order.fan, &order.request_key, order.hold).await?;
        if let Some((booking, fingerprint)) = earlier.by_key {
            return self.replay(booking, &fingerprint, order).map(Some);
        }
        earlier.by_hold.map_or(Ok(None), |booking| Err(Error::HoldBooked(booking)))
    }

    async fn explain_conflict(
        &self,
        conflict: Conflict,
        hold: &Hold,
        sale: &Sale,
        order: &Order,
    ) -> Result<Outcome, Error> {
        match conflict {
            Conflict::Replay { booking, fingerprint } => self.replay(*booking, &fingerprint, order),
            Conflict::HoldBooked(booking) => Err(Error::HoldBooked(booking)),
            Conflict::LimitExceeded { remaining } => {
                Err(Error::SeatLimitExceeded { limit: sale.max_seats_per_fan, remaining })
            }
            Conflict::SeatTaken(seats) => {
                // The hold promised seats that are sold, as holds were lost meanwhile: it is worth nothing.
                self.end_booking(hold).await;
                let released = self.holds.release(hold.id).await.map_err(Error::from);
                let marked = self.forget_stale_seats(hold.concert, &seats).await;
                if let Err(error) = released.and(marked) {
                    tracing::warn!(concert.id = %hold.concert, error = chain(&error), "sold seats are shown as free");
                }
                Err(Error::SeatTaken(seats.iter().map(|seat| sale.layout.seat_id(*seat)).collect()))
            }
        }
    }

    /// What a key that comes again is told.
    fn replay(&self, booking: Booking, fingerprint: &[u8], order: &Order) -> Result<Outcome, Error> {
        if fingerprint != order.fingerprint {
            return Err(Error::KeyReused);
        }
        if booking.state == State::Paying && booking.lease.until > self.clock.now() {
            return Err(Error::InProgress);
        }
        Ok(Outcome { booking, is_replay: true })
    }
}

/// Until when to wait for something: no longer than this, and not so long that the caller hears silence.
fn patience(longest: Duration) -> Instant {
    let longest = Instant::now() + longest;
    Context::current().deadline.map_or(longest, |deadline| longest.min(deadline - ANSWER_MARGIN))
}

pub(crate) fn new_booking(hold: &Hold, sale: &Sale, now: chrono::DateTime<chrono::Utc>) -> Booking {
    let seats: Vec<_> = hold.seats.iter().map(|seat| sale.layout.seat(*seat)).collect();
    Booking {
        id: BookingId::at(now),
        fan: hold.fan,
        concert: hold.concert,
        hold: Some(hold.id),
        state: State::Paying,
        total: seats.iter().map(|seat| seat.price).sum(),
        seats,
        refunded: 0,
        failure: None,
        create_time: now,
        lease: Lease { epoch: 1, until: now + LEASE },
    }
}
