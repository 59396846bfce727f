//! A broken database.

use boxoffice::{api::new_key, embedded::database_url};
use boxoffice_proto::{
    common::v1::ErrorReason as Common,
    payment::v1::{GetWalletRequest, wallet_service_client::WalletServiceClient},
};
use mesh::database::Database;
use reqwest::Method;
use sea_orm::ConnectionTrait;
use serde_json::{Value, json};

use crate::stage::{PASSWORD, Stage, Visit, assert_refused, grpc, order, read, refusal, top_up};

/// Asserts that an answer tells nothing of how it is made.
#[track_caller]
fn assert_tells_nothing(what: &str, wire: &str, stage: &Stage) {
    let wire = wire.to_lowercase();
    let secrets = [
        "select",
        "insert",
        "update ",
        "begin",
        "sqlite",
        "sqlx",
        "sea",
        "table",
        "no such",
        "locked",
        ".db",
        ".rs",
        "panic",
        "backtrace",
        "src/",
    ];
    for secret in secrets.into_iter().chain([stage.data_dir().to_str().unwrap()]) {
        assert!(!wire.contains(secret), "{what} tells {secret:?}: {wire}");
    }
}

#[tokio::test]
async fn a_broken_database_is_a_500_that_tells_nothing() {
    let stage = Stage::open().await;
    let (promoter, ann) = (stage.promoter().await, stage.fan(1_000_000).await);
    let concert = promoter.concert().await;
    let hold = stage.api.hold(&ann, &concert, &["A-1-1"]).await;
    let holds = format!("/v1/concerts/{concert}/holds");
    let get = |path: &str| (Method::GET, path.to_owned(), json!({}));
    let post = |path: &str, body: Value| (Method::POST, path.to_owned(), body);
    let log_in = json!({"email": "fan@test.example", "password": PASSWORD});
    let damages = [
        ("payment", "wallet", vec![get("/v1/wallet"), post("/v1/wallet/top-ups", top_up(1))]),
        ("payment", "entry", vec![get("/v1/wallet/entries"), post("/v1/wallet/top-ups", top_up(1))]),
        ("booking", "booking", vec![get("/v1/bookings"), post("/v1/bookings", order(&hold))]),
        ("booking", "claim", vec![post("/v1/bookings", order(&hold))]),
        ("concert", "concert", vec![get("/v1/concerts"), get(&format!("/v1/concerts/{concert}"))]),
        ("user", "account", vec![get("/v1/users/me"), post("/v1/sessions", log_in)]),
    ];
    for (service, table, calls) in damages {
        let url = database_url(stage.data_dir(), service).unwrap();
        let database = Database::open(&url, 1).await.unwrap();
        let rename = async |from: &str, to: &str| {
            database
                .writer()
                .execute_unprepared(&format!("ALTER TABLE {from} RENAME TO {to}"))
                .await
                .unwrap();
        };
        rename(table, "gone").await;
        for (method, path, body) in calls {
            let what = format!("{method} {path} without {service}.{table}");
            let call = stage.call(method.as_str(), &path).bearer_auth(&ann.access_token);
            let call = call.header("Idempotency-Key", new_key());
            let reply = read(if method == Method::POST { call.json(&body) } else { call }).await;
            assert_refused(&what, &reply, &refusal(500, Common::Internal, &[]));
            assert_tells_nothing(&what, &format!("{:?} {}", reply.headers, reply.body), &stage);
        }
        if table == "wallet" {
            let mut wallets = WalletServiceClient::new(grpc::connect(stage.service(service)).await);
            let status =
                wallets.get_wallet(grpc::by(&ann.access_token, GetWalletRequest {})).await.unwrap_err();
            grpc::assert_status("by gRPC", &status, Common::Internal);
            let details = String::from_utf8_lossy(status.details());
            assert_tells_nothing("by gRPC", &format!("{} {details}", status.message()), &stage);
        }
        rename("gone", table).await;
        database.close().await;
    }
    // Mended, everything works, and nothing was lost.
    assert_eq!(stage.api.balance(&ann).await, 1_000_000);
    let booking = stage.api.book(&ann, &hold).await;
    assert_eq!(booking["state"], "BOOKING_STATE_CONFIRMED");
    let reply =
        stage.api.post(&holds, Some(&ann.access_token), &json!({"seatIds": ["A-1-2"]})).await.unwrap();
    reply.expect_success("holding").unwrap();
}

#[tokio::test]
async fn a_database_that_takes_nothing_is_a_503_until_it_does() {
    let stage = Stage::open().await;
    let ann = stage.fan(5).await;
    let url = database_url(stage.data_dir(), "payment").unwrap();
    let database = Database::open(&url, 1).await.unwrap();
    // Another program writes and doesn't finish: nobody else can write.
    let other = database.begin().await.unwrap();
    let key = new_key();
    let top_up = async || {
        let (token, body) = (Some(ann.access_token.as_str()), top_up(1));
        stage.api.send(Method::POST, "/v1/wallet/top-ups", token, Some(&key), Some(&body)).await.unwrap()
    };
    let reply = top_up().await;
    assert_refused("a top-up", &reply, &refusal(503, Common::DatabaseUnavailable, &[]));
    assert_tells_nothing("a top-up", &format!("{:?} {}", reply.headers, reply.body), &stage);
    assert_eq!(stage.api.balance(&ann).await, 5, "reading goes on");
    other.rollback().await.unwrap();
    top_up().await.expect_success("the same key, later").unwrap();
    assert_eq!(stage.api.balance(&ann).await, 6);
}
