//! The concert service as its callers see it: real gRPC on a free port, through the mesh's own client and server, with
//! tokens of a user service that is a fake.

use std::{net::SocketAddr, time::Duration};

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use boxoffice_proto::{
    common::v1::Money,
    concert::v1::{
        BeginSaleRequest, CancelConcertRequest, Concert, ConcertState, CreateConcertRequest,
        CreateVenueRequest, GetConcertRequest, GetSaleRequest, GetVenueRequest, ListConcertsRequest,
        ListConcertsResponse, PublishConcertRequest, ReportAvailabilityRequest, Sale, SaleState, SeatedArea,
        Section, SectionPrice, StandingArea, Venue, concert_service_client::ConcertServiceClient,
        sale_service_client::SaleServiceClient, section::Arrangement,
        venue_service_client::VenueServiceClient,
    },
    user::v1::{
        ListSigningKeysRequest, ListSigningKeysResponse, SigningKey,
        key_service_server::{KeyService, KeyServiceServer},
    },
};
use chrono::{DateTime, TimeDelta, Utc};
use clap::Parser;
use jsonwebtoken::EncodingKey;
use mesh::{
    auth::{Authenticator, Keys, ServiceTokens, User, token},
    client::Channel,
    clock::Clock,
    config::Secret,
    failure::error_info,
    field::timestamp,
    id::{ConcertId, OrganizerId, SessionId, UserId, VenueId},
    idempotency::REPLAYED,
    server::{self, Options},
    shutdown::Shutdown,
};
use mesh_test::sqlite::TestDatabase;
use tokio::net::TcpListener;
use tonic::{
    Code, Request, Response, Status,
    service::Routes,
    transport::{self, server::TcpIncoming},
};
use tonic_types::StatusExt;

const SERVICE_KEY: &str = "the-key-that-services-of-this-test-share";
const PATIENCE: Duration = Duration::from_secs(20);

/// The service's command line, as its process reads it.
#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    config: svc_concert::Config,
}

/// A user service that publishes one key.
struct OneKey(String);

#[tonic::async_trait]
impl KeyService for OneKey {
    async fn list_signing_keys(
        &self,
        _: Request<ListSigningKeysRequest>,
    ) -> Result<Response<ListSigningKeysResponse>, Status> {
        let key = SigningKey { kid: "k1".into(), x: self.0.clone() };
        Ok(Response::new(ListSigningKeysResponse { keys: vec![key], revoked_session_ids: vec![] }))
    }
}

/// A running concert service.
struct Service {
    clock: Clock,
    channel: Channel,
    /// The way that strangers have: no service token, no idempotency key that is put in.
    plain_channel: transport::Channel,
    key: EncodingKey,
    shutdown: Shutdown,
    /// The file goes when this goes.
    database_file: Option<TestDatabase>,
}

/// Someone with an account.
#[derive(Clone)]
struct Person {
    id: UserId,
    organizers: Vec<OrganizerId>,
}

impl Service {
    async fn start() -> Self {
        let file = mesh_test::sqlite::create_database();
        let mut service = Self::start_on(file.url()).await;
        service.database_file = Some(file);
        service
    }

    /// Starts on a database, with as few connections as there may be.
    async fn start_on(database_url: &str) -> Self {
        let clock = Clock::manual(DateTime::from_timestamp(1_800_000_000, 0).unwrap());
        let document = Ed25519KeyPair::generate_pkcs8(&aws_lc_rs::rand::SystemRandom::new()).unwrap();
        let pair = Ed25519KeyPair::from_pkcs8(document.as_ref()).unwrap();
        let x = BASE64_URL_SAFE_NO_PAD.encode(pair.public_key().as_ref());
        let shutdown = Shutdown::new();
        let users = serve_keys(x, &clock, &shutdown).await;

        let user_url = format!("http://{users}");
        let arguments = [
            "svc-concert",
            "--database-url",
            database_url,
            "--database-connections",
            "2",
            "--service-token-key",
            SERVICE_KEY,
            "--user-url",
            &user_url,
            "--drain-wait",
            "0s",
        ];
        let config = Cli::parse_from(arguments).config;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let uri: mesh::client::Address =
            format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        tokio::spawn(svc_concert::serve(config, listener.into(), clock.clone(), shutdown.clone()));
        let plain_channel = transport::Channel::from_shared(uri.to_string()).unwrap().connect_lazy();
        let channel = Channel::new("concert", uri, Some(service_tokens("booking")), clock.clone());
        let key = EncodingKey::from_ed_der(document.as_ref());
        let service = Self { clock, channel, plain_channel, key, shutdown, database_file: None };
        mesh_test::wait_until("the service to answer", PATIENCE, async || {
            service.list(None, ListConcertsRequest::default()).await.map_err(|status| status.to_string())
        })
        .await;
        service
    }

    fn venues(&self) -> VenueServiceClient<Channel> {
        VenueServiceClient::new(self.channel.clone())
    }

    fn concerts(&self) -> ConcertServiceClient<Channel> {
        ConcertServiceClient::new(self.channel.clone())
    }

    fn sales(&self) -> SaleServiceClient<Channel> {
        SaleServiceClient::new(self.channel.clone())
    }

    /// A request with a person's token.
    fn by<T>(&self, person: &Person, message: T) -> Request<T> {
        let user = User {
            id: person.id,
            session: SessionId::new(),
            organizers: person.organizers.clone(),
            is_admin: false,
        };
        let now = self.clock.now();
        let token = token::sign(&user, "k1", &self.key, now, now + TimeDelta::minutes(15)).unwrap();
        let mut request = Request::new(message);
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
        request
    }

    async fn create_venue(
        &self,
        person: &Person,
        message: CreateVenueRequest,
    ) -> Result<Response<Venue>, Status> {
        let response = self.venues().create_venue(self.by(person, message)).await?;
        Ok(response.map(|message| message.venue.expect("a venue")))
    }

    async fn create_concert(
        &self,
        person: &Person,
        message: CreateConcertRequest,
    ) -> Result<Response<Concert>, Status> {
        let response = self.concerts().create_concert(self.by(person, message)).await?;
        Ok(response.map(|message| message.concert.expect("a concert")))
    }

    async fn publish(&self, person: &Person, concert_id: &str) -> Result<Concert, Status> {
        let message = PublishConcertRequest { concert_id: concert_id.to_owned() };
        let response = self.concerts().publish_concert(self.by(person, message)).await?;
        Ok(response.into_inner().concert.expect("a concert"))
    }

    async fn cancel(
        &self,
        person: &Person,
        concert_id: &str,
        key: &str,
    ) -> Result<Response<Concert>, Status> {
        let message = CancelConcertRequest { concert_id: concert_id.to_owned(), request_id: key.to_owned() };
        let response = self.concerts().cancel_concert(self.by(person, message)).await?;
        Ok(response.map(|message| message.concert.expect("a concert")))
    }

    /// A concert as a person sees it, or anyone without an account.
    async fn get(&self, person: Option<&Person>, concert_id: &str) -> Result<Concert, Status> {
        let message = GetConcertRequest { concert_id: concert_id.to_owned() };
        let request = match person {
            Some(person) => self.by(person, message),
            None => Request::new(message),
        };
        let response = self.concerts().get_concert(request).await?;
        Ok(response.into_inner().concert.expect("a concert"))
    }

    async fn list(
        &self,
        person: Option<&Person>,
        message: ListConcertsRequest,
    ) -> Result<ListConcertsResponse, Status> {
        let request = match person {
            Some(person) => self.by(person, message),
            None => Request::new(message),
        };
        Ok(self.concerts().list_concerts(request).await?.into_inner())
    }

    async fn sale(&self, concert_id: &str) -> Result<Sale, Status> {
        let message = GetSaleRequest { concert_id: concert_id.to_owned() };
        Ok(self.sales().get_sale(message).await?.into_inner().sale.expect("a sale"))
    }

    async fn begin_sale(&self, concert_id: &str) -> Result<(), Status> {
        let message = BeginSaleRequest { concert_id: concert_id.to_owned() };
        self.sales().begin_sale(message).await.map(|_| ())
    }

    async fn report(&self, concert_id: &str, unbooked_places: i32, count_time: DateTime<Utc>) {
        let message = ReportAvailabilityRequest {
            concert_id: concert_id.to_owned(),
            unbooked_places,
            count_time: Some(timestamp(count_time)),
        };
        self.sales().report_availability(message).await.unwrap();
    }

    async fn sale_state(&self, concert_id: &str) -> SaleState {
        self.get(None, concert_id).await.unwrap().sale_state()
    }

    /// What a new concert may be asked for: on sale for an hour from in an hour, begins in ten hours.
    async fn concert_request(&self, person: &Person) -> CreateConcertRequest {
        let venue = self.create_venue(person, venue_request(person)).await.unwrap().into_inner();
        let in_hours = |hours| Some(timestamp(self.clock.now() + TimeDelta::hours(hours)));
        CreateConcertRequest {
            organizer_id: person.organizers[0].to_string(),
            venue_id: venue.venue_id,
            title: "Live".to_owned(),
            description: "Loud".to_owned(),
            genre: "rock".to_owned(),
            start_time: in_hours(10),
            end_time: None,
            sale_open_time: in_hours(1),
            sale_close_time: in_hours(2),
            prices: vec![price("A", 100), price("FLOOR", 0)],
            max_seats_per_fan: None,
            request_id: String::new(),
        }
    }

    async fn draft(&self, person: &Person) -> Concert {
        let request = self.concert_request(person).await;
        self.create_concert(person, request).await.unwrap().into_inner()
    }

    async fn published(&self, person: &Person) -> Concert {
        let draft = self.draft(person).await;
        self.publish(person, &draft.concert_id).await.unwrap()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.shutdown.begin();
    }
}

async fn serve_keys(x: String, clock: &Clock, shutdown: &Shutdown) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let authenticator = Authenticator::new(Keys::new(), service_tokens("user"), clock.clone());
    let routes = Routes::new(KeyServiceServer::new(OneKey(x)));
    let incoming = TcpIncoming::from(listener);
    tokio::spawn(server::serve(Options::new("user"), routes, authenticator, incoming, shutdown.clone()));
    address
}

fn service_tokens(name: &'static str) -> ServiceTokens {
    ServiceTokens::new(name, &Secret::parse(SERVICE_KEY).unwrap(), None)
}

fn organizer() -> Person {
    Person { id: UserId::new(), organizers: vec![OrganizerId::new()] }
}

fn fan() -> Person {
    Person { id: UserId::new(), organizers: vec![] }
}

fn seated(id: &str, rows: i32, seats_per_row: i32, accessible: &[&str]) -> Section {
    let accessible_seat_ids = accessible.iter().map(|seat| (*seat).to_owned()).collect();
    let arrangement = Arrangement::Seated(SeatedArea { rows, seats_per_row, accessible_seat_ids });
    Section { section_id: id.to_owned(), display_name: String::new(), arrangement: Some(arrangement) }
}

fn standing(id: &str, capacity: i32) -> Section {
    let arrangement = Arrangement::Standing(StandingArea { capacity });
    Section { section_id: id.to_owned(), display_name: "Floor".to_owned(), arrangement: Some(arrangement) }
}

fn price(section_id: &str, minor_units: i64) -> SectionPrice {
    let price = Some(Money { currency_code: "KRW".to_owned(), minor_units });
    SectionPrice { section_id: section_id.to_owned(), price }
}

/// What a venue may be asked for: section A of two rows of four seats, FLOOR with ten places.
fn venue_request(person: &Person) -> CreateVenueRequest {
    CreateVenueRequest {
        organizer_id: person.organizers[0].to_string(),
        display_name: "Hall".to_owned(),
        time_zone: "Asia/Seoul".to_owned(),
        sections: vec![seated("A", 2, 4, &["A-1-1", "A-2-4"]), standing("FLOOR", 10)],
        request_id: String::new(),
    }
}

/// The reason of a refusal, and the fields it names.
fn refusal<T>(outcome: Result<T, Status>) -> (String, Vec<String>) {
    let Err(status) = outcome else { panic!("not refused") };
    let fields = status.get_details_bad_request().map(|details| details.field_violations);
    let fields = fields.unwrap_or_default().into_iter().map(|violation| violation.field).collect();
    (error_info(&status).expect("a reason").reason, fields)
}

#[track_caller]
fn assert_refused<T>(outcome: Result<T, Status>, reason: &str, fields: &[&str]) {
    let (found_reason, found_fields) = refusal(outcome);
    assert_eq!(found_reason, reason);
    assert_eq!(found_fields, fields);
}

/// What a refusal says, but for the trace id, which is never the same.
fn words<T>(outcome: Result<T, Status>) -> (Code, String, String) {
    let Err(status) = outcome else { panic!("not refused") };
    let info = error_info(&status).expect("a reason");
    (status.code(), status.message().to_owned(), format!("{info:?}"))
}

fn is_replayed<T>(response: &Response<T>) -> bool {
    response.metadata().get(REPLAYED).is_some_and(|value| value == "true")
}

#[tokio::test]
async fn a_venue_is_made_and_shown_to_its_organizer() {
    let service = Service::start().await;
    let person = organizer();
    let venue = service.create_venue(&person, venue_request(&person)).await.unwrap().into_inner();
    assert_eq!((venue.display_name.as_str(), venue.time_zone.as_str()), ("Hall", "Asia/Seoul"));
    assert_eq!(venue.sections[0].display_name, "A", "by default the section's id");
    assert_eq!(venue.sections[1], standing("FLOOR", 10));
    let Some(Arrangement::Seated(area)) = &venue.sections[0].arrangement else { panic!("{venue:?}") };
    assert_eq!(area.accessible_seat_ids, ["A-1-1", "A-2-4"]);

    let get = GetVenueRequest { venue_id: venue.venue_id.clone() };
    let found = service.venues().get_venue(service.by(&person, get.clone())).await.unwrap().into_inner();
    assert_eq!(found.venue, Some(venue));
    let foreign = service.venues().get_venue(service.by(&organizer(), get)).await;
    let absent = GetVenueRequest { venue_id: VenueId::new().to_string() };
    let absent = service.venues().get_venue(service.by(&person, absent)).await;
    assert_eq!(words(foreign), words(absent), "another's is no other than one that never was");
}

#[tokio::test]
async fn each_wrong_field_of_a_venue_is_named() {
    let service = Service::start().await;
    let person = organizer();
    let good = venue_request(&person);
    let with = |section: Section| CreateVenueRequest { sections: vec![section], ..good.clone() };
    let no_arrangement = Section { arrangement: None, ..standing("A", 1) };
    let long_name = Section { display_name: "n".repeat(101), ..standing("A", 1) };
    let cases = [
        (CreateVenueRequest { organizer_id: String::new(), ..good.clone() }, vec!["organizer_id"]),
        (CreateVenueRequest { organizer_id: "org_1".into(), ..good.clone() }, vec!["organizer_id"]),
        (CreateVenueRequest { display_name: " ".into(), ..good.clone() }, vec!["display_name"]),
        (CreateVenueRequest { display_name: "n".repeat(201), ..good.clone() }, vec!["display_name"]),
        (CreateVenueRequest { display_name: "a\u{0}b".into(), ..good.clone() }, vec!["display_name"]),
        (CreateVenueRequest { time_zone: String::new(), ..good.clone() }, vec!["time_zone"]),
        (CreateVenueRequest { time_zone: "Seoul".into(), ..good.clone() }, vec!["time_zone"]),
        (CreateVenueRequest { sections: vec![], ..good.clone() }, vec!["sections"]),
        (CreateVenueRequest { sections: vec![standing("A", 1); 201], ..good.clone() }, vec!["sections"]),
        (with(standing("", 1)), vec!["sections[0].section_id"]),
        (with(standing("a", 1)), vec!["sections[0].section_id"]),
        (with(standing("ABCDEFGHIJKLM", 1)), vec!["sections[0].section_id"]),
        (with(long_name), vec!["sections[0].display_name"]),
        (with(no_arrangement), vec!["sections[0]"]),
        (with(standing("A", 0)), vec!["sections[0].standing.capacity"]),
        (with(standing("A", -1)), vec!["sections[0].standing.capacity"]),
        (with(standing("A", 100_001)), vec!["sections[0].standing.capacity"]),
        (with(standing("A", i32::MAX)), vec!["sections[0].standing.capacity"]),
        (with(seated("A", 0, 1, &[])), vec!["sections[0].seated.rows"]),
        (with(seated("A", 1001, 1, &[])), vec!["sections[0].seated.rows"]),
        (with(seated("A", 1, -1, &[])), vec!["sections[0].seated.seats_per_row"]),
        (with(seated("A", 1, i32::MAX, &[])), vec!["sections[0].seated.seats_per_row"]),
        (
            with(seated("A", 1, 2, &["A-1-1", "A-1-3", "B-1-1"])),
            vec!["sections[0].seated.accessible_seat_ids[1]", "sections[0].seated.accessible_seat_ids[2]"],
        ),
        (
            CreateVenueRequest { sections: vec![standing("A", 1), standing("A", 1)], ..good.clone() },
            vec!["sections[1].section_id"],
        ),
        (CreateVenueRequest { request_id: "a b".into(), ..good.clone() }, vec!["request_id"]),
    ];
    for (request, fields) in cases {
        let shown = format!("{request:?}");
        let (reason, found) = refusal(service.create_venue(&person, request).await);
        assert_eq!(reason, "FIELD_INVALID", "{shown:.300}");
        assert_eq!(found, fields, "{shown:.300}");
    }
}

#[tokio::test]
async fn all_wrong_fields_of_a_venue_are_named_at_once() {
    let service = Service::start().await;
    let person = organizer();
    let request = CreateVenueRequest {
        organizer_id: String::new(),
        display_name: String::new(),
        time_zone: "Mars/Olympus".to_owned(),
        sections: vec![standing("a", 0), seated("B", 0, 5000, &[])],
        request_id: String::new(),
    };
    let fields = [
        "organizer_id",
        "display_name",
        "time_zone",
        "sections[0].section_id",
        "sections[0].standing.capacity",
        "sections[1].seated.rows",
        "sections[1].seated.seats_per_row",
    ];
    assert_refused(service.create_venue(&person, request).await, "FIELD_INVALID", &fields);
}

#[tokio::test]
async fn a_stadium_of_a_hundred_thousand_fits_and_one_place_more_does_not() {
    let service = Service::start().await;
    let person = organizer();
    let stadium = |floor| CreateVenueRequest {
        sections: vec![seated("A", 1000, 90, &["A-1000-90"]), standing("FLOOR", floor)],
        ..venue_request(&person)
    };
    let venue = service.create_venue(&person, stadium(10_000)).await.unwrap().into_inner();
    assert_eq!(venue.sections, stadium(10_000).sections.into_iter().map(named).collect::<Vec<_>>());
    assert_refused(service.create_venue(&person, stadium(10_001)).await, "FIELD_INVALID", &["sections"]);
}

/// A section as it is kept: with its id for a name if it has none.
fn named(section: Section) -> Section {
    if section.display_name.is_empty() {
        Section { display_name: section.section_id.clone(), ..section }
    } else {
        section
    }
}

#[tokio::test]
async fn a_concert_is_made_as_a_draft_with_its_defaults() {
    let service = Service::start().await;
    let person = organizer();
    let request = service.concert_request(&person).await;
    let concert = service.create_concert(&person, request.clone()).await.unwrap().into_inner();
    assert_eq!((concert.state(), concert.sale_state()), (ConcertState::Draft, SaleState::NotOpen));
    let end_time = timestamp(service.clock.now() + TimeDelta::hours(14));
    assert_eq!(concert.end_time, Some(end_time), "four hours after its start");
    assert_eq!(concert.max_seats_per_fan, 4);
    assert_eq!((concert.time_zone.as_str(), concert.prices), ("Asia/Seoul", request.prices));
    let venue = concert.venue.unwrap();
    assert_eq!((venue.venue_id, venue.display_name.as_str()), (request.venue_id, "Hall"));
}

#[tokio::test]
async fn each_wrong_field_of_a_concert_is_named() {
    let service = Service::start().await;
    let person = organizer();
    let good = service.concert_request(&person).await;
    let in_hours = |hours| Some(timestamp(service.clock.now() + TimeDelta::hours(hours)));
    let priced = |prices| CreateConcertRequest { prices, ..good.clone() };
    let no_price = SectionPrice { price: None, ..price("A", 1) };
    let year_zero = Some(prost_types::Timestamp { seconds: -62_000_000_000, nanos: 0 });
    let cases = [
        (CreateConcertRequest { organizer_id: "usr_1".into(), ..good.clone() }, vec!["organizer_id"]),
        (CreateConcertRequest { venue_id: String::new(), ..good.clone() }, vec!["venue_id"]),
        (CreateConcertRequest { title: String::new(), ..good.clone() }, vec!["title"]),
        (CreateConcertRequest { title: "t".repeat(201), ..good.clone() }, vec!["title"]),
        (CreateConcertRequest { description: "d".repeat(10_001), ..good.clone() }, vec!["description"]),
        (CreateConcertRequest { genre: "g".repeat(51), ..good.clone() }, vec!["genre"]),
        (CreateConcertRequest { start_time: None, ..good.clone() }, vec!["start_time"]),
        (CreateConcertRequest { genre: " ".into(), ..good.clone() }, vec!["genre"]),
        (CreateConcertRequest { description: "\n\t".into(), ..good.clone() }, vec!["description"]),
        // Under way, and not over.
        (
            CreateConcertRequest { start_time: in_hours(0), end_time: in_hours(10), ..good.clone() },
            vec!["start_time"],
        ),
        (CreateConcertRequest { start_time: year_zero, ..good.clone() }, vec!["start_time"]),
        (CreateConcertRequest { end_time: in_hours(10), ..good.clone() }, vec!["end_time"]),
        (
            CreateConcertRequest { start_time: in_hours(-5), ..good.clone() },
            vec!["start_time", "sale_close_time"],
        ),
        (CreateConcertRequest { sale_open_time: None, ..good.clone() }, vec!["sale_open_time"]),
        (CreateConcertRequest { sale_close_time: None, ..good.clone() }, vec!["sale_close_time"]),
        (CreateConcertRequest { sale_close_time: in_hours(1), ..good.clone() }, vec!["sale_close_time"]),
        (CreateConcertRequest { sale_close_time: in_hours(15), ..good.clone() }, vec!["sale_close_time"]),
        (CreateConcertRequest { max_seats_per_fan: Some(0), ..good.clone() }, vec!["max_seats_per_fan"]),
        (CreateConcertRequest { max_seats_per_fan: Some(11), ..good.clone() }, vec!["max_seats_per_fan"]),
        (priced(vec![]), vec!["prices"]),
        (priced(vec![price("A", 1)]), vec!["prices"]),
        (priced(vec![price("A", 1), price("FLOOR", 1), price("B", 1)]), vec!["prices[2].section_id"]),
        (priced(vec![price("A", 1), price("FLOOR", 1), price("A", 1)]), vec!["prices[2].section_id"]),
        (priced(vec![price("A", -1), price("FLOOR", 1)]), vec!["prices[0].price.minor_units"]),
        (priced(vec![price("A", 1), price("FLOOR", i64::MAX)]), vec!["prices[1].price.minor_units"]),
        (priced(vec![no_price, price("FLOOR", 1)]), vec!["prices[0].price"]),
    ];
    for (request, fields) in cases {
        let shown = format!("{request:?}");
        let (reason, found) = refusal(service.create_concert(&person, request).await);
        assert_eq!(reason, "FIELD_INVALID", "{shown:.300}");
        assert_eq!(found, fields, "{shown:.300}");
    }
    let mut foreign = good.clone();
    foreign.prices[1].price.as_mut().unwrap().currency_code = "USD".to_owned();
    let field = ["prices[1].price.currency_code"];
    assert_refused(service.create_concert(&person, foreign).await, "CURRENCY_UNSUPPORTED", &field);
    let listed = ListConcertsRequest { organizer_id: good.organizer_id, ..Default::default() };
    assert_eq!(service.list(Some(&person), listed).await.unwrap().concerts, [], "nothing was made");
}

#[tokio::test]
async fn all_wrong_fields_of_a_concert_are_named_at_once() {
    let service = Service::start().await;
    let request = CreateConcertRequest { max_seats_per_fan: Some(0), ..Default::default() };
    let fields = [
        "organizer_id",
        "venue_id",
        "title",
        "start_time",
        "sale_open_time",
        "sale_close_time",
        "max_seats_per_fan",
    ];
    let (reason, mut found) = refusal(service.create_concert(&organizer(), request).await);
    found.sort_unstable();
    let mut expected = fields.map(str::to_owned);
    expected.sort_unstable();
    assert_eq!((reason.as_str(), found.as_slice()), ("FIELD_INVALID", expected.as_slice()));
}

#[tokio::test]
async fn creating_again_by_the_same_key_creates_nothing_more() {
    let service = Service::start().await;
    let person = organizer();
    let request = CreateVenueRequest { request_id: "key".into(), ..venue_request(&person) };
    let first = service.create_venue(&person, request.clone()).await.unwrap();
    let again = service.create_venue(&person, request.clone()).await.unwrap();
    assert_eq!((is_replayed(&first), is_replayed(&again)), (false, true));
    assert_eq!(first.into_inner(), again.into_inner());
    let other = CreateVenueRequest { display_name: "Arena".into(), ..request };
    assert_refused(service.create_venue(&person, other).await, "IDEMPOTENCY_KEY_REUSED", &[]);

    let request = CreateConcertRequest { request_id: "key".into(), ..service.concert_request(&person).await };
    let first = service.create_concert(&person, request.clone()).await.unwrap();
    let again = service.create_concert(&person, request.clone()).await.unwrap();
    assert_eq!((is_replayed(&first), is_replayed(&again)), (false, true));
    assert_eq!(first.into_inner(), again.into_inner());
    let other = CreateConcertRequest { title: "Unplugged".into(), ..request.clone() };
    assert_refused(service.create_concert(&person, other).await, "IDEMPOTENCY_KEY_REUSED", &[]);
    let listed = ListConcertsRequest { organizer_id: request.organizer_id.clone(), ..Default::default() };
    assert_eq!(service.list(Some(&person), listed).await.unwrap().concerts.len(), 1);

    let colleague = Person { id: UserId::new(), ..person.clone() };
    let theirs = service.create_concert(&colleague, request).await.unwrap();
    assert!(!is_replayed(&theirs), "another person's key is another key");
}

#[tokio::test]
async fn ten_creations_at_once_by_one_key_are_one() {
    let service = Service::start().await;
    let person = organizer();
    let request = CreateConcertRequest { request_id: "key".into(), ..service.concert_request(&person).await };
    let created =
        futures_util::future::join_all((0..10).map(|_| service.create_concert(&person, request.clone())))
            .await;
    let created: Vec<_> = created.into_iter().map(Result::unwrap).collect();
    assert_eq!(created.iter().filter(|response| !is_replayed(response)).count(), 1);
    let ids: std::collections::HashSet<_> =
        created.iter().map(|response| response.get_ref().concert_id.clone()).collect();
    assert_eq!(ids.len(), 1);
}

#[tokio::test]
async fn without_a_key_each_creation_is_a_new_one() {
    let service = Service::start().await;
    let person = organizer();
    let one = service.create_venue(&person, venue_request(&person)).await.unwrap().into_inner();
    let two = service.create_venue(&person, venue_request(&person)).await.unwrap().into_inner();
    assert_ne!(one.venue_id, two.venue_id);
}

#[tokio::test]
async fn nobody_acts_for_another_organizer() {
    let service = Service::start().await;
    let (owner, rival) = (organizer(), organizer());
    let foreign = service.create_venue(&rival, venue_request(&owner)).await;
    assert_refused(foreign, "ORGANIZER_NOT_FOUND", &[]);

    let request = service.concert_request(&owner).await;
    assert_refused(service.create_concert(&rival, request.clone()).await, "ORGANIZER_NOT_FOUND", &[]);
    let elsewhere = CreateConcertRequest { organizer_id: rival.organizers[0].to_string(), ..request.clone() };
    assert_refused(service.create_concert(&rival, elsewhere).await, "VENUE_NOT_FOUND", &[]);

    let concert = service.published(&owner).await;
    let never_was = ConcertId::new().to_string();
    let publish = service.publish(&rival, &concert.concert_id).await;
    assert_eq!(words(publish), words(service.publish(&rival, &never_was).await));
    let cancel = service.cancel(&rival, &concert.concert_id, "a").await;
    assert_eq!(words(cancel), words(service.cancel(&rival, &never_was, "b").await));
    assert_eq!(service.get(None, &concert.concert_id).await.unwrap().state(), ConcertState::Published);
    let listed = ListConcertsRequest { organizer_id: request.organizer_id, ..Default::default() };
    for person in [Some(&rival), None] {
        assert_refused(service.list(person, listed.clone()).await, "ORGANIZER_NOT_FOUND", &[]);
    }
}

#[tokio::test]
async fn a_draft_is_there_for_its_organizer_only() {
    let service = Service::start().await;
    let person = organizer();
    let draft = service.draft(&person).await;
    assert_eq!(service.get(Some(&person), &draft.concert_id).await.unwrap(), draft);
    let never_was = words(service.get(None, &ConcertId::new().to_string()).await);
    assert_eq!(words(service.get(None, &draft.concert_id).await), never_was);
    assert_eq!(words(service.get(Some(&organizer()), &draft.concert_id).await), never_was);
    assert_refused(service.sale(&draft.concert_id).await, "CONCERT_NOT_FOUND", &[]);
    assert_eq!(service.list(None, ListConcertsRequest::default()).await.unwrap().concerts, []);
}

#[tokio::test]
async fn a_published_concert_is_there_for_everyone_and_publishing_again_changes_nothing() {
    let service = Service::start().await;
    let person = organizer();
    let draft = service.draft(&person).await;
    let published = service.publish(&person, &draft.concert_id).await.unwrap();
    assert_eq!(published.state(), ConcertState::Published);
    assert_ne!(published.etag, draft.etag, "a change");
    assert_eq!(service.publish(&person, &draft.concert_id).await.unwrap(), published, "no change");
    for person in [None, Some(&fan()), Some(&organizer())] {
        assert_eq!(service.get(person, &draft.concert_id).await.unwrap(), published);
    }
    let listed = service.list(None, ListConcertsRequest::default()).await.unwrap();
    assert_eq!(listed.concerts, [published]);
}

#[tokio::test]
async fn a_cancelled_concert_stays_cancelled() {
    let service = Service::start().await;
    let person = organizer();
    let concert = service.published(&person).await;
    let mut outside = ConcertServiceClient::new(service.plain_channel.clone());
    let without_key = CancelConcertRequest { concert_id: concert.concert_id.clone(), ..Default::default() };
    let refused = outside.cancel_concert(service.by(&person, without_key)).await;
    assert_refused(refused, "IDEMPOTENCY_KEY_MISSING", &["request_id"]);
    let cancelled = service.cancel(&person, &concert.concert_id, "key").await.unwrap();
    assert_eq!(cancelled.get_ref().state(), ConcertState::Cancelled);
    assert_eq!(cancelled.get_ref().sale_state(), SaleState::Closed);
    let again = service.cancel(&person, &concert.concert_id, "key").await.unwrap();
    assert_eq!((is_replayed(&cancelled), is_replayed(&again)), (false, true));
    let other_key = service.cancel(&person, &concert.concert_id, "other").await.unwrap();
    assert!(!is_replayed(&other_key));
    assert_eq!(other_key.into_inner(), cancelled.into_inner(), "cancelling again changes nothing");

    let other = service.published(&person).await;
    assert_refused(service.cancel(&person, &other.concert_id, "key").await, "IDEMPOTENCY_KEY_REUSED", &[]);
    assert_refused(service.publish(&person, &concert.concert_id).await, "CONCERT_CANCELLED", &[]);
    assert_refused(service.begin_sale(&concert.concert_id).await, "CONCERT_CANCELLED", &[]);
    assert_eq!(service.sale(&concert.concert_id).await.unwrap().state(), ConcertState::Cancelled);
    let listed = service.list(None, ListConcertsRequest::default()).await.unwrap();
    assert_eq!(
        listed.concerts.into_iter().map(|concert| concert.concert_id).collect::<Vec<_>>(),
        [other.concert_id]
    );
}

#[tokio::test]
#[ignore = "needs Postgres: scripts/test runs it"]
async fn many_cancellations_at_once_need_but_a_connection_each() {
    let database = mesh_test::postgres::create_database().await;
    let service = Service::start_on(database.url()).await;
    let person = organizer();
    let request = service.concert_request(&person).await;
    let mut drafts = Vec::new();
    for _ in 0..20 {
        let draft = service.create_concert(&person, request.clone()).await.unwrap().into_inner();
        drafts.push(draft.concert_id);
    }
    let cancel = drafts.iter().map(|concert_id| service.cancel(&person, concert_id, concert_id));
    for cancelled in futures_util::future::join_all(cancel).await {
        assert_eq!(cancelled.unwrap().into_inner().state(), ConcertState::Cancelled);
    }
}

#[tokio::test]
async fn a_concert_that_is_over_is_neither_published_nor_cancelled() {
    let service = Service::start().await;
    let person = organizer();
    let (published, draft) = (service.published(&person).await, service.draft(&person).await);
    service.clock.advance(TimeDelta::hours(14));
    let over = service.get(None, &published.concert_id).await.unwrap();
    assert_eq!((over.state(), over.sale_state()), (ConcertState::Ended, SaleState::Closed));
    assert_refused(service.publish(&person, &draft.concert_id).await, "CONCERT_ENDED", &[]);
    assert_refused(service.cancel(&person, &published.concert_id, "key").await, "CONCERT_ENDED", &[]);
    let listed = service.list(None, ListConcertsRequest::default()).await.unwrap();
    assert_eq!(listed.concerts, [], "not among what is to come");
}

#[tokio::test]
async fn a_concert_that_is_being_booked_is_not_cancelled() {
    let service = Service::start().await;
    let person = organizer();
    let concert = service.published(&person).await;
    for _ in 0..2 {
        service.begin_sale(&concert.concert_id).await.unwrap();
    }
    let refused = service.cancel(&person, &concert.concert_id, "key").await;
    assert_refused(refused, "CONCERT_HAS_BOOKINGS", &[]);
    assert_eq!(service.get(None, &concert.concert_id).await.unwrap(), concert);
    let again = service.cancel(&person, &concert.concert_id, "key").await;
    assert_refused(again, "CONCERT_HAS_BOOKINGS", &[]);

    let draft = service.draft(&person).await;
    assert_refused(service.begin_sale(&draft.concert_id).await, "CONCERT_NOT_FOUND", &[]);
}

#[tokio::test]
async fn the_sale_follows_the_clock_and_what_booking_counted() {
    let service = Service::start().await;
    let concert_id = service.published(&organizer()).await.concert_id;
    let hour = TimeDelta::hours(1);
    assert_eq!(service.sale_state(&concert_id).await, SaleState::NotOpen);
    service.clock.advance(hour - TimeDelta::microseconds(1));
    assert_eq!(service.sale_state(&concert_id).await, SaleState::NotOpen);
    service.clock.advance(TimeDelta::microseconds(1));
    assert_eq!(service.sale_state(&concert_id).await, SaleState::Open);

    let now = service.clock.now();
    service.report(&concert_id, 0, now).await;
    assert_eq!(service.sale_state(&concert_id).await, SaleState::SoldOut);
    service.report(&concert_id, 5, now - TimeDelta::seconds(1)).await;
    assert_eq!(service.sale_state(&concert_id).await, SaleState::SoldOut, "that was counted before");
    service.report(&concert_id, 1, now + TimeDelta::seconds(1)).await;
    assert_eq!(service.sale_state(&concert_id).await, SaleState::Open, "a booking was cancelled");

    service.clock.advance(hour);
    assert_eq!(service.sale_state(&concert_id).await, SaleState::Closed);
}

#[tokio::test]
async fn booking_learns_what_may_be_sold() {
    let service = Service::start().await;
    let concert = service.published(&organizer()).await;
    let sale = service.sale(&concert.concert_id).await.unwrap();
    assert_eq!(sale.state(), ConcertState::Published);
    assert_eq!((sale.prices, sale.max_seats_per_fan), (concert.prices, 4));
    assert_eq!(sale.sale_open_time, concert.sale_open_time);
    assert_eq!(sale.sale_close_time, concert.sale_close_time);
    let layout: Vec<_> = venue_request(&organizer()).sections.into_iter().map(named).collect();
    assert_eq!(sale.sections, layout);
    assert!(!sale.layout_version.is_empty());
}

#[tokio::test]
async fn a_list_goes_on_where_it_ended_though_concerts_are_made_meanwhile() {
    let service = Service::start().await;
    let person = organizer();
    let mut request = service.concert_request(&person).await;
    let mut publish_in = async |hours: i64| {
        request.start_time = Some(timestamp(service.clock.now() + TimeDelta::hours(hours)));
        request.title = format!("In {hours} hours");
        let draft = service.create_concert(&person, request.clone()).await.unwrap().into_inner();
        service.publish(&person, &draft.concert_id).await.unwrap();
    };
    for hours in [10, 20, 30] {
        publish_in(hours).await;
    }
    let page = |size, token: &str| ListConcertsRequest {
        page_size: Some(size),
        page_token: token.to_owned(),
        ..Default::default()
    };
    let titles = |response: &ListConcertsResponse| {
        response.concerts.iter().map(|concert| concert.title.clone()).collect::<Vec<_>>()
    };
    let first = service.list(None, page(2, "")).await.unwrap();
    assert_eq!(titles(&first), ["In 10 hours", "In 20 hours"]);
    publish_in(15).await;
    let second = service.list(None, page(2, &first.next_page_token)).await.unwrap();
    assert_eq!(titles(&second), ["In 30 hours"], "none twice, none left out");
    assert_eq!(second.next_page_token, "");

    let token = first.next_page_token;
    let other_filter = ListConcertsRequest { genre: "jazz".into(), ..page(2, &token) };
    assert_refused(service.list(None, other_filter).await, "PAGE_TOKEN_INVALID", &["page_token"]);
    // Postgres has no text with a zero byte.
    let unspeakable = ListConcertsRequest { genre: "\0".to_owned(), ..Default::default() };
    assert_refused(service.list(None, unspeakable).await, "FIELD_INVALID", &["genre"]);
    assert_refused(service.list(None, page(2, "AAAA")).await, "PAGE_TOKEN_INVALID", &["page_token"]);
    for size in [0, -1] {
        assert_refused(service.list(None, page(size, "")).await, "FIELD_INVALID", &["page_size"]);
    }
    let rock = ListConcertsRequest { genre: "rock".into(), ..Default::default() };
    assert_eq!(service.list(None, rock).await.unwrap().concerts.len(), 4);
    let jazz = ListConcertsRequest { genre: "jazz".into(), ..Default::default() };
    assert_eq!(service.list(None, jazz).await.unwrap().concerts, []);
}

#[tokio::test]
async fn no_page_has_more_than_two_hundred() {
    let service = Service::start().await;
    let person = organizer();
    let request = service.concert_request(&person).await;
    for _ in 0..201 {
        service.create_concert(&person, request.clone()).await.unwrap();
    }
    let all = ListConcertsRequest {
        organizer_id: request.organizer_id,
        page_size: Some(1_000_000_000),
        ..Default::default()
    };
    let first = service.list(Some(&person), all.clone()).await.unwrap();
    assert_eq!(first.concerts.len(), 200);
    let rest = ListConcertsRequest { page_token: first.next_page_token, ..all };
    let second = service.list(Some(&person), rest).await.unwrap();
    assert_eq!((second.concerts.len(), second.next_page_token.as_str()), (1, ""));
}

#[tokio::test]
async fn ids_that_are_none_are_refused() {
    let service = Service::start().await;
    let person = organizer();
    for id in ["", "cnc_1", "vnu_01h455vb4pex5vsknk084sn02q", "cnc_01h455vb4pex5vsknk084sn02q'--"] {
        let field = ["concert_id"];
        assert_refused(service.get(None, id).await, "FIELD_INVALID", &field);
        assert_refused(service.publish(&person, id).await, "FIELD_INVALID", &field);
        assert_refused(service.cancel(&person, id, "key").await, "FIELD_INVALID", &field);
        assert_refused(service.sale(id).await, "FIELD_INVALID", &field);
        assert_refused(service.begin_sale(id).await, "FIELD_INVALID", &field);
    }
    let no_time = ReportAvailabilityRequest {
        concert_id: ConcertId::new().to_string(),
        unbooked_places: -1,
        count_time: None,
    };
    let report = service.sales().report_availability(no_time).await;
    assert_refused(report, "FIELD_INVALID", &["count_time", "unbooked_places"]);
}

#[tokio::test]
async fn each_method_is_for_those_it_is_for() {
    let service = Service::start().await;
    let (person, fan) = (organizer(), fan());
    let concert = service.published(&person).await;
    let (concert_id, venue_id) = (concert.concert_id, concert.venue.unwrap().venue_id);

    // Organisers' methods: without a token, and with a fan's.
    let create_venue = service.venues().create_venue(venue_request(&person)).await;
    assert_refused(create_venue, "TOKEN_MISSING", &[]);
    assert_refused(service.create_venue(&fan, venue_request(&person)).await, "ACCESS_DENIED", &[]);
    let get = GetVenueRequest { venue_id };
    assert_refused(service.venues().get_venue(get.clone()).await, "TOKEN_MISSING", &[]);
    assert_refused(service.venues().get_venue(service.by(&fan, get)).await, "ACCESS_DENIED", &[]);
    let create = service.concert_request(&person).await;
    assert_refused(service.concerts().create_concert(create.clone()).await, "TOKEN_MISSING", &[]);
    assert_refused(service.create_concert(&fan, create).await, "ACCESS_DENIED", &[]);
    let publish = PublishConcertRequest { concert_id: concert_id.clone() };
    assert_refused(service.concerts().publish_concert(publish).await, "TOKEN_MISSING", &[]);
    assert_refused(service.publish(&fan, &concert_id).await, "ACCESS_DENIED", &[]);
    let cancel = CancelConcertRequest { concert_id: concert_id.clone(), request_id: "key".into() };
    assert_refused(service.concerts().cancel_concert(cancel).await, "TOKEN_MISSING", &[]);
    assert_refused(service.cancel(&fan, &concert_id, "key").await, "ACCESS_DENIED", &[]);

    // The mesh's own methods: with an organiser's token, but no service's.
    let mut outside = SaleServiceClient::new(service.plain_channel.clone());
    let get = service.by(&person, GetSaleRequest { concert_id: concert_id.clone() });
    assert_refused(outside.get_sale(get).await, "ACCESS_DENIED", &[]);
    let begin = service.by(&person, BeginSaleRequest { concert_id: concert_id.clone() });
    assert_refused(outside.begin_sale(begin).await, "ACCESS_DENIED", &[]);
    let report = service.by(&person, ReportAvailabilityRequest::default());
    assert_refused(outside.report_availability(report).await, "ACCESS_DENIED", &[]);
    let mut forged = Request::new(GetSaleRequest { concert_id: concert_id.clone() });
    forged.metadata_mut().insert("x-service-authorization", "booking".parse().unwrap());
    assert_refused(outside.get_sale(forged).await, "TOKEN_INVALID", &[]);
    service.sale(&concert_id).await.expect("by a service");

    // Everyone's methods: a token is not needed, but a wrong one is refused.
    service.get(None, &concert_id).await.expect("without a token");
    service.get(Some(&fan), &concert_id).await.expect("with a fan's token");
    let mut wrong = Request::new(GetConcertRequest { concert_id });
    wrong.metadata_mut().insert("authorization", "Bearer nonsense".parse().unwrap());
    assert_refused(service.concerts().get_concert(wrong).await, "TOKEN_INVALID", &[]);
}
