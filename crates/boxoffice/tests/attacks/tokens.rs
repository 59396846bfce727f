//! Forged tokens.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use base64::{
    Engine,
    prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD},
};
use boxoffice_proto::{
    booking::v1::{ListBookingsRequest, booking_service_client::BookingServiceClient},
    common::v1::ErrorReason as Common,
    payment::v1::{GetWalletRequest, wallet_service_client::WalletServiceClient},
    user::v1::{ErrorReason as User, GetMeRequest, user_service_client::UserServiceClient},
};
use chrono::TimeDelta;
use mesh::{
    auth::ServiceTokens,
    id::{HoldId, UserId},
};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::stage::{
    Stage, assert_refused, grpc, now, refusal,
    workshop::{Signer, Workshop, jwt, sign_hs256},
};

/// A port on which nobody should ever call. Counts who does.
async fn trap() -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/keys", listener.local_addr().unwrap());
    let calls = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&calls);
    tokio::spawn(async move {
        while listener.accept().await.is_ok() {
            count.fetch_add(1, Ordering::SeqCst);
        }
    });
    (url, calls)
}

#[tokio::test]
async fn a_forged_token_opens_no_door() {
    let workshop = Workshop::with_own_keys().await;
    let (url, calls_to_trap) = trap().await;
    let (signer, stranger) = (&workshop.signer, Signer::new("own"));
    let claims = workshop.claims(&[]);
    let good = signer.token(&claims);
    let header = json!({"alg": "EdDSA", "typ": "JWT", "kid": "own"});
    let header_with = |name: &str, value: Value| {
        let mut header = header.clone();
        header[name] = value;
        header
    };
    let claims_with = |name: &str, value: Value| {
        let mut claims = claims.clone();
        claims[name] = value;
        claims
    };
    let claims_without = |name: &str| {
        let mut claims = claims.clone();
        claims.as_object_mut().unwrap().remove(name);
        claims
    };
    let at = |delta: TimeDelta| json!((now() + delta).timestamp());
    let (signed, signature) = good.rsplit_once('.').unwrap();
    let flipped = {
        let mut bytes = BASE64_URL_SAFE_NO_PAD.decode(signature).unwrap();
        bytes[20] ^= 1;
        format!("{signed}.{}", BASE64_URL_SAFE_NO_PAD.encode(bytes))
    };
    let altered = {
        let other = jwt(&header, &claims_with("sub", UserId::new().to_string().into()), |_| Vec::new());
        format!("{}{signature}", other)
    };
    let pem = {
        // The fixed beginning of an Ed25519 public key in DER (RFC 8410).
        let der = [b"\x30\x2a\x30\x05\x06\x03\x2b\x65\x70\x03\x21\x00", signer.public_key()].concat();
        format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", BASE64_STANDARD.encode(der))
    };
    let no_signature = |_: &[u8]| Vec::new();
    let jwk = json!({"kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "kid": "own", "x": stranger.x()});
    let hs256 = header_with("alg", "HS256".into());
    let mut forgeries = vec![
        ("alg none", jwt(&header_with("alg", "none".into()), &claims, no_signature)),
        ("alg NONE", jwt(&header_with("alg", "NONE".into()), &claims, no_signature)),
        ("no alg", jwt(&json!({"kid": "own"}), &claims, no_signature)),
        ("alg none, signed", signer.token_with(&header_with("alg", "none".into()), &claims)),
        ("no signature", jwt(&header, &claims, no_signature)),
        ("no signature part", signed.to_owned()),
        ("HS256 with the public key's bytes", jwt(&hs256, &claims, sign_hs256(signer.public_key()))),
        ("HS256 with the public key's text", jwt(&hs256, &claims, sign_hs256(signer.x().as_bytes()))),
        ("HS256 with the public key's PEM", jwt(&hs256, &claims, sign_hs256(pem.as_bytes()))),
        ("HS256 said, EdDSA done", signer.token_with(&hs256, &claims)),
        ("a flipped bit", flipped),
        ("other claims under a good signature", altered),
        ("a stranger's key", stranger.token(&claims)),
        ("a stranger's key in jwk", stranger.token_with(&header_with("jwk", jwk), &claims)),
        ("a stranger's key at jku", stranger.token_with(&header_with("jku", url.as_str().into()), &claims)),
        ("a stranger's key at x5u", stranger.token_with(&header_with("x5u", url.as_str().into()), &claims)),
        ("no kid", signer.token_with(&json!({"alg": "EdDSA"}), &claims)),
        ("a future nbf", signer.token(&claims_with("nbf", at(TimeDelta::minutes(5))))),
        ("another audience", signer.token(&claims_with("aud", "another-api".into()))),
        ("another issuer", signer.token(&claims_with("iss", "somebody".into()))),
        ("another kind of subject", signer.token(&claims_with("sub", HoldId::new().to_string().into()))),
        ("an expiry in words", signer.token(&claims_with("exp", "never".into()))),
        (
            "a service's token",
            ServiceTokens::new("gateway", &workshop.service_token_key, None)
                .header("payment", now())
                .to_str()
                .unwrap()
                .to_owned(),
        ),
        ("nonsense", "a.b.c".to_owned()),
    ];
    for kid in ["../../../../dev/null", "own' OR '1'='1", "", &"k".repeat(2000), url.as_str()] {
        forgeries.push(("another kid", signer.token_with(&header_with("kid", kid.into()), &claims)));
    }
    for name in ["iss", "aud", "exp", "nbf", "sub", "sid"] {
        forgeries.push(("a missing claim", signer.token(&claims_without(name))));
    }
    let expired = signer.token(&claims_with("exp", at(TimeDelta::minutes(-5))));

    let mut wallets = WalletServiceClient::new(grpc::connect(workshop.payment).await);
    let mut bookings = BookingServiceClient::new(grpc::connect(workshop.booking).await);
    let mut by_grpc = async |token: &str| {
        let wallet = wallets.get_wallet(grpc::by(token, GetWalletRequest {})).await.map(|_| ());
        let list = bookings.list_bookings(grpc::by(token, ListBookingsRequest::default())).await.map(|_| ());
        [wallet, list]
    };
    assert_eq!(workshop.api.get("/v1/wallet", Some(&good)).await.unwrap().status, 200);
    for answer in by_grpc(&good).await {
        answer.expect("the good token is accepted");
    }
    // To a public method, who comes with an expired token is nobody: that is how a session is refreshed.
    assert_eq!(workshop.api.get("/v1/concerts", Some(&expired)).await.unwrap().status, 200);
    for (what, token) in &forgeries {
        let reply = workshop.api.get("/v1/concerts", Some(token)).await.unwrap();
        assert_refused(what, &reply, &refusal(401, Common::TokenInvalid, &[]));
    }
    let forgeries = forgeries.into_iter().map(|(what, token)| (what, token, Common::TokenInvalid));
    for (what, token, reason) in forgeries.chain([("an expired one", expired, Common::TokenExpired)]) {
        let what = format!("{what}: {token}");
        for path in ["/v1/wallet", "/v1/bookings"] {
            let reply = workshop.api.get(path, Some(&token)).await.unwrap();
            assert_refused(&what, &reply, &refusal(401, reason, &[]));
        }
        for answer in by_grpc(&token).await {
            grpc::assert_status(&what, &answer.unwrap_err(), reason);
        }
    }
    assert_eq!(calls_to_trap.load(Ordering::SeqCst), 0, "a key was fetched from where a token said");
}

#[tokio::test]
async fn a_token_may_be_a_minute_off_and_no_more() {
    let workshop = Workshop::with_own_keys().await;
    let mut wallets = WalletServiceClient::new(grpc::connect(workshop.payment).await);
    let off_by = |name: &str, seconds: i64| {
        let mut claims = workshop.claims(&[]);
        claims[name] = (now() + TimeDelta::seconds(seconds)).timestamp().into();
        workshop.signer.token(&claims)
    };
    // Ten seconds from the minute: that long a call may take on a busy machine.
    for (name, seconds, refused) in [
        ("nbf", 50, None),
        ("nbf", 70, Some(Common::TokenInvalid)),
        ("exp", -50, None),
        ("exp", -70, Some(Common::TokenExpired)),
    ] {
        let what = format!("{name} {seconds:+} s");
        let token = off_by(name, seconds);
        let reply = workshop.api.get("/v1/wallet", Some(&token)).await.unwrap();
        match refused {
            None => assert_eq!(reply.status, 200, "{what}: {}", reply.body),
            Some(reason) => assert_refused(&what, &reply, &refusal(401, reason, &[])),
        }
        let token = off_by(name, seconds);
        let reply = wallets.get_wallet(grpc::by(&token, GetWalletRequest {})).await;
        match refused {
            None => drop(reply.expect(&what)),
            Some(reason) => grpc::assert_status(&what, &reply.unwrap_err(), reason),
        }
    }
}

#[tokio::test]
async fn a_refresh_token_is_no_access_token() {
    let stage = Stage::open().await;
    let ann = stage.fan(0).await;
    let reply = stage.api.get("/v1/users/me", Some(&ann.refresh_token)).await.unwrap();
    assert_refused("by REST", &reply, &refusal(401, Common::TokenInvalid, &[]));
    let mut users = UserServiceClient::new(grpc::connect(stage.service("user")).await);
    let status = users.get_me(grpc::by(&ann.refresh_token, GetMeRequest {})).await.unwrap_err();
    grpc::assert_status("by gRPC", &status, Common::TokenInvalid);
    let refresh = json!({"refreshToken": ann.access_token});
    let reply = stage.api.post("/v1/sessions/refresh", None, &refresh).await.unwrap();
    assert_refused("the other way round", &reply, &refusal(401, User::RefreshTokenInvalid, &[]));
}
