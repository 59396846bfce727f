//! Answers that many ask for, such as the seats of a stadium: written as JSON and compressed once, and then given to
//! everyone until they change.

use std::{io::Write, time::Duration};

use axum::{body::Body, response::Response};
use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use http::{
    HeaderMap, HeaderValue, StatusCode,
    header::{ACCEPT_ENCODING, CONTENT_ENCODING, ETAG, IF_NONE_MATCH, VARY},
};
use mesh::Failure;
use moka::future::Cache;
use prost_reflect::MessageDescriptor;
use sha2::{Digest, Sha256};

use crate::{endpoint::respond_with_json, problem::Problem, router::COMPRESSION_MINIMUM, transcode};

/// The most bytes of renderings that are kept.
const CAPACITY: u64 = 64 * 1024 * 1024;
/// How long a rendering is kept that nobody asks for.
const IDLE_LIMIT: Duration = Duration::from_secs(600);

/// What an answer says, in short: the hash of its message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Version([u8; 32]);

impl Version {
    /// The version of a message.
    pub(crate) fn of(descriptor: &MessageDescriptor, bytes: &[u8]) -> Self {
        let hash = Sha256::new().chain_update(descriptor.full_name()).chain_update([0]).chain_update(bytes);
        Self(hash.finalize().into())
    }

    /// Whether the client says that it has this version.
    pub(crate) fn is_known_to(&self, headers: &HeaderMap) -> bool {
        let etag = self.etag();
        let strong = etag.trim_start_matches("W/");
        let known = headers.get_all(IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
        known
            .flat_map(|list| list.split(','))
            .map(str::trim)
            .any(|known| known == "*" || known.trim_start_matches("W/") == strong)
    }

    /// Weak, as the same version may come compressed or not.
    fn etag(&self) -> String {
        let hex: String = self.0[..16].iter().map(|byte| format!("{byte:02x}")).collect();
        format!("W/\"{hex}\"")
    }

    fn header(&self) -> HeaderValue {
        HeaderValue::try_from(self.etag()).expect("hexadecimal digits")
    }

    /// Says that the client has this version.
    pub(crate) fn not_modified(&self) -> Response {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        response.headers_mut().insert(ETAG, self.header());
        response
    }
}

/// An answer, ready to send.
#[derive(Debug, Clone)]
pub(crate) struct Rendering {
    etag: HeaderValue,
    json: Bytes,
    /// None: it is too small to gain anything.
    gzip: Option<Bytes>,
}

impl Rendering {
    fn of(version: Version, descriptor: &MessageDescriptor, bytes: &[u8]) -> Result<Self, Failure> {
        let message = transcode::decode_response(descriptor, bytes).map_err(Failure::internal)?;
        let json = transcode::write_json(&message).map_err(Failure::internal)?;
        let gzip = if json.len() < COMPRESSION_MINIMUM { None } else { Some(compress(&json)?) };
        Ok(Self { etag: version.header(), json: json.into(), gzip })
    }

    fn size(&self) -> u32 {
        let size = self.json.len() + self.gzip.as_ref().map_or(0, Bytes::len);
        u32::try_from(size).unwrap_or(u32::MAX)
    }

    /// The answer, compressed if the client takes that.
    pub(crate) fn respond(self, headers: &HeaderMap) -> Response {
        let (body, is_compressed) = match self.gzip.filter(|_| takes_gzip(headers)) {
            Some(gzip) => (gzip, true),
            None => (self.json, false),
        };
        let mut response = respond_with_json(body);
        let headers = response.headers_mut();
        headers.insert(ETAG, self.etag);
        headers.insert(VARY, HeaderValue::from_static("accept-encoding"));
        if is_compressed {
            headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        }
        response
    }
}

fn compress(json: &[u8]) -> Result<Bytes, Failure> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(json).map_err(Failure::internal)?;
    Ok(encoder.finish().map_err(Failure::internal)?.into())
}

/// Whether a client takes gzip (RFC 9110, section 12.5.3).
fn takes_gzip(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok());
    accepted.flat_map(|list| list.split(',')).any(|coding| {
        let (name, weight) = coding.split_once(';').unwrap_or((coding, "q=1"));
        let weight = weight.trim().trim_start_matches("q=");
        name.trim().eq_ignore_ascii_case("gzip") && weight.parse::<f32>().is_ok_and(|weight| weight > 0.0)
    })
}

/// The renderings of late.
pub(crate) struct Renderings(Cache<Version, Rendering>);

impl Renderings {
    pub(crate) fn new() -> Self {
        let cache = Cache::builder()
            .weigher(|_, rendering: &Rendering| rendering.size())
            .max_capacity(CAPACITY)
            .time_to_idle(IDLE_LIMIT)
            .build();
        Self(cache)
    }

    /// The rendering of a message. Many who ask at once wait for one.
    pub(crate) async fn render(
        &self,
        version: Version,
        descriptor: &MessageDescriptor,
        bytes: Bytes,
    ) -> Result<Rendering, Problem> {
        let descriptor = descriptor.clone();
        let render = async move {
            // Takes a tenth of a second for a stadium: other calls must not wait for it.
            let work = tokio::task::spawn_blocking(move || Rendering::of(version, &descriptor, &bytes));
            work.await.unwrap_or_else(|panic| Err(Failure::internal(panic)))
        };
        self.0.try_get_with(version, render).await.map_err(|failure| {
            tracing::error!(error = mesh::failure::chain(&*failure), "an answer can't be rendered");
            Failure::internal("an answer can't be rendered").into()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::descriptors::routes;
    use boxoffice_proto::booking::v1::{GetSeatMapResponse, SeatMap};
    use http_body_util::BodyExt;
    use prost::Message;

    fn headers(name: http::HeaderName, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(name, HeaderValue::from_str(value).unwrap())])
    }

    fn output() -> MessageDescriptor {
        routes().unwrap().into_iter().find(|route| route.method.name() == "GetSeatMap").unwrap().output
    }

    fn message(layout_version: &str) -> Bytes {
        let seat_map = SeatMap { layout_version: layout_version.into(), sections: vec![] };
        GetSeatMapResponse { seat_map: Some(seat_map) }.encode_to_vec().into()
    }

    #[test]
    fn a_version_is_recognised() {
        let version = Version::of(&output(), &message("1"));
        let etag = version.etag();
        let strong = etag.trim_start_matches("W/");
        for known in [&etag, strong, "*", &format!("\"other\", {etag}")] {
            assert!(version.is_known_to(&headers(IF_NONE_MATCH, known)), "{known}");
        }
        for other in
            ["", "\"other\"", &Version::of(&output(), &message("2")).etag(), strong.trim_matches('"')]
        {
            assert!(!version.is_known_to(&headers(IF_NONE_MATCH, other)), "{other}");
        }
        assert!(!version.is_known_to(&HeaderMap::new()));
    }

    #[test]
    fn gzip_is_sent_only_to_those_who_take_it() {
        for accepted in ["gzip", "GZIP", "br, gzip;q=0.5", "gzip; q=1"] {
            assert!(takes_gzip(&headers(ACCEPT_ENCODING, accepted)), "{accepted}");
        }
        for refused in ["", "br", "gzip;q=0", "gzip;q=0.0", "x-gzip2", "identity"] {
            assert!(!takes_gzip(&headers(ACCEPT_ENCODING, refused)), "{refused}");
        }
    }

    #[tokio::test]
    async fn an_answer_is_the_same_compressed_or_not() {
        let renderings = Renderings::new();
        let layout_version = "1".repeat(2000);
        let (bytes, output) = (message(&layout_version), output());
        let version = Version::of(&output, &bytes);
        let plain =
            renderings.render(version, &output, bytes.clone()).await.unwrap().respond(&HeaderMap::new());
        let accept = headers(ACCEPT_ENCODING, "gzip");
        let compressed = renderings.render(version, &output, bytes).await.unwrap().respond(&accept);
        assert_eq!(plain.headers()[ETAG], compressed.headers()[ETAG]);
        assert_eq!(compressed.headers()[CONTENT_ENCODING], "gzip");
        let plain = plain.into_body().collect().await.unwrap().to_bytes();
        let compressed = compressed.into_body().collect().await.unwrap().to_bytes();
        let mut decoder = flate2::read::GzDecoder::new(&compressed[..]);
        let mut text = String::new();
        std::io::Read::read_to_string(&mut decoder, &mut text).unwrap();
        assert_eq!(text.as_bytes(), plain);
        assert_eq!(text, format!(r#"{{"seatMap":{{"layoutVersion":"{layout_version}","sections":[]}}}}"#));
    }

    #[tokio::test]
    async fn garbage_is_not_rendered() {
        let (bytes, output) = (Bytes::from_static(b"\xff"), output());
        let problem =
            Renderings::new().render(Version::of(&output, &bytes), &output, bytes).await.unwrap_err();
        assert_eq!(problem.status(), StatusCode::INTERNAL_SERVER_ERROR);
    }
}
