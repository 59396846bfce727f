//! Fields that are not the client's to set; and numbers and cursors, without the gateway in between.

use boxoffice::api::{new_key, text};
use boxoffice_proto::{
    booking::v1::{
        BestAvailable, BookingState, CreateBookingResponse, CreateHoldRequest, ListBookingsRequest,
        PaymentMethod, booking_service_client::BookingServiceClient, hold_service_client::HoldServiceClient,
    },
    common::v1::{ErrorReason as Common, Money},
    payment::v1::{
        CreateTopUpRequest, ListWalletEntriesRequest, PaymentProvider,
        wallet_service_client::WalletServiceClient,
    },
};
use chrono::TimeDelta;
use mesh::id::UserId;
use serde_json::json;
use tonic_prost::ProstCodec;

use crate::stage::{
    PASSWORD, PRICE, Stage, Visit, assert_refused, from_now, grpc, new_email, order, refusal, top_up,
};

#[tokio::test]
async fn a_body_can_not_set_what_is_not_the_clients_to_set() {
    let stage = Stage::open().await;
    let (promoter, ann) = (stage.promoter().await, stage.fan(1_000_000).await);
    let concert = promoter.concert().await;
    let hold = stage.api.hold(&ann, &concert, &["A-1-1"]).await;
    let holds = format!("/v1/concerts/{concert}/holds");
    let seats = json!({"seatIds": ["A-1-2"]});
    let email = new_email();
    let account = json!({"email": email, "password": PASSWORD, "displayName": "Fan"});
    let cases = [
        ("/v1/users", account.clone(), "role", json!("ADMIN")),
        ("/v1/users", account.clone(), "isAdmin", json!(true)),
        ("/v1/users", account, "organizers", json!([{"organizerId": promoter.organizer.organizer_id}])),
        (
            "/v1/organizers",
            json!({"displayName": "Mine"}),
            "organizerId",
            json!(promoter.organizer.organizer_id),
        ),
        (&holds, seats.clone(), "price", json!({"currencyCode": "KRW", "minorUnits": "1"})),
        (&holds, seats.clone(), "total", json!({"currencyCode": "KRW", "minorUnits": "1"})),
        (&holds, seats.clone(), "userId", json!(UserId::new().to_string())),
        (&holds, seats, "expireTime", json!(from_now(TimeDelta::days(1)))),
        ("/v1/bookings", order(&hold), "price", json!(1)),
        ("/v1/bookings", order(&hold), "total", json!({"currencyCode": "KRW", "minorUnits": "1"})),
        ("/v1/bookings", order(&hold), "status", json!("BOOKING_STATE_CONFIRMED")),
        ("/v1/bookings", order(&hold), "state", json!("BOOKING_STATE_CONFIRMED")),
        ("/v1/bookings", order(&hold), "userId", json!(UserId::new().to_string())),
        ("/v1/wallet/top-ups", top_up(1), "userId", json!(UserId::new().to_string())),
        ("/v1/wallet/top-ups", top_up(1), "state", json!("TOP_UP_STATE_SUCCEEDED")),
    ];
    for (path, mut body, field, value) in cases {
        body[field] = value;
        let reply = stage.api.post(path, Some(&ann.access_token), &body).await.unwrap();
        assert_refused(&format!("POST {path} {body}"), &reply, &refusal(400, Common::FieldInvalid, &[field]));
    }
    assert_eq!(stage.api.balance(&ann).await, 1_000_000);
    let me = stage.api.get("/v1/users/me", Some(&ann.access_token)).await.unwrap();
    assert_eq!(me.body["user"]["organizers"], json!([]));
    assert!(stage.api.log_in(&email, PASSWORD).await.is_err(), "no account was made");
}

/// A request to book, as a client might wish the contract were.
#[derive(Clone, PartialEq, prost::Message)]
struct WishfulBookingRequest {
    #[prost(string, tag = "1")]
    hold_id: String,
    #[prost(int32, tag = "2")]
    payment_method: i32,
    #[prost(string, tag = "4")]
    request_id: String,
    #[prost(message, optional, tag = "5")]
    total: Option<Money>,
    #[prost(int32, tag = "6")]
    state: i32,
    #[prost(string, tag = "100")]
    user_id: String,
}

#[tokio::test]
async fn the_price_is_the_servers_whatever_a_grpc_message_says() {
    let stage = Stage::open().await;
    let (promoter, ann, bob) =
        (stage.promoter().await, stage.fan(1_000_000).await, stage.fan(1_000_000).await);
    let concert = promoter.concert().await;
    let me = stage.api.get("/v1/users/me", Some(&bob.access_token)).await.unwrap();
    let wish = WishfulBookingRequest {
        hold_id: stage.api.hold(&ann, &concert, &["A-1-1"]).await,
        payment_method: PaymentMethod::Wallet.into(),
        request_id: new_key(),
        total: Some(Money { currency_code: "KRW".into(), minor_units: 1 }),
        state: BookingState::Confirmed.into(),
        user_id: text(&me.body, "/user/userId").unwrap(),
    };
    let mut client = tonic::client::Grpc::new(grpc::connect(stage.service("booking")).await);
    client.ready().await.unwrap();
    let path = "/boxoffice.booking.v1.BookingService/CreateBooking".parse().unwrap();
    let codec = ProstCodec::<WishfulBookingRequest, CreateBookingResponse>::default();
    let booked = client.unary(grpc::by(&ann.access_token, wish), path, codec).await.unwrap();
    let booking = booked.into_inner().booking.unwrap();
    assert_eq!(booking.total.unwrap().minor_units, PRICE);
    assert_eq!(stage.api.balance(&ann).await, 1_000_000 - PRICE);
    assert_eq!(stage.api.balance(&bob).await, 1_000_000);
}

#[tokio::test]
async fn numbers_and_cursors_are_checked_by_the_services_themselves() {
    let stage = Stage::open().await;
    let (promoter, ann) = (stage.promoter().await, stage.fan(1_000_000).await);
    let concert = promoter.concert().await;
    let token = ann.access_token.as_str();
    let booking = grpc::connect(stage.service("booking")).await;
    let (mut holds, mut bookings) =
        (HoldServiceClient::new(booking.clone()), BookingServiceClient::new(booking));
    let mut wallets = WalletServiceClient::new(grpc::connect(stage.service("payment")).await);

    for quantity in [0, -1, 11, i32::MAX, i32::MIN] {
        let best_available = Some(BestAvailable { section_id: "A".into(), quantity, accessible: false });
        let request = CreateHoldRequest {
            concert_id: concert.clone(),
            seat_ids: Vec::new(),
            best_available,
            request_id: new_key(),
        };
        let status = holds.create_hold(grpc::by(token, request)).await.unwrap_err();
        grpc::assert_status(&format!("{quantity} seats"), &status, Common::FieldInvalid);
    }
    for minor_units in [0, -1, 100_000_001, i64::MAX, i64::MIN] {
        let amount = Some(Money { currency_code: "KRW".into(), minor_units });
        let provider = PaymentProvider::Sandbox.into();
        let request = CreateTopUpRequest { provider, amount, request_id: new_key(), ..Default::default() };
        let status = wallets.create_top_up(grpc::by(token, request)).await.unwrap_err();
        grpc::assert_status(&format!("a top-up of {minor_units}"), &status, Common::FieldInvalid);
    }
    for page_size in [0, -1, i32::MIN] {
        let request = ListBookingsRequest { page_size: Some(page_size), ..Default::default() };
        let status = bookings.list_bookings(grpc::by(token, request)).await.unwrap_err();
        grpc::assert_status(&format!("{page_size} a page"), &status, Common::FieldInvalid);
    }
    let request = ListBookingsRequest { page_size: Some(i32::MAX), ..Default::default() };
    bookings.list_bookings(grpc::by(token, request)).await.expect("a page that is too large is made smaller");
    for page_token in ["nonsense", "AAAAAAAAAAAAAAAA", "' OR 1=1", &"A".repeat(100_000)] {
        let request = ListWalletEntriesRequest { page_token: page_token.into(), ..Default::default() };
        let answer = wallets.list_wallet_entries(grpc::by(token, request)).await.unwrap_err();
        grpc::assert_status(page_token, &answer, Common::PageTokenInvalid);
    }
    // No key is no way around either.
    let request =
        CreateHoldRequest { concert_id: concert, seat_ids: vec!["A-1-1".into()], ..Default::default() };
    for (key, reason) in [("", Common::IdempotencyKeyMissing), ("two words", Common::FieldInvalid)] {
        let request = CreateHoldRequest { request_id: key.into(), ..request.clone() };
        let status = holds.create_hold(grpc::by(token, request)).await.unwrap_err();
        grpc::assert_status(&format!("the key {key:?}"), &status, reason);
    }
    assert_eq!(stage.api.balance(&ann).await, 1_000_000);
    let five_mib = CreateHoldRequest {
        concert_id: "x".repeat(5 * 1024 * 1024),
        request_id: new_key(),
        ..Default::default()
    };
    let status = holds.create_hold(grpc::by(token, five_mib)).await.unwrap_err();
    grpc::assert_status("5 MiB", &status, Common::TransportMessageRefused);
}
