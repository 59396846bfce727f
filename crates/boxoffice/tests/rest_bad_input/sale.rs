//! What the state of a sale, a hold, a booking or a wallet forbids.

use std::time::Duration;

use boxoffice::api::{new_key, text};
use boxoffice_proto::{
    booking::v1::ErrorReason as Booking, concert::v1::ErrorReason as Concert,
    payment::v1::ErrorReason as Payment,
};
use chrono::{DateTime, TimeDelta, Utc};
use mesh::id::ConcertId;
use mesh_test::wait_until;
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    House, case,
    stage::{PATIENCE, PRICE, Refusal, Stage, Visit, assert_refused, from_now, order, read, refusal, top_up},
};

#[tokio::test]
async fn seats_are_sold_only_while_the_concert_is_on_sale() {
    let house = House::open().await;
    let promoter = &house.promoter;
    let early = promoter.publish(|plan| plan["saleOpenTime"] = from_now(TimeDelta::hours(1)).into()).await;
    let late = promoter
        .publish(|plan| {
            plan["saleOpenTime"] = from_now(TimeDelta::days(-2)).into();
            plan["saleCloseTime"] = from_now(TimeDelta::days(-1)).into();
        })
        .await;
    let draft = promoter.draft(|_| {}).await;
    let cancelled = promoter.concert().await;
    promoter.cancel(&cancelled).await;
    // Held while it was on sale, booked when it is not any more.
    let called_off = promoter.concert().await;
    let hold = house.stage.api.hold(&house.ann, &called_off, &["A-1-1"]).await;
    promoter.cancel(&called_off).await;

    let holding = |what: &str, concert: &str, expected: Refusal| {
        let call = house.by_ann("POST", &format!("/v1/concerts/{concert}/holds"));
        case(what, call.json(&json!({"seatIds": ["A-1-1"]})), expected)
    };
    let absent = ConcertId::new().to_string();
    house
        .refuses([
            holding("before the sale", &early, refusal(409, Booking::SaleNotOpen, &[])),
            holding("after the sale", &late, refusal(409, Booking::SaleClosed, &[])),
            holding("a draft", &draft, refusal(404, Booking::ConcertNotFound, &[])),
            holding("a cancelled concert", &cancelled, refusal(409, Booking::ConcertCancelled, &[])),
            holding("no concert", &absent, refusal(404, Booking::ConcertNotFound, &[])),
            case(
                "booking for a cancelled concert",
                house.by_ann("POST", "/v1/bookings").json(&order(&hold)),
                refusal(409, Booking::ConcertCancelled, &[]),
            ),
        ])
        .await;
    let early =
        house.by_ann("POST", &format!("/v1/concerts/{early}/holds")).json(&json!({"seatIds": ["A-1-1"]}));
    let told = text(&read(early).await.body, "/metadata/sale_open_time").unwrap();
    assert!(told.parse::<DateTime<Utc>>().is_ok(), "{told}");
}

#[tokio::test]
async fn seats_that_are_not_free_are_not_held() {
    let house = House::open().await;
    let (api, bob) = (&house.stage.api, &house.bob.access_token);
    let sold = api.hold(&house.ann, &house.concert, &["A-1-1"]).await;
    api.book(&house.ann, &sold).await;
    api.hold(&house.ann, &house.concert, &["A-1-2", "FLOOR-1"]).await;

    let holding = |what: &str, token: &str, body: Value, reason: Booking| {
        case(what, house.by(token, "POST", &house.holds()).json(&body), refusal(409, reason, &[]))
    };
    let best = |quantity: u32, accessible: bool| json!({"bestAvailable": {"sectionId": "A", "quantity": quantity, "accessible": accessible}});
    let ann = &house.ann.access_token;
    house
        .refuses([
            holding("one held seat", bob, json!({"seatIds": ["A-1-2"]}), Booking::SeatTaken),
            holding("one sold seat", bob, json!({"seatIds": ["A-1-1"]}), Booking::SeatTaken),
            holding("one of three", bob, json!({"seatIds": ["A-1-3", "A-1-2", "A-1-4"]}), Booking::SeatTaken),
            holding(
                "too many for one fan",
                bob,
                json!({"seatIds": ["A-1-3", "A-1-4", "A-1-5", "A-1-6", "A-2-1"]}),
                Booking::SeatLimitExceeded,
            ),
            holding("too many with those one has", ann, best(2, false), Booking::SeatLimitExceeded),
            holding("more for wheelchair users than there are", bob, best(2, true), Booking::NotEnoughSeats),
        ])
        .await;

    let told = async |token: &str, body: Value, place: &str| {
        text(&read(house.by(token, "POST", &house.holds()).json(&body)).await.body, place).unwrap()
    };
    let body = json!({"seatIds": ["A-1-3", "A-1-2", "A-1-1"]});
    assert_eq!(told(bob, body, "/metadata/seat_ids").await, "A-1-2,A-1-1");
    assert_eq!(told(ann, best(2, false), "/metadata/remaining").await, "1");
    assert_eq!(told(bob, best(2, true), "/metadata/available").await, "1");
}

#[tokio::test]
async fn a_hold_is_of_use_to_its_fan_only() {
    let house = House::open().await;
    let hold = house.stage.api.hold(&house.ann, &house.concert, &["A-1-1"]).await;
    let path = format!("/v1/holds/{hold}");
    let bob = &house.bob.access_token;
    let expected = || refusal(404, Booking::HoldNotFound, &[]);
    house
        .refuses([
            case("reading it", house.by(bob, "GET", &path), expected()),
            case("giving it back", house.by(bob, "DELETE", &path), expected()),
            case("booking it", house.by(bob, "POST", "/v1/bookings").json(&order(&hold)), expected()),
        ])
        .await;
    house.stage.api.book(&house.ann, &hold).await;
}

#[tokio::test]
async fn an_expired_hold_is_worth_nothing() {
    let stage = Stage::open_with(|options| options.hold_ttl = Duration::from_secs(1)).await;
    let (promoter, ann) = (stage.promoter().await, stage.fan(1_000_000).await);
    let concert = promoter.concert().await;
    let hold = stage.api.hold(&ann, &concert, &["A-1-1"]).await;
    let path = format!("/v1/holds/{hold}");
    let reply = wait_until("the hold to expire", PATIENCE, async || {
        let reply = stage.api.get(&path, Some(&ann.access_token)).await.unwrap();
        if reply.status.is_success() { Err(reply.body.to_string()) } else { Ok(reply) }
    })
    .await;
    let expected = refusal(409, Booking::HoldExpired, &[]);
    assert_refused("reading it", &reply, &expected);
    let booked = stage.api.post("/v1/bookings", Some(&ann.access_token), &order(&hold)).await.unwrap();
    assert_refused("booking it", &booked, &expected);
    let given_back =
        stage.api.send(Method::DELETE, &path, Some(&ann.access_token), None, None).await.unwrap();
    assert_eq!(given_back.expect_success("giving it back").unwrap(), json!({}));

    assert_eq!(stage.api.balance(&ann).await, 1_000_000);
    let bookings = stage.api.get("/v1/bookings", Some(&ann.access_token)).await.unwrap();
    assert_eq!(bookings.body["bookings"], json!([]));
    wait_until("the seat to be free again", PATIENCE, async || match stage.api.letters(&concert).await {
        letters if letters.starts_with('A') => Ok(()),
        letters => Err(letters),
    })
    .await;
}

#[tokio::test]
async fn an_empty_wallet_books_nothing_and_keeps_the_hold() {
    let house = House::open().await;
    let (api, bob) = (&house.stage.api, &house.bob);
    let hold = api.hold(bob, &house.concert, &["A-1-1"]).await;
    let key = new_key();
    let book = async || {
        let (token, body) = (Some(bob.access_token.as_str()), order(&hold));
        api.send(Method::POST, "/v1/bookings", token, Some(&key), Some(&body)).await.unwrap()
    };
    for won in [0, PRICE - 1] {
        if won > 0 {
            api.top_up(&bob.access_token, won).await.unwrap();
        }
        let reply = book().await;
        assert_refused("booking", &reply, &refusal(409, Booking::InsufficientBalance, &[]));
        assert_eq!(api.balance(bob).await, won);
        let failed = api.booking(bob, &text(&reply.body, "/metadata/booking_id").unwrap()).await;
        let found = (&failed["state"], &failed["failureReason"], &failed["seats"][0]["state"]);
        let expected = ("BOOKING_STATE_FAILED", "INSUFFICIENT_BALANCE", "BOOKED_SEAT_STATE_CANCELLED");
        assert_eq!(found, (&json!(expected.0), &json!(expected.1), &json!(expected.2)));
        let kept = api.get(&format!("/v1/holds/{hold}"), Some(&bob.access_token)).await.unwrap();
        assert_eq!(kept.body["hold"]["holdId"], hold, "{}", kept.body);
    }
    api.top_up(&bob.access_token, 1).await.unwrap();
    let booked = book().await.expect_success("booking the same hold with the same key").unwrap();
    assert_eq!(booked["booking"]["state"], "BOOKING_STATE_CONFIRMED");
    assert_eq!(api.balance(bob).await, 0);
}

#[tokio::test]
async fn what_is_done_is_not_done_again_or_undone() {
    let house = House::open().await;
    let (api, ann) = (&house.stage.api, &house.ann);
    let hold = api.hold(ann, &house.concert, &["A-1-1"]).await;
    let booking = text(&api.book(ann, &hold).await, "/bookingId").unwrap();
    let cancelled = {
        let hold = api.hold(ann, &house.other_concert, &["B-1-1"]).await;
        let booking = text(&api.book(ann, &hold).await, "/bookingId").unwrap();
        let path = format!("/v1/bookings/{booking}/cancel");
        api.post(&path, Some(&ann.access_token), &json!({}))
            .await
            .unwrap()
            .expect_success("cancelling")
            .unwrap();
        booking
    };
    let called_off = house.promoter.draft(|_| {}).await;
    house.promoter.cancel(&called_off).await;

    let promoter = |path: String| house.by(house.promoter.token(), "POST", &path).json(&json!({}));
    let booked = || refusal(409, Booking::HoldBooked, &[]);
    house
        .refuses([
            case("booking a hold again", house.by_ann("POST", "/v1/bookings").json(&order(&hold)), booked()),
            case(
                "giving back a hold that is booked",
                house.by_ann("DELETE", &format!("/v1/holds/{hold}")),
                booked(),
            ),
            case(
                "reading a hold that is booked",
                house.by_ann("GET", &format!("/v1/holds/{hold}")),
                booked(),
            ),
            case(
                "cancelling a booking again",
                house.by_ann("POST", &format!("/v1/bookings/{cancelled}/cancel")),
                refusal(409, Booking::BookingNotCancellable, &[]),
            ),
            case(
                "cancelling a concert with a booking",
                promoter(format!("/v1/concerts/{}/cancel", house.concert)),
                refusal(409, Concert::ConcertHasBookings, &[]),
            ),
            case(
                "cancelling a concert that had a booking",
                promoter(format!("/v1/concerts/{}/cancel", house.other_concert)),
                refusal(409, Concert::ConcertHasBookings, &[]),
            ),
            case(
                "publishing a cancelled concert",
                promoter(format!("/v1/concerts/{called_off}/publish")),
                refusal(409, Concert::ConcertCancelled, &[]),
            ),
        ])
        .await;
    let again = read(house.by_ann("POST", "/v1/bookings").json(&order(&hold))).await;
    assert_eq!(again.body["metadata"]["booking_id"], booking);
    assert_eq!(api.booking(ann, &booking).await["state"], "BOOKING_STATE_CONFIRMED");
}

#[tokio::test]
async fn a_wallet_has_a_limit() {
    let house = House::open().await;
    for _ in 0..9 {
        house.stage.api.top_up(&house.ann.access_token, 100_000_000).await.unwrap();
    }
    let call = house.by_ann("POST", "/v1/wallet/top-ups").json(&top_up(100_000_000));
    house.refuses([case("one too many", call, refusal(409, Payment::WalletLimitExceeded, &[]))]).await;
}
