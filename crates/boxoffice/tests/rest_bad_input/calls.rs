//! What a call must be before its fields are looked at: JSON of a moderate size, to a route that there is, with a token
//! and an idempotency key.

use boxoffice::api::{Reply, new_key, text};
use boxoffice_proto::common::v1::ErrorReason as Common;
use mesh::id::HoldId;
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    Case, House, case,
    stage::{Stage, Visit, assert_refused, order, read, refusal, top_up, venue},
    wrong,
};

#[tokio::test]
async fn a_body_is_a_json_object() {
    let house = House::open().await;
    let path = house.holds();
    let bodies: [&[u8]; 9] = [
        b"seatIds=A-1-1",
        b"{",
        b"{\"seatIds\": [\"A-1-1\"],}",
        b"{\"seatIds\": [\"A-1-1\"]} and more",
        b"[{\"seatIds\": [\"A-1-1\"]}]",
        b"\"A-1-1\"",
        b"null",
        b"{\"seatIds\": [\"\xff\"]}",
        b"{'seatIds': ['A-1-1']}",
    ];
    let deep = format!("{{\"seatIds\": {}{}}}", "[".repeat(10_000), "]".repeat(10_000));
    let wide = format!("{{\"seatIds\": [{}\"A-1-1\"]}}", "1,".repeat(100_001));
    let bodies = bodies.map(<[u8]>::to_vec).into_iter().chain([deep.into_bytes(), wide.into_bytes()]);
    let cases = bodies.map(|body| {
        let what = format!("the body {}", String::from_utf8_lossy(&body[..body.len().min(40)]));
        let call = house.by_ann("POST", &path).header("Content-Type", "application/json").body(body);
        case(what, call, refusal(400, Common::BodyMalformed, &[]))
    });
    house.refuses(cases.collect::<Vec<_>>()).await;
}

#[tokio::test]
async fn a_body_is_declared_as_json() {
    let house = House::open().await;
    let path = house.holds();
    let good = json!({"seatIds": ["A-1-1"]}).to_string();
    let declared =
        ["", "text/plain", "application/x-www-form-urlencoded", "application/json; charset=latin1"];
    let mut cases: Vec<Case> = declared
        .iter()
        .map(|media_type| {
            let call = house.by_ann("POST", &path).header("Content-Type", *media_type).body(good.clone());
            case(format!("a body of {media_type:?}"), call, refusal(415, Common::MediaTypeUnsupported, &[]))
        })
        .collect();
    let undeclared = house.by_ann("POST", &path).body(good.clone());
    cases.push(case("a body of nothing said", undeclared, refusal(415, Common::MediaTypeUnsupported, &[])));
    let compressed = house.by_ann("POST", &path).header("Content-Type", "application/json");
    let compressed = compressed.header("Content-Encoding", "gzip").body(good);
    cases.push(case("a compressed body", compressed, refusal(415, Common::MediaTypeUnsupported, &[])));
    house.refuses(cases).await;
}

#[tokio::test]
async fn a_body_of_5_mib_is_too_large() {
    let house = House::open().await;
    let path = house.holds();
    let body = json!({"seatIds": ["A-1-1"], "padding": "x".repeat(5 * 1024 * 1024)}).to_string();
    let post = || house.by_ann("POST", &path).header("Content-Type", "application/json");
    let in_pieces = {
        let pieces: Vec<_> =
            body.as_bytes().chunks(64 * 1024).map(|piece| Ok::<_, std::io::Error>(piece.to_vec())).collect();
        reqwest::Body::wrap_stream(futures_util::stream::iter(pieces))
    };
    let expected = refusal(413, Common::BodyTooLarge, &[]);
    house
        .refuses([
            case("5 MiB", post().body(body.clone()), expected.clone()),
            case("5 MiB of unknown length", post().body(in_pieces), expected),
        ])
        .await;
    let reply = read(post().body(body)).await;
    assert_eq!(reply.body["metadata"]["limit_bytes"], "1048576");
}

#[tokio::test]
async fn a_call_that_needs_a_token_needs_a_good_one() {
    let house = House::open().await;
    let seats = json!({"seatIds": ["A-1-1"]});
    let (holds, top_ups) = (house.holds(), "/v1/wallet/top-ups");
    let ann = &house.ann.access_token;
    let cut = &ann[..ann.len() - 1];
    let headers = [
        (None, Common::TokenMissing),
        (Some(String::new()), Common::TokenInvalid),
        (Some("Bearer".into()), Common::TokenInvalid),
        (Some("Bearer nonsense".into()), Common::TokenInvalid),
        (Some(format!("Bearer {cut}")), Common::TokenInvalid),
        (Some(format!("Basic {ann}")), Common::TokenInvalid),
        (Some(ann.clone()), Common::TokenInvalid),
    ];
    let cases = headers.iter().flat_map(|(header, reason)| {
        let calls = [
            ("POST", holds.as_str(), &seats),
            ("POST", top_ups, &top_up(1)),
            ("GET", "/v1/bookings", &json!({})),
        ];
        calls.map(|(method, path, body)| {
            let call = house.stage.call(method, path).header("Idempotency-Key", new_key()).json(body);
            let call = match header {
                Some(value) => call.header("Authorization", value),
                None => call,
            };
            case(format!("{method} {path} with {header:?}"), call, refusal(401, *reason, &[]))
        })
    });
    house.refuses(cases.collect::<Vec<_>>()).await;
}

#[tokio::test]
async fn what_takes_money_or_seats_needs_an_idempotency_key() {
    let house = House::open().await;
    let (api, ann) = (&house.stage.api, &house.ann);
    let hold = api.hold(ann, &house.concert, &["A-1-1"]).await;
    let booking =
        text(&api.book(ann, &api.hold(ann, &house.concert, &["A-1-2"]).await).await, "/bookingId").unwrap();
    let calls = [
        (&ann.access_token, house.holds(), json!({"seatIds": ["A-1-3"]})),
        (&ann.access_token, "/v1/bookings".into(), order(&hold)),
        (&ann.access_token, "/v1/wallet/top-ups".into(), top_up(1)),
        (&ann.access_token, format!("/v1/bookings/{booking}/cancel"), json!({})),
        (
            &house.promoter.organizer.access_token,
            format!("/v1/concerts/{}/cancel", house.other_concert),
            json!({}),
        ),
    ];
    let mut cases = Vec::new();
    for (token, path, body) in &calls {
        let call = || house.stage.call("POST", path).bearer_auth(token).json(body);
        let missing = refusal(400, Common::IdempotencyKeyMissing, &[]);
        cases.push(case(format!("POST {path} without a key"), call(), missing));
        for bad in ["", "two words", &"k".repeat(256), "ключ"] {
            let call = call().header("Idempotency-Key", bad.as_bytes());
            cases.push(case(format!("POST {path} with the key {bad:?}"), call, wrong(&["Idempotency-Key"])));
        }
        let twice = call().header("Idempotency-Key", "one").header("Idempotency-Key", "two");
        cases.push(case(format!("POST {path} with two keys"), twice, wrong(&["Idempotency-Key"])));
    }
    house.refuses(cases).await;
}

#[tokio::test]
async fn a_key_is_good_for_one_request() {
    let house = House::open().await;
    let (api, ann, promoter) = (&house.stage.api, &house.ann, house.promoter.token());
    let mut holds = Vec::new();
    for seat in ["A-1-1", "A-1-2", "A-1-3"] {
        holds.push(api.hold(ann, &house.concert, &[seat]).await);
    }
    let mut bookings = Vec::new();
    for seat in ["B-1-1", "B-1-2"] {
        let hold = api.hold(ann, &house.other_concert, &[seat]).await;
        bookings.push(text(&api.book(ann, &hold).await, "/bookingId").unwrap());
    }
    let drafts = [house.promoter.draft(|_| {}).await, house.promoter.draft(|_| {}).await];
    let plan = |title: &str| {
        let mut plan = house.promoter.plan();
        plan["title"] = title.into();
        plan
    };
    let hall = |name: &str| {
        let mut hall = venue(&house.promoter.organizer.organizer_id);
        hall["displayName"] = name.into();
        hall
    };
    let cancel = |kind: &str, id: &str| format!("/v1/{kind}/{id}/cancel");
    let same = |path: &str| [path.to_owned(), path.to_owned()];
    // Whose calls; the paths and the bodies of the first and the second.
    let pairs = [
        (
            &ann.access_token,
            same(&house.holds()),
            [json!({"seatIds": ["FLOOR-1"]}), json!({"seatIds": ["FLOOR-2"]})],
        ),
        (&ann.access_token, same("/v1/bookings"), [order(&holds[0]), order(&holds[1])]),
        (&ann.access_token, same("/v1/bookings"), [order(&holds[2]), order(&HoldId::new().to_string())]),
        (&ann.access_token, same("/v1/wallet/top-ups"), [top_up(1), top_up(2)]),
        (
            &ann.access_token,
            [cancel("bookings", &bookings[0]), cancel("bookings", &bookings[1])],
            [json!({}), json!({})],
        ),
        (
            &promoter.to_owned(),
            [cancel("concerts", &drafts[0]), cancel("concerts", &drafts[1])],
            [json!({}), json!({})],
        ),
        (&promoter.to_owned(), same("/v1/concerts"), [plan("one"), plan("two")]),
        (&promoter.to_owned(), same("/v1/venues"), [hall("one"), hall("two")]),
        (
            &ann.access_token,
            same("/v1/organizers"),
            [json!({"displayName": "one"}), json!({"displayName": "two"})],
        ),
    ];
    for (token, [path, other_path], [body, other_body]) in &pairs {
        let key = new_key();
        let send = async |path: &str, body: &Value| {
            api.send(Method::POST, path, Some(token), Some(&key), Some(body)).await.unwrap()
        };
        let first = send(path, body).await;
        assert!(first.status.is_success(), "POST {path}: {}", first.body);
        assert!(!first.headers.contains_key("idempotency-replayed"), "POST {path}");

        let reused = house.stage.call("POST", other_path).bearer_auth(token).header("Idempotency-Key", &key);
        let expected = refusal(422, Common::IdempotencyKeyReused, &[]);
        house.refuses([case(format!("POST {other_path} again"), reused.json(other_body), expected)]).await;

        let before = house.picture().await;
        let again = send(path, body).await;
        assert!(again.status.is_success(), "POST {path} again: {}", again.body);
        assert_eq!(again.headers["idempotency-replayed"], "true", "POST {path} again");
        // A new organiser's token is signed anew.
        let without_token = |reply: &Reply| {
            let mut body = reply.body.clone();
            for fresh in ["accessToken", "expireTime"] {
                body.as_object_mut().unwrap().remove(fresh);
            }
            body
        };
        assert_eq!(without_token(&again), without_token(&first), "POST {path} again");
        assert_eq!(house.picture().await, before, "POST {path} again changed something");
    }
}

#[tokio::test]
async fn only_the_routes_of_the_contract_are_there() {
    let house = House::open().await;
    let concert = format!("/v1/concerts/{}", house.concert);
    let absent = [
        ("GET", "/v1"),
        ("GET", "/v1/"),
        ("GET", "/v2/concerts"),
        ("GET", "/v1/concerts/"),
        ("GET", "/V1/concerts"),
        ("GET", "/admin"),
        ("GET", "/metrics"),
        ("GET", "/v1/concerts/%FF"),
        ("GET", "/v1/concerts/../../etc/passwd"),
        ("POST", "/v1/payments"),
        ("POST", "/boxoffice.booking.v1.BookingService/CreateBooking"),
        ("POST", "/boxoffice.payment.v1.PaymentService/Pay"),
    ];
    let absent = absent.map(|(method, path)| {
        let expected = refusal(404, Common::RouteNotFound, &[]);
        case(format!("{method} {path}"), house.by_ann(method, path), expected)
    });
    house.refuses(absent).await;

    let other_methods = [
        ("GET", "/v1/users".to_owned(), "POST"),
        ("PUT", concert.clone(), "GET,HEAD"),
        ("TRACE", concert.clone(), "GET,HEAD"),
        ("DELETE", "/v1/bookings".to_owned(), "GET,HEAD,POST"),
        ("GET", house.holds(), "POST"),
        ("PATCH", "/v1/wallet".to_owned(), "GET,HEAD"),
        ("POST", "/healthz".to_owned(), "GET,HEAD"),
    ];
    let before = house.picture().await;
    for (method, path, allowed) in other_methods {
        let what = format!("{method} {path}");
        let reply = read(house.by_ann(method, &path)).await;
        assert_refused(&what, &reply, &refusal(405, Common::MethodNotAllowed, &[]));
        let mut allow: Vec<&str> =
            reply.headers["allow"].to_str().unwrap().split(',').map(str::trim).collect();
        allow.sort_unstable();
        assert_eq!(allow.join(","), allowed, "{what}");
        assert_eq!(house.picture().await, before, "{what}");
    }
}

#[tokio::test]
async fn a_problem_belongs_to_the_trace_of_its_caller() {
    let stage = Stage::open().await;
    let trace_id = "4bf92f3577b34da6a3ce929d0e0e4736";
    // The first is refused by the gateway, the second by a service.
    for path in ["/v1/nowhere", "/v1/concerts/nonsense"] {
        let traceparent = format!("00-{trace_id}-00f067aa0ba902b7-01");
        let reply = read(stage.call("GET", path).header("traceparent", traceparent)).await;
        assert_eq!(reply.body["traceId"], trace_id, "{path}");
        assert_eq!(reply.headers["x-request-id"], trace_id, "{path}");
    }
}
