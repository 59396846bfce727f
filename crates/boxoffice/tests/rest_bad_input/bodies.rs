//! What the fields of a request may be, in its body, its path and its query.

use boxoffice::api::text;
use boxoffice_proto::{
    common::v1::ErrorReason as Common, concert::v1::ErrorReason as Concert, user::v1::ErrorReason as User,
};
use chrono::TimeDelta;
use mesh::id::{BookingId, HoldId, VenueId};
use serde_json::{Value, json};

use crate::{
    House, case,
    stage::{PASSWORD, Visit, from_now, new_email, order, refusal, top_up, venue},
    wrong,
};

#[tokio::test]
async fn a_hold_asks_for_seats_that_there_are() {
    let house = House::open().await;
    let eleven: Vec<String> = (1..=11).map(|place| format!("FLOOR-{place}")).collect();
    let best = |quantity: Value| json!({"bestAvailable": {"sectionId": "A", "quantity": quantity}});
    let bodies: &[(Value, &[&str])] = &[
        (json!({}), &["seatIds"]),
        (json!({"seatIds": []}), &["seatIds"]),
        (json!({"seatIds": "A-1-1"}), &["seatIds"]),
        (json!({"seatIds": {"0": "A-1-1"}}), &["seatIds"]),
        (json!({"seatIds": ["A-1-1", 7]}), &["seatIds[1]"]),
        (json!({"seatIds": [null]}), &["seatIds[0]"]),
        (json!({"seatIds": ["A-1-1", "A-1-1"]}), &["seatIds[1]"]),
        (json!({"seatIds": eleven}), &["seatIds"]),
        (json!({"seatIds": ["Z-1-1"]}), &["seatIds[0]"]),
        (json!({"seatIds": ["A-1-1", "A-3-1", "A-1-7"]}), &["seatIds[1]", "seatIds[2]"]),
        (
            json!({"seatIds": ["", "A-0-1", "A-1-01", "A-1--1", "FLOOR-21"]}),
            &["seatIds[0]", "seatIds[1]", "seatIds[2]", "seatIds[3]", "seatIds[4]"],
        ),
        // A seat of another concert.
        (json!({"seatIds": ["B-1-1"]}), &["seatIds[0]"]),
        (json!({"seatIds": ["A-1-1"], "colour": "red"}), &["colour"]),
        (json!({"seat_ids": ["A-1-1"]}), &["seat_ids"]),
        // What the path and the header say, the body can't.
        (json!({"seatIds": ["A-1-1"], "concertId": house.other_concert}), &["concertId"]),
        (json!({"seatIds": ["A-1-1"], "requestId": "mine"}), &["requestId"]),
        (json!({"seatIds": ["A-1-1"], "bestAvailable": {"sectionId": "A", "quantity": 1}}), &["seatIds"]),
        (json!({"bestAvailable": {}}), &["bestAvailable.sectionId", "bestAvailable.quantity"]),
        (json!({"bestAvailable": []}), &["bestAvailable"]),
        (best(json!(0)), &["bestAvailable.quantity"]),
        (best(json!(-1)), &["bestAvailable.quantity"]),
        (best(json!(11)), &["bestAvailable.quantity"]),
        (best(json!(2_147_483_648_u64)), &["bestAvailable.quantity"]),
        (best(json!(1.5)), &["bestAvailable.quantity"]),
        (best(json!("two")), &["bestAvailable.quantity"]),
        (best(json!(true)), &["bestAvailable.quantity"]),
        (json!({"bestAvailable": {"sectionId": "Z", "quantity": 1}}), &["bestAvailable.sectionId"]),
        (
            json!({"bestAvailable": {"sectionId": "ABCDEFGHIJKLM", "quantity": 1}}),
            &["bestAvailable.sectionId"],
        ),
        (json!({"bestAvailable": {"sectionId": 1, "quantity": 1}}), &["bestAvailable.sectionId"]),
        (
            json!({"bestAvailable": {"sectionId": "A", "quantity": 1, "accessible": "yes"}}),
            &["bestAvailable.accessible"],
        ),
        (json!({"bestAvailable": {"sectionId": "A", "quantity": 1, "price": 1}}), &["bestAvailable.price"]),
    ];
    house.refuses_bodies(&house.ann.access_token, &house.holds(), bodies).await;
}

#[tokio::test]
async fn a_booking_names_a_hold_and_how_to_pay() {
    let house = House::open().await;
    let hold = house.stage.api.hold(&house.ann, &house.concert, &["A-1-1"]).await;
    let with = |change: Value| {
        let mut body = order(&hold);
        body.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        body
    };
    let bodies: &[(Value, &[&str])] = &[
        (json!({}), &["holdId", "paymentMethod"]),
        (json!({"holdId": hold}), &["paymentMethod"]),
        (with(json!({"holdId": "nonsense"})), &["holdId"]),
        (with(json!({"holdId": BookingId::new().to_string()})), &["holdId"]),
        (with(json!({"holdId": 7})), &["holdId"]),
        (with(json!({"paymentMethod": "WALLET"})), &["paymentMethod"]),
        (with(json!({"paymentMethod": "PAYMENT_METHOD_UNSPECIFIED"})), &["paymentMethod"]),
        (with(json!({"paymentMethod": true})), &["paymentMethod"]),
        (with(json!({"returnUrl": ["/"]})), &["returnUrl"]),
        (with(json!({"colour": "red", "total": {"minorUnits": 1}})), &["colour", "total"]),
    ];
    house.refuses_bodies(&house.ann.access_token, "/v1/bookings", bodies).await;
}

#[tokio::test]
async fn a_top_up_is_an_amount_in_the_currency_of_the_house() {
    let house = House::open().await;
    let amount = |minor_units: Value| {
        json!({
            "provider": "PAYMENT_PROVIDER_SANDBOX",
            "amount": {"currencyCode": "KRW", "minorUnits": minor_units},
        })
    };
    let bodies: &[(Value, &[&str])] = &[
        (json!({}), &["provider", "amount"]),
        (
            json!({"provider": "PAYMENT_PROVIDER_SANDBOX", "amount": {}}),
            &["amount.currencyCode", "amount.minorUnits"],
        ),
        (json!({"provider": "PAYMENT_PROVIDER_SANDBOX", "amount": 1000}), &["amount"]),
        (json!({"provider": "CASH", "amount": top_up(1)["amount"]}), &["provider"]),
        (amount(json!(-1)), &["amount.minorUnits"]),
        (amount(json!("-1")), &["amount.minorUnits"]),
        (amount(json!(0)), &["amount.minorUnits"]),
        (amount(json!(100_000_001)), &["amount.minorUnits"]),
        (amount(json!(i64::MAX)), &["amount.minorUnits"]),
        (amount(json!(9_223_372_036_854_775_808_u64)), &["amount.minorUnits"]),
        (amount(json!("9223372036854775808")), &["amount.minorUnits"]),
        (amount(json!("-9223372036854775809")), &["amount.minorUnits"]),
        (amount(json!(1.5)), &["amount.minorUnits"]),
        (amount(json!("1e3")), &["amount.minorUnits"]),
        (amount(json!(" 1")), &["amount.minorUnits"]),
        (amount(json!("")), &["amount.minorUnits"]),
        (amount(json!(true)), &["amount.minorUnits"]),
    ];
    house.refuses_bodies(&house.ann.access_token, "/v1/wallet/top-ups", bodies).await;

    let foreign = |code: &str| {
        let mut body = top_up(1000);
        body["amount"]["currencyCode"] = code.into();
        let call = house.by_ann("POST", "/v1/wallet/top-ups").json(&body);
        case(
            format!("a top-up in {code}"),
            call,
            refusal(400, Common::CurrencyUnsupported, &["amount.currencyCode"]),
        )
    };
    house.refuses(["USD", "krw", "KRW "].map(foreign)).await;
}

#[tokio::test]
async fn a_concert_is_planned_within_its_limits() {
    let house = House::open().await;
    let changed = |change: fn(&mut Value)| {
        let mut plan = house.promoter.plan();
        change(&mut plan);
        plan
    };
    let required: &[&str] =
        &["organizerId", "venueId", "title", "startTime", "saleOpenTime", "saleCloseTime"];
    let bodies: &[(Value, &[&str])] = &[
        (json!({}), required),
        (changed(|plan| plan["organizerId"] = "usr_01h455vb4pex5vsknk084sn02q".into()), &["organizerId"]),
        (changed(|plan| plan["title"] = " ".into()), &["title"]),
        (changed(|plan| plan["title"] = "x".repeat(201).into()), &["title"]),
        (changed(|plan| plan["title"] = "a\u{0}b".into()), &["title"]),
        (changed(|plan| plan["description"] = "x".repeat(10_001).into()), &["description"]),
        (changed(|plan| plan["genre"] = "x".repeat(51).into()), &["genre"]),
        (changed(|plan| plan["description"] = " ".into()), &["description"]),
        (changed(|plan| plan["genre"] = "\t".into()), &["genre"]),
        (changed(|plan| plan["startTime"] = "tomorrow".into()), &["startTime"]),
        (
            changed(|plan| {
                plan["startTime"] = from_now(TimeDelta::minutes(-1)).into();
                plan["endTime"] = plan["saleCloseTime"].clone();
            }),
            &["startTime"],
        ),
        (changed(|plan| plan["startTime"] = 1_800_000_000.into()), &["startTime"]),
        (changed(|plan| plan["startTime"] = "1999-12-31T23:59:59Z".into()), &["startTime"]),
        (changed(|plan| plan["endTime"] = plan["saleOpenTime"].clone()), &["endTime", "saleCloseTime"]),
        (changed(|plan| plan["saleCloseTime"] = from_now(TimeDelta::days(-2)).into()), &["saleCloseTime"]),
        (changed(|plan| plan["saleCloseTime"] = from_now(TimeDelta::days(31)).into()), &["saleCloseTime"]),
        (changed(|plan| plan["maxSeatsPerFan"] = 0.into()), &["maxSeatsPerFan"]),
        (changed(|plan| plan["maxSeatsPerFan"] = 11.into()), &["maxSeatsPerFan"]),
        (changed(|plan| plan["prices"] = json!([])), &["prices"]),
        (
            changed(|plan| plan["prices"][1]["price"]["minorUnits"] = (-1).into()),
            &["prices[1].price.minorUnits"],
        ),
        (
            changed(|plan| plan["prices"][0]["price"]["minorUnits"] = "1000000001".into()),
            &["prices[0].price.minorUnits"],
        ),
        (changed(|plan| plan["prices"][0]["price"] = Value::Null), &["prices[0].price"]),
        (changed(|plan| plan["prices"][0]["fee"] = 1.into()), &["prices[0].fee"]),
        (changed(|plan| plan["prices"][1]["sectionId"] = "A".into()), &["prices[1].sectionId", "prices"]),
        (changed(|plan| plan["prices"][1]["sectionId"] = "Z".into()), &["prices[1].sectionId", "prices"]),
        (changed(|plan| plan["state"] = "CONCERT_STATE_PUBLISHED".into()), &["state"]),
    ];
    house.refuses_bodies(house.promoter.token(), "/v1/concerts", bodies).await;

    let foreign = changed(|plan| plan["prices"][1]["price"]["currencyCode"] = "USD".into());
    let absent = changed(|plan| plan["venueId"] = VenueId::new().to_string().into());
    let post = |body: Value| house.by(house.promoter.token(), "POST", "/v1/concerts").json(&body);
    let currency = refusal(400, Common::CurrencyUnsupported, &["prices[1].price.currencyCode"]);
    house
        .refuses([
            case("a price in a foreign currency", post(foreign), currency),
            case("a venue that is not there", post(absent), refusal(404, Concert::VenueNotFound, &[])),
        ])
        .await;
}

#[tokio::test]
async fn a_venue_is_laid_out_within_its_limits() {
    let house = House::open().await;
    let with = |sections: Value| {
        let mut body = venue(&house.promoter.organizer.organizer_id);
        body["sections"] = sections;
        body
    };
    let seated =
        |rows: i64, seats: i64| json!([{"sectionId": "A", "seated": {"rows": rows, "seatsPerRow": seats}}]);
    let standing = |capacity: i64| json!([{"sectionId": "A", "standing": {"capacity": capacity}}]);
    let zone = {
        let mut body = venue(&house.promoter.organizer.organizer_id);
        body["timeZone"] = "Mars/Olympus".into();
        body
    };
    let bodies: &[(Value, &[&str])] = &[
        (json!({}), &["organizerId", "displayName", "timeZone", "sections"]),
        (zone, &["timeZone"]),
        (with(json!({})), &["sections"]),
        (with(json!([{}])), &["sections[0].sectionId", "sections[0]"]),
        (with(json!([{"sectionId": "a b", "standing": {"capacity": 1}}])), &["sections[0].sectionId"]),
        (
            with(json!([{"sectionId": "ABCDEFGHIJKLM", "standing": {"capacity": 1}}])),
            &["sections[0].sectionId"],
        ),
        (
            with(json!([{"sectionId": "A", "displayName": " ", "standing": {"capacity": 1}}])),
            &["sections[0].displayName"],
        ),
        (with(seated(0, 1)), &["sections[0].seated.rows"]),
        (with(seated(1, -1)), &["sections[0].seated.seatsPerRow"]),
        (with(seated(1001, 1)), &["sections[0].seated.rows"]),
        (with(seated(1000, 101)), &["sections"]),
        (with(standing(0)), &["sections[0].standing.capacity"]),
        (with(standing(100_001)), &["sections[0].standing.capacity"]),
        (with(standing(1 << 40)), &["sections[0].standing.capacity"]),
        (with(json!([standing(1)[0], standing(2)[0]])), &["sections[1].sectionId"]),
        (
            with(
                json!([{"sectionId": "A", "standing": {"capacity": 1}, "seated": {"rows": 1, "seatsPerRow": 1}}]),
            ),
            &["sections[0].standing"],
        ),
        (
            with(
                json!([{"sectionId": "A", "seated": {"rows": 1, "seatsPerRow": 1, "accessibleSeatIds": ["A-1-2"]}}]),
            ),
            &["sections[0].seated.accessibleSeatIds[0]"],
        ),
    ];
    house.refuses_bodies(house.promoter.token(), "/v1/venues", bodies).await;
}

#[tokio::test]
async fn an_account_takes_an_address_a_password_and_a_name() {
    let house = House::open().await;
    let email = new_email();
    let account =
        |email: &str, password: &str| json!({"email": email, "password": password, "displayName": "Fan"});
    let long = "x".repeat(129);
    let sign_ups: &[(Value, &[&str])] = &[
        (json!({}), &["email", "password", "displayName"]),
        (account("no address", PASSWORD), &["email"]),
        (account("fan@", PASSWORD), &["email"]),
        (account(&email, "7 chars"), &["password"]),
        (account(&email, &long), &["password"]),
        (account(&email, "password"), &["password"]),
        (json!({"email": email, "password": PASSWORD, "displayName": " "}), &["displayName"]),
        (json!({"email": email, "password": PASSWORD, "displayName": "Fan", "role": "admin"}), &["role"]),
        (json!({"email": email, "password": 12_345_678, "displayName": "Fan"}), &["password"]),
    ];
    house.refuses_bodies(&house.ann.access_token, "/v1/users", sign_ups).await;
    let log_ins: &[(Value, &[&str])] =
        &[(json!({}), &["email", "password"]), (json!({"email": email, "password": long}), &["password"])];
    house.refuses_bodies(&house.ann.access_token, "/v1/sessions", log_ins).await;
    let refreshes: &[(Value, &[&str])] =
        &[(json!({}), &["refreshToken"]), (json!({"refreshToken": 7}), &["refreshToken"])];
    house.refuses_bodies(&house.ann.access_token, "/v1/sessions/refresh", refreshes).await;
    let organizers: &[(Value, &[&str])] =
        &[(json!({}), &["displayName"]), (json!({"displayName": "x".repeat(101)}), &["displayName"])];
    house.refuses_bodies(&house.ann.access_token, "/v1/organizers", organizers).await;

    let post = |path: &str, body: Value| house.stage.call("POST", path).json(&body);
    let nobody = json!({"email": email, "password": PASSWORD});
    let stranger = json!({"refreshToken": "A".repeat(43)});
    house
        .refuses([
            // None of the accounts above was made.
            case(
                "logging in unknown",
                post("/v1/sessions", nobody),
                refusal(401, User::CredentialsInvalid, &[]),
            ),
            case(
                "an unknown refresh token",
                post("/v1/sessions/refresh", stranger),
                refusal(401, User::RefreshTokenInvalid, &[]),
            ),
        ])
        .await;
}

#[tokio::test]
async fn paths_and_queries_are_checked_as_bodies_are() {
    let house = House::open().await;
    let concert = format!("/v1/concerts/{}", house.concert);
    let gets: &[(String, &[&str])] = &[
        ("/v1/concerts/nonsense".into(), &["concertId"]),
        (format!("/v1/concerts/{}", HoldId::new()), &["concertId"]),
        ("/v1/concerts/nonsense/seats".into(), &["concertId"]),
        ("/v1/concerts/nonsense/seat-map".into(), &["concertId"]),
        ("/v1/concerts/nonsense/seats/events".into(), &["concertId"]),
        (format!("{concert}/seats?sectionId=Z"), &["sectionId"]),
        (format!("{concert}/seat-map?sectionId=Z"), &["sectionId"]),
        (format!("{concert}/seats?section_id=A"), &["section_id"]),
        ("/v1/holds/nonsense".into(), &["holdId"]),
        ("/v1/bookings/nonsense".into(), &["bookingId"]),
        ("/v1/bookings?concertId=nonsense".into(), &["concertId"]),
        ("/v1/concerts?organizerId=nonsense".into(), &["organizerId"]),
        ("/v1/concerts?pageSize=0".into(), &["pageSize"]),
        ("/v1/concerts?pageSize=-1".into(), &["pageSize"]),
        ("/v1/concerts?pageSize=ten".into(), &["pageSize"]),
        ("/v1/concerts?pageSize=1.5".into(), &["pageSize"]),
        ("/v1/concerts?pageSize=".into(), &["pageSize"]),
        ("/v1/concerts?pageSize=10000000000".into(), &["pageSize"]),
        ("/v1/concerts?pageSize=1&pageSize=2".into(), &["pageSize"]),
        ("/v1/bookings?pageSize=0".into(), &["pageSize"]),
        ("/v1/wallet/entries?pageSize=0".into(), &["pageSize"]),
        ("/v1/concerts?colour=red&sort=title".into(), &["colour", "sort"]),
        ("/v1/wallet?userId=me".into(), &["userId"]),
    ];
    let get = |(path, fields): &(String, &[&str])| {
        case(format!("GET {path}"), house.by_ann("GET", path), wrong(fields))
    };
    house.refuses(gets.iter().map(get)).await;

    let posts = [
        (&house.ann.access_token, "/v1/concerts/nonsense/holds", json!({"seatIds": ["A-1-1"]}), "concertId"),
        (&house.ann.access_token, "/v1/bookings?holdId=hld_1", json!({}), "holdId"),
        (&house.ann.access_token, "/v1/bookings/nonsense/cancel", json!({}), "bookingId"),
        (&house.promoter.organizer.access_token, "/v1/concerts/nonsense/publish", json!({}), "concertId"),
        (&house.promoter.organizer.access_token, "/v1/concerts/nonsense/cancel", json!({}), "concertId"),
        (&house.promoter.organizer.access_token, &format!("{concert}/cancel"), json!({"why": "rain"}), "why"),
    ];
    let post = |(token, path, body, field): (&String, &str, Value, &str)| {
        // The query is wrong before the fields that the body lacks are.
        case(format!("POST {path}"), house.by(token, "POST", path).json(&body), wrong(&[field]))
    };
    house.refuses(posts.map(post)).await;
    let delete = house.by_ann("DELETE", "/v1/holds/nonsense");
    house.refuses([case("DELETE /v1/holds/nonsense", delete, wrong(&["holdId"]))]).await;
}

#[tokio::test]
async fn a_page_token_is_good_for_the_list_that_gave_it_out() {
    let house = House::open().await;
    let api = &house.stage.api;
    let page = api.get("/v1/concerts?pageSize=1&genre=indie", None).await.unwrap();
    let token = text(&page.body, "/nextPageToken").unwrap();
    assert!(!token.is_empty(), "there are two concerts: {}", page.body);

    api.top_up(&house.ann.access_token, 1).await.unwrap();
    let page = api.get("/v1/wallet/entries?pageSize=1", Some(&house.ann.access_token)).await.unwrap();
    let entries_token = text(&page.body, "/nextPageToken").unwrap();
    assert!(!entries_token.is_empty(), "there are two entries: {}", page.body);

    let with_token = |token: &str, path: String| {
        let expected = refusal(400, Common::PageTokenInvalid, &["pageToken"]);
        case(format!("GET {path}"), house.by(token, "GET", &path), expected)
    };
    let ann = &house.ann.access_token;
    house
        .refuses([
            with_token(ann, "/v1/concerts?pageToken=nonsense".into()),
            with_token(ann, "/v1/concerts?pageToken=AAAA".into()),
            with_token(ann, format!("/v1/concerts?pageToken={token}&genre=jazz")),
            with_token(
                ann,
                format!("/v1/wallet/entries?pageToken={}", &entries_token[..entries_token.len() - 4]),
            ),
            with_token(ann, format!("/v1/concerts?pageToken={token}")),
            with_token(ann, format!("/v1/bookings?pageToken={token}")),
            with_token(ann, format!("/v1/wallet/entries?pageToken={token}")),
            with_token(&house.bob.access_token, format!("/v1/wallet/entries?pageToken={entries_token}")),
        ])
        .await;
}

#[tokio::test]
async fn a_page_is_never_larger_than_200() {
    let house = House::open().await;
    let (api, ann) = (&house.stage.api, Some(house.ann.access_token.as_str()));
    for _ in 0..204 {
        api.top_up(&house.ann.access_token, 1).await.unwrap();
    }
    let get = async |path: &str| api.get(path, ann).await.unwrap().expect_success(path).unwrap();
    let count = |page: &Value| page["entries"].as_array().unwrap().len();
    let first = get("/v1/wallet/entries?pageSize=1000000000").await;
    assert_eq!(count(&first), 200);
    let next = format!(
        "/v1/wallet/entries?pageSize=1000000000&pageToken={}",
        text(&first, "/nextPageToken").unwrap()
    );
    let second = get(&next).await;
    assert_eq!((count(&second), &second["nextPageToken"]), (5, &json!("")));
    assert_eq!(count(&get("/v1/wallet/entries").await), 50, "the default");
    for list in ["/v1/concerts", "/v1/bookings"] {
        get(&format!("{list}?pageSize=1000000000")).await;
    }
}
