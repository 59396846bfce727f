//! Bookings a second: closed-loop fans hold two seats each and book them by wallet, by gRPC or by REST.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, ensure};
use boxoffice::api::text;
use boxoffice_proto::booking::v1::{BookingState, CreateBookingRequest, CreateHoldRequest, PaymentMethod};
use tokio::time::Instant;

use crate::house::{House, authorized, cpu_time};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// How long to measure, in seconds.
    #[arg(long, default_value_t = 30)]
    seconds: u64,
    /// Fans who book at the same time, one booking after the other each.
    #[arg(long, default_value_t = 64)]
    fans: usize,
    /// By REST; default: by gRPC.
    #[arg(long)]
    rest: bool,
}

const SEATS_PER_CONCERT: usize = 100_000;
/// A fan may have ten seats of a concert: five bookings of two.
const BOOKINGS_PER_FAN: usize = 5;
/// More bookings a second than anyone expects, to make enough fans and seats before the clock starts.
const AT_MOST: usize = 8_000;
const WARM_UP: Duration = Duration::from_secs(2);

pub(crate) async fn run(options: Options) -> anyhow::Result<()> {
    let house = House::open().await?;
    let most = AT_MOST * (options.seconds as usize + WARM_UP.as_secs() as usize);
    let mut concerts: Vec<Arc<str>> = Vec::new();
    for _ in 0..(most * 2).div_ceil(SEATS_PER_CONCERT) {
        concerts.push(house.concert(100).await?.into());
    }
    let tokens = house.fans(most.div_ceil(BOOKINGS_PER_FAN)).await?;
    let shop = Arc::new(Shop { house, concerts, tokens, next: AtomicUsize::new(0), rest: options.rest });

    let done = Arc::new(AtomicUsize::new(0));
    let stop = Instant::now() + WARM_UP + Duration::from_secs(options.seconds);
    let fans: Vec<_> = (0..options.fans)
        .map(|fan| {
            let (shop, done) = (Arc::clone(&shop), Arc::clone(&done));
            tokio::spawn(async move {
                while Instant::now() < stop {
                    shop.book(fan).await?;
                    done.fetch_add(1, Ordering::Relaxed);
                }
                anyhow::Ok(())
            })
        })
        .collect();
    tokio::time::sleep(WARM_UP).await;
    let (start, done_before, cpu_before) = (Instant::now(), done.load(Ordering::Relaxed), cpu_time()?);
    tokio::time::sleep_until(stop).await;
    let (elapsed, bookings) = (start.elapsed(), done.load(Ordering::Relaxed) - done_before);
    let cpu = cpu_time()? - cpu_before;
    for fan in fans {
        fan.await??;
    }
    println!(
        "{:.0} bookings/s, {:.0} CPU us a booking (generator included), {} by {}",
        bookings as f64 / elapsed.as_secs_f64(),
        cpu.as_micros() as f64 / bookings as f64,
        bookings,
        if options.rest { "REST" } else { "gRPC" }
    );
    let shop = Arc::into_inner(shop).context("a fan is still there")?;
    shop.house.close().await
}

struct Shop {
    house: House,
    concerts: Vec<Arc<str>>,
    tokens: Vec<Arc<str>>,
    next: AtomicUsize,
    rest: bool,
}

impl Shop {
    /// One booking of two seats that nobody else wants.
    async fn book(&self, fan: usize) -> anyhow::Result<()> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let token = self.tokens.get(number / BOOKINGS_PER_FAN).context("too few fans were made")?;
        let seat = number * 2 % SEATS_PER_CONCERT;
        let concert = self.concerts.get(number * 2 / SEATS_PER_CONCERT).context("too few seats were made")?;
        let seat_ids: Vec<String> =
            [seat, seat + 1].map(|seat| format!("A-{}-{}", seat / 1000 + 1, seat % 1000 + 1)).into();
        if self.rest {
            self.book_by_rest(token, concert, &seat_ids).await
        } else {
            self.book_by_grpc(fan, token, concert, seat_ids, number).await
        }
    }

    async fn book_by_grpc(
        &self,
        fan: usize,
        token: &str,
        concert: &str,
        seat_ids: Vec<String>,
        number: usize,
    ) -> anyhow::Result<()> {
        let wish = CreateHoldRequest {
            concert_id: concert.to_owned(),
            seat_ids,
            best_available: None,
            request_id: format!("hold-{number}"),
        };
        let mut holds = self.house.hold_client(fan);
        let hold = holds.create_hold(authorized(wish, token)?).await?.into_inner().hold.context("no hold")?;
        let order = CreateBookingRequest {
            hold_id: hold.hold_id,
            payment_method: PaymentMethod::Wallet.into(),
            return_url: String::new(),
            request_id: format!("booking-{number}"),
        };
        let mut bookings = self.house.booking_client(fan);
        let answer = bookings.create_booking(authorized(order, token)?).await?.into_inner();
        let booking = answer.booking.context("no booking")?;
        ensure!(booking.state() == BookingState::Confirmed, "{booking:?}");
        Ok(())
    }

    async fn book_by_rest(&self, token: &str, concert: &str, seat_ids: &[String]) -> anyhow::Result<()> {
        let api = &self.house.api;
        let wish = serde_json::json!({"seatIds": seat_ids});
        let hold = api.post(&format!("/v1/concerts/{concert}/holds"), Some(token), &wish).await?;
        let hold = hold.expect_success("holding")?;
        let order = serde_json::json!({
            "holdId": text(&hold, "/hold/holdId")?, "paymentMethod": "PAYMENT_METHOD_WALLET",
        });
        let booking = api.post("/v1/bookings", Some(token), &order).await?.expect_success("booking")?;
        ensure!(booking["booking"]["state"] == "BOOKING_STATE_CONFIRMED", "{booking}");
        Ok(())
    }
}
