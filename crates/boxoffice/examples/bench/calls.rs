//! The same call by REST and by gRPC: GetBooking, and a hold of one seat that is given back.

use std::{sync::Arc, time::Duration};

use anyhow::Context;
use boxoffice::api::{new_key, text};
use boxoffice_proto::booking::v1::{CreateHoldRequest, DeleteHoldRequest, GetBookingRequest};
use http::Method;
use tokio::time::Instant;

use crate::house::{House, authorized};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// How long to measure each, in seconds.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Callers at the same time.
    #[arg(long, default_value_t = 64)]
    callers: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Rest,
    Grpc,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum What {
    GetBooking,
    Hold,
}

struct Stage {
    house: House,
    concert: String,
    tokens: Vec<Arc<str>>,
    booking: String,
}

pub(crate) async fn run(options: Options) -> anyhow::Result<()> {
    let house = House::embedded().await?;
    let concert = house.concert(10).await?;
    let tokens = house.fans(options.callers).await?;
    let token = Some(&*tokens[0]);
    let wish = serde_json::json!({"seatIds": ["A-10-1", "A-10-2"]});
    let hold = house
        .api
        .post(&format!("/v1/concerts/{concert}/holds"), token, &wish)
        .await?
        .expect_success("holding")?;
    let order =
        serde_json::json!({"holdId": text(&hold, "/hold/holdId")?, "paymentMethod": "PAYMENT_METHOD_WALLET"});
    let booking = house.api.post("/v1/bookings", token, &order).await?.expect_success("booking")?;
    let booking = text(&booking, "/booking/bookingId")?;
    let stage = Arc::new(Stage { house, concert, tokens, booking });
    for (name, what) in [("GetBooking", What::GetBooking), ("Hold and release", What::Hold)] {
        // A-B-A: what the machine does meanwhile shows as a difference between the outer two.
        let before = measure(&stage, &options, what, Way::Grpc).await?;
        let rest = measure(&stage, &options, what, Way::Rest).await?;
        let after = measure(&stage, &options, what, Way::Grpc).await?;
        let grpc = (before + after) / 2.0;
        println!("{name}: REST {rest:.0}/s, gRPC {before:.0} and {after:.0}/s, ratio {:.2}", rest / grpc);
        // How much later an answer comes by REST when there is room: a fifth of what REST can do.
        let rate = rest / 5.0;
        let before = pace(&stage, &options, what, Way::Grpc, rate).await?;
        let rest = pace(&stage, &options, what, Way::Rest, rate).await?;
        let after = pace(&stage, &options, what, Way::Grpc, rate).await?;
        let added = rest.saturating_sub((before + after) / 2);
        println!(
            "  p50 at {rate:.0}/s: REST {rest:.0?}, gRPC {before:.0?} and {after:.0?}, added {added:.0?}"
        );
    }
    Arc::into_inner(stage).context("a caller is still there")?.house.close().await
}

/// Begins calls at a fixed rate, whatever becomes of them. Half of them are answered within this time from when they
/// were to begin.
async fn pace(
    stage: &Arc<Stage>,
    options: &Options,
    what: What,
    way: Way,
    rate: f64,
) -> anyhow::Result<Duration> {
    let start = Instant::now();
    let calls: Vec<_> = (0..(rate * options.seconds as f64) as usize)
        .map(|call| {
            let (stage, caller) = (Arc::clone(stage), call % options.callers);
            let begin = start + Duration::from_secs_f64(call as f64 / rate);
            tokio::spawn(async move {
                tokio::time::sleep_until(begin).await;
                stage.call(caller, what, way).await?;
                anyhow::Ok(begin.elapsed())
            })
        })
        .collect();
    let mut durations = Vec::with_capacity(calls.len());
    for call in calls {
        durations.push(call.await??);
    }
    durations.sort_unstable();
    durations.get(durations.len() / 2).copied().context("no call was made")
}

async fn measure(stage: &Arc<Stage>, options: &Options, what: What, way: Way) -> anyhow::Result<f64> {
    let start = Instant::now();
    let stop = start + Duration::from_secs(options.seconds);
    let callers: Vec<_> = (0..options.callers)
        .map(|caller| {
            let stage = Arc::clone(stage);
            tokio::spawn(async move {
                let mut calls = 0_usize;
                while Instant::now() < stop {
                    stage.call(caller, what, way).await?;
                    calls += 1;
                }
                anyhow::Ok(calls)
            })
        })
        .collect();
    let mut calls = 0;
    for caller in callers {
        calls += caller.await??;
    }
    Ok(calls as f64 / start.elapsed().as_secs_f64())
}

impl Stage {
    async fn call(&self, caller: usize, what: What, way: Way) -> anyhow::Result<()> {
        let seat = format!("A-1-{}", caller + 1);
        let (rest, token) = (&self.house.rest, &*self.tokens[caller]);
        match (what, way) {
            (What::GetBooking, Way::Rest) => {
                let path = format!("/v1/bookings/{}", self.booking);
                let read = rest.send(Method::GET, &path, &self.tokens[0], None, None);
                read.await?.expect_success("reading").map(|_| ())
            }
            (What::GetBooking, Way::Grpc) => {
                let request = GetBookingRequest { booking_id: self.booking.clone() };
                let mut client = self.house.booking_client(caller);
                client.get_booking(authorized(request, &self.tokens[0])?).await?;
                Ok(())
            }
            (What::Hold, Way::Rest) => {
                let path = format!("/v1/concerts/{}/holds", self.concert);
                let wish = serde_json::json!({"seatIds": [seat]});
                let key = new_key();
                let hold = rest.send(Method::POST, &path, token, Some(&key), Some(&wish));
                let hold = hold.await?.expect_success("holding")?;
                let path = format!("/v1/holds/{}", text(&hold, "/hold/holdId")?);
                let delete = rest.send(Method::DELETE, &path, token, None, None);
                delete.await?.expect_success("releasing").map(|_| ())
            }
            (What::Hold, Way::Grpc) => {
                let wish = CreateHoldRequest {
                    concert_id: self.concert.clone(),
                    seat_ids: vec![seat],
                    best_available: None,
                    request_id: new_key(),
                };
                let mut client = self.house.hold_client(caller);
                let hold = client
                    .create_hold(authorized(wish, token)?)
                    .await?
                    .into_inner()
                    .hold
                    .context("no hold")?;
                client.delete_hold(authorized(DeleteHoldRequest { hold_id: hold.hold_id }, token)?).await?;
                Ok(())
            }
        }
    }
}
