//! Methods that are for others, and identity in headers.

use std::collections::HashSet;

use base64::{
    Engine,
    prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD},
};
use boxoffice::api::{Login, new_key, text};
use boxoffice_proto::{
    common::v1::{ErrorReason as Common, Money},
    payment::v1::{
        GetWalletRequest, PayRequest, RefundRequest, VoidRequest,
        payment_service_client::PaymentServiceClient, wallet_service_client::WalletServiceClient,
    },
    policy::{self, Access},
    user::v1::{GetMeRequest, user_service_client::UserServiceClient},
};
use chrono::TimeDelta;
use mesh::{
    auth::{SERVICE_HEADER, ServiceTokens},
    config::Secret,
    id::{BookingId, ConcertId, HoldId, RefundId, VenueId},
};
use serde_json::{Value, json};
use tonic::{Code, Request};

use crate::stage::{
    PRICE, Stage, Visit, assert_refused, grpc, now, read, refusal,
    workshop::{Workshop, jwt, sign_hs256},
};

/// Who calls, in a test of who may.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Who {
    Nobody,
    Fan,
    Promoter,
}

/// How a caller is refused by a method of this level. None: it is not.
fn expected_refusal(access: Access, who: Who) -> Option<Common> {
    match (access, who) {
        (Access::Public, _)
        | (Access::User, Who::Fan | Who::Promoter)
        | (Access::Organizer, Who::Promoter) => None,
        (Access::Organizer, Who::Fan) | (Access::Admin | Access::Internal, Who::Fan | Who::Promoter) => {
            Some(Common::AccessDenied)
        }
        (_, Who::Nobody) => Some(Common::TokenMissing),
    }
}

/// Whether a reason is about who calls.
fn is_about_the_caller(reason: &str) -> bool {
    matches!(reason, "TOKEN_MISSING" | "TOKEN_INVALID" | "TOKEN_EXPIRED" | "ACCESS_DENIED")
}

#[tokio::test]
async fn each_method_is_for_those_it_is_for_by_grpc() {
    let stage = Stage::open().await;
    let promoter = stage.promoter().await;
    let forged = ServiceTokens::new("gateway", &Secret::random(), None);
    let mut levels = HashSet::new();
    for method in policy::METHODS {
        let service = method.path.split('.').nth(1).unwrap();
        let channel = grpc::connect(stage.service(service)).await;
        levels.insert(format!("{:?}", method.access));
        for who in [Who::Nobody, Who::Fan, Who::Promoter] {
            let what = format!("{} by {who:?}", method.path);
            let request = match who {
                Who::Nobody => Request::new(()),
                // A new one each time, as logging out is among the methods.
                Who::Fan => grpc::by(&stage.fan(0).await.access_token, ()),
                Who::Promoter if method.path.ends_with("DeleteCurrentSession") => continue,
                Who::Promoter => grpc::by(promoter.token(), ()),
            };
            let answer = grpc::call_with_nothing(&channel, method.path, request).await;
            match (expected_refusal(method.access, who), answer) {
                (Some(reason), answer) => grpc::assert_status(&what, &answer.unwrap_err(), reason),
                (None, Ok(())) => {}
                (None, Err(status)) => {
                    let info =
                        mesh::failure::error_info(&status).unwrap_or_else(|| panic!("{what}: {status:?}"));
                    assert!(!is_about_the_caller(&info.reason), "{what}: {status:?}");
                }
            }
        }
        if method.access == Access::Internal {
            let token = forged.header(service_name(service), now());
            let request = grpc::with(SERVICE_HEADER, token.to_str().unwrap(), Request::new(()));
            let status = grpc::call_with_nothing(&channel, method.path, request).await.unwrap_err();
            grpc::assert_status(method.path, &status, Common::TokenInvalid);
        }
    }
    assert_eq!(levels, ["Public", "User", "Organizer", "Internal"].map(str::to_owned).into());
}

fn service_name(name: &str) -> &'static str {
    ["user", "concert", "booking", "payment"].into_iter().find(|service| *service == name).unwrap()
}

#[tokio::test]
async fn each_route_is_for_those_it_is_for_and_internal_methods_have_none() {
    let stage = Stage::open().await;
    let promoter = stage.promoter().await;
    let routes = gateway_rest::descriptors::routes().unwrap();
    for route in &routes {
        assert_ne!(route.policy.access, Access::Internal, "{} leads to an internal method", route.path);
        let path = route
            .path
            .replace("{concert_id}", &ConcertId::new().to_string())
            .replace("{hold_id}", &HoldId::new().to_string())
            .replace("{booking_id}", &BookingId::new().to_string())
            .replace("{venue_id}", &VenueId::new().to_string());
        assert!(!path.contains('{'), "{path}");
        for who in [Who::Nobody, Who::Fan, Who::Promoter] {
            let what = format!("{} {path} by {who:?}", route.http_method);
            let call = stage.call(route.http_method.as_str(), &path).header("Idempotency-Key", new_key());
            let call = match who {
                Who::Nobody => call,
                Who::Fan => call.bearer_auth(stage.fan(0).await.access_token),
                Who::Promoter if path.ends_with("/sessions/current") => continue,
                Who::Promoter => call.bearer_auth(promoter.token()),
            };
            let reply = read(call).await;
            match expected_refusal(route.policy.access, who) {
                Some(Common::AccessDenied) => {
                    assert_refused(&what, &reply, &refusal(403, Common::AccessDenied, &[]));
                }
                Some(reason) => assert_refused(&what, &reply, &refusal(401, reason, &[])),
                None => {
                    assert!(!is_about_the_caller(reply.reason()), "{what}: {}", reply.body);
                    assert!(reply.status.as_u16() < 500, "{what}: {}", reply.body);
                }
            }
        }
    }
    let internal = policy::METHODS.iter().filter(|method| method.access == Access::Internal);
    for method in internal {
        assert!(routes.iter().all(|route| route.policy.path != method.path), "{} has a route", method.path);
        let call = stage.call("POST", method.path).bearer_auth(promoter.token()).json(&json!({}));
        assert_refused(method.path, &read(call).await, &refusal(404, Common::RouteNotFound, &[]));
    }
}

#[tokio::test]
async fn internal_methods_believe_service_tokens_of_this_mesh_only() {
    let workshop = Workshop::with_own_keys().await;
    let promoter = workshop.promoter().await;
    let concert = promoter.concert().await;
    let claims = workshop.claims(&[]);
    let ann = Login { access_token: workshop.signer.token(&claims), refresh_token: String::new() };
    workshop.api.top_up(&ann.access_token, 1_000_000).await.unwrap();
    let booking = workshop.api.book(&ann, &workshop.api.hold(&ann, &concert, &["A-1-1"]).await).await;
    let booking_id = text(&booking, "/bookingId").unwrap();

    let money = |minor_units| Some(Money { currency_code: "KRW".into(), minor_units });
    let pay = PayRequest {
        booking_id: BookingId::new().to_string(),
        user_id: claims["sub"].as_str().unwrap().to_owned(),
        concert_id: concert.clone(),
        amount: money(1),
    };
    let void = VoidRequest { booking_id: booking_id.clone() };
    let refund = RefundRequest { booking_id, refund_id: RefundId::new().to_string(), amount: money(PRICE) };
    let mut payments = PaymentServiceClient::new(grpc::connect(workshop.payment).await);

    let key = &workshop.service_token_key;
    let token = |key: &Secret, callee: &'static str, at| {
        ServiceTokens::new("booking", key, None).header(callee, at).to_str().unwrap().to_owned()
    };
    let good = token(key, "payment", now());
    let header: Value = {
        let header = BASE64_URL_SAFE_NO_PAD.decode(good.split('.').next().unwrap()).unwrap();
        serde_json::from_slice(&header).unwrap()
    };
    let service_claims =
        json!({"iss": "booking", "aud": "payment", "exp": (now() + TimeDelta::minutes(5)).timestamp()});
    let without_signature = {
        let mut header = header.clone();
        header["alg"] = "none".into();
        jwt(&header, &service_claims, |_| Vec::new())
    };
    let forgeries = [
        ("another mesh's key", token(&Secret::random(), "payment", now())),
        ("for another service", token(key, "concert", now())),
        ("expired", token(key, "payment", now() - TimeDelta::minutes(7))),
        ("alg none", without_signature),
        ("signed with a guess", jwt(&header, &service_claims, sign_hs256(b"boxoffice"))),
        ("a fan's token", ann.access_token.clone()),
        ("nonsense", "let me in".into()),
    ];
    for (what, forged) in forgeries {
        let pay = grpc::with(SERVICE_HEADER, &forged, grpc::by(&ann.access_token, pay.clone()));
        let void = grpc::with(SERVICE_HEADER, &forged, grpc::by(&ann.access_token, void.clone()));
        let refund = grpc::with(SERVICE_HEADER, &forged, grpc::by(&ann.access_token, refund.clone()));
        for status in [
            payments.pay(pay).await.unwrap_err(),
            payments.void(void).await.unwrap_err(),
            payments.refund(refund).await.unwrap_err(),
        ] {
            grpc::assert_status(what, &status, Common::TokenInvalid);
        }
    }
    assert_eq!(workshop.api.balance(&ann).await, 1_000_000 - PRICE);
    // The same call is accepted from a service.
    payments.pay(grpc::with(SERVICE_HEADER, &good, Request::new(pay))).await.unwrap();
    assert_eq!(workshop.api.balance(&ann).await, 1_000_000 - PRICE - 1);
}

#[tokio::test]
async fn nobody_becomes_somebody_else_by_a_header() {
    let stage = Stage::open().await;
    let (ann, bob) = (stage.fan(1).await, stage.fan(2).await);
    let id_of = async |fan: &Login| {
        text(&stage.api.get("/v1/users/me", Some(&fan.access_token)).await.unwrap().body, "/user/userId")
            .unwrap()
    };
    let (anns_id, bobs_id) = (id_of(&ann).await, id_of(&bob).await);
    let service_token = ServiceTokens::new("gateway", &Secret::random(), None);
    let service_token = service_token.header("payment", now()).to_str().unwrap().to_owned();
    let headers = [
        ("x-user-id", bobs_id.as_str()),
        ("x-user", &bobs_id),
        ("x-caller", &bobs_id),
        ("x-forwarded-user", &bobs_id),
        ("user-bin", &BASE64_STANDARD.encode(&bobs_id)),
        ("x-user-id-bin", &BASE64_STANDARD.encode(&bobs_id)),
        (SERVICE_HEADER, &service_token),
        (SERVICE_HEADER, &bob.access_token),
        ("x-authorization", &format!("Bearer {}", bob.access_token)),
        ("grpc-metadata-authorization", &format!("Bearer {}", bob.access_token)),
    ];
    let mut users = UserServiceClient::new(grpc::connect(stage.service("user")).await);
    let payment = grpc::connect(stage.service("payment")).await;
    let mut wallets = WalletServiceClient::new(payment.clone());
    for (name, value) in headers {
        let what = format!("{name}: {value}");
        let call = |path: &str| stage.call("GET", path).header(name, value);
        for path in ["/v1/users/me", "/v1/wallet"] {
            assert_refused(&what, &read(call(path)).await, &refusal(401, Common::TokenMissing, &[]));
        }
        let me = read(call("/v1/users/me").bearer_auth(&ann.access_token)).await;
        assert_eq!(me.body["user"]["userId"], anns_id, "{what}");
        let wallet = read(call("/v1/wallet").bearer_auth(&ann.access_token)).await;
        assert_eq!(wallet.body["wallet"]["balance"]["minorUnits"], "1", "{what}");

        let anonymous = with_any(name, value, Request::new(GetWalletRequest {}));
        let status = wallets.get_wallet(anonymous).await.unwrap_err();
        grpc::assert_status(&what, &status, Common::TokenMissing);
        let by_ann = with_any(name, value, grpc::by(&ann.access_token, GetWalletRequest {}));
        let wallet = wallets.get_wallet(by_ann).await.unwrap().into_inner().wallet.unwrap();
        assert_eq!(wallet.balance.unwrap().minor_units, 1, "{what}");
        let by_ann = with_any(name, value, grpc::by(&ann.access_token, GetMeRequest {}));
        assert_eq!(users.get_me(by_ann).await.unwrap().into_inner().user.unwrap().user_id, anns_id, "{what}");
        let internal = with_any(name, value, grpc::by(&ann.access_token, ()));
        let pay = "/boxoffice.payment.v1.PaymentService/Pay";
        let status = grpc::call_with_nothing(&payment, pay, internal).await.unwrap_err();
        let is_forged = name == SERVICE_HEADER;
        let expected = if is_forged { Code::Unauthenticated } else { Code::PermissionDenied };
        assert_eq!(status.code(), expected, "{what}");
    }
}

/// The same request with one more header, of text or, by its name, of bytes in base64.
fn with_any<T>(name: &str, value: &str, mut request: Request<T>) -> Request<T> {
    let mut headers = request.metadata().clone().into_headers();
    headers.insert(http::HeaderName::from_bytes(name.as_bytes()).unwrap(), value.parse().unwrap());
    *request.metadata_mut() = tonic::metadata::MetadataMap::from_headers(headers);
    request
}
