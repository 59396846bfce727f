//! The neighbours: concert, for what may be sold; payment, for the money. The only place where they are dialled, and
//! where their answers become ours.

use std::sync::Arc;

use boxoffice_proto::{
    common::v1::Money,
    concert::v1::{
        BeginSaleRequest, ConcertState, ErrorReason as ConcertReason, GetSaleRequest,
        ReportAvailabilityRequest, Sale as ProtoSale, sale_service_client::SaleServiceClient,
        section::Arrangement as ProtoArrangement,
    },
    payment::v1::{
        ErrorReason as PaymentReason, PayRequest, PaymentState, RefundRequest, VoidRequest,
        payment_service_client::PaymentServiceClient,
    },
};
use chrono::{DateTime, Utc};
use mesh::{
    client::Channel,
    failure::{Refusal, chain},
    field::{money, timestamp},
    id::ConcertId,
    money::Currency,
};
use prost_types::Timestamp;
use tonic::Status;

use crate::{
    domain::{
        booking::{Booking, Charge, PaymentFailure},
        layout::{Arrangement, Layout, SectionPlan},
        sale::{NotOnSale, Sale},
    },
    error::Error,
    store::Refund,
};

/// The neighbours.
#[derive(Clone)]
pub(crate) struct Neighbours {
    concert: SaleServiceClient<Channel>,
    payment: PaymentServiceClient<Channel>,
    payment_channel: Channel,
    currency: Currency,
}

impl Neighbours {
    pub(crate) fn new(concert: Channel, payment: Channel, currency: Currency) -> Self {
        Self {
            concert: SaleServiceClient::new(concert),
            payment: PaymentServiceClient::new(payment.clone()),
            payment_channel: payment,
            currency,
        }
    }

    /// Whether a call to payment would be refused without being sent.
    pub(crate) fn is_payment_refusing(&self) -> bool {
        self.payment_channel.is_refusing()
    }

    /// What may be sold of a concert.
    pub(crate) async fn find_sale(&self, concert: ConcertId) -> Result<Sale, ConcertRefusal> {
        let request = GetSaleRequest { concert_id: concert.to_string() };
        match self.concert.clone().get_sale(request).await {
            Ok(response) => response
                .into_inner()
                .sale
                .and_then(|sale| read_sale(concert, sale))
                .ok_or_else(|| ConcertRefusal::Unavailable(Status::internal("a sale that can't be read"))),
            Err(status) => Err(ConcertRefusal::of(status)),
        }
    }

    /// Tells concert that a first booking is about to be made.
    pub(crate) async fn begin_sale(&self, concert: ConcertId) -> Result<(), ConcertRefusal> {
        let request = BeginSaleRequest { concert_id: concert.to_string() };
        self.concert.clone().begin_sale(request).await.map(|_| ()).map_err(ConcertRefusal::of)
    }

    /// Tells concert how many places are not booked.
    pub(crate) async fn report_availability(
        &self,
        concert: ConcertId,
        unbooked_places: u32,
        count_time: DateTime<Utc>,
    ) -> Result<(), Status> {
        let request = ReportAvailabilityRequest {
            concert_id: concert.to_string(),
            unbooked_places: unbooked_places as i32,
            count_time: Some(timestamp(count_time)),
        };
        self.concert.clone().report_availability(request).await.map(|_| ())
    }

    /// Takes the price of a booking from the fan's wallet. The booking is the key: again is the same.
    pub(crate) async fn charge(&self, booking: &Booking) -> Charge {
        let request = PayRequest {
            booking_id: booking.id.to_string(),
            user_id: booking.fan.to_string(),
            concert_id: booking.concert.to_string(),
            amount: Some(self.money(booking.total)),
        };
        match self.payment.clone().pay(request).await {
            Ok(response) => match response.into_inner().payment.map(|payment| payment.state()) {
                Some(PaymentState::Captured) => Charge::Captured,
                Some(PaymentState::Voided) => Charge::Refused(PaymentFailure::TimedOut),
                Some(PaymentState::Unspecified) | None => Charge::Unknown,
            },
            Err(status) => match Refusal::of(&status) {
                Refusal::NotSent => Charge::Refused(PaymentFailure::Unavailable),
                refusal if refusal.is(PaymentReason::InsufficientBalance) => {
                    Charge::Refused(PaymentFailure::InsufficientBalance)
                }
                refusal if refusal.is(PaymentReason::PaymentVoided) => {
                    Charge::Refused(PaymentFailure::TimedOut)
                }
                // Other terms by the same key, a service token that is not accepted, another currency.
                Refusal::Reason { .. } => {
                    tracing::error!(booking.id = %booking.id, error = chain(&status), "payment refuses what it should take");
                    Charge::Contradicted
                }
                Refusal::Unknown => {
                    tracing::warn!(booking.id = %booking.id, error = chain(&status), "whether a booking is paid is not known");
                    Charge::Unknown
                }
            },
        }
    }

    /// Makes sure that a booking is never charged. Again is the same.
    pub(crate) async fn void(&self, booking: &Booking) -> Result<(), Status> {
        let request = VoidRequest { booking_id: booking.id.to_string() };
        self.payment.clone().void(request).await.map(|_| ())
    }

    /// Gives money back. The refund's id is the key: again is the same.
    pub(crate) async fn refund(&self, refund: Refund) -> Result<(), Status> {
        let request = RefundRequest {
            booking_id: refund.booking.to_string(),
            refund_id: refund.id.to_string(),
            amount: Some(self.money(refund.amount)),
        };
        self.payment.clone().refund(request).await.map(|_| ())
    }

    fn money(&self, minor_units: i64) -> Money {
        money(minor_units, self.currency)
    }
}

/// Why concert does not say what may be sold.
#[derive(Debug, Clone)]
pub(crate) enum ConcertRefusal {
    NotFound,
    Cancelled,
    /// It can't be had right now, or says something else.
    Unavailable(Status),
}

impl ConcertRefusal {
    fn of(status: Status) -> Self {
        let refusal = Refusal::of(&status);
        if refusal.is(ConcertReason::ConcertNotFound) || refusal.is(ConcertReason::ConcertNotPublished) {
            Self::NotFound
        } else if refusal.is(ConcertReason::ConcertCancelled) {
            Self::Cancelled
        } else {
            Self::Unavailable(status)
        }
    }
}

impl From<ConcertRefusal> for Error {
    fn from(refusal: ConcertRefusal) -> Self {
        match refusal {
            ConcertRefusal::NotFound => Self::ConcertNotFound,
            ConcertRefusal::Cancelled => Self::NotOnSale(NotOnSale::Cancelled),
            ConcertRefusal::Unavailable(status) => Self::ConcertUnavailable(status),
        }
    }
}

fn read_sale(concert: ConcertId, sale: ProtoSale) -> Option<Sale> {
    let is_cancelled = sale.state() == ConcertState::Cancelled;
    let price_of = |section_id: &str| {
        let price = sale.prices.iter().find(|price| price.section_id == section_id)?;
        price.price.as_ref().map(|price| price.minor_units)
    };
    let plans = sale
        .sections
        .iter()
        .map(|section| {
            let (arrangement, accessible_seat_ids) = match section.arrangement.as_ref()? {
                ProtoArrangement::Seated(area) => (
                    Arrangement::Seated {
                        rows: area.rows.try_into().ok()?,
                        seats_per_row: area.seats_per_row.try_into().ok()?,
                    },
                    area.accessible_seat_ids.clone(),
                ),
                ProtoArrangement::Standing(area) => {
                    (Arrangement::Standing { capacity: area.capacity.try_into().ok()? }, Vec::new())
                }
            };
            Some(SectionPlan {
                id: section.section_id.clone(),
                display_name: section.display_name.clone(),
                arrangement,
                price: price_of(&section.section_id)?,
                accessible_seat_ids,
            })
        })
        .collect::<Option<Vec<_>>>()?;
    Some(Sale {
        concert,
        is_cancelled,
        open_time: read_time(sale.sale_open_time)?,
        close_time: read_time(sale.sale_close_time)?,
        max_seats_per_fan: sale.max_seats_per_fan.try_into().ok()?,
        layout: Arc::new(Layout::new(sale.layout_version.clone(), plans)),
    })
}

fn read_time(time: Option<Timestamp>) -> Option<DateTime<Utc>> {
    let time = time?;
    DateTime::from_timestamp(time.seconds, time.nanos.try_into().ok()?)
}
