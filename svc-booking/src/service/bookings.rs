//! Bookings.

use boxoffice_proto::booking::v1::{
    BookedSeat, BookedSeatState, Booking as ProtoBooking, BookingState, CancelBookingRequest,
    CancelBookingResponse, CreateBookingRequest, CreateBookingResponse, GetBookingRequest,
    GetBookingResponse, ListBookingsRequest, ListBookingsResponse, PaymentMethod,
    booking_service_server::BookingService,
};
use mesh::{
    auth,
    field::{self, Fields, money, timestamp},
    id::{BookingId, ConcertId, HoldId},
    idempotency,
    page::Page,
};
use tonic::{Request, Response, Status};

use crate::{
    Shared,
    checkout::{Order, Outcome},
    domain::{
        booking::{Booking, State},
        layout::Seat,
    },
    error::{Error, payment_reason},
};

const CREATE_BOOKING: &str = "/boxoffice.booking.v1.BookingService/CreateBooking";
const CANCEL_BOOKING: &str = "/boxoffice.booking.v1.BookingService/CancelBooking";

#[tonic::async_trait]
impl BookingService for Shared {
    async fn create_booking(
        &self,
        request: Request<CreateBookingRequest>,
    ) -> Result<Response<CreateBookingResponse>, Status> {
        let fan = auth::user(&request)?.id;
        let mut message = request.into_inner();
        let request_key = std::mem::take(&mut message.request_id);
        idempotency::check_key(CREATE_BOOKING, &request_key)?;
        let mut fields = Fields::new();
        let hold = fields.id::<HoldId>("hold_id", &message.hold_id);
        let is_wallet = message.payment_method() == PaymentMethod::Wallet;
        fields.check(is_wallet, "payment_method", "REQUIRED", "must be PAYMENT_METHOD_WALLET");
        let hold = fields.finish_with(hold)?;
        let fingerprint = idempotency::fingerprint(&message);
        let order = Order { fan, hold, request_key: request_key.clone(), fingerprint };
        let mut outcome = self.book(order).await;
        // A key that made a booking came with a hold of this fan: another order uses it again.
        if matches!(outcome, Err(Error::HoldNotFound))
            && self.store.find_by_key(fan, &request_key).await?.is_some()
        {
            outcome = Err(Error::KeyReused);
        }
        let outcome = outcome?;
        Ok(self.answer(outcome, |booking| CreateBookingResponse { booking }))
    }

    async fn get_booking(
        &self,
        request: Request<GetBookingRequest>,
    ) -> Result<Response<GetBookingResponse>, Status> {
        let fan = auth::user(&request)?.id;
        let id: BookingId = field::id("booking_id", &request.get_ref().booking_id)?;
        let booking = self.store.find_own(fan, id).await?;
        Ok(Response::new(GetBookingResponse { booking: Some(self.write_booking(&booking)) }))
    }

    async fn list_bookings(
        &self,
        request: Request<ListBookingsRequest>,
    ) -> Result<Response<ListBookingsResponse>, Status> {
        let fan = auth::user(&request)?.id;
        let message = request.into_inner();
        let page = Page::read(message.page_size, &message.page_token, &[&message.concert_id])?;
        let concert: Option<ConcertId> = match message.concert_id.as_str() {
            "" => None,
            text => Some(field::id("concert_id", text)?),
        };
        let mut found = self.store.list_own(fan, concert, &page).await?;
        let next_page_token = page.next_token(&mut found, |booking| booking.id);
        let bookings = found.iter().map(|booking| self.write_booking(booking)).collect();
        Ok(Response::new(ListBookingsResponse { bookings, next_page_token }))
    }

    async fn cancel_booking(
        &self,
        request: Request<CancelBookingRequest>,
    ) -> Result<Response<CancelBookingResponse>, Status> {
        let fan = auth::user(&request)?.id;
        let message = request.into_inner();
        idempotency::check_key(CANCEL_BOOKING, &message.request_id)?;
        let id: BookingId = field::id("booking_id", &message.booking_id)?;
        let outcome = self.cancel(fan, id, message.request_id).await?;
        Ok(self.answer(outcome, |booking| CancelBookingResponse { booking }))
    }
}

impl Shared {
    fn answer<R>(&self, outcome: Outcome, wrap: impl FnOnce(Option<ProtoBooking>) -> R) -> Response<R> {
        let response = wrap(Some(self.write_booking(&outcome.booking)));
        if outcome.is_replay { idempotency::replayed(response) } else { Response::new(response) }
    }

    fn write_booking(&self, booking: &Booking) -> ProtoBooking {
        let (state, seat_state) = match booking.state {
            State::Paying => (BookingState::Paying, BookedSeatState::Active),
            State::Confirmed => (BookingState::Confirmed, BookedSeatState::Active),
            State::Failed => (BookingState::Failed, BookedSeatState::Cancelled),
            State::Cancelled => (BookingState::Cancelled, BookedSeatState::Cancelled),
        };
        let write_seat = |seat: &Seat| BookedSeat {
            seat_id: seat.seat_id.clone(),
            section_id: seat.section_id.clone(),
            row_label: seat.row_label.clone(),
            seat_label: seat.seat_label.clone(),
            price: Some(money(seat.price, self.currency)),
            state: seat_state.into(),
        };
        let failure_reason = booking.failure.map(|failure| payment_reason(failure).as_str_name());
        ProtoBooking {
            booking_id: booking.id.to_string(),
            concert_id: booking.concert.to_string(),
            state: state.into(),
            seats: booking.seats.iter().map(write_seat).collect(),
            total: Some(money(booking.total, self.currency)),
            refunded: Some(money(booking.refunded, self.currency)),
            next_action: None,
            create_time: Some(timestamp(booking.create_time)),
            failure_reason: failure_reason
                .map(|name| name.trim_start_matches("ERROR_REASON_").to_owned())
                .unwrap_or_default(),
        }
    }
}
