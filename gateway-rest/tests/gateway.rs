//! The gateway as its clients see it, in front of fake services.

mod world;

use std::time::Duration;

use http::StatusCode;
use mesh::id::OrganizerId;
use mesh_test::wait_until;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::Instant,
};
use world::{PATIENCE, World, json, start};

async fn reason(response: reqwest::Response) -> (u16, String) {
    let status = response.status().as_u16();
    assert_eq!(response.headers()["content-type"], "application/problem+json");
    assert_eq!(response.headers()["cache-control"], "no-store");
    let body = json(response).await;
    assert_eq!(body["status"], status);
    assert_eq!(body["traceId"].as_str().map(str::len), Some(32), "{body}");
    (status, body["reason"].as_str().unwrap().to_owned())
}

/// Sends bytes as they are and returns all that comes back.
async fn raw(world: &World, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(world.url.trim_start_matches("http://")).await.unwrap();
    stream.write_all(request).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    String::from_utf8(answer).unwrap()
}

#[tokio::test]
async fn a_call_is_transcoded_both_ways() {
    let world = start(|_| {}).await;
    let response = world.hold(&["A-1-1"]).send().await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    let headers = response.headers().clone();
    assert_eq!(headers["content-type"], "application/json");
    assert_eq!(headers["cache-control"], "no-store");
    assert_eq!(headers["x-content-type-options"], "nosniff");
    assert_eq!(headers["ratelimit-policy"], "\"user\";q=10000;w=10");
    assert_eq!(headers["ratelimit"], "\"user\";r=9999;t=1");
    assert!(!headers.contains_key("idempotency-replayed"));
    let seat = json!({"seatId": "A-1-1", "sectionId": "", "rowLabel": "", "seatLabel": ""});
    let hold = json!({"holdId": "key-1", "concertId": "cnc_1", "seats": [seat], "adjacent": false});
    assert_eq!(json(response).await, json!({"hold": hold}));

    let replayed = world.hold(&["replayed"]).send().await.unwrap();
    assert_eq!(replayed.headers()["idempotency-replayed"], "true");
    let empty = world.request("DELETE", "/v1/holds/hld_1").send().await.unwrap();
    assert_eq!(json(empty).await, json!({}));
}

#[tokio::test]
async fn only_the_token_and_the_trace_go_along() {
    let world = start(|_| {}).await;
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let response = world
        .hold(&["A-1-1"])
        .header("traceparent", format!("00-{trace}-00f067aa0ba902b7-01"))
        .header("x-request-id", "checkout-42")
        .header("x-user-id", "usr_root")
        .header("x-service-authorization", "let me in")
        .header("grpc-timeout", "99999999S")
        .header("grpc-status", "0")
        .header("identity-bin", "AAAA")
        .header("cookie", "a=b")
        .send()
        .await
        .unwrap();
    assert_eq!(response.headers()["x-request-id"], "checkout-42");
    let seen = world.seen.lock().unwrap().pop().unwrap();
    assert!(seen["authorization"].to_str().unwrap().starts_with("Bearer "));
    assert!(seen["traceparent"].to_str().unwrap().starts_with(&format!("00-{trace}-")));
    for header in ["x-user-id", "x-service-authorization", "grpc-status", "identity-bin", "cookie"] {
        assert!(!seen.contains_key(header), "{header}");
    }
    let timeout = seen["grpc-timeout"].to_str().unwrap();
    let microseconds: u64 = timeout.strip_suffix('u').unwrap().parse().unwrap();
    assert!(microseconds < 3_000_000, "the contract gives 3 s, less what is spent: {timeout}");
}

#[tokio::test]
async fn who_may_call_is_the_contracts_word() {
    let world = start(|_| {}).await;
    let refused = async |request: reqwest::RequestBuilder| reason(request.send().await.unwrap()).await;
    let response = world.anonymous("POST", "/v1/concerts/cnc_1/holds").body("not JSON").send().await.unwrap();
    assert_eq!(response.headers()["www-authenticate"], "Bearer");
    assert_eq!(reason(response).await, (401, "TOKEN_MISSING".into()));
    let forged = world.token(vec![]) + "x";
    let forged = world.anonymous("GET", "/v1/holds/hld_1").bearer_auth(forged);
    assert_eq!(refused(forged).await, (401, "TOKEN_INVALID".into()));
    let basic = world.anonymous("GET", "/v1/holds/hld_1").basic_auth("fan", Some("password"));
    assert_eq!(refused(basic).await, (401, "TOKEN_INVALID".into()));
    assert_eq!(refused(world.request("POST", "/v1/venues")).await, (403, "ACCESS_DENIED".into()));
    let organizer = world.token(vec![OrganizerId::new()]);
    let organizer = world.anonymous("POST", "/v1/venues").bearer_auth(organizer);
    assert_eq!(
        refused(organizer).await,
        (503, "TRANSPORT_CONNECT_FAILED".into()),
        "it goes to a service that is down"
    );
    let internal = world.request("POST", "/boxoffice.payment.v1.PaymentService/Pay");
    assert_eq!(refused(internal).await, (404, "ROUTE_NOT_FOUND".into()));
    assert!(world.anonymous("GET", "/v1/concerts/cnc_1/seats").send().await.unwrap().status().is_success());
}

#[tokio::test]
async fn what_a_service_refuses_becomes_a_problem() {
    let world = start(|_| {}).await;
    let taken = world.hold(&["taken"]).send().await.unwrap();
    assert_eq!(taken.status(), StatusCode::CONFLICT);
    let taken = json(taken).await;
    assert_eq!(taken["reason"], "SEAT_TAKEN");
    assert_eq!(taken["metadata"], json!({"seat_ids": "taken"}));

    let wrong = json(world.hold(&["wrong"]).send().await.unwrap()).await;
    let error = json!({"field": "seatIds[0]", "reason": "MALFORMED", "description": "is no seat"});
    assert_eq!((&wrong["errors"], &wrong["detail"]), (&json!([error]), &json!("seatIds[0] is no seat")));

    let bug = world.hold(&["bug"]).send().await.unwrap().text().await.unwrap();
    assert!(bug.contains("\"INTERNAL\"") && !bug.contains("SELECT"), "{bug}");

    let missing = world.request("GET", "/v1/holds/hld_1").send().await.unwrap();
    assert_eq!(reason(missing).await, (404, "HOLD_NOT_FOUND".into()));

    let down = world.anonymous("GET", "/v1/concerts/cnc_1").send().await.unwrap();
    assert_eq!(down.headers()["retry-after"], "1");
    assert_eq!(reason(down).await, (503, "TRANSPORT_CONNECT_FAILED".into()));
}

#[tokio::test]
async fn a_bad_request_never_reaches_a_service() {
    let world = start(|_| {}).await;
    let hold = || world.request("POST", "/v1/concerts/cnc_1/holds").header("idempotency-key", "key-1");
    let json_body = |body: Vec<u8>| hold().header("content-type", "application/json").body(body);
    let chunked = reqwest::Body::wrap_stream(futures_util::stream::iter(
        (0..80).map(|_| Ok::<_, std::io::Error>(vec![b' '; 64 * 1024])),
    ));
    let attempts = [
        (hold().json(&json!({"price": 1})), 400, "FIELD_INVALID"),
        (json_body(b"{".to_vec()), 400, "BODY_MALFORMED"),
        (json_body(br#"{"seatIds": ["A-1-1"], "seatIds": ["A-1-2"]}"#.to_vec()), 400, "FIELD_INVALID"),
        (hold().body("{}"), 415, "MEDIA_TYPE_UNSUPPORTED"),
        (world.request("POST", "/v1/concerts/cnc_1/holds"), 400, "IDEMPOTENCY_KEY_MISSING"),
        (json_body(vec![b' '; 5 * 1024 * 1024]), 413, "BODY_TOO_LARGE"),
        (hold().header("content-type", "application/json").body(chunked), 413, "BODY_TOO_LARGE"),
        (json_body(vec![b' '; 1024 * 1024 + 1]), 413, "BODY_TOO_LARGE"),
        (json_body(vec![b' '; 1024 * 1024]), 400, "BODY_MALFORMED"),
        (world.request("GET", "/v1/holds/%FF"), 404, "ROUTE_NOT_FOUND"),
        (world.request("GET", "/v1/holds/hld_1?x=1"), 400, "FIELD_INVALID"),
    ];
    for (attempt, status, expected) in attempts {
        assert_eq!(reason(attempt.send().await.unwrap()).await, (status, expected.to_owned()));
    }
    assert!(world.seen.lock().unwrap().is_empty());
}

#[tokio::test]
async fn who_announces_too_much_and_asks_for_leave_or_sends_nothing_is_told_that_it_is_too_large() {
    let world = start(|_| {}).await;
    for expect in ["expect: 100-continue\r\n", ""] {
        let head = format!(
            "POST /v1/concerts/cnc_1/holds HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\n\
             content-type: application/json\r\nidempotency-key: k\r\ncontent-length: 5000000\r\n{expect}connection: close\r\n\r\n",
            world.token(vec![])
        );
        let answer = raw(&world, head.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    }
}

#[tokio::test]
async fn routes_and_methods_that_are_not_there_are_problems() {
    let world = start(|_| {}).await;
    let unknown = world.anonymous("GET", "/v1/unknown").send().await.unwrap();
    assert_eq!(reason(unknown).await, (404, "ROUTE_NOT_FOUND".into()));
    for method in ["PUT", "TRACE", "DELETE"] {
        let response = world.anonymous(method, "/v1/concerts").send().await.unwrap();
        let allowed = response.headers()["allow"].to_str().unwrap().to_owned();
        assert_eq!(reason(response).await, (405, "METHOD_NOT_ALLOWED".into()), "{method}");
        for expected in ["GET", "HEAD", "POST"] {
            assert!(allowed.contains(expected), "{allowed}");
        }
    }
    let got = world.anonymous("GET", "/v1/concerts/cnc_1/seats").send().await.unwrap();
    let head = world.anonymous("HEAD", "/v1/concerts/cnc_1/seats").send().await.unwrap();
    assert_eq!(head.status(), StatusCode::OK);
    assert_eq!(head.headers()["content-length"], got.headers()["content-length"]);
    assert_eq!(head.bytes().await.unwrap().len(), 0);
}

#[tokio::test]
async fn a_seat_map_is_sent_again_only_if_it_changed() {
    let world = start(|_| {}).await;
    let get = |path: &str| world.anonymous("GET", path);
    let first = get("/v1/concerts/cnc_1/seat-map").send().await.unwrap();
    assert_eq!(first.headers()["cache-control"], "public, max-age=300");
    let etag = first.headers()["etag"].clone();
    let body = first.bytes().await.unwrap();

    let again = get("/v1/concerts/cnc_1/seat-map").header("if-none-match", &etag).send().await.unwrap();
    assert_eq!(again.status(), StatusCode::NOT_MODIFIED);
    assert_eq!(again.headers()["etag"], etag);
    assert_eq!(again.headers()["cache-control"], "public, max-age=300");
    assert_eq!(again.bytes().await.unwrap().len(), 0);

    let other =
        get("/v1/concerts/cnc_1/seat-map?sectionId=B").header("if-none-match", &etag).send().await.unwrap();
    assert_eq!(other.status(), StatusCode::OK);
    assert_ne!(other.headers()["etag"], etag);

    let compressed =
        get("/v1/concerts/cnc_1/seat-map").header("accept-encoding", "gzip").send().await.unwrap();
    assert_eq!(compressed.headers()["content-encoding"], "gzip");
    assert_eq!(compressed.headers()["etag"], etag);
    assert!(compressed.bytes().await.unwrap().len() < body.len() / 4);
}

#[tokio::test]
async fn answers_are_compressed_for_those_who_take_it() {
    let world = start(|_| {}).await;
    let get = || world.anonymous("GET", "/v1/concerts/cnc_1/seats");
    let plain = get().send().await.unwrap();
    assert_eq!(plain.headers()["cache-control"], "public, max-age=1");
    assert!(!plain.headers().contains_key("content-encoding"));
    assert!(plain.bytes().await.unwrap().len() > 10_000);
    let compressed = get().header("accept-encoding", "gzip").send().await.unwrap();
    assert_eq!(compressed.headers()["content-encoding"], "gzip");
    assert!(compressed.bytes().await.unwrap().len() < 500);
    let small =
        world.request("GET", "/v1/holds/hld_1").header("accept-encoding", "gzip").send().await.unwrap();
    assert!(!small.headers().contains_key("content-encoding"));
}

/// Reads a stream until a text has come.
async fn read_until(response: &mut reqwest::Response, end: &str) -> String {
    let mut text = String::new();
    while !text.contains(end) {
        let chunk = tokio::time::timeout(PATIENCE, response.chunk()).await;
        let chunk = chunk.unwrap_or_else(|_| panic!("waited for {end:?}, got {text:?}")).unwrap();
        text +=
            std::str::from_utf8(&chunk.unwrap_or_else(|| panic!("ended before {end:?}: {text:?}"))).unwrap();
    }
    text
}

#[tokio::test]
async fn seats_are_watched_as_events() {
    let world = start(|_| {}).await;
    let watch =
        |concert: &str| world.anonymous("GET", &format!("/v1/concerts/{concert}/seats/events?revision=e1.1"));
    let mut response = watch("cnc_1")
        .header("last-event-id", "e1.7")
        .header("accept-encoding", "gzip")
        .send()
        .await
        .unwrap();
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    assert!(!response.headers().contains_key("content-encoding"));
    let text = read_until(&mut response, "id: e1.8").await;
    assert!(
        text.starts_with("id: e1.7\nevent: reset\ndata: {\"changes\":[],\"revision\":\"e1.7\"}\n\n"),
        "{text}"
    );

    let ending = watch("ending").send().await.unwrap().text().await.unwrap();
    assert!(ending.ends_with("\n\n") && !ending.contains("event: error"), "{ending}");

    let unknown = watch("unknown").send().await.unwrap();
    assert_eq!(reason(unknown).await, (404, "CONCERT_NOT_FOUND".into()));
}

#[tokio::test]
async fn a_stream_that_fails_says_why_and_ends() {
    let world = start(|_| {}).await;
    let watch =
        |concert: &str| world.anonymous("GET", &format!("/v1/concerts/{concert}/seats/events")).send();
    let failing = watch("failing").await.unwrap();
    assert_eq!(failing.status(), StatusCode::OK);
    let mut broken = watch("cnc_1").await.unwrap();
    let before = read_until(&mut broken, "id: e1.8").await;
    world.booking.reset_connections();
    let broken = before + &tokio::time::timeout(PATIENCE, broken.text()).await.unwrap().unwrap();

    let streams = [(failing.text().await.unwrap(), "DATABASE_UNAVAILABLE"), (broken, "TRANSPORT_BROKEN")];
    for (text, reason) in streams {
        let (events, error) = text.split_once("event: error\ndata: ").unwrap();
        assert!(events.contains("id: e1.8\n") && events.ends_with("\n\n"), "{events}");
        let error: serde_json::Value = serde_json::from_str(error.strip_suffix("\n\n").unwrap()).unwrap();
        assert_eq!((&error["reason"], &error["status"]), (&json!(reason), &json!(503)), "{error}");
        assert_eq!(error["traceId"].as_str().map(str::len), Some(32), "{error}");
    }
}

#[tokio::test]
async fn a_drain_ends_streams_and_loses_no_call() {
    let world = start(|_| {}).await;
    let mut stream = world.anonymous("GET", "/v1/concerts/cnc_1/seats/events").send().await.unwrap();
    read_until(&mut stream, "id: e1.8").await;
    let call = tokio::spawn(world.hold(&["slow"]).send());
    wait_until("the call to reach the service", PATIENCE, async || {
        if world.seen.lock().unwrap().is_empty() { Err("it has not".to_owned()) } else { Ok(()) }
    })
    .await;

    world.shutdown.begin();
    let rest = tokio::time::timeout(PATIENCE, stream.text()).await.expect("the stream ends").unwrap();
    assert!(!rest.contains("event: error"), "{rest}");
    wait_until("the gateway to accept nothing new", PATIENCE, async || {
        let answer = world.anonymous("GET", "/healthz").send().await;
        if answer.is_err() { Ok(()) } else { Err(format!("{answer:?}")) }
    })
    .await;
    world.release.send(true).unwrap();
    assert_eq!(call.await.unwrap().unwrap().status(), StatusCode::OK);
    world.gateway.await.unwrap().unwrap();
}

#[tokio::test]
async fn where_many_wait_for_a_service_new_holds_are_refused_before_anything_else() {
    let world = start(|_| {}).await;
    // Half of the calls that the gateway lets wait for a service.
    let waiting: Vec<_> = (0..512).map(|_| tokio::spawn(world.hold(&["slow"]).send())).collect();
    wait_until("the calls to reach the service", PATIENCE, async || {
        let reached = world.seen.lock().unwrap().len();
        if reached == 512 { Ok(()) } else { Err(format!("{reached} have")) }
    })
    .await;
    let refused = world.anonymous("POST", "/v1/concerts/cnc_1/holds").body("no JSON").send().await.unwrap();
    assert_eq!(refused.headers()["retry-after"], "1");
    assert_eq!(reason(refused).await, (503, "TRANSPORT_BUSY".to_owned()));
    let seats = world.anonymous("GET", "/v1/concerts/cnc_1/seats").send().await.unwrap();
    assert_eq!(seats.status(), StatusCode::OK, "others are let in");

    world.release.send(true).unwrap();
    for call in waiting {
        assert_eq!(call.await.unwrap().unwrap().status(), StatusCode::OK);
    }
    let let_in = world.anonymous("POST", "/v1/concerts/cnc_1/holds").body("no JSON").send().await.unwrap();
    assert_eq!(reason(let_in).await, (401, "TOKEN_MISSING".to_owned()));
}

#[tokio::test]
async fn callers_are_limited_each_for_themselves() {
    let world = start(|config| (config.rate_limit_per_user, config.rate_limit_per_address) = (1, 2)).await;
    let token = world.token(vec![]);
    let call = || world.anonymous("GET", "/v1/holds/hld_1").bearer_auth(&token).send();
    for left in (0..10).rev() {
        let response = call().await.unwrap();
        assert_eq!(response.status(), StatusCode::NOT_FOUND);
        let state = response.headers()["ratelimit"].to_str().unwrap().to_owned();
        assert!(state.starts_with(&format!("\"user\";r={left};t=")), "{state}");
    }
    let refused = call().await.unwrap();
    assert_eq!(refused.headers()["retry-after"], "1");
    assert_eq!(refused.headers()["ratelimit"], "\"user\";r=0;t=1");
    assert_eq!(reason(refused).await, (429, "RATE_LIMITED".into()));
    let other = world.request("GET", "/v1/holds/hld_1").send().await.unwrap();
    assert_eq!(other.status(), StatusCode::NOT_FOUND);

    // Neither another address claimed in a header nor a made-up token is a bucket of one's own.
    let anonymous = |number: u32| {
        let request =
            world.anonymous("GET", "/v1/holds/hld_1").header("x-forwarded-for", format!("192.0.2.{number}"));
        if number.is_multiple_of(2) { request } else { request.bearer_auth(format!("made.up.{number}")) }
    };
    for number in 0..20 {
        assert_eq!(anonymous(number).send().await.unwrap().status(), StatusCode::UNAUTHORIZED);
    }
    assert_eq!(reason(anonymous(20).send().await.unwrap()).await, (429, "RATE_LIMITED".into()));
}

#[tokio::test]
async fn pages_of_listed_origins_may_call() {
    let world = start(|_| {}).await;
    let preflight = |origin: &'static str| {
        world
            .anonymous("OPTIONS", "/v1/concerts/cnc_1/holds")
            .header("origin", origin)
            .header("access-control-request-method", "POST")
            .header("access-control-request-headers", "authorization,idempotency-key")
            .send()
    };
    let allowed = preflight("https://tickets.example").await.unwrap();
    assert!(allowed.status().is_success());
    assert_eq!(allowed.headers()["access-control-allow-origin"], "https://tickets.example");
    assert_eq!(
        allowed.headers()["access-control-allow-headers"],
        "authorization,content-type,idempotency-key,if-match,if-none-match,last-event-id,prefer,traceparent"
    );
    let foreign = preflight("https://evil.example").await.unwrap();
    let told = foreign.headers().keys().find(|name| name.as_str().starts_with("access-control-"));
    assert_eq!(told, None);

    let refused = world
        .anonymous("GET", "/v1/wallet")
        .header("origin", "https://tickets.example")
        .send()
        .await
        .unwrap();
    assert_eq!(refused.status(), StatusCode::UNAUTHORIZED);
    assert_eq!(refused.headers()["access-control-allow-origin"], "https://tickets.example");
    assert_eq!(
        refused.headers()["access-control-expose-headers"],
        "date,etag,location,retry-after,ratelimit,ratelimit-policy,idempotency-replayed,x-request-id"
    );
}

#[tokio::test]
async fn the_documentation_needs_no_other_server() {
    let world = start(|config| config.docs = true).await;
    let get = async |path: &str| world.anonymous("GET", path).send().await.unwrap();
    assert_eq!(get("/").await.headers()["location"], "/docs/");
    let page = get("/docs/").await.text().await.unwrap();
    assert!(page.contains("swagger-ui") && !page.contains("https://"), "{page}");
    let script = get("/docs/swagger-initializer.js").await.text().await.unwrap();
    assert!(script.contains("/openapi.json") && !script.contains("https://"), "{script}");
    assert!(get("/docs/swagger-ui-bundle.js").await.status().is_success());
    assert_eq!(json(get("/openapi.json").await).await["openapi"], "3.1.0");

    let quiet = start(|_| {}).await;
    for path in ["/", "/docs", "/docs/", "/openapi.json"] {
        let response = quiet.anonymous("GET", path).send().await.unwrap();
        assert_eq!(reason(response).await, (404, "ROUTE_NOT_FOUND".into()), "{path}");
    }
}

#[tokio::test]
async fn the_keys_are_published() {
    let world = start(|_| {}).await;
    let response = world.anonymous("GET", "/.well-known/jwks.json").send().await.unwrap();
    assert_eq!(response.headers()["content-type"], "application/jwk-set+json");
    let key = &json(response).await["keys"][0];
    assert_eq!((&key["kty"], &key["crv"], &key["kid"]), (&json!("OKP"), &json!("Ed25519"), &json!("k1")));
    assert_eq!(key["x"].as_str().unwrap().len(), 43);
    assert_eq!(key.get("d"), None);
    assert!(world.anonymous("GET", "/readyz").send().await.unwrap().status().is_success());
}

#[tokio::test]
async fn http_2_is_spoken_to_those_who_begin_with_it() {
    let world = start(|_| {}).await;
    let http2 = reqwest::Client::builder().http2_prior_knowledge().build().unwrap();
    let response = http2.get(format!("{}/v1/concerts/cnc_1/seats", world.url)).send().await.unwrap();
    assert_eq!((response.status(), response.version()), (StatusCode::OK, http::Version::HTTP_2));
}

#[tokio::test]
async fn a_client_that_does_not_begin_is_dropped_after_a_minute() {
    const BEGIN_LIMIT: Duration = Duration::from_secs(60);
    let world = start(|_| {}).await;
    tokio::time::pause();
    for beginning in ["", "GET /readyz HT", "GET /readyz HTTP/1.1\r\nHost: a\r\n", "PRI * HTTP/2.0\r\n"] {
        let mut client = TcpStream::connect(world.url.trim_start_matches("http://")).await.unwrap();
        client.write_all(beginning.as_bytes()).await.unwrap();
        let begin = Instant::now();
        // What it hears before is no matter; a reset is an end, too.
        let end = tokio::time::timeout(10 * BEGIN_LIMIT, client.read_to_end(&mut Vec::new())).await;
        let waited = begin.elapsed();
        assert!((BEGIN_LIMIT..2 * BEGIN_LIMIT).contains(&waited), "{beginning:?}: {waited:?}, {end:?}");
    }
}
