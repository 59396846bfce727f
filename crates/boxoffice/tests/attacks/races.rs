//! Seats without paying for them, and many calls at once.

use boxoffice::api::{Reply, new_key, text};
use boxoffice_proto::{booking::v1::ErrorReason as Booking, common::v1::ErrorReason as Common};
use futures_util::future::join_all;
use mesh::id::HoldId;
use mesh_test::{Mode, wait_until};
use reqwest::Method;
use serde_json::json;

use crate::stage::{
    PASSWORD, PATIENCE, PRICE, Stage, Visit, assert_refused, new_email, order, read, refusal,
    workshop::Workshop,
};

/// Those who got what they wanted, and those who were refused.
fn winners_and_losers(replies: &[Reply]) -> (Vec<&Reply>, Vec<&Reply>) {
    replies.iter().partition(|reply| reply.status.is_success())
}

#[tokio::test]
async fn nothing_is_confirmed_without_a_hold_and_money() {
    let stage = Stage::open().await;
    let (promoter, ann) = (stage.promoter().await, stage.fan(0).await);
    let concert = promoter.concert().await;
    let token = Some(ann.access_token.as_str());
    let given_back = stage.api.hold(&ann, &concert, &["A-1-1"]).await;
    stage.api.send(Method::DELETE, &format!("/v1/holds/{given_back}"), token, None, None).await.unwrap();
    let unpaid = stage.api.hold(&ann, &concert, &["A-1-2"]).await;

    let book = async |hold: &str| stage.api.post("/v1/bookings", token, &order(hold)).await.unwrap();
    let absent = book(&HoldId::new().to_string()).await;
    assert_refused("without a hold", &absent, &refusal(404, Booking::HoldNotFound, &[]));
    assert_refused("with one given back", &book(&given_back).await, &refusal(409, Booking::HoldExpired, &[]));
    let failed = book(&unpaid).await;
    assert_refused("without money", &failed, &refusal(409, Booking::InsufficientBalance, &[]));

    let id = text(&failed.body, "/metadata/booking_id").unwrap();
    for action in ["confirm", "pay", "approve"] {
        let path = format!("/v1/bookings/{id}/{action}");
        let reply = stage.api.post(&path, token, &json!({})).await.unwrap();
        assert_refused(&path, &reply, &refusal(404, Common::RouteNotFound, &[]));
    }
    let cancelled = stage.api.post(&format!("/v1/bookings/{id}/cancel"), token, &json!({})).await.unwrap();
    assert_refused("cancelling what failed", &cancelled, &refusal(409, Booking::BookingNotCancellable, &[]));
    assert_eq!(cancelled.body["metadata"]["state"], "FAILED");
    assert_eq!(stage.api.booking(&ann, &id).await["state"], "BOOKING_STATE_FAILED");
    assert_eq!(stage.api.balance(&ann).await, 0, "nothing was given back that was not taken");
}

#[tokio::test]
async fn of_500_holds_on_one_seat_exactly_one_wins() {
    let workshop = Workshop::with_own_keys().await;
    let concert = workshop.promoter().await.concert().await;
    let path = format!("{}/v1/concerts/{concert}/holds", workshop.url);
    // Over HTTP/2, so that all of them are on their way at the same time.
    let clients: Vec<reqwest::Client> =
        (0..5).map(|_| reqwest::Client::builder().http2_prior_knowledge().build().unwrap()).collect();
    let holds = (0..500).map(|number: usize| {
        let token = workshop.signer.token(&workshop.claims(&[]));
        let call = clients[number % clients.len()].post(&path).bearer_auth(token);
        read(call.header("Idempotency-Key", new_key()).json(&json!({"seatIds": ["A-1-1"]})))
    });
    let replies = join_all(holds).await;
    let (won, lost) = winners_and_losers(&replies);
    assert_eq!(won.len(), 1, "{won:?}");
    for reply in lost {
        assert_refused("one of the others", reply, &refusal(409, Booking::SeatTaken, &[]));
        assert_eq!(reply.body["metadata"]["seat_ids"], "A-1-1");
    }
}

#[tokio::test]
async fn a_hold_booked_50_times_at_once_is_booked_and_paid_once() {
    let workshop = Workshop::with_own_keys().await;
    let concert = workshop.promoter().await.concert().await;
    let ann = workshop.fan(50 * PRICE).await;
    let hold = workshop.api.hold(&ann, &concert, &["A-1-1"]).await;
    let order = order(&hold);
    let bookings = (0..50).map(|_| workshop.api.post("/v1/bookings", Some(&ann.access_token), &order));
    let replies: Vec<Reply> = join_all(bookings).await.into_iter().map(Result::unwrap).collect();
    let (won, lost) = winners_and_losers(&replies);
    assert_eq!(won.len(), 1, "{won:?}");
    assert_eq!(won[0].body["booking"]["state"], "BOOKING_STATE_CONFIRMED");
    for reply in lost {
        assert_refused("one of the others", reply, &refusal(409, Booking::HoldBooked, &[]));
        assert_eq!(reply.body["metadata"]["booking_id"], won[0].body["booking"]["bookingId"]);
    }
    assert_eq!(workshop.api.balance(&ann).await, 49 * PRICE);
}

#[tokio::test]
async fn a_fan_has_no_more_seats_by_asking_in_many_ways_at_once() {
    let stage = Stage::open().await;
    let promoter = stage.promoter().await;
    let concert = promoter.concert().await;
    let email = new_email();
    stage.api.sign_up(&email, PASSWORD, "Fan").await.unwrap();
    let mut sessions = Vec::new();
    for _ in 0..4 {
        sessions.push(stage.api.log_in(&email, PASSWORD).await.unwrap());
    }
    let path = format!("/v1/concerts/{concert}/holds");
    let holds = (0..10).map(|number| {
        let seats =
            json!({"seatIds": [format!("FLOOR-{}", 2 * number + 1), format!("FLOOR-{}", 2 * number + 2)]});
        let token = sessions[number % sessions.len()].access_token.clone();
        let (api, path) = (&stage.api, &path);
        async move { api.post(path, Some(&token), &seats).await.unwrap() }
    });
    let replies = join_all(holds).await;
    let (won, lost) = winners_and_losers(&replies);
    assert_eq!(won.len(), 2, "four seats are two holds of two");
    for reply in lost {
        assert_refused("one too many", reply, &refusal(409, Booking::SeatLimitExceeded, &[]));
    }
    // Booked seats count as held ones do.
    stage.api.top_up(&sessions[0].access_token, 1_000_000).await.unwrap();
    for reply in won {
        stage.api.book(&sessions[0], &text(&reply.body, "/hold/holdId").unwrap()).await;
    }
    let one_more =
        stage.api.post(&path, Some(&sessions[1].access_token), &json!({"seatIds": ["A-1-1"]})).await.unwrap();
    assert_refused("one more", &one_more, &refusal(409, Booking::SeatLimitExceeded, &[]));
    assert_eq!(one_more.body["metadata"]["remaining"], "0");
}

#[tokio::test]
async fn a_wallet_does_not_pay_twice_with_the_same_money() {
    let workshop = Workshop::with_own_keys().await;
    let concert = workshop.promoter().await.concert().await;
    let ann = workshop.fan(PRICE).await;
    let mut orders = Vec::new();
    for seat in ["A-1-1", "A-1-2", "A-1-3", "A-1-4"] {
        orders.push(order(&workshop.api.hold(&ann, &concert, &[seat]).await));
    }
    let bookings =
        orders.iter().map(|order| workshop.api.post("/v1/bookings", Some(&ann.access_token), order));
    let replies: Vec<Reply> = join_all(bookings).await.into_iter().map(Result::unwrap).collect();
    let (won, lost) = winners_and_losers(&replies);
    assert_eq!(won.len(), 1, "{won:?}");
    for reply in lost {
        assert_refused("one of the others", reply, &refusal(409, Booking::InsufficientBalance, &[]));
    }
    assert_eq!(workshop.api.balance(&ann).await, 0);
}

#[tokio::test]
async fn a_booking_cancelled_20_times_at_once_is_refunded_once() {
    let workshop = Workshop::with_own_keys().await;
    let concert = workshop.promoter().await.concert().await;
    let ann = workshop.fan(PRICE).await;
    let booking = workshop.api.book(&ann, &workshop.api.hold(&ann, &concert, &["A-1-1"]).await).await;
    let path = format!("/v1/bookings/{}/cancel", text(&booking, "/bookingId").unwrap());
    let nothing = json!({});
    let cancels = (0..20).map(|_| workshop.api.post(&path, Some(&ann.access_token), &nothing));
    let replies: Vec<Reply> = join_all(cancels).await.into_iter().map(Result::unwrap).collect();
    let (won, lost) = winners_and_losers(&replies);
    assert_eq!(won.len(), 1, "{won:?}");
    for reply in lost {
        assert_refused("one of the others", reply, &refusal(409, Booking::BookingNotCancellable, &[]));
    }
    wait_until("the refund", PATIENCE, async || match workshop.api.balance(&ann).await {
        PRICE => Ok(()),
        balance => Err(balance.to_string()),
    })
    .await;
    let entries = workshop.api.get("/v1/wallet/entries", Some(&ann.access_token)).await.unwrap();
    assert_eq!(entries.body["entries"].as_array().unwrap().len(), 3, "{}", entries.body);
}

#[tokio::test]
async fn a_hold_given_back_while_it_is_paid_frees_no_sold_seat() {
    let workshop = Workshop::with_own_keys().await;
    let concert = workshop.promoter().await.concert().await;
    let (ann, bob) = (workshop.fan(PRICE).await, workshop.fan(PRICE).await);
    let hold = workshop.api.hold(&ann, &concert, &["A-1-1"]).await;
    // Payment hears nothing, so there is time.
    workshop.payment_line.set_mode(Mode::Blackhole);
    let booking = {
        let (api, token, order) = (workshop.api.clone(), ann.access_token.clone(), order(&hold));
        tokio::spawn(async move { api.post("/v1/bookings", Some(&token), &order).await.unwrap() })
    };
    let id = wait_until("the booking to be made", PATIENCE, async || {
        let list = workshop.api.get("/v1/bookings", Some(&ann.access_token)).await.unwrap();
        text(&list.body, "/bookings/0/bookingId").map_err(|error| error.to_string())
    })
    .await;
    let path = format!("/v1/holds/{hold}");
    let given_back =
        workshop.api.send(Method::DELETE, &path, Some(&ann.access_token), None, None).await.unwrap();
    assert_refused("giving it back", &given_back, &refusal(409, Booking::HoldBooked, &[]));
    let (path, seat) = (format!("/v1/concerts/{concert}/holds"), json!({"seatIds": ["A-1-1"]}));
    let taken = workshop.api.post(&path, Some(&bob.access_token), &seat).await.unwrap();
    assert_refused("a seat that is being paid", &taken, &refusal(409, Booking::SeatTaken, &[]));

    workshop.payment_line.set_mode(Mode::Pass);
    workshop.payment_line.reset_connections();
    assert_eq!(booking.await.unwrap().expect_success("booking").unwrap()["booking"]["bookingId"], id);
    wait_until("the booking to be confirmed", 2 * PATIENCE, async || {
        let booking = workshop.api.booking(&ann, &id).await;
        if booking["state"] == "BOOKING_STATE_CONFIRMED" { Ok(()) } else { Err(booking.to_string()) }
    })
    .await;
    let taken = workshop.api.post(&path, Some(&bob.access_token), &seat).await.unwrap();
    assert_refused("a sold seat", &taken, &refusal(409, Booking::SeatTaken, &[]));
    assert_eq!((workshop.api.balance(&ann).await, workshop.api.balance(&bob).await), (0, PRICE));
}
