//! Holds.

use std::{collections::HashSet, time::Duration};

use boxoffice_proto::{
    booking::v1::{
        BestAvailable, CreateHoldRequest, CreateHoldResponse, DeleteHoldRequest, DeleteHoldResponse,
        GetHoldRequest, GetHoldResponse, HeldSeat, Hold as ProtoHold, hold_service_server::HoldService,
    },
    common::v1::ErrorReason as CommonReason,
};
use chrono::TimeDelta;
use mesh::{
    Failure, auth,
    field::{self, Fields, money, timestamp},
    id::{ConcertId, HoldId, UserId},
    idempotency,
};
use tonic::{Request, Response, Status};

use crate::{
    Shared,
    domain::{
        best_available::{self, Found},
        hold::{self, Hold, MAX_SEATS},
        layout::Layout,
        sale::Sale,
    },
    error::Error,
    holds::{Granted, Released, SeatState, Wish},
};

const CREATE_HOLD: &str = "/boxoffice.booking.v1.HoldService/CreateHold";
/// Among how many of the best choices best-available draws, when it looks first and when the seats it found were taken
/// meanwhile. Hundreds may look at once: who lost among the very best would lose again among a few.
const BEST_AVAILABLE_DRAWS: [usize; 3] = [1, 32, 1024];
/// When to ask again.
const COME_BACK: Duration = Duration::from_secs(1);

#[tonic::async_trait]
impl HoldService for Shared {
    async fn create_hold(
        &self,
        request: Request<CreateHoldRequest>,
    ) -> Result<Response<CreateHoldResponse>, Status> {
        let fan = auth::user(&request)?.id;
        let mut message = request.into_inner();
        let request_key = std::mem::take(&mut message.request_id);
        idempotency::check_key(CREATE_HOLD, &request_key)?;
        let fingerprint = idempotency::fingerprint(&message);
        let concert: ConcertId = field::id("concert_id", &message.concert_id)?;
        check_shape(&message)?;
        let sale = self.catalog.find(concert).await?;
        // What this key was given before is given again, whatever has become of the sale. Whoever names seats of a sale that
        // is open is told so by the hold itself.
        let is_open = sale.check_open(self.clock.now());
        if (is_open.is_err() || message.best_available.is_some())
            && let Some(granted) = self.find_granted(concert, fan, &request_key, &fingerprint).await?
        {
            return self.answer_grant(&sale, fan, granted).await;
        }
        is_open.map_err(Error::from)?;
        let wish = |found: Found| Wish {
            hold: self.new_hold(concert, fan, found),
            limit: sale.max_seats_per_fan,
            request_key: request_key.clone(),
            fingerprint,
        };
        let granted = match &message.best_available {
            None => {
                let seats = read_seats(&sale.layout, &message.seat_ids)?;
                let is_adjacent = best_available::are_adjacent(&sale.layout, &seats);
                self.grant(&sale, wish(Found { seats, is_adjacent })).await?
            }
            Some(wanted) => self.grant_best(&sale, wanted, wish).await?,
        };
        self.answer_grant(&sale, fan, granted).await
    }

    async fn get_hold(&self, request: Request<GetHoldRequest>) -> Result<Response<GetHoldResponse>, Status> {
        let fan = auth::user(&request)?.id;
        let id: HoldId = field::id("hold_id", &request.get_ref().hold_id)?;
        let hold = self.find_own_hold(fan, id).await?;
        let sale = self.catalog.find(hold.concert).await?;
        Ok(Response::new(GetHoldResponse { hold: Some(self.write_hold(&sale.layout, &hold)) }))
    }

    async fn delete_hold(
        &self,
        request: Request<DeleteHoldRequest>,
    ) -> Result<Response<DeleteHoldResponse>, Status> {
        let fan = auth::user(&request)?.id;
        let id: HoldId = field::id("hold_id", &request.get_ref().hold_id)?;
        if !hold::belongs_to(id, fan) {
            return Err(Error::HoldNotFound.into());
        }
        // Its seats are the booking's from the moment it is being booked: nothing is free before that is settled.
        if let Some(booking) = self.store.find_by_hold(id).await? {
            return Err(Error::HoldBooked(booking).into());
        }
        let hold = match self.holds.release(id).await.map_err(Error::from)? {
            Released::BeingBooked => return Err(Error::BeingBooked.into()),
            Released::GivenBack(hold) => {
                let sale = self.catalog.find(hold.concert).await?;
                Some(self.write_hold(&sale.layout, &hold))
            }
            Released::Gone => match self.store.find_by_hold(id).await? {
                Some(booking) => return Err(Error::HoldBooked(booking).into()),
                None => None,
            },
        };
        Ok(Response::new(DeleteHoldResponse { hold }))
    }
}

impl Shared {
    async fn find_granted(
        &self,
        concert: ConcertId,
        fan: UserId,
        request_key: &str,
        fingerprint: &[u8; 32],
    ) -> Result<Option<Granted>, Error> {
        Ok(self.holds.find_granted(concert, fan, request_key, fingerprint).await?)
    }

    /// How long a hold lasts, if nothing extends it.
    pub(crate) fn hold_life(&self) -> TimeDelta {
        TimeDelta::from_std(self.hold_ttl).unwrap_or(hold::MAX_LIFE).min(hold::MAX_LIFE)
    }

    fn new_hold(&self, concert: ConcertId, fan: UserId, found: Found) -> Hold {
        let create_time = self.clock.now();
        Hold {
            id: hold::new_id(fan, concert),
            concert,
            fan,
            seats: found.seats,
            is_adjacent: found.is_adjacent,
            create_time,
            expire_time: create_time + self.hold_life(),
        }
    }

    async fn grant_best(
        &self,
        sale: &Sale,
        wanted: &BestAvailable,
        wish: impl Fn(Found) -> Wish,
    ) -> Result<Granted, Error> {
        let section = sale.layout.section(&wanted.section_id).ok_or_else(|| Error::Unknown {
            field: "best_available.section_id".into(),
            what: "section",
            value: wanted.section_id.clone(),
        })?;
        let quantity = wanted.quantity as usize;
        for choices in BEST_AVAILABLE_DRAWS {
            let snapshot = self.snapshot(sale).await?;
            let is_free = |seat: u32| snapshot.states[seat as usize] == SeatState::Available;
            let skip = rand::random_range(0..choices);
            let found =
                best_available::find(&sale.layout, section, quantity, wanted.accessible, skip, is_free);
            let Some(found) = found else {
                let is_open =
                    |seat: &u32| is_free(*seat) && sale.layout.is_accessible(*seat) == wanted.accessible;
                return Err(Error::NotEnoughSeats { available: section.range().filter(is_open).count() });
            };
            let granted = self.grant(sale, wish(found)).await?;
            if !matches!(granted, Granted::Taken(_)) {
                return Ok(granted);
            }
        }
        let text = "others took the best of the free seats at the same moment, again and again";
        Err(Failure::new(CommonReason::RaceLost, text).retry_after(COME_BACK).into())
    }

    async fn answer_grant(
        &self,
        sale: &Sale,
        fan: UserId,
        granted: Granted,
    ) -> Result<Response<CreateHoldResponse>, Status> {
        let answer = |hold: &Hold| CreateHoldResponse { hold: Some(self.write_hold(&sale.layout, hold)) };
        match granted {
            Granted::Held(hold) => Ok(Response::new(answer(&hold))),
            Granted::Replayed(id) => {
                let hold = self.find_own_hold(fan, id).await?;
                Ok(idempotency::replayed(answer(&hold)))
            }
            Granted::KeyReused => Err(Error::KeyReused.into()),
            Granted::Taken(seats) => {
                Err(Error::SeatTaken(seats.iter().map(|seat| sale.layout.seat_id(*seat)).collect()).into())
            }
            Granted::LimitExceeded { remaining } => {
                Err(Error::SeatLimitExceeded { limit: sale.max_seats_per_fan, remaining }.into())
            }
            Granted::NotLoaded => Err(Failure::internal("seats are loaded before they are granted").into()),
        }
    }

    /// A hold of a fan. One that is gone was booked, or has expired.
    async fn find_own_hold(&self, fan: UserId, id: HoldId) -> Result<Hold, Error> {
        if !hold::belongs_to(id, fan) {
            return Err(Error::HoldNotFound);
        }
        if let Some(hold) = self.holds.find(id).await? {
            // The mark in the id is only a hint: the owner decides.
            return if hold.fan == fan { Ok(hold) } else { Err(Error::HoldNotFound) };
        }
        match self.store.find_by_hold(id).await? {
            Some(booking) => Err(Error::HoldBooked(booking)),
            None => Err(Error::HoldExpired),
        }
    }

    fn write_hold(&self, layout: &Layout, hold: &Hold) -> ProtoHold {
        let seats: Vec<_> = hold.seats.iter().map(|seat| layout.seat(*seat)).collect();
        let total = seats.iter().map(|seat| seat.price).sum();
        let write_seat = |seat: crate::domain::layout::Seat| HeldSeat {
            seat_id: seat.seat_id,
            section_id: seat.section_id,
            row_label: seat.row_label,
            seat_label: seat.seat_label,
            price: Some(money(seat.price, self.currency)),
        };
        ProtoHold {
            hold_id: hold.id.to_string(),
            concert_id: hold.concert.to_string(),
            seats: seats.into_iter().map(write_seat).collect(),
            total: Some(money(total, self.currency)),
            expire_time: Some(timestamp(hold.expire_time)),
            adjacent: hold.is_adjacent,
        }
    }
}

/// Checks what can be checked without knowing the concert.
fn check_shape(message: &CreateHoldRequest) -> Result<(), Failure> {
    let mut fields = Fields::new();
    match (&message.best_available, message.seat_ids.as_slice()) {
        (None, []) => fields.wrong("seat_ids", "REQUIRED", "is required, or a wish for the best available"),
        (Some(_), [_, ..]) => {
            fields.wrong("seat_ids", "CONFLICT", "can't be given together with a wish for the best available")
        }
        (None, seats) => {
            fields.check(seats.len() <= MAX_SEATS, "seat_ids", "OUT_OF_RANGE", "must be 1 to 10 seats");
            let mut seen = HashSet::new();
            for (index, seat) in seats.iter().enumerate() {
                if !seen.insert(seat) {
                    fields.wrong(format!("seat_ids[{index}]"), "DUPLICATE", "stands twice");
                }
            }
        }
        (Some(wanted), []) => {
            fields.text("best_available.section_id", &wanted.section_id, 1..=12);
            fields.number("best_available.quantity", wanted.quantity.into(), 1..=MAX_SEATS as i64);
        }
    }
    fields.finish()
}

fn read_seats(layout: &Layout, seat_ids: &[String]) -> Result<Vec<u32>, Failure> {
    let mut fields = Fields::new();
    let mut seats = Vec::with_capacity(seat_ids.len());
    for (index, seat_id) in seat_ids.iter().enumerate() {
        match layout.ordinal(seat_id) {
            Some(seat) => seats.push(seat),
            None => fields.wrong(format!("seat_ids[{index}]"), "UNKNOWN", "is no seat of this concert"),
        }
    }
    fields.finish_with(Some(seats))
}
