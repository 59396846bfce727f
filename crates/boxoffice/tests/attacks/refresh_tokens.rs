//! Refresh tokens that are used again.

use boxoffice::api::{Api, Reply, new_key, text};
use boxoffice_proto::user::v1::ErrorReason as User;
use chrono::TimeDelta;
use futures_util::future::join_all;
use mesh::clock::Clock;
use mesh_test::wait_until;
use reqwest::Method;
use serde_json::json;

use crate::stage::{
    PASSWORD, PATIENCE, Stage, assert_refused, fan, new_email, now, refusal, workshop::Workshop,
};

async fn refresh(api: &Api, token: &str, key: Option<&str>) -> Reply {
    let body = json!({"refreshToken": token});
    api.send(Method::POST, "/v1/sessions/refresh", None, key, Some(&body)).await.unwrap()
}

fn refresh_token(reply: &Reply) -> String {
    text(&reply.body, "/refreshToken").unwrap()
}

#[tokio::test]
async fn a_refresh_token_used_again_soon_is_a_lost_reply_or_a_race() {
    let workshop = Workshop::with_clock(Clock::manual(now())).await;
    let api = &workshop.api;
    let first = fan(api, 0).await.refresh_token;
    let second = refresh(api, &first, Some("tab-1")).await;
    assert_eq!(second.status, 200, "{}", second.body);

    workshop.clock.advance(TimeDelta::seconds(10));
    let again = refresh(api, &first, Some("tab-1")).await;
    assert_eq!(again.body, second.body, "the same request gets the same pair");
    assert_eq!(again.headers["idempotency-replayed"], "true");
    for key in [Some("tab-2"), None] {
        let raced = refresh(api, &first, key).await;
        assert_refused("another tab", &raced, &refusal(409, User::RefreshRaced, &[]));
    }
    let third = refresh(api, &refresh_token(&second), Some("tab-3")).await;
    assert_eq!(third.status, 200, "the session lives on: {}", third.body);
}

#[tokio::test]
async fn a_refresh_token_used_again_late_ends_its_session_and_no_other() {
    let workshop = Workshop::with_clock(Clock::manual(now())).await;
    let api = &workshop.api;
    let email = new_email();
    api.sign_up(&email, PASSWORD, "Fan").await.unwrap();
    let stolen = api.log_in(&email, PASSWORD).await.unwrap().refresh_token;
    let other_session = api.log_in(&email, PASSWORD).await.unwrap();
    let second = refresh(api, &stolen, Some("tab-1")).await;
    let access_token = text(&second.body, "/accessToken").unwrap();
    assert_eq!(api.get("/v1/wallet", Some(&access_token)).await.unwrap().status, 200);

    workshop.clock.advance(TimeDelta::seconds(11));
    let invalid = refusal(401, User::RefreshTokenInvalid, &[]);
    assert_refused("a thief", &refresh(api, &stolen, Some("tab-1")).await, &invalid);
    assert_refused("its heir", &refresh(api, &refresh_token(&second), Some("tab-2")).await, &invalid);
    for path in ["/v1/users/me", "/v1/wallet", "/v1/bookings"] {
        wait_until("the session's access token to be refused", PATIENCE, async || {
            match api.get(path, Some(&access_token)).await.unwrap() {
                reply if reply.status == 401 => Ok(()),
                reply => Err(reply.body.to_string()),
            }
        })
        .await;
    }
    assert_eq!(api.get("/v1/wallet", Some(&other_session.access_token)).await.unwrap().status, 200);
    assert_eq!(refresh(api, &other_session.refresh_token, None).await.status, 200);
}

#[tokio::test]
async fn of_50_refreshes_at_once_one_wins() {
    let stage = Stage::open().await;
    let ann = stage.fan(0).await;
    let keys: Vec<String> = (0..50).map(|_| new_key()).collect();
    let replies = join_all(keys.iter().map(|key| refresh(&stage.api, &ann.refresh_token, Some(key)))).await;
    let (won, lost): (Vec<&Reply>, Vec<&Reply>) = replies.iter().partition(|reply| reply.status == 200);
    assert_eq!(won.len(), 1);
    for reply in lost {
        assert_refused("another", reply, &refusal(409, User::RefreshRaced, &[]));
    }
    assert_eq!(refresh(&stage.api, &refresh_token(won[0]), None).await.status, 200, "the session lives on");
}
