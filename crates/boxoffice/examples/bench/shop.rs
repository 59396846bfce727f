//! Where fans buy: seats that nobody else wants, for fans who have tokens and money, by gRPC or by REST.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::Context;
use boxoffice::api::{Reply, text};
use boxoffice_proto::booking::v1::{BookingState, CreateBookingRequest, CreateHoldRequest, PaymentMethod};
use futures_util::{StreamExt, TryStreamExt, stream};
use http::Method;
use tokio::time::Instant;
use tonic::Status;
use tonic_types::StatusExt;

use crate::{
    deployment::Usage,
    house::{House, authorized},
    machine::cpu_time,
};

const SEATS_PER_ROW: usize = 1000;
/// What a booking is of.
const SEATS: usize = 2;
/// A fan may have ten seats of a concert: five bookings of two.
const BOOKINGS_PER_FAN: usize = 5;
/// Fans who book at the same time until the clock starts.
const WARM_UP: Duration = Duration::from_secs(2);

/// Concerts, and how their seats are sold.
struct Hall {
    concerts: Vec<Arc<str>>,
    seats_per_concert: usize,
    order: Order,
}

/// The order in which seats are sold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// One concert after the other: all want the same one.
    Hot,
    /// So many concerts in turns.
    Spread(usize),
}

/// Where fans buy.
pub(crate) struct Shop {
    house: Arc<House>,
    hall: Hall,
    tokens: Vec<Arc<str>>,
    next: AtomicUsize,
    by_rest: bool,
}

/// Why a fan did not get what they wanted: a reason of the contracts, or what broke.
#[derive(Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Refused(pub(crate) String);

/// What was measured.
pub(crate) struct Measured {
    pub(crate) bookings: usize,
    pub(crate) elapsed: Duration,
    /// The CPU time of this process.
    cpu: Duration,
    /// What processes used before and after, if there are some.
    usage: Option<(Usage, Usage)>,
}

impl Shop {
    /// A shop for so many bookings at the most.
    pub(crate) async fn open(
        house: &Arc<House>,
        order: Order,
        most: usize,
        by_rest: bool,
    ) -> anyhow::Result<Self> {
        let (concerts, rows) = match order {
            Order::Hot => ((most * SEATS).div_ceil(100 * SEATS_PER_ROW), 100),
            Order::Spread(concerts) => (concerts, (most * SEATS).div_ceil(concerts * SEATS_PER_ROW)),
        };
        let concerts = stream::iter(0..concerts)
            .map(async |_| anyhow::Ok(Arc::from(house.concert(rows as u32).await?)))
            .buffered(16)
            .try_collect()
            .await?;
        Ok(Self {
            hall: Hall { concerts, seats_per_concert: rows * SEATS_PER_ROW, order },
            tokens: house.fans(most.div_ceil(BOOKINGS_PER_FAN)).await?,
            house: Arc::clone(house),
            next: AtomicUsize::new(0),
            by_rest,
        })
    }

    /// Closed-loop fans book for so long.
    pub(crate) async fn measure(self: &Arc<Self>, fans: usize, window: Duration) -> anyhow::Result<Measured> {
        let done = Arc::new(AtomicUsize::new(0));
        let stop = Instant::now() + WARM_UP + window;
        let fans: Vec<_> = (0..fans)
            .map(|_| {
                let (shop, done) = (Arc::clone(self), Arc::clone(&done));
                tokio::spawn(async move {
                    while Instant::now() < stop {
                        let wish = shop.wish()?;
                        let hold = shop.hold(&wish).await?;
                        shop.book(&wish, &hold).await?;
                        done.fetch_add(1, Ordering::Relaxed);
                    }
                    anyhow::Ok(())
                })
            })
            .collect();
        tokio::time::sleep(WARM_UP).await;
        let usage_before = self.house.usage().await?;
        let (start, done_before, cpu_before) = (Instant::now(), done.load(Ordering::Relaxed), cpu_time()?);
        tokio::time::sleep_until(stop).await;
        let (elapsed, bookings) = (start.elapsed(), done.load(Ordering::Relaxed) - done_before);
        let cpu = cpu_time()? - cpu_before;
        let usage = usage_before.zip(self.house.usage().await?);
        for fan in fans {
            fan.await??;
        }
        Ok(Measured { bookings, elapsed, cpu, usage })
    }

    /// What the next fan wants.
    pub(crate) fn wish(&self) -> anyhow::Result<Wish<'_>> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let (concert, seat_ids) = self.hall.seats(number).context("too few seats were made")?;
        let token = self.tokens.get(number / BOOKINGS_PER_FAN).context("too few fans were made")?;
        Ok(Wish { number, concert, seat_ids, token })
    }

    /// Holds what a fan wants; the hold's id.
    pub(crate) async fn hold(&self, wish: &Wish<'_>) -> Result<String, Refused> {
        let Wish { number, concert, seat_ids, token } = wish;
        if self.by_rest {
            let (path, body) =
                (format!("/v1/concerts/{concert}/holds"), serde_json::json!({"seatIds": seat_ids}));
            let key = format!("hold-{number}");
            let hold =
                accepted(self.house.rest.send(Method::POST, &path, token, Some(&key), Some(&body)).await)?;
            return Ok(text(&hold.body, "/hold/holdId")?);
        }
        let request = CreateHoldRequest {
            concert_id: (*concert).to_owned(),
            seat_ids: seat_ids.to_vec(),
            best_available: None,
            request_id: format!("hold-{number}"),
        };
        let mut holds = self.house.hold_client(*number);
        let answer = holds.create_hold(authorized(request, token)?).await?.into_inner();
        Ok(answer.hold.context("no hold")?.hold_id)
    }

    /// Books a hold by wallet, until it is confirmed.
    pub(crate) async fn book(&self, wish: &Wish<'_>, hold_id: &str) -> Result<(), Refused> {
        let Wish { number, token, .. } = wish;
        if self.by_rest {
            let order = serde_json::json!({"holdId": hold_id, "paymentMethod": "PAYMENT_METHOD_WALLET"});
            let key = format!("booking-{number}");
            let sent = self.house.rest.send(Method::POST, "/v1/bookings", token, Some(&key), Some(&order));
            let booking = accepted(sent.await)?;
            return confirmed(booking.body["booking"]["state"] == "BOOKING_STATE_CONFIRMED");
        }
        let order = CreateBookingRequest {
            hold_id: hold_id.to_owned(),
            payment_method: PaymentMethod::Wallet.into(),
            return_url: String::new(),
            request_id: format!("booking-{number}"),
        };
        let mut bookings = self.house.booking_client(*number);
        let answer = bookings.create_booking(authorized(order, token)?).await?.into_inner();
        let booking = answer.booking.context("no booking")?;
        confirmed(booking.state() == BookingState::Confirmed)
    }
}

/// What a fan wants.
pub(crate) struct Wish<'a> {
    number: usize,
    concert: &'a str,
    seat_ids: [String; SEATS],
    token: &'a str,
}

impl Hall {
    /// The concert and the seats of a booking.
    fn seats(&self, number: usize) -> Option<(&str, [String; SEATS])> {
        let (concert, seat) = match self.order {
            Order::Hot => (number * SEATS / self.seats_per_concert, number * SEATS % self.seats_per_concert),
            Order::Spread(concerts) => (number % concerts, number / concerts * SEATS),
        };
        let seat_id = |seat| format!("A-{}-{}", seat / SEATS_PER_ROW + 1, seat % SEATS_PER_ROW + 1);
        let concert = self.concerts.get(concert).filter(|_| seat < self.seats_per_concert)?;
        Some((concert, [seat, seat + 1].map(seat_id)))
    }
}

impl Measured {
    /// Bookings a second.
    pub(crate) fn rate(&self) -> f64 {
        self.bookings as f64 / self.elapsed.as_secs_f64()
    }
}

impl fmt::Display for Measured {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:.0} bookings/s", self.rate())?;
        match &self.usage {
            None => {
                let cpu = self.cpu.as_micros() as f64 / self.bookings as f64;
                write!(formatter, ", {cpu:.0} CPU us a booking (generator included), {}", self.bookings)
            }
            Some((before, after)) => {
                write!(formatter, ", {}\n{}", self.bookings, after.report(before, self.bookings))
            }
        }
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl std::error::Error for Refused {}

impl From<Status> for Refused {
    fn from(status: Status) -> Self {
        let reason = status.get_details_error_info().map(|info| info.reason);
        Self(reason.unwrap_or_else(|| status.to_string()))
    }
}

impl From<anyhow::Error> for Refused {
    fn from(error: anyhow::Error) -> Self {
        Self(format!("{error:#}"))
    }
}

/// An answer that is good.
fn accepted(reply: anyhow::Result<Reply>) -> Result<Reply, Refused> {
    let reply = reply?;
    if reply.status.is_success() { Ok(reply) } else { Err(Refused(reply.reason().to_owned())) }
}

fn confirmed(is_confirmed: bool) -> Result<(), Refused> {
    if is_confirmed { Ok(()) } else { Err(Refused("not confirmed yet".to_owned())) }
}
