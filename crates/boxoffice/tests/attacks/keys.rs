//! Idempotency keys that come again.

use std::collections::HashSet;

use boxoffice::api::{Reply, new_key, text};
use boxoffice_proto::common::v1::ErrorReason as Common;
use futures_util::future::join_all;
use mesh_test::{Mode, wait_until};
use reqwest::Method;
use serde_json::{Value, json};

use crate::stage::{
    PATIENCE, PRICE, Stage, Visit, assert_refused, order, refusal, top_up, workshop::Workshop,
};

#[tokio::test]
async fn the_same_key_of_another_fan_is_another_key() {
    let stage = Stage::open().await;
    let (promoter, ann, bob) =
        (stage.promoter().await, stage.fan(1_000_000).await, stage.fan(1_000_000).await);
    let concert = promoter.concert().await;
    let key = new_key();
    let mut bookings = Vec::new();
    for (fan, seat) in [(&ann, "A-1-1"), (&bob, "A-1-2")] {
        let post = async |path: &str, body: Value| {
            let reply = stage
                .api
                .send(Method::POST, path, Some(&fan.access_token), Some(&key), Some(&body))
                .await
                .unwrap();
            assert!(!reply.headers.contains_key("idempotency-replayed"), "{path}");
            reply.expect_success(path).unwrap()
        };
        let hold = post(&format!("/v1/concerts/{concert}/holds"), json!({"seatIds": [seat]})).await;
        let booking = post("/v1/bookings", order(&text(&hold, "/hold/holdId").unwrap())).await;
        bookings.push(text(&booking, "/booking/bookingId").unwrap());
        post("/v1/wallet/top-ups", top_up(PRICE)).await;
        assert_eq!(stage.api.balance(fan).await, 1_000_000);
    }
    assert_ne!(bookings[0], bookings[1]);
}

#[tokio::test]
async fn a_key_sent_20_times_at_once_has_one_effect() {
    let workshop = Workshop::with_own_keys().await;
    let (promoter, ann) = (workshop.promoter().await, workshop.fan(10 * PRICE).await);
    let concert = promoter.concert().await;
    // The answers that were good, of 20 calls with one key. The others say that it is being worked on.
    let send = async |path: &str, body: Value| -> Vec<Value> {
        let key = new_key();
        let token = Some(ann.access_token.as_str());
        let calls = (0..20).map(|_| workshop.api.send(Method::POST, path, token, Some(&key), Some(&body)));
        let replies: Vec<Reply> = join_all(calls).await.into_iter().map(Result::unwrap).collect();
        let (done, others): (Vec<Reply>, Vec<Reply>) =
            replies.into_iter().partition(|reply| reply.status.is_success());
        for reply in &others {
            assert_refused(path, reply, &refusal(409, Common::RequestInProgress, &[]));
            assert!(reply.headers.contains_key("retry-after"), "{path}");
        }
        let first = done.iter().filter(|reply| !reply.headers.contains_key("idempotency-replayed")).count();
        assert_eq!(first, 1, "{path}: one did it, the others were told");
        done.into_iter().map(|reply| reply.body).collect()
    };
    let one = |bodies: &[Value], place: &str| -> String {
        let ids: HashSet<String> = bodies.iter().map(|body| text(body, place).unwrap()).collect();
        assert_eq!(ids.len(), 1, "{place}");
        ids.into_iter().next().unwrap()
    };
    let held = send(&format!("/v1/concerts/{concert}/holds"), json!({"seatIds": ["A-1-1"]})).await;
    let hold = one(&held, "/hold/holdId");
    let booking = one(&send("/v1/bookings", order(&hold)).await, "/booking/bookingId");
    assert_eq!(workshop.api.balance(&ann).await, 9 * PRICE);
    one(&send("/v1/wallet/top-ups", top_up(PRICE)).await, "/topUp/topUpId");
    assert_eq!(workshop.api.balance(&ann).await, 10 * PRICE);
    one(&send(&format!("/v1/bookings/{booking}/cancel"), json!({})).await, "/booking/bookingId");
    wait_until("the money to be given back", PATIENCE, async || match workshop.api.balance(&ann).await {
        balance if balance == 11 * PRICE => Ok(()),
        balance => Err(balance.to_string()),
    })
    .await;
}

#[tokio::test]
async fn a_key_that_is_being_worked_on_says_so() {
    let workshop = Workshop::with_own_keys().await;
    let (promoter, ann) = (workshop.promoter().await, workshop.fan(10 * PRICE).await);
    let concert = promoter.concert().await;
    let hold = workshop.api.hold(&ann, &concert, &["A-1-1"]).await;
    let other_hold = workshop.api.hold(&ann, &concert, &["A-1-2"]).await;
    let key = new_key();
    let book = |hold: &str| {
        let (api, token, key, order) =
            (workshop.api.clone(), ann.access_token.clone(), key.clone(), order(hold));
        async move {
            api.send(Method::POST, "/v1/bookings", Some(&token), Some(&key), Some(&order)).await.unwrap()
        }
    };
    // Payment hears nothing, so the booking stays in flight.
    workshop.payment_line.set_mode(Mode::Blackhole);
    let first = tokio::spawn(book(&hold));
    let token = Some(ann.access_token.as_str());
    let id = wait_until("the booking to be made", PATIENCE, async || {
        let list = workshop.api.get("/v1/bookings", token).await.unwrap();
        text(&list.body, "/bookings/0/bookingId").map_err(|error| error.to_string())
    })
    .await;
    let busy = book(&hold).await;
    assert_refused("the same key", &busy, &refusal(409, Common::RequestInProgress, &[]));
    assert!(busy.headers.contains_key("retry-after"));
    let reused = book(&other_hold).await;
    assert_refused(
        "the same key for another hold",
        &reused,
        &refusal(422, Common::IdempotencyKeyReused, &[]),
    );

    workshop.payment_line.set_mode(Mode::Pass);
    workshop.payment_line.reset_connections();
    let first = first.await.unwrap().expect_success("a row that exists is never answered by a 5xx").unwrap();
    assert_eq!(first["booking"]["bookingId"], id);
    wait_until("the booking to be confirmed", 2 * PATIENCE, async || {
        let booking = workshop.api.booking(&ann, &id).await;
        if booking["state"] == "BOOKING_STATE_CONFIRMED" { Ok(()) } else { Err(booking.to_string()) }
    })
    .await;
    let again = book(&hold).await;
    assert_eq!(again.headers["idempotency-replayed"], "true");
    assert_eq!(again.expect_success("the same key").unwrap()["booking"]["bookingId"], id);
    assert_eq!(workshop.api.balance(&ann).await, 9 * PRICE);
}
