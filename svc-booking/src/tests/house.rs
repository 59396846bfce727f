//! A booking service between a concert service and a payment service that are fakes, all reached through the mesh.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use boxoffice_proto::{
    booking::v1::CreateBookingRequest, concert::v1::sale_service_server::SaleServiceServer,
    payment::v1::payment_service_server::PaymentServiceServer,
};
use chrono::TimeDelta;
use mesh::{
    Failure,
    auth::{Authenticator, Keys, ServiceTokens},
    client::Channel,
    clock::Clock,
    config::Secret,
    database::{Database, sql},
    id::{BookingId, ConcertId, HoldId, Id, UserId},
    idempotency,
    money::Currency,
    page::Page,
    server::{self, Options},
    shutdown::Shutdown,
};
use mesh_test::FaultProxy;
use sea_orm::{ConnectionTrait, DatabaseTransaction};
use tokio::net::TcpListener;
use tonic::{service::Routes, transport::server::TcpIncoming};

use super::{concert::FakeConcert, payment::FakePayment};
use crate::{
    MIGRATIONS, Shared,
    catalog::Catalog,
    checkout::{Order, Outcome},
    clients::Neighbours,
    domain::{
        booking::{Booking, State},
        hold::{self, Hold},
        sale::Sale,
    },
    error::Error,
    holds::{Granted, Holds, Wish},
    seats::Views,
    store::{LEASE, NewBooking, Store},
    worker::Recovery,
};

/// How long to wait for what should happen at once.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
/// How long seats are held.
pub(crate) const HOLD_TTL: TimeDelta = TimeDelta::minutes(10);

/// The booking service and all it stands among.
pub(crate) struct House {
    pub(crate) shared: Shared,
    pub(crate) clock: Clock,
    pub(crate) concert_service: FakeConcert,
    pub(crate) payment: FakePayment,
    /// Stands between booking and payment.
    pub(crate) payment_line: FaultProxy,
    /// A concert that is on sale.
    pub(crate) concert: ConcertId,
    pub(crate) service_key: Secret,
    concert_address: SocketAddr,
    /// To look into the database that `shared` uses.
    database: Database,
    database_file: mesh_test::sqlite::TestDatabase,
}

impl House {
    pub(crate) async fn open() -> Self {
        // Ahead of the machine's, as the database's clock may be.
        let clock = Clock::manual(Clock::system().now() + TimeDelta::hours(1));
        let service_key = Secret::random();
        let (concert_service, payment) = (FakeConcert::default(), FakePayment::new());
        let concert_routes = Routes::new(SaleServiceServer::new(concert_service.clone()));
        let concert_address = serve("concert", concert_routes, Keys::new(), &service_key, &clock).await;
        let payment_routes = Routes::new(PaymentServiceServer::new(payment.clone()));
        let payment_address = serve("payment", payment_routes, Keys::new(), &service_key, &clock).await;
        let payment_line = FaultProxy::start(payment_address).await;
        let (open_time, close_time) = (clock.now(), clock.now() + TimeDelta::days(1));
        let concert = concert_service.put_on_sale(open_time, close_time);
        let database_file = mesh_test::sqlite::create_database();
        let neighbours = neighbours(&service_key, &clock, concert_address, payment_line.address());
        let database = open_database(database_file.url()).await;
        let shared = process(database.clone(), neighbours, &clock);
        Self {
            shared,
            clock,
            concert_service,
            payment,
            payment_line,
            concert,
            service_key,
            concert_address,
            database,
            database_file,
        }
    }

    /// Another process on the same database, with nothing in its memory.
    pub(crate) async fn second_process(&self) -> Shared {
        let database = open_database(self.database_file.url()).await;
        process(database, self.neighbours(self.payment_line.address()), &self.clock)
    }

    /// What is left of the service when its process dies and a new one starts: its database.
    pub(crate) async fn restart(&mut self) {
        self.shared = self.second_process().await;
    }

    /// The service with a payment service that nobody answers for: its port is closed.
    pub(crate) async fn without_payment(&self) -> Shared {
        let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        Shared { neighbours: self.neighbours(closed), ..self.shared.clone() }
    }

    fn neighbours(&self, payment: SocketAddr) -> Neighbours {
        neighbours(&self.service_key, &self.clock, self.concert_address, payment)
    }

    /// A new fan with so much to spend.
    pub(crate) fn fan_with(&self, balance: i64) -> UserId {
        let fan = UserId::new();
        self.payment.top_up(fan, balance);
        fan
    }

    pub(crate) async fn sale(&self) -> Arc<Sale> {
        self.shared.catalog.find(self.concert).await.unwrap()
    }

    /// Asks a process to hold seats.
    pub(crate) async fn ask_for(&self, process: &Shared, fan: UserId, seat_ids: &[&str]) -> Granted {
        self.try_to_hold(process, fan, seat_ids).await.unwrap()
    }

    /// Asks a process, which may have no holds, to hold seats.
    pub(crate) async fn try_to_hold(
        &self,
        process: &Shared,
        fan: UserId,
        seat_ids: &[&str],
    ) -> Result<Granted, Error> {
        let sale = self.sale().await;
        let create_time = self.clock.now();
        let hold = Hold {
            id: hold::new_id(fan, self.concert),
            concert: self.concert,
            fan,
            seats: seat_ids.iter().map(|seat_id| sale.layout.ordinal(seat_id).unwrap()).collect(),
            is_adjacent: true,
            create_time,
            expire_time: create_time + HOLD_TTL,
        };
        let request_key = hold.id.to_string();
        let wish = Wish { hold, limit: sale.max_seats_per_fan, request_key, fingerprint: [0; 32] };
        process.grant(&sale, wish).await
    }

    /// Holds seats that are free.
    pub(crate) async fn hold(&self, fan: UserId, seat_ids: &[&str]) -> Hold {
        self.hold_in(&self.shared, fan, seat_ids).await
    }

    /// Holds seats that a process thinks are free.
    pub(crate) async fn hold_in(&self, process: &Shared, fan: UserId, seat_ids: &[&str]) -> Hold {
        match self.ask_for(process, fan, seat_ids).await {
            Granted::Held(hold) => hold,
            other => panic!("{seat_ids:?} should be free: {other:?}"),
        }
    }

    /// The hold as it is now.
    pub(crate) async fn find_hold(&self, hold: HoldId) -> Option<Hold> {
        self.shared.holds.find(hold).await.unwrap()
    }

    pub(crate) async fn book(&self, fan: UserId, hold: HoldId, key: &str) -> Result<Outcome, Error> {
        self.shared.book(order(fan, hold, key)).await
    }

    pub(crate) async fn cancel(&self, fan: UserId, booking: BookingId, key: &str) -> Result<Outcome, Error> {
        self.shared.cancel(fan, booking, key.to_owned()).await
    }

    /// Books a hold; its outcome must be a booking.
    pub(crate) async fn booked(&self, fan: UserId, hold: HoldId, key: &str) -> Booking {
        self.book(fan, hold, key).await.unwrap().booking
    }

    /// A booking with its seats claimed, as it is before anything is charged, and how it is claimed again.
    pub(crate) async fn claimed(&self, fan: UserId, seat_ids: &[&str], key: &str) -> NewBooking {
        let hold = self.hold(fan, seat_ids).await;
        let new = NewBooking {
            booking: crate::checkout::new_booking(&hold, &*self.sale().await, self.clock.now()),
            request_key: key.to_owned(),
            fingerprint: order(fan, hold.id, key).fingerprint,
            seat_limit: self.sale().await.max_seats_per_fan,
        };
        self.shared.store.claim(new.clone()).await.unwrap().unwrap();
        new
    }

    /// A fan's booking as the database has it.
    pub(crate) async fn stored(&self, booking: &Booking) -> Booking {
        self.shared.store.find_own(booking.fan, booking.id).await.unwrap()
    }

    /// What a worker does once the leases of all bookings have run out.
    pub(crate) async fn sweep_after_the_lease(&self) {
        self.clock.advance(LEASE + TimeDelta::seconds(1));
        Recovery::default().sweep(&self.shared).await.unwrap();
    }

    /// All traces that a fan's bookings leave.
    pub(crate) async fn traces(&self, fan: UserId) -> Traces {
        let store = &self.shared.store;
        let places = self.sale().await.layout.places();
        let sold = store.find_sold(self.concert, places).await.unwrap();
        let mut claims = sold.seats;
        claims.sort_unstable();
        let mut found = store.list_own(fan, None, &Page::read(None, "", &[]).unwrap()).await.unwrap();
        found.reverse();
        Traces {
            bookings: found.iter().map(|booking| booking.state).collect(),
            claims,
            fan_seats: sold.fans.iter().find(|(known, _)| *known == fan).map_or(0, |(_, seats)| *seats),
            letters: self.letters().await,
            balance: self.payment.balance(fan),
        }
    }

    /// A letter a place, as everyone sees them: A, H or S.
    pub(crate) async fn letters(&self) -> String {
        let snapshot = self.shared.snapshot(&*self.sale().await).await.unwrap();
        snapshot.states.iter().map(|state| *state as u8 as char).collect()
    }

    /// Has the house's only file written to by someone else, until it is dropped.
    pub(crate) async fn other_writer(&self) -> DatabaseTransaction {
        self.database.begin().await.unwrap()
    }

    /// Writes that a fan has bought a seat of a concert, and nothing else of it.
    pub(crate) async fn count_as_sold(&self, concert: ConcertId) {
        let text = "INSERT INTO fan_seats (concert, fan, seats, seat_limit) VALUES ($1, $2, 1, 1)";
        let values = [concert.uuid().into(), UserId::new().uuid().into()];
        self.database.writer().execute_raw(sql(self.database.writer(), text, values)).await.unwrap();
    }

    /// How many rows a table has.
    pub(crate) async fn count_rows(&self, table: &str) -> i64 {
        let reader = self.database.reader();
        let statement = sql(reader, format!("SELECT COUNT(*) AS count FROM {table}"), []);
        let row = reader.query_one_raw(statement).await.unwrap().unwrap();
        row.try_get("", "count").unwrap()
    }
}

/// All traces that a fan's bookings leave, wherever they are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Traces {
    /// The oldest first.
    pub(crate) bookings: Vec<State>,
    /// The places of the concert that are claimed, by anyone.
    pub(crate) claims: Vec<u32>,
    /// Seats that the fan is counted to have.
    pub(crate) fan_seats: u32,
    pub(crate) letters: String,
    pub(crate) balance: i64,
}

/// A fan's order as the gRPC adapter makes it.
pub(crate) fn order(fan: UserId, hold: HoldId, key: &str) -> Order {
    let request = CreateBookingRequest { hold_id: hold.to_string(), ..CreateBookingRequest::default() };
    Order { fan, hold, request_key: key.to_owned(), fingerprint: idempotency::fingerprint(&request) }
}

/// The reason of a refusal, such as `SEAT_TAKEN`.
pub(crate) fn reason<T>(outcome: Result<T, Error>) -> &'static str {
    match outcome {
        Ok(_) => "none",
        Err(error) => Failure::from(error).info().reason,
    }
}

/// Serves a part of the mesh on a free port.
pub(crate) async fn serve(
    name: &'static str,
    routes: Routes,
    keys: Keys,
    service_key: &Secret,
    clock: &Clock,
) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let authenticator = Authenticator::new(keys, ServiceTokens::new(name, service_key, None), clock.clone());
    let incoming = TcpIncoming::from(listener);
    tokio::spawn(server::serve(Options::new(name), routes, authenticator, incoming, Shutdown::new()));
    address
}

fn neighbours(service_key: &Secret, clock: &Clock, concert: SocketAddr, payment: SocketAddr) -> Neighbours {
    let tokens = ServiceTokens::new("booking", service_key, None);
    let channel = |name, address: SocketAddr| {
        let uri = format!("http://{address}").parse().unwrap();
        Channel::new(name, uri, Some(tokens.clone()), clock.clone())
    };
    Neighbours::new(channel("concert", concert), channel("payment", payment), Currency::KRW)
}

fn process(database: Database, neighbours: Neighbours, clock: &Clock) -> Shared {
    Shared {
        store: Store::new(database),
        holds: Arc::new(Holds::memory(clock.clone())),
        catalog: Arc::new(Catalog::new(neighbours.clone())),
        neighbours,
        views: Arc::new(Views::default()),
        clock: clock.clone(),
        currency: Currency::KRW,
        hold_ttl: HOLD_TTL.to_std().unwrap(),
    }
}

async fn open_database(url: &str) -> Database {
    let database = Database::open(&url.parse().unwrap(), 1).await.unwrap();
    database.migrate(MIGRATIONS).await.unwrap();
    database
}
