//! Bad input, through REST: each is refused with its documented status and one reason, the field at fault is named as the
//! client wrote it, and nothing has changed afterwards.

#[path = "../stage/mod.rs"]
mod stage;

mod bodies;
mod calls;
mod sale;

use boxoffice::api::{Login, new_key, text};
use boxoffice_proto::common::v1::ErrorReason as Common;
use reqwest::RequestBuilder;
use serde_json::{Value, json};
use stage::{Picture, Promoter, Refusal, Stage, assert_refused, read, refusal, venue};

/// A Boxoffice with people and concerts that bad input could harm.
struct House {
    stage: Stage,
    promoter: Promoter,
    /// A fan with money for nine seats.
    ann: Login,
    /// A fan without money.
    bob: Login,
    /// On sale, with the promoter's usual sections A and FLOOR.
    concert: String,
    /// On sale, with one section B.
    other_concert: String,
}

/// A call that is to be refused.
struct Case {
    what: String,
    call: RequestBuilder,
    expected: Refusal,
}

fn case(what: impl Into<String>, call: RequestBuilder, expected: Refusal) -> Case {
    Case { what: what.into(), call, expected }
}

/// The refusal of fields that are wrong.
fn wrong(fields: &[&str]) -> Refusal {
    refusal(400, Common::FieldInvalid, fields)
}

impl House {
    async fn open() -> Self {
        let stage = Stage::open().await;
        let promoter = stage.promoter().await;
        let (ann, bob) = (stage.fan(1_000_000).await, stage.fan(0).await);
        let concert = promoter.concert().await;
        let other_concert = {
            let mut venue = venue(&promoter.organizer.organizer_id);
            venue["sections"] = json!([{"sectionId": "B", "seated": {"rows": 1, "seatsPerRow": 4}}]);
            let venue = stage.api.post("/v1/venues", Some(promoter.token()), &venue).await.unwrap();
            let venue_id = text(&venue.body, "/venue/venueId").unwrap();
            let price = json!({"currencyCode": "KRW", "minorUnits": "1000"});
            let in_venue = |plan: &mut Value| {
                plan["venueId"] = venue_id.into();
                plan["prices"] = json!([{"sectionId": "B", "price": price}]);
            };
            promoter.publish(in_venue).await
        };
        Self { stage, promoter, ann, bob, concert, other_concert }
    }

    /// A call of Ann's with a new idempotency key.
    fn by_ann(&self, method: &str, path: &str) -> RequestBuilder {
        self.by(&self.ann.access_token, method, path)
    }

    /// A call of somebody's with a new idempotency key.
    fn by(&self, token: &str, method: &str, path: &str) -> RequestBuilder {
        self.stage.call(method, path).bearer_auth(token).header("Idempotency-Key", new_key())
    }

    fn holds(&self) -> String {
        format!("/v1/concerts/{}/holds", self.concert)
    }

    async fn picture(&self) -> Picture {
        let tokens = [self.ann.access_token.as_str(), &self.bob.access_token];
        let organizer = (self.promoter.organizer.organizer_id.as_str(), self.promoter.token());
        Picture::take(&self.stage, &tokens, organizer, &[&self.concert, &self.other_concert]).await
    }

    /// Makes each call: it is refused as expected, and changes nothing.
    async fn refuses(&self, cases: impl IntoIterator<Item = Case>) {
        let before = self.picture().await;
        for Case { what, call, expected } in cases {
            assert_refused(&what, &read(call).await, &expected);
            assert_eq!(self.picture().await, before, "{what} changed something");
        }
    }

    /// Posts each body by somebody: it is refused for the fields named beside it, and changes nothing.
    async fn refuses_bodies(&self, token: &str, path: &str, bodies: &[(Value, &[&str])]) {
        let cases = bodies.iter().map(|(body, fields)| {
            case(format!("POST {path} {body}"), self.by(token, "POST", path).json(body), wrong(fields))
        });
        self.refuses(cases.collect::<Vec<_>>()).await;
    }
}
