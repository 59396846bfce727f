//! The payment service as its callers see it: real gRPC on a free port, through the mesh's own client and server. The
//! user service, which publishes the keys of access tokens, is a fake.

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use boxoffice_proto::{
    common::v1::{ErrorReason as Common, Money},
    payment::v1::{
        CreateTopUpRequest, CreateTopUpResponse, ErrorReason, GetWalletRequest, ListWalletEntriesRequest,
        ListWalletEntriesResponse, PayRequest, Payment, PaymentProvider, PaymentState, RefundRequest,
        TopUpState, VoidRequest, WalletEntryKind, payment_service_client::PaymentServiceClient,
        wallet_service_client::WalletServiceClient,
    },
    policy::Reason,
    user::v1::{
        ListSigningKeysRequest, ListSigningKeysResponse, SigningKey,
        key_service_server::{KeyService, KeyServiceServer},
    },
};
use chrono::{DateTime, TimeDelta};
use clap::Parser;
use jsonwebtoken::EncodingKey;
use mesh::{
    auth::{SERVICE_HEADER, ServiceTokens, User, token},
    client::Channel,
    clock::Clock,
    config::Secret,
    id::{BookingId, ConcertId, RefundId, SessionId, UserId},
    idempotency::REPLAYED,
    shutdown::Shutdown,
};
use mesh_test::sqlite::TestDatabase;
use tokio::{net::TcpListener, task::JoinHandle};
use tonic::{
    Request, Response, Status,
    transport::{
        Endpoint,
        server::{Server, TcpIncoming},
    },
};
use tonic_types::StatusExt;

const SERVICE_KEY: &str = "the-key-that-services-of-this-test-share";
const KEY_ID: &str = "key-1";

/// The service's command line, as its process reads it.
#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    config: svc_payment::Config,
}

/// A running payment service, and a user service that tells it one key.
struct Service {
    url: mesh::client::Address,
    channel: Channel,
    clock: Clock,
    signing_key: EncodingKey,
    shutdown: Shutdown,
    task: JoinHandle<anyhow::Result<()>>,
    _database: TestDatabase,
}

impl Service {
    async fn start() -> Self {
        Self::start_with(&["--psp", "sandbox"]).await
    }

    async fn start_with(arguments: &[&str]) -> Self {
        let database = mesh_test::sqlite::create_database();
        let (signing_key, user_url) = start_user_service().await;
        let fixed = [
            "svc-payment",
            "--database-url",
            database.url(),
            "--service-token-key",
            SERVICE_KEY,
            "--user-url",
            &user_url,
            "--drain-wait",
            "0s",
        ];
        let config = Cli::parse_from(fixed.iter().chain(arguments)).config;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url: mesh::client::Address =
            format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        let clock = Clock::manual(DateTime::from_timestamp(1_800_000_000, 0).unwrap());
        let shutdown = Shutdown::new();
        let task = tokio::spawn(svc_payment::serve(config, listener.into(), clock.clone(), shutdown.clone()));
        let channel = Channel::new("payment", url.clone(), Some(service_tokens()), clock.clone());
        Self { url, channel, clock, signing_key, shutdown, task, _database: database }
    }

    fn payments(&self) -> PaymentServiceClient<Channel> {
        PaymentServiceClient::new(self.channel.clone())
    }

    fn wallets(&self) -> WalletServiceClient<Channel> {
        WalletServiceClient::new(self.channel.clone())
    }

    /// An access token of the fan.
    fn token(&self, fan: UserId) -> String {
        let user = User { id: fan, session: SessionId::new(), organizers: Vec::new(), is_admin: false };
        let now = self.clock.now();
        token::sign(&user, KEY_ID, &self.signing_key, now, now + TimeDelta::minutes(15)).unwrap()
    }

    /// A request that the fan sends.
    fn as_fan<T>(&self, fan: UserId, message: T) -> Request<T> {
        let mut request = Request::new(message);
        let header = format!("Bearer {}", self.token(fan)).parse().unwrap();
        request.metadata_mut().insert("authorization", header);
        request
    }

    async fn top_up(
        &self,
        fan: UserId,
        request: CreateTopUpRequest,
    ) -> Result<Response<CreateTopUpResponse>, Status> {
        self.wallets().create_top_up(self.as_fan(fan, request)).await
    }

    /// A new fan with so much to spend.
    async fn fan_with(&self, balance: i64) -> UserId {
        let fan = UserId::new();
        self.top_up(fan, top_up("first", balance)).await.unwrap();
        fan
    }

    async fn balance(&self, fan: UserId) -> Money {
        let response = self.wallets().get_wallet(self.as_fan(fan, GetWalletRequest {})).await.unwrap();
        response.into_inner().wallet.unwrap().balance.unwrap()
    }

    async fn entries(
        &self,
        fan: UserId,
        page_size: Option<i32>,
        page_token: &str,
    ) -> Result<ListWalletEntriesResponse, Status> {
        let request = ListWalletEntriesRequest { page_size, page_token: page_token.to_owned() };
        self.wallets().list_wallet_entries(self.as_fan(fan, request)).await.map(Response::into_inner)
    }

    async fn pay(&self, request: PayRequest) -> Result<Payment, Status> {
        Ok(self.payments().pay(request).await?.into_inner().payment.unwrap())
    }

    async fn void(&self, booking_id: &str) -> Result<Payment, Status> {
        let request = VoidRequest { booking_id: booking_id.to_owned() };
        Ok(self.payments().void(request).await?.into_inner().payment.unwrap())
    }

    async fn refund(&self, request: RefundRequest) -> Result<Payment, Status> {
        Ok(self.payments().refund(request).await?.into_inner().payment.unwrap())
    }
}

/// A user service that publishes one new key; the key, and where it is.
async fn start_user_service() -> (EncodingKey, String) {
    let document = Ed25519KeyPair::generate_pkcs8(&aws_lc_rs::rand::SystemRandom::new()).unwrap();
    let pair = Ed25519KeyPair::from_pkcs8(document.as_ref()).unwrap();
    let x = BASE64_URL_SAFE_NO_PAD.encode(pair.public_key().as_ref());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let server = Server::builder().add_service(KeyServiceServer::new(FakeUserService { x }));
    tokio::spawn(server.serve_with_incoming(TcpIncoming::from(listener)));
    (EncodingKey::from_ed_der(document.as_ref()), url)
}

struct FakeUserService {
    x: String,
}

#[tonic::async_trait]
impl KeyService for FakeUserService {
    async fn list_signing_keys(
        &self,
        _: Request<ListSigningKeysRequest>,
    ) -> Result<Response<ListSigningKeysResponse>, Status> {
        let keys = vec![SigningKey { kid: KEY_ID.to_owned(), x: self.x.clone() }];
        Ok(Response::new(ListSigningKeysResponse { keys, revoked_session_ids: Vec::new() }))
    }
}

fn service_tokens() -> ServiceTokens {
    ServiceTokens::new("booking", &Secret::parse(SERVICE_KEY).unwrap(), None)
}

fn krw(minor_units: i64) -> Money {
    Money { currency_code: "KRW".to_owned(), minor_units }
}

fn top_up(request_id: &str, amount: i64) -> CreateTopUpRequest {
    CreateTopUpRequest {
        provider: PaymentProvider::Sandbox.into(),
        amount: Some(krw(amount)),
        return_url: String::new(),
        request_id: request_id.to_owned(),
    }
}

/// A charge for a new booking.
fn charge(fan: UserId, amount: i64) -> PayRequest {
    PayRequest {
        booking_id: BookingId::new().to_string(),
        user_id: fan.to_string(),
        concert_id: ConcertId::new().to_string(),
        amount: Some(krw(amount)),
    }
}

fn refund(booking_id: &str, amount: i64) -> RefundRequest {
    RefundRequest {
        booking_id: booking_id.to_owned(),
        refund_id: RefundId::new().to_string(),
        amount: Some(krw(amount)),
    }
}

#[track_caller]
fn assert_refused<T>(outcome: Result<T, Status>, reason: impl Reason) -> Status {
    let expected = reason.info();
    let Err(status) = outcome else { panic!("not refused, but should be: {}", expected.reason) };
    let info = status.get_details_error_info().expect("a reason");
    let found = (info.reason.as_str(), info.domain.as_str(), status.code() as i32);
    assert_eq!(found, (expected.reason, expected.domain, expected.code), "{status}");
    status
}

/// The fields that a status calls wrong.
fn wrong_fields(status: &Status) -> Vec<String> {
    let request = status.get_details_bad_request().expect("wrong fields");
    request.field_violations.into_iter().map(|violation| violation.field).collect()
}

fn metadata(status: &Status, key: &str) -> String {
    status.get_details_error_info().expect("a reason").metadata[key].clone()
}

#[tokio::test]
async fn from_top_up_to_refund() {
    let service = Service::start().await;
    let fan = UserId::new();
    assert_eq!(service.balance(fan).await, krw(0), "a fan who never topped up");
    let topped_up = service.top_up(fan, top_up("one", 1_000)).await.unwrap().into_inner().top_up.unwrap();
    assert_eq!(
        (topped_up.state(), topped_up.amount, topped_up.next_action),
        (TopUpState::Succeeded, Some(krw(1_000)), None)
    );
    assert!(topped_up.top_up_id.starts_with("top_"));

    let pay = charge(fan, 700);
    let expected = Payment {
        booking_id: pay.booking_id.clone(),
        state: PaymentState::Captured.into(),
        amount: Some(krw(700)),
        refunded: Some(krw(0)),
    };
    for _ in 0..2 {
        assert_eq!(service.pay(pay.clone()).await.unwrap(), expected);
        assert_eq!(service.balance(fan).await, krw(300));
    }
    let part = refund(&pay.booking_id, 200);
    for _ in 0..2 {
        let refunded = service.refund(part.clone()).await.unwrap();
        assert_eq!((refunded.state(), refunded.refunded), (PaymentState::Captured, Some(krw(200))));
        assert_eq!(service.balance(fan).await, krw(500));
    }
    for _ in 0..2 {
        let voided = service.void(&pay.booking_id).await.unwrap();
        assert_eq!((voided.state(), voided.refunded), (PaymentState::Voided, Some(krw(700))));
        assert_eq!(service.balance(fan).await, krw(1_000));
    }

    let entries = service.entries(fan, None, "").await.unwrap().entries;
    let seen: Vec<_> = entries
        .iter()
        .map(|entry| (entry.kind(), entry.amount.as_ref().unwrap().minor_units, entry.booking_id.as_str()))
        .collect();
    let booking = pay.booking_id.as_str();
    let moved = [
        (WalletEntryKind::Refund, 500, booking),
        (WalletEntryKind::Refund, 200, booking),
        (WalletEntryKind::Payment, -700, booking),
        (WalletEntryKind::TopUp, 1_000, ""),
    ];
    assert_eq!(seen, moved);
    assert!(entries.iter().all(|entry| entry.entry_id.starts_with("ent_")));
    assert_eq!(entries[3].create_time, topped_up.create_time);
}

#[tokio::test]
async fn a_payment_is_refused_for_what_is_wrong_with_it() {
    let service = Service::start().await;
    let fan = service.fan_with(1_000).await;
    let dear = charge(fan, 1_001);
    assert_refused(service.pay(dear.clone()).await, ErrorReason::InsufficientBalance);
    service.top_up(fan, top_up("more", 1)).await.unwrap();
    service.pay(dear.clone()).await.expect("it can be paid after topping up");
    let cheaper = PayRequest { amount: Some(krw(1_000)), ..dear.clone() };
    assert_refused(service.pay(cheaper).await, ErrorReason::PaymentConflict);

    let unknown = BookingId::new().to_string();
    assert_refused(service.refund(refund(&unknown, 1)).await, ErrorReason::PaymentNotFound);
    service.refund(refund(&dear.booking_id, 1)).await.unwrap();
    let status = assert_refused(
        service.refund(refund(&dear.booking_id, 1_001)).await,
        ErrorReason::RefundExceedsPayment,
    );
    assert_eq!(metadata(&status, "refundable_minor_units"), "1000");

    assert_eq!(service.void(&unknown).await.unwrap().amount, Some(krw(0)));
    let late = PayRequest { booking_id: unknown, ..charge(fan, 1) };
    assert_refused(service.pay(late).await, ErrorReason::PaymentVoided);
    assert_eq!(service.balance(fan).await, krw(1));
}

#[tokio::test]
async fn wrong_fields_are_named_and_nothing_changes() {
    let service = Service::start().await;
    let fan = service.fan_with(1_000).await;
    let status = assert_refused(service.pay(PayRequest::default()).await, Common::FieldInvalid);
    assert_eq!(wrong_fields(&status), ["booking_id", "user_id", "concert_id", "amount"]);
    let negative = PayRequest { amount: Some(krw(-1)), ..charge(fan, 0) };
    let status = assert_refused(service.pay(negative).await, Common::FieldInvalid);
    assert_eq!(wrong_fields(&status), ["amount.minor_units"]);
    let swapped = PayRequest { user_id: ConcertId::new().to_string(), ..charge(fan, 1) };
    let status = assert_refused(service.pay(swapped).await, Common::FieldInvalid);
    assert_eq!(wrong_fields(&status), ["user_id"]);
    let dollars = Money { currency_code: "USD".to_owned(), minor_units: 1 };
    let foreign = PayRequest { amount: Some(dollars.clone()), ..charge(fan, 1) };
    let status = assert_refused(service.pay(foreign).await, Common::CurrencyUnsupported);
    assert_eq!(
        (wrong_fields(&status), metadata(&status, "currency")),
        (vec!["amount.currency_code".to_owned()], "KRW".to_owned())
    );
    let status = assert_refused(service.void("bkg_x").await, Common::FieldInvalid);
    assert_eq!(wrong_fields(&status), ["booking_id"]);
    let status = assert_refused(service.refund(refund("", 0)).await, Common::FieldInvalid);
    assert_eq!(wrong_fields(&status), ["booking_id", "amount.minor_units"]);

    for amount in [0, -1, 100_000_001, i64::MIN, i64::MAX] {
        let status = assert_refused(service.top_up(fan, top_up("a", amount)).await, Common::FieldInvalid);
        assert_eq!(wrong_fields(&status), ["amount.minor_units"], "{amount}");
    }
    let foreign = CreateTopUpRequest { amount: Some(dollars), ..top_up("a", 1) };
    assert_refused(service.top_up(fan, foreign).await, Common::CurrencyUnsupported);
    for provider in [0, 77] {
        let request = CreateTopUpRequest { provider, ..top_up("a", 1) };
        let status = assert_refused(service.top_up(fan, request).await, Common::FieldInvalid);
        assert_eq!(wrong_fields(&status), ["provider"], "{provider}");
    }
    assert_refused(service.entries(fan, Some(0), "").await, Common::FieldInvalid);
    assert_refused(service.entries(fan, None, "nonsense").await, Common::PageTokenInvalid);

    assert_eq!(service.balance(fan).await, krw(1_000));
    assert_eq!(service.entries(fan, None, "").await.unwrap().entries.len(), 1);
}

#[tokio::test]
async fn a_top_up_is_made_once() {
    let service = Service::start().await;
    let (fan, other) = (UserId::new(), UserId::new());
    let first = service.top_up(fan, top_up("key", 500)).await.unwrap();
    assert!(!first.metadata().contains_key(REPLAYED));
    let again = service.top_up(fan, top_up("key", 500)).await.unwrap();
    assert!(again.metadata().contains_key(REPLAYED));
    assert_eq!(again.into_inner(), first.into_inner());
    assert_refused(service.top_up(fan, top_up("key", 501)).await, Common::IdempotencyKeyReused);
    // The mesh's channel would put a key in.
    let plain_channel = Endpoint::from_shared(service.url.to_string()).unwrap().connect_lazy();
    let mut wallets = WalletServiceClient::new(plain_channel);
    let without_key = wallets.create_top_up(service.as_fan(fan, top_up("", 500))).await;
    assert_refused(without_key, Common::IdempotencyKeyMissing);
    assert_refused(service.top_up(fan, top_up(&"k".repeat(256), 500)).await, Common::FieldInvalid);
    service.top_up(other, top_up("key", 500)).await.expect("another fan's key is another key");
    assert_eq!((service.balance(fan).await, service.balance(other).await), (krw(500), krw(500)));
}

#[tokio::test]
async fn a_refused_top_up_leaves_its_key_free() {
    let service = Service::start().await;
    let fan = UserId::new();
    for part in 0..10 {
        service.top_up(fan, top_up(&format!("part-{part}"), 100_000_000)).await.unwrap();
    }
    let status =
        assert_refused(service.top_up(fan, top_up("over", 1)).await, ErrorReason::WalletLimitExceeded);
    assert_eq!(metadata(&status, "limit_minor_units"), "1000000000");
    service.pay(charge(fan, 1)).await.unwrap();
    let response = service.top_up(fan, top_up("over", 1)).await.unwrap();
    assert!(!response.metadata().contains_key(REPLAYED));
    assert_eq!(service.balance(fan).await, krw(1_000_000_000));
}

#[tokio::test]
async fn without_a_provider_nobody_can_top_up() {
    let service = Service::start_with(&[]).await;
    let fan = UserId::new();
    let status =
        assert_refused(service.top_up(fan, top_up("key", 1)).await, ErrorReason::ProviderUnsupported);
    assert_eq!(wrong_fields(&status), ["provider"]);
    assert_eq!(service.balance(fan).await, krw(0));
}

#[tokio::test]
async fn the_currency_is_the_installation_s() {
    let service = Service::start_with(&["--psp", "sandbox", "--currency", "EUR"]).await;
    let fan = UserId::new();
    assert_refused(service.top_up(fan, top_up("won", 1)).await, Common::CurrencyUnsupported);
    let euros = Money { currency_code: "EUR".to_owned(), minor_units: 250 };
    let request = CreateTopUpRequest { amount: Some(euros.clone()), ..top_up("euros", 0) };
    service.top_up(fan, request).await.unwrap();
    assert_eq!(service.balance(fan).await, euros);
}

#[tokio::test]
async fn wallet_entries_come_in_pages_that_are_their_fan_s_own() {
    let service = Service::start().await;
    let (fan, other) = (service.fan_with(1).await, service.fan_with(9).await);
    for amount in 2..=5 {
        service.top_up(fan, top_up(&format!("top-up-{amount}"), amount)).await.unwrap();
    }
    let mut amounts = Vec::new();
    let mut token = String::new();
    loop {
        let page = service.entries(fan, Some(2), &token).await.unwrap();
        assert!((1..=2).contains(&page.entries.len()));
        amounts.extend(page.entries.iter().map(|entry| entry.amount.as_ref().unwrap().minor_units));
        if page.next_page_token.is_empty() {
            break;
        }
        token = page.next_page_token;
    }
    assert_eq!(amounts, [5, 4, 3, 2, 1]);
    assert_refused(service.entries(other, Some(2), &token).await, Common::PageTokenInvalid);
    let all = service.entries(other, Some(1_000_000_000), "").await.unwrap();
    assert_eq!((all.entries.len(), all.next_page_token.as_str()), (1, ""));
}

#[tokio::test]
async fn payments_are_for_services_only() {
    let service = Service::start().await;
    let fan = service.fan_with(100).await;
    let (pay, booking_id) = (charge(fan, 1), BookingId::new().to_string());
    // A transport that adds no service token.
    let plain = tonic::transport::Endpoint::try_from(service.url.to_string()).unwrap().connect_lazy();
    let mut client = PaymentServiceClient::new(plain);
    assert_refused(client.pay(pay.clone()).await, Common::TokenMissing);
    assert_refused(client.void(VoidRequest { booking_id: booking_id.clone() }).await, Common::TokenMissing);
    assert_refused(client.refund(refund(&booking_id, 1)).await, Common::TokenMissing);
    // A fan's token is not enough.
    assert_refused(client.pay(service.as_fan(fan, pay.clone())).await, Common::AccessDenied);
    // Nor is one that was not signed by a service, or that is for another.
    let foreign = service_tokens().header("booking", service.clock.now());
    for token in ["nonsense", foreign.to_str().unwrap()] {
        let mut request = Request::new(pay.clone());
        request.metadata_mut().insert(SERVICE_HEADER, token.parse().unwrap());
        assert_refused(client.pay(request).await, Common::TokenInvalid);
    }
    assert_eq!(service.balance(fan).await, krw(100));
    service.pay(pay).await.expect("a service may");
    service.void(&booking_id).await.expect("a service may");
}

#[tokio::test]
async fn wallets_are_for_fans_only() {
    let service = Service::start().await;
    let fan = service.fan_with(100).await;
    let mut wallets = service.wallets();
    // The channel adds a service token only where it is asked for; here it is put in by hand.
    let as_service = || {
        let mut request = Request::new(GetWalletRequest {});
        let token = service_tokens().header("payment", service.clock.now());
        request.metadata_mut().insert(SERVICE_HEADER, token.to_str().unwrap().parse().unwrap());
        request
    };
    assert_refused(wallets.get_wallet(as_service()).await, Common::TokenMissing);
    assert_refused(
        wallets.list_wallet_entries(ListWalletEntriesRequest::default()).await,
        Common::TokenMissing,
    );
    assert_refused(wallets.create_top_up(top_up("key", 1)).await, Common::TokenMissing);
    let late = service.as_fan(fan, GetWalletRequest {});
    service.clock.advance(TimeDelta::minutes(17));
    assert_refused(wallets.get_wallet(late).await, Common::TokenExpired);
    assert_eq!(service.balance(fan).await, krw(100));
}

#[tokio::test]
async fn draining_ends_the_service() {
    let service = Service::start().await;
    service.pay(charge(UserId::new(), 0)).await.unwrap();
    service.shutdown.begin();
    service.task.await.unwrap().unwrap();
}
