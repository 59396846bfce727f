//! The user service as its callers see it: real gRPC on a free port, through the mesh's own client and server.

use std::{collections::BTreeSet, time::Duration};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use boxoffice_proto::{
    common::v1::ErrorReason as Common,
    policy::Reason,
    user::v1::{
        CreateOrganizerRequest, CreateOrganizerResponse, CreateSessionRequest, CreateSessionResponse,
        CreateUserRequest, CreateUserResponse, DeleteCurrentSessionRequest, ErrorReason, GetMeRequest,
        ListSigningKeysRequest, ListSigningKeysResponse, RefreshSessionRequest, RefreshSessionResponse, User,
        key_service_client::KeyServiceClient, organizer_service_client::OrganizerServiceClient,
        session_service_client::SessionServiceClient, user_service_client::UserServiceClient,
    },
};
use chrono::{DateTime, TimeDelta};
use clap::Parser;
use futures_util::future::join_all;
use mesh::{
    auth::ServiceTokens, client::Channel, clock::Clock, config::Secret, idempotency::REPLAYED,
    shutdown::Shutdown,
};
use prost::Message;
use tokio::{net::TcpListener, task::JoinHandle};
use tonic::{Code, Request, Response, Status};
use tonic_types::pb;

const PASSWORD: &str = "lights down, band up";
const SERVICE_KEY: &str = "the-key-that-services-of-this-test-share";
const ENCRYPTION_KEY: &str = "the-key-that-signing-keys-are-kept-under";
/// Longer than anything here may take, and than a key or a revocation may stay unknown.
const PATIENCE: Duration = Duration::from_secs(20);

/// The service's command line, as its process reads it.
#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    config: svc_user::Config,
}

/// A running user service.
struct Service {
    clock: Clock,
    channel: Channel,
    uri: mesh::client::Address,
    shutdown: Shutdown,
    task: JoinHandle<anyhow::Result<()>>,
}

impl Service {
    async fn start(database_url: &str) -> Self {
        let clock = Clock::manual(DateTime::from_timestamp(1_800_000_000, 500_000_000).unwrap());
        Self::start_with(database_url, clock, ENCRYPTION_KEY).await
    }

    async fn start_with(database_url: &str, clock: Clock, encryption_key: &str) -> Self {
        let arguments = [
            "svc-user",
            "--database-url",
            database_url,
            "--service-token-key",
            SERVICE_KEY,
            "--key-encryption-key",
            encryption_key,
            "--key-rotation-period",
            "1d",
            "--drain-wait",
            "0s",
        ];
        let config = Cli::parse_from(arguments).config;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let uri: mesh::client::Address =
            format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        let shutdown = Shutdown::new();
        let task = tokio::spawn(svc_user::serve(config, listener.into(), clock.clone(), shutdown.clone()));
        let channel = Channel::new("user", uri.clone(), Some(service_tokens("gateway")), clock.clone());
        Self { clock, channel, uri, shutdown, task }
    }

    /// Drains the service; what it answered.
    async fn stop(self) -> anyhow::Result<()> {
        self.shutdown.begin();
        self.task.await.unwrap()
    }

    fn users(&self) -> UserServiceClient<Channel> {
        UserServiceClient::new(self.channel.clone())
    }

    fn sessions(&self) -> SessionServiceClient<Channel> {
        SessionServiceClient::new(self.channel.clone())
    }

    fn organizers(&self) -> OrganizerServiceClient<Channel> {
        OrganizerServiceClient::new(self.channel.clone())
    }

    fn keys(&self) -> KeyServiceClient<Channel> {
        KeyServiceClient::new(self.channel.clone())
    }

    async fn sign_up(&self, email: &str, password: &str) -> Result<CreateUserResponse, Status> {
        let (email, password, display_name) = (email.into(), password.into(), "Fan".into());
        let request = CreateUserRequest { email, password, display_name };
        self.users().create_user(request).await.map(Response::into_inner)
    }

    async fn log_in(&self, email: &str, password: &str) -> Result<CreateSessionResponse, Status> {
        let request = CreateSessionRequest { email: email.into(), password: password.into() };
        self.sessions().create_session(request).await.map(Response::into_inner)
    }

    /// A session of a new user.
    async fn fan(&self, email: &str) -> CreateSessionResponse {
        self.sign_up(email, PASSWORD).await.unwrap();
        self.log_in(email, PASSWORD).await.unwrap()
    }

    async fn me(&self, token: &str) -> Result<User, Status> {
        let response = self.users().get_me(with_token(token, GetMeRequest {})).await?;
        Ok(response.into_inner().user.expect("a user"))
    }

    async fn refresh(&self, token: &str, key: &str) -> Result<Response<RefreshSessionResponse>, Status> {
        let request = RefreshSessionRequest { refresh_token: token.into(), request_id: key.into() };
        self.sessions().refresh_session(request).await
    }

    async fn create_organizer(
        &self,
        token: &str,
        name: &str,
        key: &str,
    ) -> Result<Response<CreateOrganizerResponse>, Status> {
        let request = CreateOrganizerRequest { display_name: name.into(), request_id: key.into() };
        self.organizers().create_organizer(with_token(token, request)).await
    }

    async fn log_out(&self, token: &str) -> Result<(), Status> {
        let request = with_token(token, DeleteCurrentSessionRequest {});
        self.sessions().delete_current_session(request).await.map(|_| ())
    }

    async fn published(&self) -> ListSigningKeysResponse {
        self.keys().list_signing_keys(ListSigningKeysRequest {}).await.unwrap().into_inner()
    }

    async fn kids(&self) -> Vec<String> {
        self.published().await.keys.into_iter().map(|key| key.kid).collect()
    }

    /// Waits until the worker has published so many keys.
    async fn wait_for_keys(&self, count: usize) -> Vec<String> {
        mesh_test::wait_until("the keys to change", PATIENCE, async || {
            let kids = self.kids().await;
            if kids.len() == count { Ok(kids) } else { Err(format!("{kids:?}")) }
        })
        .await
    }
}

fn service_tokens(name: &'static str) -> ServiceTokens {
    ServiceTokens::new(name, &Secret::parse(SERVICE_KEY).unwrap(), None)
}

fn with_token<T>(token: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    request
}

/// What a status says, but for the trace id, which is never the same.
#[derive(Debug, PartialEq)]
struct Refusal {
    code: Code,
    message: String,
    reason: String,
    metadata: Vec<(String, String)>,
    fields: Vec<(String, String)>,
    retry_after: Option<i64>,
}

fn refusal(status: &Status) -> Refusal {
    let details = pb::Status::decode(status.details()).expect("details").details;
    let of_type = |name: &str| {
        let mut found = details.iter().filter(|detail| detail.type_url.ends_with(name));
        let first = found.next().map(|detail| detail.value.clone());
        assert!(found.next().is_none(), "{name} twice");
        first
    };
    let info = pb::ErrorInfo::decode(&*of_type("/google.rpc.ErrorInfo").expect("one reason")).unwrap();
    let mut metadata: Vec<_> = info.metadata.into_iter().collect();
    metadata.sort();
    let bad_request = of_type("/google.rpc.BadRequest").unwrap_or_default();
    let violations = pb::BadRequest::decode(&*bad_request).unwrap().field_violations;
    let retry = of_type("/google.rpc.RetryInfo").map(|bytes| pb::RetryInfo::decode(&*bytes).unwrap());
    Refusal {
        code: status.code(),
        message: status.message().to_owned(),
        reason: info.reason,
        metadata,
        fields: violations.into_iter().map(|violation| (violation.field, violation.reason)).collect(),
        retry_after: retry.map(|retry| retry.retry_delay.unwrap().seconds),
    }
}

#[track_caller]
fn assert_refused<T>(outcome: Result<T, Status>, reason: impl Reason) -> Refusal {
    let Err(status) = outcome else { panic!("not refused, but should be: {}", reason.info().reason) };
    let found = refusal(&status);
    assert_eq!((found.reason.as_str(), found.code as i32), (reason.info().reason, reason.info().code));
    found
}

/// What stands in an access token.
fn claims(token: &str) -> serde_json::Value {
    part(token, 1)
}

/// The header (0) or the claims (1) of a token.
fn part(token: &str, index: usize) -> serde_json::Value {
    let part = token.split('.').nth(index).expect("three parts");
    serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap()
}

/// Makes a test on SQLite and one on Postgres of each function that takes the URL of an empty database.
macro_rules! on_both_databases {
    ($($name:ident),* $(,)?) => {
        mod sqlite {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $name() {
                    let database = mesh_test::sqlite::create_database();
                    super::$name(database.url()).await;
                }
            )*
        }

        mod postgres {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                #[ignore = "needs Postgres: scripts/test runs it"]
                async fn $name() {
                    let database = mesh_test::postgres::create_database().await;
                    super::$name(database.url()).await;
                }
            )*
        }
    };
}

on_both_databases! {
    from_sign_up_to_log_out,
    a_used_refresh_token,
    of_50_refreshes_at_once_one_wins,
    logging_out_ends_the_session_everywhere,
    known_and_unknown_e_mails_look_the_same,
    wrong_fields_are_named_and_nothing_changes,
    guessing_a_password_is_slowed_down,
    each_method_is_for_those_it_is_for,
    an_organizer_is_made_once,
    a_user_has_20_organizers_at_the_most,
    a_key_rotation_logs_nobody_out,
    a_restart_logs_nobody_out,
}

async fn from_sign_up_to_log_out(database_url: &str) {
    let service = Service::start(database_url).await;
    let signed_up = service.sign_up(" Fan@Example.com ", PASSWORD).await.unwrap();
    assert!(!signed_up.verification_required);
    let session = service.log_in("FAN@example.com", PASSWORD).await.unwrap();
    assert!(session.session_id.starts_with("ses_"));
    assert_eq!(session.expire_time.unwrap().seconds, 1_800_000_900, "15 min");
    assert_eq!(session.refresh_expire_time.unwrap().seconds, 1_800_000_000 + 30 * 86_400);
    assert_eq!(claims(&session.access_token)["exp"], 1_800_000_900);

    let me = service.me(&session.access_token).await.unwrap();
    assert!(me.user_id.starts_with("usr_"));
    assert_eq!((me.email.as_str(), me.display_name.as_str()), ("fan@example.com", "Fan"));
    assert_eq!(
        (me.create_time.unwrap().seconds, me.create_time.unwrap().nanos),
        (1_800_000_000, 500_000_000)
    );
    assert!(me.organizers.is_empty());

    service.clock.advance(TimeDelta::seconds(1));
    let made = service.create_organizer(&session.access_token, " Live ", "").await.unwrap().into_inner();
    let organizer = made.organizer.unwrap();
    assert!(organizer.organizer_id.starts_with("org_"));
    assert_eq!(
        (organizer.display_name.as_str(), organizer.create_time.unwrap().seconds),
        ("Live", 1_800_000_001)
    );
    assert_eq!(made.expire_time.unwrap().seconds, 1_800_000_901);
    let (old, new) = (claims(&session.access_token), claims(&made.access_token));
    assert_eq!(old.get("org"), None);
    assert_eq!(new["org"], serde_json::json!([organizer.organizer_id]));
    assert_eq!((&new["sub"], &new["sid"]), (&old["sub"], &old["sid"]), "the same user and session");
    assert_eq!(service.me(&made.access_token).await.unwrap().organizers, std::slice::from_ref(&organizer));

    let refreshed = service.refresh(&session.refresh_token, "").await.unwrap().into_inner();
    assert_eq!(refreshed.session_id, session.session_id);
    assert_ne!(refreshed.refresh_token, session.refresh_token);
    assert_eq!(claims(&refreshed.access_token)["org"], serde_json::json!([organizer.organizer_id]));
    service.log_out(&refreshed.access_token).await.unwrap();
    assert_refused(service.me(&refreshed.access_token).await, Common::TokenInvalid);
    service.stop().await.unwrap();
}

async fn a_used_refresh_token(database_url: &str) {
    let service = Service::start(database_url).await;
    let first = service.fan("fan@example.com").await;
    let answer = service.refresh(&first.refresh_token, "key-1").await.unwrap();
    assert!(answer.metadata().get(REPLAYED).is_none());
    let second = answer.into_inner();

    // What happens in between must not change the answer that is given again.
    service.clock.advance(TimeDelta::seconds(5));
    service.create_organizer(&second.access_token, "Live", "").await.unwrap();
    service.clock.advance(TimeDelta::seconds(5));
    let answer = service.refresh(&first.refresh_token, "key-1").await.unwrap();
    assert_eq!(answer.metadata().get(REPLAYED).unwrap(), "true");
    assert_eq!(answer.into_inner(), second, "the same pair, byte by byte");
    for key in ["key-2", ""] {
        assert_refused(service.refresh(&first.refresh_token, key).await, ErrorReason::RefreshRaced);
    }
    let third = service.refresh(&second.refresh_token, "key-1").await.unwrap().into_inner();
    assert_eq!(claims(&third.access_token)["org"].as_array().unwrap().len(), 1);
    assert!(service.me(&third.access_token).await.is_ok(), "the family is kept");

    service.clock.advance(TimeDelta::milliseconds(1));
    let stolen = service.refresh(&first.refresh_token, "key-1").await;
    let reused = assert_refused(stolen, ErrorReason::RefreshTokenInvalid);
    for token in [&first.refresh_token, &second.refresh_token, &third.refresh_token] {
        let ended = assert_refused(service.refresh(token, "key-1").await, ErrorReason::RefreshTokenInvalid);
        assert_eq!(ended, reused, "nobody learns what was wrong");
    }
    assert_refused(service.me(&third.access_token).await, Common::TokenInvalid);
    let unknown = "A".repeat(43);
    for token in [unknown.as_str(), "nonsense", &third.access_token] {
        let unknown = assert_refused(service.refresh(token, "").await, ErrorReason::RefreshTokenInvalid);
        assert_eq!(unknown, reused);
    }
    assert!(service.log_in("fan@example.com", PASSWORD).await.is_ok());
    service.stop().await.unwrap();
}

async fn of_50_refreshes_at_once_one_wins(database_url: &str) {
    let service = Service::start(database_url).await;
    let session = service.fan("fan@example.com").await;
    let answers = join_all((0..50).map(|_| service.refresh(&session.refresh_token, ""))).await;
    let (won, lost): (Vec<_>, Vec<_>) = answers.into_iter().partition(Result::is_ok);
    assert_eq!((won.len(), lost.len()), (1, 49));
    for answer in lost {
        assert_refused(answer, ErrorReason::RefreshRaced);
    }
    let winner = won.into_iter().next().unwrap().unwrap().into_inner();
    assert!(service.me(&winner.access_token).await.is_ok());

    let again = join_all((0..50).map(|_| service.refresh(&winner.refresh_token, "key"))).await;
    let pairs: BTreeSet<_> = again
        .into_iter()
        .map(|answer| answer.unwrap().into_inner())
        .map(|pair| (pair.access_token, pair.refresh_token))
        .collect();
    assert_eq!(pairs.len(), 1, "one request, one pair");
    service.stop().await.unwrap();
}

async fn logging_out_ends_the_session_everywhere(database_url: &str) {
    let service = Service::start(database_url).await;
    let session = service.fan("fan@example.com").await;
    let other_process = Service::start_with(database_url, service.clock.clone(), ENCRYPTION_KEY).await;
    let other_session = service.log_in("fan@example.com", PASSWORD).await.unwrap();
    assert_eq!(service.published().await.revoked_session_ids, [""; 0]);
    assert!(other_process.me(&session.access_token).await.is_ok());

    service.log_out(&session.access_token).await.unwrap();
    assert_refused(service.me(&session.access_token).await, Common::TokenInvalid);
    assert_refused(service.log_out(&session.access_token).await, Common::TokenInvalid);
    assert_refused(service.refresh(&session.refresh_token, "").await, ErrorReason::RefreshTokenInvalid);
    assert_eq!(service.published().await.revoked_session_ids, std::slice::from_ref(&session.session_id));
    mesh_test::wait_until("the other process to refuse", PATIENCE, async || {
        match other_process.me(&session.access_token).await {
            Err(status) if refusal(&status).reason == "TOKEN_INVALID" => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    assert!(service.me(&other_session.access_token).await.is_ok(), "the other session lives on");

    other_process.stop().await.unwrap();
    service.stop().await.unwrap();
}

async fn known_and_unknown_e_mails_look_the_same(database_url: &str) {
    let service = Service::start(database_url).await;
    let before = service.fan("known@example.com").await;
    let known = service.sign_up("Known@example.com", "another password").await.unwrap();
    let unknown = service.sign_up("unknown@example.com", "another password").await.unwrap();
    assert_eq!(known, unknown);
    assert!(service.me(&before.access_token).await.is_ok());
    assert!(service.log_in("known@example.com", PASSWORD).await.is_ok(), "nothing changed");
    let wrong = service.log_in("known@example.com", "another password").await;
    let wrong = assert_refused(wrong, ErrorReason::CredentialsInvalid);
    let nobody = service.log_in("nobody@example.com", "another password").await;
    assert_eq!(assert_refused(nobody, ErrorReason::CredentialsInvalid), wrong);
    service.stop().await.unwrap();
}

async fn wrong_fields_are_named_and_nothing_changes(database_url: &str) {
    let service = Service::start(database_url).await;
    let session = service.fan("fan@example.com").await;
    let fields = |refusal: Refusal| -> Vec<(String, String)> { refusal.fields };
    let expected = |names: &[(&str, &str)]| -> Vec<(String, String)> {
        names.iter().map(|(field, reason)| ((*field).to_owned(), (*reason).to_owned())).collect()
    };

    let empty = service.users().create_user(CreateUserRequest::default()).await;
    let all = [("email", "REQUIRED"), ("password", "REQUIRED"), ("display_name", "REQUIRED")];
    assert_eq!(fields(assert_refused(empty, Common::FieldInvalid)), expected(&all));
    let email = "new@example.com";
    let long_name = "x".repeat(101);
    let long_password = "x".repeat(129);
    let long_email = format!("{}@example.com", "x".repeat(300));
    for (email, password, name, wrong) in [
        ("not an e-mail", PASSWORD, "Fan", ("email", "MALFORMED")),
        (&long_email, PASSWORD, "Fan", ("email", "OUT_OF_RANGE")),
        (email, "7 chars", "Fan", ("password", "OUT_OF_RANGE")),
        (email, &long_password, "Fan", ("password", "OUT_OF_RANGE")),
        (email, "Password1234", "Fan", ("password", "TOO_COMMON")),
        (email, "New@Example.com", "Fan", ("password", "SAME_AS_EMAIL")),
        (email, PASSWORD, &long_name, ("display_name", "OUT_OF_RANGE")),
        (email, PASSWORD, "F\u{0}n", ("display_name", "MALFORMED")),
    ] {
        let (email, password, display_name) = (email.into(), password.into(), name.into());
        let answer = service.users().create_user(CreateUserRequest { email, password, display_name }).await;
        let refused = assert_refused(answer, Common::FieldInvalid);
        assert!(!refused.message.contains("Password1234") && !refused.message.contains("7 chars"));
        assert_eq!(fields(refused), expected(&[wrong]));
    }
    for password in [PASSWORD, "Password1234"] {
        assert_refused(service.log_in(email, password).await, ErrorReason::CredentialsInvalid);
    }
    let phrase = "when the lights go down in the city, the band begins to play 42!";
    service.sign_up("phrase@example.com", phrase).await.unwrap();
    assert!(service.log_in("phrase@example.com", phrase).await.is_ok());

    let log_in = fields(assert_refused(service.log_in("", "").await, Common::FieldInvalid));
    assert_eq!(log_in, expected(&[("email", "REQUIRED"), ("password", "REQUIRED")]));
    let refresh = fields(assert_refused(service.refresh("", "").await, Common::FieldInvalid));
    assert_eq!(refresh, expected(&[("refresh_token", "REQUIRED")]));
    let bad_key = expected(&[("request_id", "MALFORMED")]);
    let long_key = "k".repeat(256);
    for key in ["a key", long_key.as_str()] {
        let refused =
            assert_refused(service.refresh(&session.refresh_token, key).await, Common::FieldInvalid);
        assert_eq!(fields(refused), bad_key);
        let organizer = service.create_organizer(&session.access_token, "Live", key).await;
        assert_eq!(fields(assert_refused(organizer, Common::FieldInvalid)), bad_key);
    }
    let unnamed = service.create_organizer(&session.access_token, " ", "").await;
    let unnamed = fields(assert_refused(unnamed, Common::FieldInvalid));
    assert_eq!(unnamed, expected(&[("display_name", "REQUIRED")]));
    assert!(service.me(&session.access_token).await.unwrap().organizers.is_empty());
    assert!(service.refresh(&session.refresh_token, "").await.is_ok(), "the token was not used up");
    service.stop().await.unwrap();
}

async fn guessing_a_password_is_slowed_down(database_url: &str) {
    let service = Service::start(database_url).await;
    service.fan("fan@example.com").await;
    let mut throttled = Vec::new();
    for email in ["fan@example.com", "nobody@example.com"] {
        for _ in 0..10 {
            let wrong = service.log_in(email, "a wrong password").await;
            assert_refused(wrong, ErrorReason::CredentialsInvalid);
        }
        throttled.push(assert_refused(service.log_in(email, PASSWORD).await, ErrorReason::LoginThrottled));
    }
    assert_eq!(throttled[0], throttled[1]);
    assert_eq!(throttled[0].retry_after, Some(1));
    service.clock.advance(TimeDelta::seconds(1));
    service.log_in("fan@example.com", PASSWORD).await.expect("the owner is not locked out");
    service.stop().await.unwrap();
}

async fn each_method_is_for_those_it_is_for(database_url: &str) {
    let service = Service::start(database_url).await;
    let session = service.fan("fan@example.com").await;

    assert_refused(service.users().get_me(GetMeRequest {}).await, Common::TokenMissing);
    let log_out = service.sessions().delete_current_session(DeleteCurrentSessionRequest {}).await;
    assert_refused(log_out, Common::TokenMissing);
    let organizer = CreateOrganizerRequest { display_name: "Live".into(), request_id: String::new() };
    assert_refused(service.organizers().create_organizer(organizer).await, Common::TokenMissing);
    for token in [session.refresh_token.as_str(), "", "nonsense"] {
        assert_refused(service.me(token).await, Common::TokenInvalid);
    }
    // Who sends another's id along is still themselves.
    let mut claiming = with_token(&session.access_token, GetMeRequest {});
    claiming.metadata_mut().insert("x-user-id", "usr_01h455vb4pex5vsknk084sn02q".parse().unwrap());
    let me = service.users().get_me(claiming).await.unwrap().into_inner().user.unwrap();
    assert_eq!(me.email, "fan@example.com");

    let call = |tokens: Option<ServiceTokens>| {
        let channel = Channel::new("user", service.uri.clone(), tokens, service.clock.clone());
        let request = with_token(&session.access_token, ListSigningKeysRequest {});
        async move { KeyServiceClient::new(channel).list_signing_keys(request).await }
    };
    assert_refused(call(None).await, Common::AccessDenied);
    let stranger = ServiceTokens::new("gateway", &Secret::random(), None);
    assert_refused(call(Some(stranger)).await, Common::TokenInvalid);
    assert!(call(Some(service_tokens("booking"))).await.is_ok());

    service.clock.advance(TimeDelta::minutes(17));
    assert_refused(service.me(&session.access_token).await, Common::TokenExpired);
    service.stop().await.unwrap();
}

async fn an_organizer_is_made_once(database_url: &str) {
    let service = Service::start(database_url).await;
    let fan = service.fan("fan@example.com").await;
    let other = service.fan("other@example.com").await;
    let first = service.create_organizer(&fan.access_token, "Live", "key").await.unwrap().into_inner();
    service.clock.advance(TimeDelta::seconds(60));
    let again = service.create_organizer(&fan.access_token, "Live", "key").await.unwrap();
    assert_eq!(again.metadata().get(REPLAYED).unwrap(), "true");
    let again = again.into_inner();
    assert_eq!(again.organizer, first.organizer);
    assert_eq!(again.expire_time.unwrap().seconds, first.expire_time.unwrap().seconds + 60, "a new token");
    let organizer_id = &first.organizer.as_ref().unwrap().organizer_id;
    assert_eq!(claims(&again.access_token)["org"], serde_json::json!([organizer_id]));
    let changed = service.create_organizer(&fan.access_token, "Other", "key").await;
    assert_refused(changed, Common::IdempotencyKeyReused);

    let others = service.create_organizer(&other.access_token, "Live", "key").await.unwrap().into_inner();
    assert_ne!(others.organizer, first.organizer, "another fan's key is another key");
    let at_once =
        join_all((0..10).map(|_| service.create_organizer(&fan.access_token, "Two", "key-2"))).await;
    let ids: BTreeSet<_> = at_once
        .into_iter()
        .map(|answer| answer.unwrap().into_inner().organizer.unwrap().organizer_id)
        .collect();
    assert_eq!(ids.len(), 1);
    assert_eq!(service.me(&fan.access_token).await.unwrap().organizers.len(), 2);
    service.stop().await.unwrap();
}

async fn a_user_has_20_organizers_at_the_most(database_url: &str) {
    let service = Service::start(database_url).await;
    let fan = service.fan("fan@example.com").await;
    for _ in 0..20 {
        service.create_organizer(&fan.access_token, "Live", "").await.unwrap();
    }
    let one_more = service.create_organizer(&fan.access_token, "Live", "").await;
    let refused = assert_refused(one_more, ErrorReason::OrganizerLimitExceeded);
    assert_eq!(refused.metadata, [("limit".to_owned(), "20".to_owned())]);
    assert_eq!(service.me(&fan.access_token).await.unwrap().organizers.len(), 20);
    let token = service.refresh(&fan.refresh_token, "").await.unwrap().into_inner().access_token;
    service.me(&token).await.expect("a token with 20 organisers passes every limit of a header");
    service.stop().await.unwrap();
}

async fn a_key_rotation_logs_nobody_out(database_url: &str) {
    let service = Service::start(database_url).await;
    service.fan("fan@example.com").await;
    let first = service.wait_for_keys(1).await;
    service.clock.advance(TimeDelta::days(1));
    let both = service.wait_for_keys(2).await;
    assert_eq!(both[1], first[0], "the newest first");
    let kid = |token: &str| part(token, 0)["kid"].as_str().unwrap().to_owned();
    let old = service.log_in("fan@example.com", PASSWORD).await.unwrap();
    assert_eq!(kid(&old.access_token), first[0], "the new key is published before it signs");
    service.clock.advance(TimeDelta::minutes(3));
    let new = service.log_in("fan@example.com", PASSWORD).await.unwrap();
    assert_eq!(kid(&new.access_token), both[0]);
    for token in [&old.access_token, &new.access_token] {
        assert!(service.me(token).await.is_ok());
    }

    service.clock.advance(TimeDelta::minutes(30));
    let refreshed = service.refresh(&old.refresh_token, "").await.unwrap().into_inner();
    assert_eq!(kid(&refreshed.access_token), both[0]);
    assert_eq!(service.wait_for_keys(1).await, both[..1], "the old key is withdrawn");
    assert!(service.me(&refreshed.access_token).await.is_ok());
    service.stop().await.unwrap();
}

async fn a_restart_logs_nobody_out(database_url: &str) {
    let service = Service::start(database_url).await;
    let session = service.fan("fan@example.com").await;
    let refreshed = service.refresh(&session.refresh_token, "key").await.unwrap().into_inner();
    let clock = service.clock.clone();
    service.stop().await.unwrap();

    let wrong =
        Service::start_with(database_url, clock.clone(), "some-other-key-than-the-one-of-before").await;
    let error = wrong.task.await.unwrap().unwrap_err();
    assert!(error.to_string().contains("KEY_ENCRYPTION_KEY"), "{error}");

    let service = Service::start_with(database_url, clock, ENCRYPTION_KEY).await;
    assert!(service.me(&session.access_token).await.is_ok());
    let again = service.refresh(&session.refresh_token, "key").await.unwrap().into_inner();
    assert_eq!(again, refreshed);
    service.stop().await.unwrap();
}

/// A copy of the database lets nobody in.
#[tokio::test]
async fn no_secret_is_kept_in_plain_text() {
    let database = mesh_test::sqlite::create_database();
    let service = Service::start(database.url()).await;
    let session = service.fan("fan@example.com").await;
    let refreshed = service.refresh(&session.refresh_token, "key").await.unwrap().into_inner();
    let organizer =
        service.create_organizer(&refreshed.access_token, "Live", "key").await.unwrap().into_inner();
    let file = database.url().trim_start_matches("sqlite://").to_owned();
    let kept = || {
        let read = |suffix: &str| std::fs::read(format!("{file}{suffix}")).unwrap_or_default();
        [read(""), read("-wal")].concat()
    };
    let contains = |kept: &[u8], what: &[u8]| kept.windows(what.len()).any(|window| window == what);
    let found = kept();
    assert!(contains(&found, b"fan@example.com"), "the search works");
    // In an Ed25519 key's PKCS#8 document these bytes come before the seed (RFC 8410).
    let private_key = [0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];
    assert!(!contains(&found, &private_key));
    let tokens = [
        &session.access_token,
        &session.refresh_token,
        &refreshed.access_token,
        &refreshed.refresh_token,
        &organizer.access_token,
    ];
    for secret in tokens.into_iter().map(String::as_str).chain([PASSWORD]) {
        assert!(!contains(&found, secret.as_bytes()), "{secret}");
        if let Ok(bytes) = BASE64_URL_SAFE_NO_PAD.decode(secret) {
            assert!(!contains(&found, &bytes), "{secret}, decoded");
        }
    }
    service.stop().await.unwrap();
}
