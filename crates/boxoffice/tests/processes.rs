//! The program itself, as a process: how it starts and stops, what it says when it can't, and what is there after it was
//! killed in the middle of a sale.

mod stage;

use std::{
    fs,
    ops::{Deref, DerefMut},
    os::unix::process::ExitStatusExt,
    path::Path,
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use boxoffice::{
    api::{Api, Login, new_key, text},
    demo::Organizer,
};
use boxoffice_proto::{
    booking::v1::{ErrorReason as Booking, GetSeatsRequest, seat_service_client::SeatServiceClient},
    common::v1::ErrorReason as Common,
};
use futures_util::StreamExt;
use mesh_test::wait_until;
use reqwest::Method;
use serde_json::{Value, json};
use stage::{
    Events, PASSWORD, Process, Promoter, Visit, assert_refused, client, fan, grpc, new_email, order,
    process::PATIENCE, refusal, venue,
};

/// How long after its start a killed Boxoffice may take to settle what it was doing.
const RECOVERY: Duration = Duration::from_secs(10);
/// What the program prints last when it is ready.
const READY: &str = "Ctrl-C stops it";
/// What a seat in the demo's stalls costs.
const STALLS: i64 = 110_000;

/// The program, as a process of its own.
struct Program(Process);

impl Deref for Program {
    type Target = Process;

    fn deref(&self) -> &Process {
        &self.0
    }
}

impl DerefMut for Program {
    fn deref_mut(&mut self) -> &mut Process {
        &mut self.0
    }
}

impl Program {
    fn run(arguments: &[&str]) -> Self {
        Self::run_with(arguments, &[])
    }

    fn run_with(arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_boxoffice"));
        for name in ["LOG", "RUST_BACKTRACE", "DATA_DIR", "HOLD_TTL"] {
            command.env_remove(name);
        }
        command.args(arguments).envs(environment.iter().copied());
        Self(Process::start(&mut command))
    }

    /// A Boxoffice on free ports.
    fn begin(data_dir: &Path, environment: &[(&str, &str)]) -> Self {
        let mut arguments = vec!["--data-dir", data_dir.to_str().unwrap()];
        for option in [
            "--http-addr",
            "--user-addr",
            "--concert-addr",
            "--booking-addr",
            "--payment-addr",
            "--admin-addr",
        ] {
            arguments.extend([option, "127.0.0.1:0"]);
        }
        Self::run_with(&arguments, environment)
    }

    /// A Boxoffice that is ready.
    async fn start(data_dir: &Path) -> Self {
        Self::start_with(data_dir, &[]).await
    }

    async fn start_with(data_dir: &Path, environment: &[(&str, &str)]) -> Self {
        let mut program = Self::begin(data_dir, environment);
        wait_until("Boxoffice to be ready", PATIENCE, async || {
            if program.output.get().iter().any(|line| line.starts_with(READY)) {
                return Ok(());
            }
            Err(format!("{:?}: {:?}; {:?}", program.ended(), *program.output.get(), *program.errors.get()))
        })
        .await;
        program
    }

    /// The word after this one in what was printed.
    fn word_after(&self, word: &str) -> String {
        let text = self.output.get().join(" ");
        let mut words = text.split_whitespace().skip_while(|found| *found != word);
        words
            .nth(1)
            .unwrap_or_else(|| panic!("no word after {word} in {text}"))
            .trim_end_matches(',')
            .to_owned()
    }

    fn url(&self) -> String {
        self.word_after("REST")
    }

    fn api(&self) -> Api {
        Api::new(self.url()).unwrap()
    }

    /// E-mail and password of the demo's fans, as they are printed.
    fn demo_fans(&self) -> Vec<(String, String)> {
        let lines = self.output.get();
        let fans = lines.iter().filter(|line| line.contains("@demo.example"));
        fans.map(|line| {
            let (email, password) = line.trim().split_once("  ").unwrap();
            (email.to_owned(), password.to_owned())
        })
        .collect()
    }

    /// The demo's concert, as it is printed in brackets.
    fn demo_concert(&self) -> String {
        let lines = self.output.get();
        let line = lines.iter().find(|line| line.starts_with("On sale")).unwrap();
        line.rsplit_once('(').unwrap().1.trim_end_matches(')').to_owned()
    }

    async fn kill(mut self) {
        self.signal("-KILL");
        assert_eq!(self.end().await.signal(), Some(9));
    }

    async fn stop(mut self) {
        self.signal("-INT");
        assert_eq!(self.end().await.code(), Some(0), "{:?}", *self.errors.get());
    }
}

/// Asserts that the sweep finds all invariants to hold.
async fn assert_swept_clean(what: &str, data_dir: &Path) {
    let mut sweep = Program::run(&["sweep", "--data-dir", data_dir.to_str().unwrap()]);
    let status = sweep.end().await;
    assert_eq!(status.code(), Some(0), "{what}: {:?}; {:?}", *sweep.output.get(), *sweep.errors.get());
}

#[tokio::test]
async fn it_starts_in_20_lines_and_finds_its_data_again() {
    let directory = tempfile::tempdir().unwrap();
    let data_dir = directory.path().join("not/yet/there");
    let first = Program::start(&data_dir).await;
    let printed = first.output.get().len() + first.errors.get().len();
    assert!(printed <= 20, "{:?}; {:?}", *first.output.get(), *first.errors.get());
    let text_of_all = first.output.get().join("\n");
    for command in ["\n  curl http", "\n  grpcurl ", " sellout "] {
        assert!(text_of_all.contains(command), "no {command:?} in {text_of_all}");
    }
    let seats = client().get(first.word_after("curl")).send().await.unwrap();
    assert_eq!(seats.status(), 200, "the printed curl line works");

    let (concert, fans) = (first.demo_concert(), first.demo_fans());
    assert_eq!(fans.len(), 4);
    let kept = fs::read_to_string(data_dir.join("demo.txt")).unwrap();
    assert!(fans.iter().all(|(email, password)| kept.contains(&format!("{email} {password}"))), "{kept}");
    let api = first.api();
    let mut logins = Vec::new();
    for (email, password) in &fans {
        logins.push(api.log_in(email, password).await.unwrap());
        assert_eq!(api.balance(logins.last().unwrap()).await, 1_000_000);
    }
    let booking = api.book(&logins[0], &api.hold(&logins[0], &concert, &["A-5-5", "FLOOR-1"]).await).await;
    let booking = text(&booking, "/bookingId").unwrap();
    // The services are where it says they are.
    let address = first.word_after("booking").parse().unwrap();
    let mut seats = SeatServiceClient::new(grpc::connect(address).await);
    seats
        .get_seats(GetSeatsRequest { concert_id: concert.clone(), section_id: String::new() })
        .await
        .unwrap();
    first.stop().await;

    let second = Program::start(&data_dir).await;
    assert_eq!((second.demo_concert(), second.demo_fans()), (concert.clone(), fans.clone()));
    let api = second.api();
    let again = api.log_in(&fans[0].0, &fans[0].1).await.unwrap();
    for login in [&again, &logins[0]] {
        assert_eq!(api.booking(login, &booking).await["state"], "BOOKING_STATE_CONFIRMED");
        assert_eq!(api.balance(login).await, 1_000_000 - STALLS - 55_000);
    }
    let taken = json!({"seatIds": ["A-5-5"]});
    let path = format!("/v1/concerts/{concert}/holds");
    let taken = api.post(&path, Some(&logins[1].access_token), &taken).await.unwrap();
    assert_refused("a seat sold before", &taken, &refusal(409, Booking::SeatTaken, &[]));
    second.stop().await;
}

#[tokio::test]
async fn why_it_can_not_start_is_one_sentence() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let occupied = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let occupied = occupied.local_addr().unwrap().to_string();
    // These hold for root as well, whom no permission stops.
    fs::write(path("file"), "").unwrap();
    fs::create_dir_all(path("closed/lock")).unwrap();
    fs::create_dir(path("garbage")).unwrap();
    fs::write(path("garbage/booking.db"), "this is no database ".repeat(500)).unwrap();
    let running = Program::start(&path("used")).await;

    let cases = [
        (path("new"), Some(occupied.as_str()), vec![occupied.as_str(), "in use", "--http-addr"]),
        (path("file/data"), None, vec!["file/data", "can't be made"]),
        (path("closed"), None, vec!["closed", "can't be written"]),
        (path("used"), None, vec!["used", "in use by another process"]),
        (path("garbage"), None, vec!["booking", "database"]),
    ];
    for (data_dir, http_addr, words) in cases {
        let mut arguments = vec!["--data-dir", data_dir.to_str().unwrap()];
        for option in ["--user-addr", "--concert-addr", "--booking-addr", "--payment-addr", "--admin-addr"] {
            arguments.extend([option, "127.0.0.1:0"]);
        }
        arguments.extend(["--http-addr", http_addr.unwrap_or("127.0.0.1:0")]);
        let mut program = Program::run(&arguments);
        let status = program.end().await;
        let lines = || (program.output.get().clone(), program.errors.get().clone());
        wait_until("the last words", PATIENCE, async || match lines() {
            (_, errors) if errors.is_empty() => Err("none".to_owned()),
            _ => Ok(()),
        })
        .await;
        let (output, errors) = lines();
        assert_eq!((status.code(), output, errors.len()), (Some(1), vec![], 1), "{words:?}: {errors:?}");
        assert!(errors[0].starts_with("boxoffice: "), "{errors:?}");
        for word in words {
            assert!(errors[0].contains(word), "no {word:?} in {errors:?}");
        }
    }
    assert_eq!(running.api().get("/readyz", None).await.unwrap().status, 200, "whoever was there goes on");
    running.stop().await;
}

#[tokio::test]
async fn it_tells_how_it_is_used() {
    let outputs = async |argument: &str| {
        let mut program = Program::run(&[argument]);
        assert_eq!(program.end().await.code(), Some(0), "{argument}");
        wait_until("its words", PATIENCE, async || {
            let text = program.output.get().join("\n");
            if text.is_empty() { Err("none".to_owned()) } else { Ok(text) }
        })
        .await
    };
    assert_eq!(outputs("--version").await, concat!("boxoffice ", env!("CARGO_PKG_VERSION")));
    let mut program = Program::run(&["--help"]);
    assert_eq!(program.end().await.code(), Some(0));
    for word in ["--data-dir", "--http-addr", "--hold-ttl", "sellout", "sweep", "DATA_DIR", "[env: LOG="] {
        wait_until(word, PATIENCE, async || {
            let text = program.output.get().join("\n");
            if text.contains(word) { Ok(()) } else { Err(text) }
        })
        .await;
    }
    let mut mistaken = Program::run(&["--no-such-option"]);
    assert_eq!(mistaken.end().await.code(), Some(2));
    let directory = tempfile::tempdir().unwrap();
    let mut mistaken = Program::begin(directory.path(), &[("LOG", "warn,svc_booking=loud")]);
    assert_eq!(mistaken.end().await.code(), Some(2));
    for word in ["--log <LOG>", "warn,svc_booking=debug"] {
        wait_until(word, PATIENCE, async || {
            let text = mistaken.errors.get().join("\n");
            if text.contains(word) { Ok(()) } else { Err(text) }
        })
        .await;
    }
}

#[tokio::test]
async fn a_signal_ends_streams_and_then_the_process() {
    for signal in ["-INT", "-TERM"] {
        let directory = tempfile::tempdir().unwrap();
        let mut program = Program::start(directory.path()).await;
        let path = format!("{}/v1/concerts/{}/seats/events", program.url(), program.demo_concert());
        let mut events = Events::open(client().get(path)).await;
        assert!(events.next().await.is_some());
        program.signal(signal);
        assert_eq!(events.next().await, None, "{signal}: the stream ends, and not with an error");
        assert_eq!(program.end().await.code(), Some(0), "{signal}: {:?}", *program.errors.get());
    }
}

/// Logs in again and again until the program is gone. Each call takes a while, so there is always one in flight.
async fn log_in_until_the_end(url: String, account: Value, answered: Arc<AtomicUsize>) {
    // Over HTTP/2, where a server can say which calls it still answers.
    let client = reqwest::Client::builder().http2_prior_knowledge().build().unwrap();
    loop {
        match client.post(&url).json(&account).send().await {
            Ok(response) => {
                let status = response.status();
                let body = response.text().await.expect("an answer that has begun is finished");
                assert_eq!(status, 200, "{body}");
                answered.fetch_add(1, Ordering::SeqCst);
            }
            Err(error) if error.is_connect() => return,
            Err(error) => panic!("a call in flight was lost: {error:?}"),
        }
    }
}

#[tokio::test]
async fn a_signal_loses_no_call_in_flight() {
    let directory = tempfile::tempdir().unwrap();
    let mut program = Program::start(directory.path()).await;
    let (email, password) = program.demo_fans().remove(0);
    let answered = Arc::<AtomicUsize>::default();
    let callers: Vec<_> = (0..8)
        .map(|_| {
            let account = json!({"email": email, "password": password});
            let url = format!("{}/v1/sessions", program.url());
            tokio::spawn(log_in_until_the_end(url, account, Arc::clone(&answered)))
        })
        .collect();
    wait_until("calls to be answered", PATIENCE, async || match answered.load(Ordering::SeqCst) {
        count @ ..16 => Err(format!("{count} are")),
        _ => Ok(()),
    })
    .await;
    program.signal("-INT");
    for caller in callers {
        caller.await.unwrap();
    }
    assert_eq!(program.end().await.code(), Some(0), "{:?}", *program.errors.get());
}

/// What a fan was told during a sale.
#[derive(Default)]
struct Told {
    confirmed: Vec<String>,
    is_over: bool,
}

/// Books one place after the other, until there is no answer any more.
async fn buy_until_the_end(api: Api, fan: Login, concert: String, told: Arc<Mutex<Told>>) {
    let path = format!("/v1/concerts/{concert}/holds");
    let wish = json!({"bestAvailable": {"sectionId": "FLOOR", "quantity": 1}});
    let token = Some(fan.access_token.as_str());
    let buy = async || -> anyhow::Result<Option<String>> {
        let held = api.post(&path, token, &wish).await?.expect_success("holding")?;
        let booked = api.post("/v1/bookings", token, &order(&text(&held, "/hold/holdId")?)).await?;
        let booking = booked.expect_success("booking")?["booking"].take();
        let is_confirmed = booking["state"] == "BOOKING_STATE_CONFIRMED";
        Ok(is_confirmed.then(|| text(&booking, "/bookingId").unwrap()))
    };
    while let Ok(confirmed) = buy().await {
        told.lock().unwrap().confirmed.extend(confirmed);
    }
    told.lock().unwrap().is_over = true;
}

#[tokio::test]
async fn killed_in_the_middle_of_a_sale_it_has_lost_nothing_that_it_acknowledged() {
    const FANS: usize = 8;
    const MONEY: i64 = 1_000_000;
    const CONFIRMED_BEFORE_THE_END: usize = 20;
    let directory = tempfile::tempdir().unwrap();
    let program = Program::start(directory.path()).await;
    let api = program.api();
    let organizer = Organizer::make(&api, &fan(&api, 0).await, "Promoter").await.unwrap();
    let promoter = Promoter::new(&api, organizer).await;
    let mut hall = venue(&promoter.organizer.organizer_id);
    hall["sections"][1]["standing"]["capacity"] = 200.into();
    let hall = api.post("/v1/venues", Some(promoter.token()), &hall).await.unwrap().body;
    let concert = promoter
        .publish(|plan| {
            plan["venueId"] = hall["venue"]["venueId"].clone();
            plan["maxSeatsPerFan"] = 10.into();
        })
        .await;
    let mut fans = Vec::new();
    for _ in 0..FANS {
        fans.push(fan(&api, MONEY).await);
    }
    let kept = api.hold(&fans[0], &concert, &["A-1-1"]).await;

    let told: Vec<Arc<Mutex<Told>>> = (0..FANS).map(|_| Arc::default()).collect();
    for (fan, told) in fans.iter().zip(&told) {
        tokio::spawn(buy_until_the_end(api.clone(), fan.clone(), concert.clone(), Arc::clone(told)));
    }
    wait_until("the sale to be in full swing", PATIENCE, async || {
        let confirmed: usize = told.iter().map(|told| told.lock().unwrap().confirmed.len()).sum();
        if confirmed >= CONFIRMED_BEFORE_THE_END { Ok(()) } else { Err(format!("{confirmed} confirmed")) }
    })
    .await;
    program.kill().await;
    wait_until("the fans to notice", PATIENCE, async || {
        let waiting = told.iter().filter(|told| !told.lock().unwrap().is_over).count();
        if waiting == 0 { Ok(()) } else { Err(format!("{waiting} go on")) }
    })
    .await;

    let program = Program::start(directory.path()).await;
    let api = program.api();
    for (fan, told) in fans.iter().zip(&told) {
        let confirmed = told.lock().unwrap().confirmed.clone();
        for booking in confirmed {
            assert_eq!(api.booking(fan, &booking).await["state"], "BOOKING_STATE_CONFIRMED", "{booking}");
        }
    }
    let holder = Some(fans[0].access_token.as_str());
    let expired = refusal(409, Booking::HoldExpired, &[]);
    let reply = api.get(&format!("/v1/holds/{kept}"), holder).await.unwrap();
    assert_refused("reading a hold of before", &reply, &expired);
    let reply = api.post("/v1/bookings", holder, &order(&kept)).await.unwrap();
    assert_refused("booking a hold of before", &reply, &expired);

    let mut places_sold = 0;
    for fan in &fans {
        let bookings = wait_until_settled(&api, fan).await;
        let confirmed =
            bookings.iter().filter(|booking| booking["state"] == "BOOKING_STATE_CONFIRMED").count();
        places_sold += confirmed;
        assert_eq!(api.balance(fan).await, MONEY - 55_000 * confirmed as i64, "{bookings:?}");
    }
    let floor = async || {
        let seats = api.get(&format!("/v1/concerts/{concert}/seats?sectionId=FLOOR"), None).await.unwrap();
        seats.body["sections"][0]["available"].as_u64().unwrap() as usize
    };
    wait_until("the places that are left to be shown", PATIENCE, async || match floor().await {
        available if available == 200 - places_sold => Ok(()),
        available => Err(format!("{available}, and {places_sold} are sold")),
    })
    .await;
    assert_swept_clean("running", directory.path()).await;
    program.stop().await;
    assert_swept_clean("stopped", directory.path()).await;
}

/// Waits until none of a fan's bookings is being paid any more; the bookings then.
async fn wait_until_settled(api: &Api, fan: &Login) -> Vec<Value> {
    wait_until("the fan's bookings to be settled", RECOVERY, async || {
        let list = api.get("/v1/bookings?pageSize=200", Some(&fan.access_token)).await.unwrap();
        let bookings = list.body["bookings"].as_array().unwrap().clone();
        let is_open = |booking: &Value| {
            let is_owed =
                booking["state"] == "BOOKING_STATE_CANCELLED" && booking["refunded"] != booking["total"];
            booking["state"] == "BOOKING_STATE_PAYING" || is_owed
        };
        if bookings.iter().any(is_open) { Err(list.body.to_string()) } else { Ok(bookings) }
    })
    .await
}

/// What a fan does when the process is killed.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Doing {
    Booking,
    BookingWithoutMoney,
    Cancelling,
}

/// The points at which the process is killed, and what has become of the booking after the next start. None: there is none.
const CRASHES: [(&str, Doing, Option<&str>); 12] = [
    ("booking.claim.before", Doing::Booking, None),
    ("booking.claim.after", Doing::Booking, Some("CONFIRMED")),
    ("booking.charge.before", Doing::Booking, Some("CONFIRMED")),
    ("booking.charge.after", Doing::Booking, Some("CONFIRMED")),
    ("booking.confirm.before", Doing::Booking, Some("CONFIRMED")),
    ("booking.confirm.after", Doing::Booking, Some("CONFIRMED")),
    ("booking.fail.before", Doing::BookingWithoutMoney, Some("FAILED")),
    ("booking.fail.after", Doing::BookingWithoutMoney, Some("FAILED")),
    ("booking.cancel.before", Doing::Cancelling, Some("CONFIRMED")),
    ("booking.cancel.after", Doing::Cancelling, Some("CANCELLED")),
    ("booking.refund.before", Doing::Cancelling, Some("CANCELLED")),
    ("booking.refund.after", Doing::Cancelling, Some("CANCELLED")),
];

#[tokio::test]
async fn killed_at_any_step_it_settles_the_booking_and_takes_the_money_once() {
    let crashes = futures_util::stream::iter(CRASHES);
    crashes.for_each_concurrent(3, |(at, doing, outcome)| crash_and_recover(at, doing, outcome)).await;
}

async fn crash_and_recover(at: &str, doing: Doing, outcome: Option<&str>) {
    let directory = tempfile::tempdir().unwrap();
    let mut program = Program::start_with(directory.path(), &[("BOXOFFICE_CRASH_AT", at)]).await;
    let (api, concert) = (program.api(), program.demo_concert());
    let money = if doing == Doing::BookingWithoutMoney { 0 } else { 2 * STALLS };
    let fan = fan(&api, money).await;
    let (hold, key) = (api.hold(&fan, &concert, &["A-5-5"]).await, new_key());
    let token = Some(fan.access_token.as_str());
    let last_call = match doing {
        Doing::Booking | Doing::BookingWithoutMoney => ("/v1/bookings".to_owned(), order(&hold)),
        Doing::Cancelling => {
            let booking = text(&api.book(&fan, &hold).await, "/bookingId").unwrap();
            (format!("/v1/bookings/{booking}/cancel"), json!({}))
        }
    };
    let send = async |api: &Api| {
        let (path, body) = &last_call;
        api.send(Method::POST, path, token, Some(&key), Some(body)).await
    };
    send(&api).await.expect_err("the process died before it answered");
    assert_eq!(program.end().await.signal(), Some(6), "{at}: {:?}", *program.errors.get());
    drop(program);

    let program = Program::start(directory.path()).await;
    let api = program.api();
    let bookings = wait_until_settled(&api, &fan).await;
    let states: Vec<&str> = bookings.iter().map(|booking| booking["state"].as_str().unwrap()).collect();
    let expected = outcome.map(|state| format!("BOOKING_STATE_{state}"));
    assert_eq!(states, expected.iter().collect::<Vec<_>>(), "{at}");
    let taken = if outcome == Some("CONFIRMED") { STALLS } else { 0 };
    assert_eq!(api.balance(&fan).await, money - taken, "{at}");
    assert_swept_clean(at, directory.path()).await;

    // Whoever got no answer asks again with the same key.
    let again = send(&api).await.unwrap();
    match (doing, outcome) {
        // Holds are lost with the process.
        (Doing::Booking, None) | (Doing::BookingWithoutMoney, _) => {
            assert_refused(at, &again, &refusal(409, Booking::HoldExpired, &[]));
            assert_eq!(api.balance(&fan).await, money, "{at}");
        }
        (Doing::Booking, Some(_)) => {
            assert_eq!(again.headers["idempotency-replayed"], "true", "{at}");
            assert_eq!(again.expect_success(at).unwrap()["booking"], bookings[0], "{at}");
            assert_eq!(api.balance(&fan).await, money - STALLS, "{at}");
        }
        (Doing::Cancelling, _) => {
            let cancelled = again.expect_success(at).unwrap()["booking"].take();
            let found = (&cancelled["state"], &cancelled["refunded"]);
            assert_eq!(found, (&json!("BOOKING_STATE_CANCELLED"), &cancelled["total"]), "{at}");
            assert_eq!(api.balance(&fan).await, money, "{at}");
        }
    }
    // The seat is whoever's it should be.
    let other = self::fan(&api, 0).await;
    let is_sold = doing == Doing::Booking && outcome.is_some();
    let (path, wish) = (format!("/v1/concerts/{concert}/holds"), json!({"seatIds": ["A-5-5"]}));
    let held = api.post(&path, Some(&other.access_token), &wish).await.unwrap();
    assert_eq!(held.status.is_success(), !is_sold, "{at}: {}", held.body);
    assert_swept_clean(at, directory.path()).await;
    program.stop().await;
}

#[tokio::test]
async fn a_session_survives_a_kill_and_an_ended_one_stays_ended() {
    let directory = tempfile::tempdir().unwrap();
    let program = Program::start(directory.path()).await;
    let api = program.api();
    let email = new_email();
    api.sign_up(&email, PASSWORD, "Fan").await.unwrap();
    let (kept, ended) =
        (api.log_in(&email, PASSWORD).await.unwrap(), api.log_in(&email, PASSWORD).await.unwrap());
    let log_out = api
        .send(Method::DELETE, "/v1/sessions/current", Some(&ended.access_token), None, None)
        .await
        .unwrap();
    log_out.expect_success("logging out").unwrap();
    program.kill().await;

    let program = Program::start(directory.path()).await;
    let api = program.api();
    for path in ["/v1/users/me", "/v1/wallet", "/v1/bookings"] {
        assert_eq!(api.get(path, Some(&kept.access_token)).await.unwrap().status, 200, "{path}");
        let refused = api.get(path, Some(&ended.access_token)).await.unwrap();
        assert_refused(path, &refused, &refusal(401, Common::TokenInvalid, &[]));
    }
    program.stop().await;
}

#[tokio::test]
async fn the_sell_out_proves_itself() {
    let mut sellout = Program::run(&["sellout", "--fans", "40", "--seats", "30"]);
    let status = sellout.end().await;
    let output = sellout.output.get().join("\n");
    assert_eq!(status.code(), Some(0), "{output}; {:?}", *sellout.errors.get());
    for line in ["I1  holds", "I3  holds", "I4  holds", "I6  holds", "I7  holds", "PASSED"] {
        assert!(output.contains(line), "no {line:?} in {output}");
    }
}

/// Sells out on a running Boxoffice. 25 seats: 20 with numbers and 5 standing places.
async fn sell_out_on(running: &Program, data_dir: &Path, more: &[&str]) -> (Option<i32>, String) {
    let (url, data_dir) = (running.url(), data_dir.to_str().unwrap());
    let mut arguments =
        vec!["sellout", "--fans", "30", "--seats", "25", "--url", &url, "--data-dir", data_dir];
    arguments.extend(more);
    let mut sellout = Program::run(&arguments);
    let status = sellout.end().await;
    let output = wait_until("its last words", PATIENCE, async || {
        let output = [sellout.output.get().join("\n"), sellout.errors.get().join("\n")].join("\n");
        let last_words = ["PASSED", "INCOMPLETE", "FAILED", "boxoffice: "];
        if last_words.iter().any(|word| output.contains(word)) { Ok(output) } else { Err(output) }
    })
    .await;
    (status.code(), output)
}

#[tokio::test]
async fn a_running_boxoffice_is_sold_out_and_its_holds_are_watched_to_their_end() {
    let directory = tempfile::tempdir().unwrap();
    let program = Program::start_with(directory.path(), &[("HOLD_TTL", "2s")]).await;
    let (code, output) = sell_out_on(&program, directory.path(), &[]).await;
    assert_eq!(code, Some(0), "{output}");
    for line in ["I1  holds", "I3  holds", "I4  holds", "I6  holds", "I7  holds", "PASSED"] {
        assert!(output.contains(line), "no {line:?} in {output}");
    }
    // Nothing is left on sale but the demo and what was sold out.
    let listed = program.api().get("/v1/concerts", None).await.unwrap().body;
    let titles: Vec<&str> = listed["concerts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|concert| concert["title"].as_str().unwrap())
        .collect();
    assert_eq!(titles.len(), 2, "{titles:?}");
    assert!(titles.contains(&"Sold Out"), "{titles:?}");

    // The data of another Boxoffice is known before anything is sold.
    let other = tempfile::tempdir().unwrap();
    Program::start(other.path()).await.stop().await;
    let (code, output) = sell_out_on(&program, other.path(), &[]).await;
    assert_eq!(code, Some(1), "{output}");
    assert!(output.contains("the databases are another server's"), "{output}");
    assert!(!output.contains("I4") && !output.contains("Selling"), "{output}");
}

#[tokio::test]
async fn a_sell_out_says_if_holds_last_too_long_to_be_watched() {
    let directory = tempfile::tempdir().unwrap();
    let program = Program::start(directory.path()).await;
    let (code, output) = sell_out_on(&program, directory.path(), &[]).await;
    assert_eq!(code, Some(0), "{output}");
    for line in ["I7 is not watched: holds live until ", "--wait-for-holds", "I7  not watched", "INCOMPLETE"]
    {
        assert!(output.contains(line), "no {line:?} in {output}");
    }
    assert!(!output.contains("PASSED"), "{output}");
}

#[tokio::test]
async fn why_nothing_can_be_sold_out_is_one_sentence() {
    let directory = tempfile::tempdir().unwrap();
    let (nowhere, empty) = (directory.path().join("nowhere"), directory.path().join("empty"));
    fs::create_dir(&empty).unwrap();
    let data_dir = directory.path().join("data");
    let program = Program::start(&data_dir).await;
    // Nobody listens where a listener has just been closed.
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    // Whoever connects waits for somebody who never comes.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = format!("http://{}", listener.local_addr().unwrap());
    let (closed, absent) = (format!("http://{closed}"), format!("{}/v1", program.url()));
    let [data_dir, nowhere, empty] = [&data_dir, &nowhere, &empty].map(|path| path.to_str().unwrap());
    let cases: [(&[&str], Vec<&str>); 9] = [
        (&["--url", "127.0.0.1:8080", "--data-dir", data_dir], vec!["--url 127.0.0.1:8080", "http://"]),
        (&["--url", "https://tickets.example", "--data-dir", data_dir], vec!["https is not spoken"]),
        (&["--url", "ftp://tickets.example", "--data-dir", data_dir], vec!["no address of REST"]),
        (&["--url", "nonsense", "--data-dir", data_dir], vec!["no address of REST"]),
        (&["--url", &closed, "--data-dir", data_dir], vec![&closed, "Connection refused"]),
        (&["--url", &silent, "--data-dir", data_dir], vec![&silent, "no answer within"]),
        (&["--url", &absent, "--data-dir", data_dir], vec![&absent, "404"]),
        (&["--url", &program.url(), "--data-dir", nowhere], vec![nowhere, "--data-dir"]),
        (&["--url", &program.url(), "--data-dir", empty], vec![empty, "booking.db", "--data-dir"]),
    ];
    for (arguments, words) in cases {
        let arguments = [&["sellout", "--fans", "2", "--seats", "2"], arguments].concat();
        assert_fails_in_one_sentence(&arguments, &words).await;
    }
    program.stop().await;
}

#[tokio::test]
async fn why_nothing_can_be_swept_is_one_sentence() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    fs::create_dir(path("empty")).unwrap();
    fs::create_dir(path("garbage")).unwrap();
    for name in ["garbage/booking.db", "garbage/payment.db"] {
        fs::write(path(name), "this is no database ".repeat(500)).unwrap();
    }
    for name in ["nowhere", "empty"] {
        assert_fails_in_one_sentence(
            &["sweep", "--data-dir", &path(name)],
            &[&path(name), "booking.db", "--data-dir"],
        )
        .await;
    }
    assert_fails_in_one_sentence(&["sweep", "--data-dir", &path("garbage")], &["not a database"]).await;
}

/// Asserts that the program ends by itself and says why in one sentence, in which nothing stands twice.
async fn assert_fails_in_one_sentence(arguments: &[&str], words: &[&str]) {
    let mut program = Program::run(arguments);
    assert_eq!(program.end().await.code(), Some(1), "{arguments:?}");
    let line = wait_until("its words", PATIENCE, async || match program.errors.get().as_slice() {
        [line] => Ok(line.clone()),
        lines => Err(format!("{lines:?}")),
    })
    .await;
    assert!(line.starts_with("boxoffice: "), "{line}");
    for word in words {
        assert!(line.contains(word), "no {word:?} in {line}");
    }
    let parts: Vec<&str> = line.split(": ").collect();
    let is_said_again = |(index, part): (usize, &&str)| parts[..index].contains(part);
    assert!(!parts.iter().enumerate().any(is_said_again), "{line}");
}
