//! What belongs to others.

use boxoffice::api::{Login, Reply, new_key, text};
use boxoffice_proto::{
    booking::v1::{
        CancelBookingRequest, CreateBookingRequest, DeleteHoldRequest, ErrorReason as Booking,
        GetBookingRequest, GetHoldRequest, PaymentMethod, booking_service_client::BookingServiceClient,
        hold_service_client::HoldServiceClient,
    },
    common::v1::ErrorReason as Common,
};
use mesh::id::{BookingId, ConcertId, HoldId, OrganizerId, VenueId};
use serde_json::{Value, json};

use crate::stage::{Promoter, Stage, Visit, assert_refused, grpc, order, read, refusal, venue};

/// What a fan has, and a promoter, that others are after.
struct Property {
    stage: Stage,
    promoter: Promoter,
    ann: Login,
    hold: String,
    booking: String,
    /// A concert that is published, with Ann's hold and booking.
    concert: String,
    draft: String,
}

impl Property {
    async fn acquire() -> Self {
        let stage = Stage::open().await;
        let (promoter, ann) = (stage.promoter().await, stage.fan(1_000_000).await);
        let (concert, draft) = (promoter.concert().await, promoter.draft(|_| {}).await);
        let booked = stage.api.hold(&ann, &concert, &["A-1-2"]).await;
        let booking = text(&stage.api.book(&ann, &booked).await, "/bookingId").unwrap();
        let hold = stage.api.hold(&ann, &concert, &["A-1-1"]).await;
        Self { stage, promoter, ann, hold, booking, concert, draft }
    }

    /// All of it, as its owners see it.
    async fn look(&self) -> Vec<Value> {
        let (ann, promoter) = (Some(self.ann.access_token.as_str()), Some(self.promoter.token()));
        let own_concerts = format!("/v1/concerts?organizerId={}", self.promoter.organizer.organizer_id);
        let mut seen = Vec::new();
        for (path, token) in [
            (format!("/v1/holds/{}", self.hold), ann),
            ("/v1/bookings".to_owned(), ann),
            ("/v1/wallet".to_owned(), ann),
            (own_concerts, promoter),
        ] {
            let reply = self.stage.api.get(&path, token).await.unwrap();
            seen.push(reply.expect_success(&path).unwrap());
        }
        seen
    }
}

/// An answer without what is of its call alone.
fn without_trace(reply: &Reply) -> Value {
    let mut body = reply.body.clone();
    body.as_object_mut().unwrap().remove("traceId").expect("a trace id");
    body
}

#[tokio::test]
async fn what_belongs_to_others_looks_like_nothing() {
    let property = Property::acquire().await;
    let (stage, promoter) = (&property.stage, &property.promoter);
    let (bob, rival) = (stage.fan(1_000_000).await, stage.promoter().await);
    let before = property.look().await;
    let [no_booking, no_hold] = [BookingId::new().to_string(), HoldId::new().to_string()];
    let [no_concert, no_venue] = [ConcertId::new().to_string(), VenueId::new().to_string()];
    let no_organizer = OrganizerId::new().to_string();
    let in_venue = |venue_id: &str| {
        let mut plan = rival.plan();
        plan["venueId"] = venue_id.into();
        plan
    };
    let (bobs, rivals) = (bob.access_token.as_str(), rival.token());
    let (booking, hold, draft) = (&property.booking, &property.hold, &property.draft);
    let organizer = &promoter.organizer.organizer_id;
    let nothing = |_: &str| json!({});
    let order = |hold: &str| order(hold);
    let venue = |organizer: &str| venue(organizer);
    type Body<'a> = &'a dyn Fn(&str) -> Value;
    // Whose attempt, the call with `{}` for an id, the body for an id, and the id of what is theirs and of nothing.
    let attempts: [(&str, &str, &str, Body<'_>, [&String; 2]); 13] = [
        (bobs, "GET", "/v1/bookings/{}", &nothing, [booking, &no_booking]),
        (bobs, "POST", "/v1/bookings/{}/cancel", &nothing, [booking, &no_booking]),
        (bobs, "GET", "/v1/holds/{}", &nothing, [hold, &no_hold]),
        (bobs, "DELETE", "/v1/holds/{}", &nothing, [hold, &no_hold]),
        (bobs, "POST", "/v1/bookings", &order, [hold, &no_hold]),
        (bobs, "GET", "/v1/concerts/{}", &nothing, [draft, &no_concert]),
        (rivals, "GET", "/v1/concerts/{}", &nothing, [draft, &no_concert]),
        (rivals, "POST", "/v1/concerts/{}/publish", &nothing, [draft, &no_concert]),
        (rivals, "POST", "/v1/concerts/{}/cancel", &nothing, [&property.concert, &no_concert]),
        (rivals, "GET", "/v1/venues/{}", &nothing, [&promoter.venue_id, &no_venue]),
        (rivals, "POST", "/v1/concerts", &in_venue, [&promoter.venue_id, &no_venue]),
        (rivals, "GET", "/v1/concerts?organizerId={}", &nothing, [organizer, &no_organizer]),
        (rivals, "POST", "/v1/venues", &venue, [organizer, &no_organizer]),
    ];
    for (token, method, path, body, ids) in attempts {
        let mut replies = Vec::new();
        for id in ids {
            let call = stage.call(method, &path.replace("{}", id)).bearer_auth(token);
            let call = call.header("Idempotency-Key", new_key());
            replies.push(read(if method == "POST" { call.json(&body(id)) } else { call }).await);
        }
        assert_eq!(replies[0].status, 404, "{method} {path}: {}", replies[0].body);
        assert_eq!(replies[1].status, 404, "{method} {path}: {}", replies[1].body);
        assert_eq!(without_trace(&replies[0]), without_trace(&replies[1]), "{method} {path}");
    }
    assert_eq!(property.look().await, before);
    assert_eq!(stage.api.balance(&bob).await, 1_000_000);
}

#[tokio::test]
async fn what_belongs_to_others_is_not_found_by_grpc_either() {
    let property = Property::acquire().await;
    let bob = property.stage.fan(1_000_000).await.access_token;
    let before = property.look().await;
    let channel = grpc::connect(property.stage.service("booking")).await;
    let (mut bookings, mut holds) =
        (BookingServiceClient::new(channel.clone()), HoldServiceClient::new(channel));
    let (booking_id, hold_id, request_id) = (property.booking.clone(), property.hold.clone(), new_key());

    let get_booking = GetBookingRequest { booking_id: booking_id.clone() };
    let cancel = CancelBookingRequest { booking_id, request_id: request_id.clone() };
    let get_hold = GetHoldRequest { hold_id: hold_id.clone() };
    let delete = DeleteHoldRequest { hold_id: hold_id.clone() };
    let payment_method = PaymentMethod::Wallet.into();
    let create = CreateBookingRequest { hold_id, payment_method, request_id, ..Default::default() };
    for (what, status) in [
        ("reading it", bookings.get_booking(grpc::by(&bob, get_booking)).await.unwrap_err()),
        ("cancelling it", bookings.cancel_booking(grpc::by(&bob, cancel)).await.unwrap_err()),
    ] {
        grpc::assert_status(what, &status, Booking::BookingNotFound);
    }
    for (what, status) in [
        ("reading a hold", holds.get_hold(grpc::by(&bob, get_hold)).await.unwrap_err()),
        ("booking a hold", bookings.create_booking(grpc::by(&bob, create)).await.unwrap_err()),
        ("giving a hold back", holds.delete_hold(grpc::by(&bob, delete)).await.unwrap_err()),
    ] {
        grpc::assert_status(what, &status, Booking::HoldNotFound);
    }
    assert_eq!(property.look().await, before);
}

#[tokio::test]
async fn a_list_has_its_callers_own_rows_whatever_the_filter() {
    let stage = Stage::open().await;
    let (promoter, ann, bob) =
        (stage.promoter().await, stage.fan(1_000_000).await, stage.fan(1_000_000).await);
    let concert = promoter.concert().await;
    let mut own = Vec::new();
    for (fan, seat) in [(&ann, "A-1-1"), (&bob, "A-1-2")] {
        let booking = stage.api.book(fan, &stage.api.hold(fan, &concert, &[seat]).await).await;
        own.push(text(&booking, "/bookingId").unwrap());
    }
    let me = stage.api.get("/v1/users/me", Some(&ann.access_token)).await.unwrap();
    let anns_id = text(&me.body, "/user/userId").unwrap();
    let ids = |reply: &Reply| -> Vec<String> {
        let rows = reply.body["bookings"].as_array().unwrap_or_else(|| panic!("{}", reply.body));
        rows.iter().map(|row| text(row, "/bookingId").unwrap()).collect()
    };
    for path in ["/v1/bookings".to_owned(), format!("/v1/bookings?concertId={concert}")] {
        let listed = stage.api.get(&path, Some(&bob.access_token)).await.unwrap();
        assert_eq!(ids(&listed), [own[1].clone()], "{path}");
    }
    let entries = stage.api.get("/v1/wallet/entries", Some(&bob.access_token)).await.unwrap();
    assert!(!entries.body.to_string().contains(&own[0]), "{}", entries.body);
    for path in ["/v1/bookings", "/v1/wallet", "/v1/wallet/entries", "/v1/users/me"] {
        for name in ["userId", "fan", "fanId"] {
            let reply =
                stage.api.get(&format!("{path}?{name}={anns_id}"), Some(&bob.access_token)).await.unwrap();
            assert_refused(path, &reply, &refusal(400, Common::FieldInvalid, &[name]));
        }
    }
    // What looks like SQL is a genre like any other: `' OR '1'='1` and `indie'; DROP TABLE concert; --`.
    for genre in ["%27%20OR%20%271%27=%271", "indie%27;%20DROP%20TABLE%20concert;%20--"] {
        let reply = stage.api.get(&format!("/v1/concerts?genre={genre}"), None).await.unwrap();
        assert_eq!((reply.status.as_u16(), &reply.body["concerts"]), (200, &json!([])));
    }
    assert_eq!(
        stage.api.get("/v1/concerts?genre=indie", None).await.unwrap().body["concerts"][0]["concertId"],
        concert
    );
}
