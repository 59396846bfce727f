//! REST as frontends use it: what goes in and comes out, the lives of holds and bookings, seats and their changes, and
//! what a browser needs besides.

mod stage;

use std::{collections::HashSet, io::Read, time::Instant};

use boxoffice::api::{Login, Reply, text};
use boxoffice_proto::{booking::v1::ErrorReason as Booking, common::v1::ErrorReason as Common};
use chrono::{DateTime, TimeDelta, Utc};
use flate2::read::GzDecoder;
use mesh_test::wait_until;
use reqwest::Method;
use serde_json::{Value, json};
use stage::{
    Event, Events, PASSWORD, PATIENCE, PRICE, Stage, Visit, assert_refused, new_email, now, order, read,
    refusal, top_up, venue,
};

fn time(body: &Value, place: &str) -> DateTime<Utc> {
    let text = text(body, place).unwrap();
    assert!(text.ends_with('Z'), "{place} is in UTC: {text}");
    text.parse().unwrap_or_else(|error| panic!("{place} is no RFC 3339 time: {text}: {error}"))
}

/// Gets something that must be there.
async fn get(stage: &Stage, path: &str, login: Option<&Login>) -> Value {
    let reply = stage.api.get(path, login.map(|login| login.access_token.as_str())).await.unwrap();
    assert_eq!(reply.headers["content-type"], "application/json", "{path}");
    reply.expect_success(path).unwrap()
}

/// Asserts that something has these members; it may have more.
#[track_caller]
fn assert_has(found: &Value, expected: Value) {
    for (name, value) in expected.as_object().unwrap() {
        assert_eq!(found[name], *value, "{name} in {found}");
    }
}

fn won(amount: i64) -> Value {
    json!({"currencyCode": "KRW", "minorUnits": amount.to_string()})
}

#[tokio::test]
async fn json_is_canonical_with_zeros_written_out() {
    let stage = Stage::open().await;
    let promoter = stage.promoter().await;
    let fan = stage.fan(0).await;
    assert_eq!(get(&stage, "/v1/wallet", Some(&fan)).await, json!({"wallet": {"balance": won(0)}}));
    let nothing = json!({"entries": [], "nextPageToken": ""});
    assert_eq!(get(&stage, "/v1/wallet/entries", Some(&fan)).await, nothing);
    let nothing = json!({"bookings": [], "nextPageToken": ""});
    assert_eq!(get(&stage, "/v1/bookings", Some(&fan)).await, nothing);

    // A 64-bit number may come as a number, and goes out as text.
    for (given, balance) in [(json!(250), 250), (json!("250"), 500), (json!(250.0), 750)] {
        let mut body = top_up(0);
        body["amount"]["minorUnits"] = given;
        let made = stage.api.post("/v1/wallet/top-ups", Some(&fan.access_token), &body).await.unwrap();
        let made = made.expect_success("topping up").unwrap();
        assert_has(&made["topUp"], json!({"state": "TOP_UP_STATE_SUCCEEDED", "amount": won(250)}));
        assert_eq!(stage.api.balance(&fan).await, balance);
    }

    let concert_id = promoter.publish(|plan| plan["startTime"] = "2099-05-01T19:00:00.5+09:00".into()).await;
    let concert = get(&stage, &format!("/v1/concerts/{concert_id}"), None).await["concert"].take();
    assert_has(
        &concert,
        json!({
            "concertId": concert_id, "state": "CONCERT_STATE_PUBLISHED", "saleState": "SALE_STATE_OPEN",
            "timeZone": "Asia/Seoul", "venue": {"venueId": promoter.venue_id, "displayName": "The Hall"},
            "startTime": "2099-05-01T10:00:00.500Z", "endTime": "2099-05-01T14:00:00.500Z",
            "description": "", "maxSeatsPerFan": 4,
            "prices": [
                {"sectionId": "A", "price": won(PRICE)},
                {"sectionId": "FLOOR", "price": won(55_000)},
            ],
        }),
    );
    assert!((now() - time(&concert, "/createTime")).num_seconds() < 60);
}

#[tokio::test]
async fn a_draft_is_seen_by_its_organiser_until_it_is_published() {
    let stage = Stage::open().await;
    let (promoter, other) = (stage.promoter().await, stage.promoter().await);
    let draft = promoter.draft(|_| {}).await;
    let path = format!("/v1/concerts/{draft}");
    let own = format!("/v1/concerts?organizerId={}", promoter.organizer.organizer_id);
    let state = async |token: Option<&str>| {
        let reply = stage.api.get(&path, token).await.unwrap();
        (reply.status.as_u16(), reply.body["concert"]["state"].as_str().unwrap_or_default().to_owned())
    };
    let listed = async |path: &str, token: Option<&str>| {
        let reply = stage.api.get(path, token).await.unwrap();
        reply.body["concerts"].as_array().unwrap().len()
    };
    assert_eq!(state(Some(promoter.token())).await, (200, "CONCERT_STATE_DRAFT".into()));
    assert_eq!(state(Some(other.token())).await.0, 404);
    assert_eq!(state(None).await.0, 404);
    assert_eq!(listed("/v1/concerts", Some(promoter.token())).await, 0);
    assert_eq!(listed(&own, Some(promoter.token())).await, 1);

    let publish = format!("{path}/publish");
    for _ in 0..2 {
        let published = stage.api.post(&publish, Some(promoter.token()), &json!({})).await.unwrap();
        assert_eq!(
            published.expect_success("publishing").unwrap()["concert"]["state"],
            "CONCERT_STATE_PUBLISHED"
        );
    }
    assert_eq!(state(None).await, (200, "CONCERT_STATE_PUBLISHED".into()));
    assert_eq!(listed("/v1/concerts", None).await, 1);

    promoter.cancel(&draft).await;
    assert_eq!(state(None).await, (200, "CONCERT_STATE_CANCELLED".into()));
    assert_eq!(get(&stage, &path, None).await["concert"]["saleState"], "SALE_STATE_CLOSED");
}

#[tokio::test]
async fn pages_hold_every_concert_once_while_others_are_added() {
    let stage = Stage::open().await;
    let promoter = stage.promoter().await;
    let in_days = |days: i64| {
        let start = stage::from_now(TimeDelta::days(days));
        move |plan: &mut Value| {
            plan["startTime"] = start.clone().into();
            plan["saleCloseTime"] = start.into();
        }
    };
    let mut expected = Vec::new();
    for days in [10, 11, 12, 13, 14] {
        expected.push(promoter.publish(in_days(days)).await);
    }
    let (mut found, mut token) = (Vec::new(), String::new());
    loop {
        let page = get(&stage, &format!("/v1/concerts?pageSize=2&pageToken={token}"), None).await;
        let concerts = page["concerts"].as_array().unwrap();
        assert!(concerts.len() <= 2);
        found.extend(concerts.iter().map(|concert| text(concert, "/concertId").unwrap()));
        token = text(&page, "/nextPageToken").unwrap();
        if token.is_empty() {
            break;
        }
        // It comes before everything that is still to be seen.
        promoter.publish(in_days(1)).await;
    }
    assert_eq!(found, expected);
}

#[tokio::test]
async fn a_session_is_begun_prolonged_and_ended() {
    let stage = Stage::open().await;
    let email = new_email();
    let sign_up = json!({"email": email, "password": PASSWORD, "displayName": "Ann"});
    for _ in 0..2 {
        let reply = stage.api.post("/v1/users", None, &sign_up).await.unwrap();
        assert_eq!(reply.expect_success("signing up").unwrap(), json!({"verificationRequired": false}));
    }
    let log_in = json!({"email": email.to_uppercase(), "password": PASSWORD});
    let session = stage.api.post("/v1/sessions", None, &log_in).await.unwrap();
    assert_eq!(session.headers["cache-control"], "no-store");
    let session = session.expect_success("logging in").unwrap();
    let minutes = (time(&session, "/expireTime") - now()).num_minutes();
    assert!((13..=15).contains(&minutes), "{session}");
    let days = (time(&session, "/refreshExpireTime") - now()).num_days();
    assert!((29..=30).contains(&days), "{session}");
    let refresh = json!({"refreshToken": session["refreshToken"]});
    let refreshed = stage.api.post("/v1/sessions/refresh", None, &refresh).await.unwrap();
    let refreshed = refreshed.expect_success("refreshing").unwrap();
    assert_eq!(refreshed["sessionId"], session["sessionId"]);
    assert_ne!(refreshed["refreshToken"], session["refreshToken"]);

    let token = text(&refreshed, "/accessToken").unwrap();
    let me =
        stage.api.get("/v1/users/me", Some(&token)).await.unwrap().expect_success("asking who I am").unwrap();
    assert_has(&me["user"], json!({"email": email, "displayName": "Ann", "organizers": []}));
    assert!(text(&me, "/user/userId").unwrap().starts_with("usr_"));

    let ended =
        stage.api.send(Method::DELETE, "/v1/sessions/current", Some(&token), None, None).await.unwrap();
    assert_eq!(ended.expect_success("logging out").unwrap(), json!({}));
    // Each service hears of it within seconds.
    for path in ["/v1/users/me", "/v1/wallet", "/v1/bookings"] {
        let reply = wait_until("the token to be refused", PATIENCE, async || {
            let reply = stage.api.get(path, Some(&token)).await.unwrap();
            if reply.status.is_success() { Err(reply.body.to_string()) } else { Ok(reply) }
        })
        .await;
        assert_refused(path, &reply, &refusal(401, Common::TokenInvalid, &[]));
    }
    let refresh = json!({"refreshToken": refreshed["refreshToken"]});
    let refused = stage.api.post("/v1/sessions/refresh", None, &refresh).await.unwrap();
    assert_eq!((refused.status.as_u16(), refused.reason()), (401, "REFRESH_TOKEN_INVALID"));
}

#[tokio::test]
async fn a_hold_keeps_the_seats_that_were_asked_for_until_it_is_given_back() {
    let stage = Stage::open().await;
    let (promoter, ann, bob) = (stage.promoter().await, stage.fan(0).await, stage.fan(0).await);
    let concert = promoter.concert().await;
    let path = format!("/v1/concerts/{concert}/holds");
    let seats = json!({"seatIds": ["A-1-3", "FLOOR-7", "A-1-1"]});
    let made = stage.api.post(&path, Some(&ann.access_token), &seats).await.unwrap();
    let made = made.expect_success("holding").unwrap();
    let seat = |id: &str, section: &str, row: &str, label: &str, price: i64| json!({"seatId": id, "sectionId": section, "rowLabel": row, "seatLabel": label, "price": won(price)});
    assert_has(
        &made["hold"],
        json!({
            "concertId": concert, "total": won(2 * PRICE + 55_000), "adjacent": false,
            "seats": [
                seat("A-1-3", "A", "1", "3", PRICE),
                seat("FLOOR-7", "FLOOR", "", "7", 55_000),
                seat("A-1-1", "A", "1", "1", PRICE),
            ],
        }),
    );
    let left = time(&made, "/hold/expireTime") - now();
    assert!(left > TimeDelta::minutes(9) && left <= TimeDelta::minutes(10), "{left}");

    let hold = format!("/v1/holds/{}", text(&made, "/hold/holdId").unwrap());
    assert_eq!(get(&stage, &hold, Some(&ann)).await, made);
    let taken = stage.api.post(&path, Some(&bob.access_token), &json!({"seatIds": ["A-1-3"]})).await.unwrap();
    assert_refused("another fan", &taken, &refusal(409, Booking::SeatTaken, &[]));

    let give_back =
        async || stage.api.send(Method::DELETE, &hold, Some(&ann.access_token), None, None).await.unwrap();
    assert_eq!(give_back().await.expect_success("giving back").unwrap(), made);
    assert_eq!(give_back().await.expect_success("giving back again").unwrap(), json!({}));
    let gone = stage.api.get(&hold, Some(&ann.access_token)).await.unwrap();
    assert_refused("reading it", &gone, &refusal(409, Booking::HoldExpired, &[]));
    stage.api.hold(&bob, &concert, &["A-1-3", "FLOOR-7", "A-1-1"]).await;
}

#[tokio::test]
async fn the_best_seats_are_next_to_each_other() {
    let stage = Stage::open().await;
    let (promoter, ann, bob) = (stage.promoter().await, stage.fan(0).await, stage.fan(0).await);
    let concert = promoter.concert().await;
    let path = format!("/v1/concerts/{concert}/holds");
    let best = async |fan: &Login, section: &str, quantity: u32, accessible: bool| {
        let wish =
            json!({"bestAvailable": {"sectionId": section, "quantity": quantity, "accessible": accessible}});
        let held = stage.api.post(&path, Some(&fan.access_token), &wish).await.unwrap();
        let hold = held.expect_success("holding the best").unwrap()["hold"].take();
        let seats = hold["seats"].as_array().unwrap().iter();
        let mut ids: Vec<String> = seats.map(|seat| text(seat, "/seatId").unwrap()).collect();
        ids.sort();
        (ids, hold["adjacent"].as_bool().unwrap())
    };
    let (ids, adjacent) = best(&ann, "A", 3, false).await;
    assert!(adjacent, "{ids:?}");
    let places: Vec<u32> = ids.iter().map(|id| id.strip_prefix("A-1-").unwrap().parse().unwrap()).collect();
    assert!(places.windows(2).all(|pair| pair[1] == pair[0] + 1), "{ids:?}");
    // Kept for wheelchair users, so only for who asks.
    assert_eq!(best(&ann, "A", 1, true).await, (vec!["A-2-6".into()], true));
    let (ids, adjacent) = best(&bob, "FLOOR", 2, false).await;
    assert!(adjacent && ids.iter().all(|id| id.starts_with("FLOOR-")), "{ids:?}");
}

#[tokio::test]
async fn a_booking_is_paid_kept_and_given_back() {
    let stage = Stage::open().await;
    let (promoter, ann, bob) = (stage.promoter().await, stage.fan(1_000_000).await, stage.fan(PRICE).await);
    let (concert, other) = (promoter.concert().await, promoter.concert().await);
    let hold = stage.api.hold(&ann, &concert, &["A-1-1", "A-1-2"]).await;
    let booking = stage.api.book(&ann, &hold).await;
    let seat = |label: &str, state: &str| {
        json!({
            "seatId": format!("A-1-{label}"), "sectionId": "A", "rowLabel": "1", "seatLabel": label,
            "price": won(PRICE), "state": state,
        })
    };
    assert_has(
        &booking,
        json!({
            "concertId": concert, "state": "BOOKING_STATE_CONFIRMED", "total": won(2 * PRICE), "refunded": won(0),
            "failureReason": "",
            "seats": [seat("1", "BOOKED_SEAT_STATE_ACTIVE"), seat("2", "BOOKED_SEAT_STATE_ACTIVE")],
        }),
    );
    let id = text(&booking, "/bookingId").unwrap();
    let path = format!("/v1/bookings/{id}");
    assert_eq!(get(&stage, &path, Some(&ann)).await["booking"], booking);
    assert_eq!(stage.api.balance(&ann).await, 1_000_000 - 2 * PRICE);
    wait_until("the seats to be shown as sold", PATIENCE, async || match stage.api.letters(&concert).await {
        letters if letters.starts_with("SSA") => Ok(()),
        letters => Err(letters),
    })
    .await;

    let second = stage.api.book(&ann, &stage.api.hold(&ann, &other, &["FLOOR-1"]).await).await;
    let ids = |page: &Value| -> Vec<String> {
        page["bookings"].as_array().unwrap().iter().map(|found| text(found, "/bookingId").unwrap()).collect()
    };
    let second_id = text(&second, "/bookingId").unwrap();
    assert_eq!(ids(&get(&stage, "/v1/bookings", Some(&ann)).await), [second_id.as_str(), &id]);
    let of_concert = format!("/v1/bookings?concertId={concert}");
    assert_eq!(ids(&get(&stage, &of_concert, Some(&ann)).await), [id.as_str()]);
    let page = get(&stage, "/v1/bookings?pageSize=1", Some(&ann)).await;
    let next = format!("/v1/bookings?pageSize=1&pageToken={}", text(&page, "/nextPageToken").unwrap());
    assert_eq!(
        (ids(&page), ids(&get(&stage, &next, Some(&ann)).await)),
        (vec![second_id.clone()], vec![id.clone()])
    );

    let cancel = async |key: &str| {
        let (path, token) = (format!("{path}/cancel"), Some(ann.access_token.as_str()));
        let reply = stage.api.send(Method::POST, &path, token, Some(key), Some(&json!({}))).await.unwrap();
        let is_replayed = reply.headers.contains_key("idempotency-replayed");
        (reply.expect_success("cancelling").unwrap()["booking"].take(), is_replayed)
    };
    let (cancelled, is_replayed) = cancel("first").await;
    assert!(!is_replayed);
    assert_has(
        &cancelled,
        json!({
            "bookingId": id, "state": "BOOKING_STATE_CANCELLED", "total": won(2 * PRICE), "refunded": won(2 * PRICE),
            "seats": [seat("1", "BOOKED_SEAT_STATE_CANCELLED"), seat("2", "BOOKED_SEAT_STATE_CANCELLED")],
        }),
    );
    // On sale again at once, and no longer counted among the fan's.
    let sold_again = stage.api.book(&bob, &stage.api.hold(&bob, &concert, &["A-1-1"]).await).await;
    assert_eq!(sold_again["state"], "BOOKING_STATE_CONFIRMED");
    stage.api.hold(&ann, &concert, &["A-1-2", "A-1-3", "A-1-4", "A-1-5"]).await;
    assert_eq!(cancel("first").await, (cancelled, true));

    assert_eq!(stage.api.balance(&ann).await, 1_000_000 - 55_000);
    let entries = get(&stage, "/v1/wallet/entries", Some(&ann)).await;
    let entries: Vec<Value> = entries["entries"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| json!([entry["kind"], entry["amount"], entry["bookingId"]]))
        .collect();
    let expected = [
        json!(["WALLET_ENTRY_KIND_REFUND", won(2 * PRICE), id]),
        json!(["WALLET_ENTRY_KIND_PAYMENT", won(-55_000), second_id]),
        json!(["WALLET_ENTRY_KIND_PAYMENT", won(-2 * PRICE), id]),
        json!(["WALLET_ENTRY_KIND_TOP_UP", won(1_000_000), ""]),
    ];
    assert_eq!(entries, expected);
}

#[tokio::test]
async fn a_concert_is_sold_out_until_a_seat_comes_back() {
    let stage = Stage::open().await;
    let (promoter, ann) = (stage.promoter().await, stage.fan(1_000).await);
    let mut hall = venue(&promoter.organizer.organizer_id);
    hall["sections"] = json!([{"sectionId": "A", "standing": {"capacity": 2}}]);
    let hall = stage.api.post("/v1/venues", Some(promoter.token()), &hall).await.unwrap().body;
    let concert = promoter
        .publish(|plan| {
            plan["venueId"] = hall["venue"]["venueId"].clone();
            plan["prices"] = json!([{"sectionId": "A", "price": won(0)}]);
        })
        .await;
    let path = format!("/v1/concerts/{concert}");
    let becomes = async |state: &str| {
        wait_until(state, PATIENCE, async || {
            let concert = get(&stage, &path, None).await;
            if concert["concert"]["saleState"] == state { Ok(()) } else { Err(concert.to_string()) }
        })
        .await;
    };
    becomes("SALE_STATE_OPEN").await;
    let booking = stage.api.book(&ann, &stage.api.hold(&ann, &concert, &["A-1", "A-2"]).await).await;
    assert_eq!(booking["state"], "BOOKING_STATE_CONFIRMED", "what costs nothing is booked as well");
    becomes("SALE_STATE_SOLD_OUT").await;
    let cancel = format!("/v1/bookings/{}/cancel", text(&booking, "/bookingId").unwrap());
    stage
        .api
        .post(&cancel, Some(&ann.access_token), &json!({}))
        .await
        .unwrap()
        .expect_success("cancelling")
        .unwrap();
    becomes("SALE_STATE_OPEN").await;
}

#[tokio::test]
async fn a_seat_map_never_changes_and_is_sent_once() {
    let stage = Stage::open().await;
    let (promoter, ann) = (stage.promoter().await, stage.fan(0).await);
    let concert = promoter.concert().await;
    let path = format!("/v1/concerts/{concert}/seat-map");
    let reply = stage.api.get(&path, None).await.unwrap();
    assert_eq!(reply.headers["cache-control"], "public, max-age=300");
    let row = |row: u32| {
        let seat = |place: u32| json!({"seatId": format!("A-{row}-{place}"), "seatLabel": place.to_string(), "accessible": (row, place) == (2, 6)});
        json!({"rowLabel": row.to_string(), "seats": (1..=6).map(seat).collect::<Vec<_>>()})
    };
    let stalls = json!({
        "sectionId": "A", "displayName": "Stalls", "price": won(PRICE), "seated": {"rows": [row(1), row(2)]},
    });
    let floor = json!({
        "sectionId": "FLOOR", "displayName": "Floor", "price": won(55_000), "standing": {"capacity": 20},
    });
    assert_eq!(reply.body["seatMap"]["sections"], json!([stalls, floor]));
    let of_floor = get(&stage, &format!("{path}?sectionId=FLOOR"), None).await;
    assert_eq!(of_floor["seatMap"]["sections"], json!([floor]));

    stage.api.hold(&ann, &concert, &["A-1-1"]).await;
    let etag = &reply.headers["etag"];
    let known = stage.call("GET", &path).header("If-None-Match", etag).send().await.unwrap();
    assert_eq!((known.status().as_u16(), &known.headers()["etag"]), (304, etag));
    assert_eq!(known.bytes().await.unwrap().len(), 0);
    let other = stage.call("GET", &path).header("If-None-Match", "\"another\"");
    assert_eq!(read(other).await.body, reply.body);
}

#[tokio::test]
async fn seats_are_shown_as_letters_in_the_order_of_the_map() {
    let stage = Stage::open().await;
    let (promoter, ann) = (stage.promoter().await, stage.fan(1_000_000).await);
    let concert = promoter.concert().await;
    let path = format!("/v1/concerts/{concert}/seats");
    let reply = stage.api.get(&path, None).await.unwrap();
    assert_eq!(reply.headers["cache-control"], "public, max-age=1");
    let map = get(&stage, &format!("/v1/concerts/{concert}/seat-map"), None).await;
    assert_eq!(reply.body["layoutVersion"], map["seatMap"]["layoutVersion"]);
    let sections = |available: u32, letters: &str, standing: u32| {
        json!([
            {"sectionId": "A", "available": available, "seatStates": letters},
            {"sectionId": "FLOOR", "available": standing, "seatStates": ""},
        ])
    };
    assert_eq!(reply.body["sections"], sections(12, "AAAAAAAAAAAA", 20));

    stage.api.book(&ann, &stage.api.hold(&ann, &concert, &["A-1-6", "FLOOR-1"]).await).await;
    stage.api.hold(&ann, &concert, &["A-2-1", "FLOOR-2"]).await;
    let later = wait_until("the changes to be seen", PATIENCE, async || {
        let seats = get(&stage, &path, None).await;
        if seats["sections"] == sections(10, "AAAAASHAAAAA", 18) { Ok(seats) } else { Err(seats.to_string()) }
    })
    .await;
    assert_ne!(later["revision"], reply.body["revision"]);
    let floor = get(&stage, &format!("{path}?sectionId=FLOOR"), None).await;
    assert_eq!(floor["sections"], json!([{"sectionId": "FLOOR", "available": 18, "seatStates": ""}]));
}

#[tokio::test]
async fn a_stadium_fits_into_110_kilobytes() {
    let stage = Stage::open().await;
    let (promoter, ann) = (stage.promoter().await, stage.fan(0).await);
    let mut stadium = venue(&promoter.organizer.organizer_id);
    let names: Vec<String> = (1..=10).map(|number| format!("S{number}")).collect();
    let section = |name: &String| json!({"sectionId": name, "seated": {"rows": 100, "seatsPerRow": 100}});
    stadium["sections"] = names.iter().map(section).collect();
    let stadium = stage.api.post("/v1/venues", Some(promoter.token()), &stadium).await.unwrap().body;
    let concert = promoter
        .publish(|plan| {
            plan["venueId"] = stadium["venue"]["venueId"].clone();
            plan["prices"] = names.iter().map(|name| json!({"sectionId": name, "price": won(1)})).collect();
        })
        .await;
    stage.api.hold(&ann, &concert, &["S5-50-50"]).await;
    let path = format!("/v1/concerts/{concert}/seats");
    let plain = stage.call("GET", &path).send().await.unwrap().bytes().await.unwrap();
    assert!(plain.len() <= 110_000, "{} bytes", plain.len());
    let seats: Value = serde_json::from_slice(&plain).unwrap();
    let letters: usize = seats["sections"]
        .as_array()
        .unwrap()
        .iter()
        .map(|section| section["seatStates"].as_str().unwrap().len())
        .sum();
    assert_eq!(letters, 100_000);
    let compressed = stage.call("GET", &path).header("Accept-Encoding", "gzip").send().await.unwrap();
    assert_eq!(compressed.headers()["content-encoding"], "gzip");
    let compressed = compressed.bytes().await.unwrap();
    assert!(compressed.len() <= 25_000, "{} bytes", compressed.len());
}

#[tokio::test]
async fn answers_are_compressed_for_who_asks() {
    let stage = Stage::open().await;
    let promoter = stage.promoter().await;
    let mut hall = venue(&promoter.organizer.organizer_id);
    hall["sections"][0]["seated"]["rows"] = 20.into();
    let hall = stage.api.post("/v1/venues", Some(promoter.token()), &hall).await.unwrap().body;
    let concert = promoter
        .publish(|plan| {
            plan["venueId"] = hall["venue"]["venueId"].clone();
            plan["description"] = "la ".repeat(1000).into();
        })
        .await;
    // The first is compressed once for everyone, the second for its caller.
    for path in [format!("/v1/concerts/{concert}/seat-map"), format!("/v1/concerts/{concert}")] {
        let plain = stage.call("GET", &path).send().await.unwrap();
        assert!(!plain.headers().contains_key("content-encoding"), "{path}");
        let plain = plain.bytes().await.unwrap();
        let compressed = stage.call("GET", &path).header("Accept-Encoding", "br, gzip").send().await.unwrap();
        assert_eq!(compressed.headers()["content-encoding"], "gzip", "{path}");
        let vary =
            compressed.headers().get_all("vary").iter().map(|value| value.to_str().unwrap().to_lowercase());
        assert!(vary.collect::<String>().contains("accept-encoding"), "{path}");
        let compressed = compressed.bytes().await.unwrap();
        assert!(compressed.len() < plain.len() / 2, "{path}: {} of {}", compressed.len(), plain.len());
        let mut text = Vec::new();
        GzDecoder::new(&compressed[..]).read_to_end(&mut text).unwrap();
        assert_eq!(text, plain, "{path}");
    }
}

/// The seats that an event says have changed, and into what.
fn changes(event: &Event) -> Vec<(String, String)> {
    let state = |change: &Value| {
        let state = text(change, "/state").unwrap();
        (text(change, "/seatId").unwrap(), state.strip_prefix("SEAT_STATE_").unwrap().to_owned())
    };
    let mut changes: Vec<_> = event.data["changes"].as_array().unwrap().iter().map(state).collect();
    changes.sort();
    changes
}

fn changed(seats: &[(&str, &str)]) -> Vec<(String, String)> {
    seats.iter().map(|(seat, state)| (seat.to_string(), state.to_string())).collect()
}

#[tokio::test]
async fn who_watches_sees_every_change_of_the_seats() {
    let stage = Stage::open().await;
    let (promoter, ann) = (stage.promoter().await, stage.fan(1_000_000).await);
    let concert = promoter.concert().await;
    let path = format!("/v1/concerts/{concert}/seats/events");
    let mut events = Events::open(stage.call("GET", &path).header("Accept-Encoding", "gzip")).await;
    assert!(!events.response.headers().contains_key("content-encoding"));
    let start = events.next().await.unwrap();
    assert_eq!((start.kind.as_str(), changes(&start)), ("message", vec![]));
    let seats = get(&stage, &format!("/v1/concerts/{concert}/seats"), None).await;
    assert_eq!(
        (&start.data["revision"], start.id.as_str()),
        (&seats["revision"], seats["revision"].as_str().unwrap())
    );

    let kept = stage.api.hold(&ann, &concert, &["A-1-1", "FLOOR-1"]).await;
    let held = events.next().await.unwrap();
    assert_eq!(changes(&held), changed(&[("A-1-1", "HELD"), ("FLOOR-1", "HELD")]));
    assert_eq!(held.data["revision"], held.id);
    stage.api.book(&ann, &kept).await;
    assert_eq!(changes(&events.next().await.unwrap()), changed(&[("A-1-1", "SOLD"), ("FLOOR-1", "SOLD")]));
    let given_back = stage.api.hold(&ann, &concert, &["A-1-2"]).await;
    assert_eq!(changes(&events.next().await.unwrap()), changed(&[("A-1-2", "HELD")]));
    let hold = format!("/v1/holds/{given_back}");
    stage.api.send(Method::DELETE, &hold, Some(&ann.access_token), None, None).await.unwrap();
    assert_eq!(changes(&events.next().await.unwrap()), changed(&[("A-1-2", "AVAILABLE")]));

    // Who comes back is told what happened meanwhile, each seat once, by the header or by the query.
    let missed = changed(&[("A-1-1", "SOLD"), ("A-1-2", "AVAILABLE"), ("FLOOR-1", "SOLD")]);
    let by_header = stage.call("GET", &path).header("Last-Event-ID", &held.id);
    let by_query = stage.call("GET", &format!("{path}?revision={}", held.id));
    for call in [by_header, by_query] {
        let first = Events::open(call).await.next().await.unwrap();
        assert_eq!((first.kind.as_str(), changes(&first)), ("message", missed.clone()));
    }
    // An id of another life of the service is too old, and so is one that never was ours: a browser that is refused would
    // not come back.
    let now = get(&stage, &format!("/v1/concerts/{concert}/seats"), None).await["revision"].clone();
    let long = "x".repeat(1000);
    let ids = ["00000000000000ff-1", "1", "no id at all", "é", &long];
    let by_header = ids.map(|id| stage.call("GET", &path).header("Last-Event-ID", id));
    let by_query = stage.call("GET", &format!("{path}?revision=1"));
    for call in by_header.into_iter().chain([by_query]) {
        let reset = Events::open(call).await.next().await.unwrap();
        assert_eq!((reset.kind.as_str(), reset.data["changes"].clone()), ("reset", json!([])));
        assert_eq!(json!(reset.id), now);
    }
}

#[tokio::test]
async fn who_was_away_for_too_long_is_told_to_start_anew() {
    let stage = Stage::open().await;
    let (promoter, ann) = (stage.promoter().await, stage.fan(0).await);
    let concert = promoter.concert().await;
    let path = format!("/v1/concerts/{concert}/seats/events");
    let start = Events::open(stage.call("GET", &path)).await.next().await.unwrap();
    // More changes than are remembered.
    for _ in 0..2049 {
        let hold = stage.api.hold(&ann, &concert, &["A-1-1"]).await;
        let path = format!("/v1/holds/{hold}");
        stage.api.send(Method::DELETE, &path, Some(&ann.access_token), None, None).await.unwrap();
    }
    let back = stage.call("GET", &path).header("Last-Event-ID", &start.id);
    assert_eq!(Events::open(back).await.next().await.unwrap().kind, "reset");
}

#[tokio::test]
async fn changes_come_four_times_a_second_at_the_most() {
    let stage = Stage::open().await;
    let (promoter, ann) = (stage.promoter().await, stage.fan(0).await);
    let concert = promoter.concert().await;
    let path = format!("/v1/concerts/{concert}/seats/events");
    let begin = Instant::now();
    let mut events = Events::open(stage.call("GET", &path)).await;
    events.next().await.unwrap();
    for _ in 0..40 {
        let hold = stage.api.hold(&ann, &concert, &["A-1-1"]).await;
        let path = format!("/v1/holds/{hold}");
        stage.api.send(Method::DELETE, &path, Some(&ann.access_token), None, None).await.unwrap();
    }
    stage.api.hold(&ann, &concert, &["A-1-2"]).await;
    let mut count = 1;
    loop {
        count += 1;
        if changes(&events.next().await.unwrap()).contains(&("A-1-2".into(), "HELD".into())) {
            break;
        }
    }
    let most = begin.elapsed().as_millis() / 250 + 1;
    assert!(count <= most, "{count} events of 81 changes in {:?}", begin.elapsed());
}

#[tokio::test]
async fn stopping_ends_streams_and_finishes_calls() {
    let stage = Stage::open().await;
    let (promoter, ann) = (stage.promoter().await, stage.fan(1_000_000).await);
    let concert = promoter.concert().await;
    let hold = stage.api.hold(&ann, &concert, &["A-1-1"]).await;
    let path = format!("/v1/concerts/{concert}/seats/events");
    let mut events = Events::open(stage.call("GET", &path)).await;
    events.next().await.unwrap();
    let booking = {
        let (api, token, order) = (stage.api.clone(), ann.access_token.clone(), order(&hold));
        tokio::spawn(async move { api.post("/v1/bookings", Some(&token), &order).await })
    };
    // The seats are sold before the fan hears of it: the call is in flight or just answered.
    while !changes(&events.next().await.unwrap()).contains(&("A-1-1".into(), "SOLD".into())) {}
    let Stage { embedded, .. } = stage;
    let (stopped, rest) = tokio::join!(embedded.stop(), events.next());
    stopped.unwrap();
    assert_eq!(rest, None);
    let booked = booking.await.unwrap().unwrap().expect_success("booking").unwrap();
    assert_eq!(booked["booking"]["state"], "BOOKING_STATE_CONFIRMED");
}

#[tokio::test]
async fn pages_of_this_machine_may_call_and_others_are_told_nothing() {
    let stage = Stage::open().await;
    let preflight = async |origin: &str| {
        stage
            .call("OPTIONS", "/v1/bookings")
            .header("Origin", origin)
            .header("Access-Control-Request-Method", "POST")
            .header("Access-Control-Request-Headers", "authorization,content-type,idempotency-key")
            .send()
            .await
            .unwrap()
    };
    let names = |reply: &reqwest::Response, header: &str| -> HashSet<String> {
        let names = reply.headers()[header].to_str().unwrap().split(',');
        names.map(|name| name.trim().to_lowercase()).collect()
    };
    let expected = |names: &str| -> HashSet<String> { names.split(' ').map(str::to_lowercase).collect() };
    for origin in ["http://localhost:5173", "http://127.0.0.1:8080"] {
        let allowed = preflight(origin).await;
        assert!(allowed.status().is_success(), "{origin}");
        assert_eq!(allowed.headers()["access-control-allow-origin"], origin);
        assert!(names(&allowed, "access-control-allow-methods").contains("post"));
        let headers = "Authorization Content-Type Idempotency-Key If-Match If-None-Match Last-Event-ID Prefer traceparent";
        assert!(names(&allowed, "access-control-allow-headers").is_superset(&expected(headers)));
        let answer = stage.call("GET", "/v1/concerts").header("Origin", origin).send().await.unwrap();
        assert_eq!(answer.headers()["access-control-allow-origin"], origin);
        let headers =
            "Date ETag Location Retry-After RateLimit RateLimit-Policy Idempotency-Replayed X-Request-Id";
        assert!(names(&answer, "access-control-expose-headers").is_superset(&expected(headers)));
    }
    for origin in ["https://evil.example", "http://localhost.evil.example:80", "null"] {
        let get = stage.call("GET", "/v1/concerts").header("Origin", origin).send().await.unwrap();
        for reply in [preflight(origin).await, get] {
            let told: Vec<_> =
                reply.headers().keys().filter(|name| name.as_str().starts_with("access-control")).collect();
            assert!(told.is_empty(), "{origin}: {told:?}");
        }
    }
}

#[tokio::test]
async fn the_description_has_every_route_of_the_api() {
    let stage = Stage::open().await;
    let description = get(&stage, "/openapi.json", None).await;
    assert_eq!(description["openapi"], "3.1.0");
    let routes = [
        "post /v1/users",
        "post /v1/sessions",
        "post /v1/sessions/refresh",
        "delete /v1/sessions/current",
        "get /v1/users/me",
        "post /v1/organizers",
        "post /v1/venues",
        "post /v1/concerts",
        "post /v1/concerts/{concertId}/publish",
        "post /v1/concerts/{concertId}/cancel",
        "get /v1/concerts",
        "get /v1/concerts/{concertId}",
        "get /v1/concerts/{concertId}/seat-map",
        "get /v1/concerts/{concertId}/seats",
        "get /v1/concerts/{concertId}/seats/events",
        "post /v1/concerts/{concertId}/holds",
        "get /v1/holds/{holdId}",
        "delete /v1/holds/{holdId}",
        "post /v1/wallet/top-ups",
        "get /v1/wallet",
        "get /v1/wallet/entries",
        "post /v1/bookings",
        "get /v1/bookings",
        "get /v1/bookings/{bookingId}",
        "post /v1/bookings/{bookingId}/cancel",
    ];
    for route in routes {
        let (method, path) = route.split_once(' ').unwrap();
        let operation = &description["paths"][path][method];
        assert!(operation.is_object(), "{route} is not described");
        assert!(operation["responses"].as_object().is_some_and(|responses| responses.len() > 1), "{route}");
    }
    let text = description.to_string();
    assert!(text.contains("Idempotency-Key") && !text.contains("requestId"), "the key is a header only");
}

#[tokio::test]
async fn the_documentation_works_without_the_internet() {
    let stage = Stage::open().await;
    let root = stage.call("GET", "/").send().await.unwrap();
    assert!(root.status().is_redirection());
    assert!(root.headers()["location"].to_str().unwrap().starts_with("/docs"));
    let docs = stage.call("GET", "/docs").send().await.unwrap();
    assert!(docs.status().is_success() || docs.headers()["location"] == "/docs/");
    let page = stage.call("GET", "/docs/").send().await.unwrap();
    assert!(page.headers()["content-type"].to_str().unwrap().starts_with("text/html"));
    let page = page.text().await.unwrap();
    let parts: Vec<&str> = page
        .split("src=\"")
        .skip(1)
        .chain(page.split("href=\"").skip(1))
        .filter_map(|rest| rest.split('"').next())
        .collect();
    assert!(parts.len() >= 3, "{page}");
    for part in parts {
        assert!(!part.contains("//"), "{part} is somewhere else");
        let path = format!("/docs/{}", part.trim_start_matches("./"));
        let file = stage.call("GET", &path).send().await.unwrap();
        assert!(file.status().is_success(), "{path}");
        if part.contains("initializer") {
            let script = file.text().await.unwrap();
            assert!(script.contains("/openapi.json") && !script.contains("https://"), "{script}");
        }
    }
}

#[tokio::test]
async fn the_gateway_tells_its_health_and_its_keys() {
    let stage = Stage::open().await;
    let ann = stage.fan(0).await;
    for path in ["/healthz", "/readyz"] {
        assert_eq!(stage.call("GET", path).send().await.unwrap().status(), 200, "{path}");
    }
    let reply = read(stage.call("GET", "/.well-known/jwks.json")).await;
    assert_eq!(reply.headers["content-type"], "application/jwk-set+json");
    let key = &reply.body["keys"][0];
    assert_has(key, json!({"kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "use": "sig"}));
    assert_eq!(key["d"], Value::Null, "the private part is not for the public");
    let header = ann.access_token.split('.').next().unwrap();
    let header: Value = {
        use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
        serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(header).unwrap()).unwrap()
    };
    assert_eq!(header["kid"], key["kid"]);
}

#[tokio::test]
async fn a_caller_is_told_the_limits_and_held_to_them() {
    // Ten calls in ten seconds.
    let stage = Stage::open_with(|options| options.rate_limit_per_user = 1).await;
    let (ann, bob) = (stage.fan(0).await, stage.fan(0).await);
    let call = async |fan: &Login| stage.api.get("/v1/wallet", Some(&fan.access_token)).await.unwrap();
    let first = call(&ann).await;
    assert_eq!(first.headers["ratelimit-policy"], "\"user\";q=10;w=10");
    assert!(
        first.headers["ratelimit"].to_str().unwrap().starts_with("\"user\";r=9;t="),
        "{:?}",
        first.headers
    );
    let mut replies: Vec<Reply> = Vec::new();
    for _ in 0..12 {
        replies.push(call(&ann).await);
    }
    let refused =
        replies.iter().find(|reply| reply.status == 429).expect("thirteen calls at once are too many");
    assert_refused("one too many", refused, &refusal(429, Common::RateLimited, &[]));
    assert_eq!(call(&bob).await.status, 200, "another user is not affected");
}

#[tokio::test]
async fn a_request_id_is_given_back() {
    let stage = Stage::open().await;
    let named = stage.call("GET", "/v1/concerts").header("X-Request-Id", "checkout-42").send().await.unwrap();
    assert_eq!(named.headers()["x-request-id"], "checkout-42");
    let unnamed = stage.call("GET", "/v1/concerts").send().await.unwrap();
    assert_eq!(unnamed.headers()["x-request-id"].len(), 32);
}
