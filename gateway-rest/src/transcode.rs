//! Turns a REST request into the bytes of its gRPC message, and the bytes of a gRPC message into JSON
//! (<https://protobuf.dev/programming-guides/json/>).
//!
//! A request is taken strictly: a name or a type that is not in the contract is refused, never guessed, and every wrong
//! field is named, so that a client mends them in one go.

use std::borrow::Cow;

use base64::{
    Engine as _, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use boxoffice_proto::{common::v1::ErrorReason, policy::IdempotencyKey};
use http::{
    HeaderMap, HeaderValue,
    header::{CONTENT_ENCODING, CONTENT_TYPE},
};
use prost_reflect::{
    DynamicMessage, EnumDescriptor, FieldDescriptor, Kind, MapKey, MessageDescriptor, SerializeOptions, Value,
};
use serde::de::DeserializeSeed;
use serde_json::{Map, Value as Json};

use crate::{
    descriptors::Route,
    json_body::{self, Body},
    problem::{FieldError, Problem},
};

/// The header that carries the field `request_id`.
pub const IDEMPOTENCY_KEY: &str = "Idempotency-Key";

/// More wrong fields than this are not listed.
pub(crate) const MAX_ERRORS: usize = 20;

/// A body with more values than this is refused: each takes some fifty bytes once it is read.
const MAX_VALUES: usize = 100_000;

/// What is said of a field that stands more than once.
const GIVEN_TWICE: &str = "must be given once";

/// What of a REST request makes up the message.
#[derive(Debug)]
pub struct RestRequest<'a> {
    /// The values of the path's parameters, decoded, in the order of the path.
    pub path_values: &'a [&'a str],
    /// The query, as in the URL.
    pub query: &'a str,
    /// The headers.
    pub headers: &'a HeaderMap,
    /// The body.
    pub body: &'a [u8],
}

/// Why a request has no message.
#[derive(Debug, PartialEq, Eq)]
pub enum RequestError {
    /// Parts of it are wrong; at least one.
    Fields(Vec<FieldError>),
    /// The body is not a JSON object; what is wrong with it, and where.
    BodyMalformed(String),
    /// The body is not declared as JSON; what is wrong with the declaration.
    MediaTypeUnsupported(&'static str),
    /// The method needs an idempotency key.
    IdempotencyKeyMissing,
}

impl From<RequestError> for Problem {
    fn from(error: RequestError) -> Self {
        match error {
            RequestError::Fields(errors) => Self::fields(errors),
            RequestError::BodyMalformed(why) => {
                Self::new(ErrorReason::BodyMalformed, format!("the body is not a JSON object: {why}"))
            }
            RequestError::MediaTypeUnsupported(why) => Self::new(ErrorReason::MediaTypeUnsupported, why),
            RequestError::IdempotencyKeyMissing => {
                Self::new(ErrorReason::IdempotencyKeyMissing, "the header Idempotency-Key is required")
            }
        }
    }
}

/// The message of a REST request.
///
/// # Errors
/// If the request is not what the contract asks for.
pub fn decode_request(route: &Route, request: &RestRequest<'_>) -> Result<DynamicMessage, RequestError> {
    let mut reader = Reader::default();
    let body = if route.takes_body { parse_body(request)? } else { Body::default() };
    for path in body.given_again {
        reader.within(|here| here.push_str(&path), |reader| reader.refuse("DUPLICATE", GIVEN_TWICE));
    }
    let mut message = reader.message(&route.input, body.object, |field| route.is_open(field));
    reader.query(route, request.query, &mut message);
    for (field, value) in route.path_fields.iter().zip(request.path_values) {
        reader.text_field(&mut message, field, field.json_name(), value);
    }
    if let Some(field) = &route.key_field
        && let Some(key) = reader.idempotency_key(request.headers, route.policy.idempotency_key)?
    {
        message.set_field(field, Value::String(key));
    }
    if reader.errors.is_empty() { Ok(message) } else { Err(RequestError::Fields(reader.errors)) }
}

/// The JSON object in the body. No body counts as an empty object.
fn parse_body(request: &RestRequest<'_>) -> Result<Body, RequestError> {
    if request.body.is_empty() {
        return Ok(Body::default());
    }
    check_media_type(request.headers)?;
    let begins_a_value = |byte: &&u8| matches!(byte, b',' | b'[' | b'{');
    if request.body.iter().filter(begins_a_value).count() > MAX_VALUES {
        return Err(RequestError::BodyMalformed(format!("it has more than {MAX_VALUES} values")));
    }
    // serde_json ends at 128 levels, so a deep body can't exhaust the stack here or below.
    json_body::parse(request.body).map_err(|error| RequestError::BodyMalformed(error.to_string()))
}

fn check_media_type(headers: &HeaderMap) -> Result<(), RequestError> {
    let refuse = |why| Err(RequestError::MediaTypeUnsupported(why));
    if headers
        .get(CONTENT_ENCODING)
        .is_some_and(|encoding| !encoding.as_bytes().eq_ignore_ascii_case(b"identity"))
    {
        return refuse("a compressed body is not accepted: send it without Content-Encoding");
    }
    let declared = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let mut parts = declared.split(';').map(str::trim);
    let is_json = parts.next().is_some_and(|essence| essence.eq_ignore_ascii_case("application/json"));
    if !is_json {
        return refuse("a body must have the header Content-Type: application/json");
    }
    let is_utf8 = parts.filter_map(|parameter| parameter.split_once('=')).all(|(name, value)| {
        !name.trim_end().eq_ignore_ascii_case("charset")
            || value.trim_matches('"').eq_ignore_ascii_case("utf-8")
    });
    if is_utf8 { Ok(()) } else { refuse("a JSON body is always UTF-8: no other charset is accepted") }
}

/// Reads values into a message, and notes all that is wrong on the way.
#[derive(Default)]
struct Reader {
    /// Where the reader stands, as the client would write it.
    path: String,
    errors: Vec<FieldError>,
}

impl Reader {
    /// Notes that something is wrong where the reader stands.
    fn refuse(&mut self, reason: &'static str, description: impl Into<Cow<'static, str>>) {
        if self.errors.len() < MAX_ERRORS {
            self.errors.push(FieldError {
                field: self.path.clone(),
                reason: reason.into(),
                description: description.into(),
            });
        }
    }

    fn refuse_type(&mut self, expected: &str) {
        self.refuse("WRONG_TYPE", format!("must be {expected}"));
    }

    /// Does something one step deeper.
    fn within<T>(&mut self, push_step: impl FnOnce(&mut String), read: impl FnOnce(&mut Self) -> T) -> T {
        let length = self.path.len();
        push_step(&mut self.path);
        let value = read(self);
        self.path.truncate(length);
        value
    }

    fn within_field<T>(&mut self, name: &str, read: impl FnOnce(&mut Self) -> T) -> T {
        let push_name = |path: &mut String| {
            if !path.is_empty() {
                path.push('.');
            }
            path.push_str(json_body::short_name(name));
        };
        self.within(push_name, read)
    }

    fn within_index<T>(&mut self, index: usize, read: impl FnOnce(&mut Self) -> T) -> T {
        self.within(|path| path.push_str(&format!("[{index}]")), read)
    }

    fn message(
        &mut self,
        descriptor: &MessageDescriptor,
        object: Map<String, Json>,
        is_open: impl Fn(&FieldDescriptor) -> bool,
    ) -> DynamicMessage {
        let mut message = DynamicMessage::new(descriptor.clone());
        for (name, json) in object {
            // Only the JSON name counts: two spellings of a field would be two values for it.
            let field = descriptor.get_field_by_json_name(&name).filter(&is_open);
            self.within_field(&name, |reader| match field {
                Some(field) => reader.field(&mut message, &field, json),
                None => reader.refuse("UNKNOWN_FIELD", "is not a field of this request"),
            });
        }
        message
    }

    fn field(&mut self, message: &mut DynamicMessage, field: &FieldDescriptor, json: Json) {
        // Null is how JSON leaves a field out.
        if json.is_null() {
            return;
        }
        let value = match json {
            Json::Object(entries) if field.is_map() => self.map(field, entries),
            _ if field.is_map() => return self.refuse_type("an object"),
            Json::Array(items) if field.is_list() => self.list(&field.kind(), items),
            _ if field.is_list() => return self.refuse_type("a list"),
            single => match self.single(&field.kind(), single) {
                Some(value) => value,
                None => return,
            },
        };
        let rival =
            field.containing_oneof().and_then(|oneof| oneof.fields().find(|other| message.has_field(other)));
        if let Some(rival) = rival {
            return self.refuse("CONFLICT", format!("can't be given together with {}", rival.json_name()));
        }
        message.set_field(field, value);
    }

    fn list(&mut self, kind: &Kind, items: Vec<Json>) -> Value {
        let mut values = Vec::with_capacity(items.len());
        for (index, item) in items.into_iter().enumerate() {
            values.extend(self.within_index(index, |reader| reader.single(kind, item)));
        }
        Value::List(values)
    }

    fn map(&mut self, field: &FieldDescriptor, entries: Map<String, Json>) -> Value {
        let kind = field.kind();
        let entry = kind.as_message().expect("a map is a list of entries");
        let (key_kind, value_kind) =
            (entry.map_entry_key_field().kind(), entry.map_entry_value_field().kind());
        let entries = entries.into_iter().filter_map(|(name, json)| {
            self.within_field(&name, |reader| {
                let key = reader.text(&key_kind, &name).and_then(into_map_key);
                key.zip(reader.single(&value_kind, json))
            })
        });
        Value::Map(entries.collect())
    }

    /// One value that is not a list. None, and noted, if it is wrong.
    fn single(&mut self, kind: &Kind, json: Json) -> Option<Value> {
        match (kind, json) {
            (Kind::String, Json::String(text)) => Some(Value::String(text)),
            (Kind::Bool, Json::Bool(flag)) => Some(Value::Bool(flag)),
            (Kind::Enum(descriptor), Json::String(name)) => self.enumeration(descriptor, &name),
            (Kind::Bytes, Json::String(text)) => self.bytes(&text),
            (Kind::Double, Json::Number(number)) => number.as_f64().map(Value::F64),
            (Kind::Float, Json::Number(number)) => number.as_f64().map(|value| Value::F32(value as f32)),
            // 64 bits don't fit into the numbers of JavaScript, so they may come as text.
            (
                Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 | Kind::Uint64 | Kind::Fixed64,
                Json::String(text),
            ) => self.text(kind, &text),
            (_, Json::Number(number)) if is_integer(kind) => match whole_number(&number) {
                Some(number) => self.integer(kind, number),
                None => {
                    self.refuse_type(expected(kind));
                    None
                }
            },
            (Kind::Message(descriptor), json) if descriptor.package_name() == "google.protobuf" => {
                self.well_known(descriptor, json)
            }
            (Kind::Message(descriptor), Json::Object(object)) => {
                Some(Value::Message(self.message(descriptor, object, |_| true)))
            }
            _ => {
                self.refuse_type(expected(kind));
                None
            }
        }
    }

    /// A single value as it stands in a URL. None, and noted, if it is wrong.
    fn text(&mut self, kind: &Kind, text: &str) -> Option<Value> {
        match kind {
            Kind::String => Some(Value::String(text.to_owned())),
            Kind::Enum(descriptor) => self.enumeration(descriptor, text),
            Kind::Bool if text == "true" => Some(Value::Bool(true)),
            Kind::Bool if text == "false" => Some(Value::Bool(false)),
            _ if is_integer(kind) && is_decimal(text) => {
                // A number beyond even 128 bits is as much out of range as the largest.
                self.integer(kind, text.parse().unwrap_or(i128::MAX))
            }
            _ => {
                self.refuse_type(expected(kind));
                None
            }
        }
    }

    fn integer(&mut self, kind: &Kind, number: i128) -> Option<Value> {
        let value = match kind {
            Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => i32::try_from(number).ok().map(Value::I32),
            Kind::Uint32 | Kind::Fixed32 => u32::try_from(number).ok().map(Value::U32),
            Kind::Uint64 | Kind::Fixed64 => u64::try_from(number).ok().map(Value::U64),
            _ => i64::try_from(number).ok().map(Value::I64),
        };
        if value.is_none() {
            self.refuse("OUT_OF_RANGE", format!("must be {}", expected(kind)));
        }
        value
    }

    fn enumeration(&mut self, descriptor: &EnumDescriptor, name: &str) -> Option<Value> {
        if let Some(value) = descriptor.get_value_by_name(name) {
            return Some(Value::EnumNumber(value.number()));
        }
        // By convention number 0 stands for a value that is missing.
        let known = descriptor.values().filter(|value| value.number() != 0);
        let names: Vec<String> = known.map(|value| value.name().to_owned()).collect();
        self.refuse("UNKNOWN_VALUE", format!("must be one of: {}", names.join(", ")));
        None
    }

    fn bytes(&mut self, text: &str) -> Option<Value> {
        const CONFIG: GeneralPurposeConfig =
            GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
        const STANDARD: GeneralPurpose = GeneralPurpose::new(&alphabet::STANDARD, CONFIG);
        const URL_SAFE: GeneralPurpose = GeneralPurpose::new(&alphabet::URL_SAFE, CONFIG);
        let Ok(bytes) = STANDARD.decode(text).or_else(|_| URL_SAFE.decode(text)) else {
            self.refuse("MALFORMED", "must be base64");
            return None;
        };
        Some(Value::Bytes(bytes.into()))
    }

    /// A time, a duration and their like, which have a JSON form of their own.
    fn well_known(&mut self, descriptor: &MessageDescriptor, json: Json) -> Option<Value> {
        let is_text = json.is_string();
        let result = descriptor.clone().deserialize(json);
        let Ok(message) = result else {
            let expected = expected_well_known(descriptor);
            let reason = if is_text { "MALFORMED" } else { "WRONG_TYPE" };
            self.refuse(reason, format!("must be {expected}"));
            return None;
        };
        Some(Value::Message(message))
    }

    /// Sets a field from a parameter of the URL.
    fn text_field(&mut self, message: &mut DynamicMessage, field: &FieldDescriptor, name: &str, text: &str) {
        if let Some(value) = self.within_field(name, |reader| reader.text(&field.kind(), text)) {
            message.set_field(field, value);
        }
    }

    fn query(&mut self, route: &Route, query: &str, message: &mut DynamicMessage) {
        let mut given: Vec<FieldDescriptor> = Vec::new();
        for (name, text) in form_urlencoded::parse(query.as_bytes()) {
            let field = route.input.get_field_by_json_name(&name).filter(|field| route.is_query_field(field));
            let Some(field) = field else {
                let description = "is not a query parameter of this route";
                self.within_field(&name, |reader| reader.refuse("UNKNOWN_FIELD", description));
                continue;
            };
            if given.contains(&field) {
                self.within_field(&name, |reader| reader.refuse("DUPLICATE", GIVEN_TWICE));
                continue;
            }
            self.text_field(message, &field, &name, &text);
            given.push(field);
        }
    }

    fn idempotency_key(
        &mut self,
        headers: &HeaderMap,
        policy: IdempotencyKey,
    ) -> Result<Option<String>, RequestError> {
        let mut values = headers.get_all(IDEMPOTENCY_KEY).iter();
        let Some(value) = values.next() else {
            return match policy {
                IdempotencyKey::None => Ok(None),
                IdempotencyKey::Required => Err(RequestError::IdempotencyKeyMissing),
                IdempotencyKey::Optional => Ok(Some(uuid::Uuid::new_v4().to_string())),
            };
        };
        let key = visible_ascii(value).filter(|_| values.next().is_none());
        if key.is_none() {
            let description = "must be given once, with 1 to 255 visible ASCII characters";
            self.within_field(IDEMPOTENCY_KEY, |reader| reader.refuse("MALFORMED", description));
        }
        Ok(key)
    }
}

fn visible_ascii(value: &HeaderValue) -> Option<String> {
    let bytes = value.as_bytes();
    let is_sane = (1..=255).contains(&bytes.len()) && bytes.iter().all(u8::is_ascii_graphic);
    is_sane.then(|| String::from_utf8_lossy(bytes).into_owned())
}

fn is_integer(kind: &Kind) -> bool {
    !matches!(
        kind,
        Kind::Double
            | Kind::Float
            | Kind::Bool
            | Kind::String
            | Kind::Bytes
            | Kind::Message(_)
            | Kind::Enum(_)
    )
}

fn is_decimal(text: &str) -> bool {
    let digits = text.strip_prefix('-').unwrap_or(text);
    !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())
}

/// A number without a fraction. JSON has one kind of number: `5.0` is 5.
fn whole_number(number: &serde_json::Number) -> Option<i128> {
    if let Some(whole) = number.as_i128() {
        return Some(whole);
    }
    // The conversion saturates, far beyond any range that is accepted.
    number.as_f64().filter(|float| float.fract() == 0.0).map(|float| float as i128)
}

fn into_map_key(value: Value) -> Option<MapKey> {
    match value {
        Value::String(key) => Some(MapKey::String(key)),
        Value::Bool(key) => Some(MapKey::Bool(key)),
        Value::I32(key) => Some(MapKey::I32(key)),
        Value::I64(key) => Some(MapKey::I64(key)),
        Value::U32(key) => Some(MapKey::U32(key)),
        Value::U64(key) => Some(MapKey::U64(key)),
        _ => None,
    }
}

/// What a field takes, for developers.
fn expected(kind: &Kind) -> &'static str {
    match kind {
        Kind::Bool => "true or false",
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => "a whole number of 32 bits",
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => "a whole number of 64 bits, as text or number",
        Kind::Uint32 | Kind::Fixed32 => "a whole number of 32 bits, at least 0",
        Kind::Uint64 | Kind::Fixed64 => "a whole number of 64 bits, at least 0, as text or number",
        Kind::Double | Kind::Float => "a number",
        Kind::String => "text",
        Kind::Bytes => "text in base64",
        Kind::Enum(_) => "the name of a value",
        Kind::Message(_) => "an object",
    }
}

fn expected_well_known(descriptor: &MessageDescriptor) -> &'static str {
    match descriptor.name() {
        "Timestamp" => "a time such as 2026-12-31T18:00:00Z",
        "Duration" => "a duration such as 1.5s",
        "FieldMask" => "field names, separated by commas",
        _ => "what the contract says",
    }
}

/// Why a response has no JSON: a bug of the service, or a contract newer than this gateway's.
#[derive(Debug, thiserror::Error)]
pub enum ResponseError {
    /// The bytes are not the message.
    #[error("the response is not a {0}")]
    Decode(String, #[source] prost::DecodeError),
    /// A value of the message has no JSON form.
    #[error("the response has no JSON form")]
    Encode(#[from] serde_json::Error),
}

/// Decodes a response.
///
/// # Errors
/// If the bytes are not such a message.
pub fn decode_response(
    descriptor: &MessageDescriptor,
    bytes: &[u8],
) -> Result<DynamicMessage, ResponseError> {
    DynamicMessage::decode(descriptor.clone(), bytes)
        .map_err(|error| ResponseError::Decode(descriptor.full_name().to_owned(), error))
}

/// Writes a message as JSON, with zeros and empty lists written out, so that clients need no defaults.
///
/// # Errors
/// If a value has no JSON form, such as a time in the year 10000.
pub fn write_json(message: &DynamicMessage) -> Result<Vec<u8>, ResponseError> {
    let mut serializer = serde_json::Serializer::new(Vec::with_capacity(JSON_BYTES));
    message.serialize_with_options(&mut serializer, &JSON_FORM)?;
    Ok(serializer.into_inner())
}

/// The same, for whoever goes on changing it.
///
/// # Errors
/// If a value has no JSON form.
pub fn to_json(message: &DynamicMessage) -> Result<Map<String, Json>, ResponseError> {
    match message.serialize_with_options(serde_json::value::Serializer, &JSON_FORM)? {
        Json::Object(object) => Ok(object),
        _ => unreachable!("only well-known types are no objects, and none is a response"),
    }
}

/// What most answers are shorter than.
const JSON_BYTES: usize = 1024;
const JSON_FORM: SerializeOptions = SerializeOptions::new().skip_default_fields(false);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::descriptors::routes;
    use prost::Message as _;
    use prost_reflect::DescriptorPool;
    use prost_types::{
        DescriptorProto, FieldDescriptorProto, FileDescriptorProto, MessageOptions,
        field_descriptor_proto::{Label, Type},
    };
    use serde_json::json;

    const CONCERT: &str = "cnc_01h455vb4pex5vsknk084sn02q";

    fn route(method: &str) -> Route {
        routes().unwrap().into_iter().find(|route| route.method.name() == method).unwrap()
    }

    /// A request, built step by step.
    struct Call {
        route: Route,
        path: Vec<&'static str>,
        query: &'static str,
        headers: HeaderMap,
        body: Vec<u8>,
    }

    fn call(method: &str) -> Call {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(IDEMPOTENCY_KEY, HeaderValue::from_static("key-1"));
        let route = route(method);
        let path = route.path_fields.iter().map(|_| CONCERT).collect();
        Call { route, path, query: "", headers, body: Vec::new() }
    }

    impl Call {
        fn body(mut self, body: impl ToString) -> Self {
            self.body = body.to_string().into_bytes();
            self
        }

        fn query(self, query: &'static str) -> Self {
            Self { query, ..self }
        }

        fn header(mut self, name: &'static str, value: &str) -> Self {
            self.headers.insert(name, HeaderValue::from_str(value).unwrap());
            self
        }

        fn without_header(mut self, name: &str) -> Self {
            self.headers.remove(name);
            self
        }

        fn decode(&self) -> Result<DynamicMessage, RequestError> {
            let request = RestRequest {
                path_values: &self.path,
                query: self.query,
                headers: &self.headers,
                body: &self.body,
            };
            decode_request(&self.route, &request)
        }

        /// The message, as JSON without its zeros.
        fn message(&self) -> Json {
            serde_json::to_value(self.decode().unwrap()).unwrap()
        }

        /// The fields that are wrong, with their reasons.
        fn errors(&self) -> Vec<(String, String)> {
            match self.decode() {
                Err(RequestError::Fields(errors)) => {
                    errors.into_iter().map(|error| (error.field, error.reason.into_owned())).collect()
                }
                other => panic!("{other:?}"),
            }
        }

        fn error(&self) -> (String, String) {
            let [error] = self.errors().try_into().unwrap();
            error
        }
    }

    fn named(field: &str, reason: &str) -> (String, String) {
        (field.to_owned(), reason.to_owned())
    }

    #[test]
    fn path_body_and_header_make_one_message() {
        let call = call("CreateHold").body(json!({"seatIds": ["A-1-1", "A-1-2"]}));
        let expected = json!({"concertId": CONCERT, "seatIds": ["A-1-1", "A-1-2"], "requestId": "key-1"});
        assert_eq!(call.message(), expected);
    }

    #[test]
    fn the_query_makes_a_message() {
        let call = call("ListBookings").query("pageSize=20&pageToken=a%2Bb+c&concertId=");
        assert_eq!(call.message(), json!({"pageSize": 20, "pageToken": "a+b c"}));
    }

    #[test]
    fn an_optional_zero_is_not_the_same_as_none() {
        assert_eq!(call("ListBookings").query("pageSize=0").message(), json!({"pageSize": 0}));
        assert_eq!(call("ListBookings").message(), json!({}));
        let with_zero = call("CreateConcert").body(json!({"maxSeatsPerFan": 0}));
        assert_eq!(with_zero.message()["maxSeatsPerFan"], json!(0));
    }

    #[test]
    fn sixty_four_bits_come_as_text_or_number() {
        for amount in [json!("9007199254740993"), json!(9_007_199_254_740_993_i64)] {
            let call =
                call("CreateTopUp").body(json!({"amount": {"currencyCode": "KRW", "minorUnits": amount}}));
            assert_eq!(call.message()["amount"]["minorUnits"], "9007199254740993");
        }
        let call = call("CreateTopUp").body(r#"{"amount": {"minorUnits": 5.0}}"#);
        assert_eq!(call.message()["amount"]["minorUnits"], "5");
    }

    #[test]
    fn an_empty_body_is_an_empty_object() {
        let call = call("CancelBooking").without_header("content-type");
        assert_eq!(call.message(), json!({"bookingId": CONCERT, "requestId": "key-1"}));
    }

    #[test]
    fn the_body_of_a_get_is_ignored() {
        assert_eq!(call("GetWallet").body("not JSON").message(), json!({}));
    }

    #[test]
    fn null_leaves_a_field_out() {
        let call = call("CreateHold").body(json!({"seatIds": null, "bestAvailable": null}));
        assert_eq!(call.message(), json!({"concertId": CONCERT, "requestId": "key-1"}));
    }

    #[test]
    fn unknown_fields_are_named() {
        let bodies = [
            (json!({"seatIds": [], "price": 1}), "price"),
            (json!({"bestAvailable": {"sectionId": "A", "userId": "usr_x"}}), "bestAvailable.userId"),
            // In the contract, but not for the body.
            (json!({"requestId": "mine"}), "requestId"),
            (json!({"concertId": CONCERT}), "concertId"),
            // One spelling only.
            (json!({"seat_ids": []}), "seat_ids"),
            (json!({"request_id": "mine"}), "request_id"),
        ];
        for (body, field) in bodies {
            assert_eq!(call("CreateHold").body(&body).error(), named(field, "UNKNOWN_FIELD"), "{body}");
        }
        for query in ["status=1", "requestId=1", "concert_id=1", "page_size=1"] {
            let name = query.split_once('=').unwrap().0;
            assert_eq!(call("ListBookings").query(query).error(), named(name, "UNKNOWN_FIELD"));
        }
        let in_path_and_query = call("GetSeats").query("concertId=cnc_other");
        assert_eq!(in_path_and_query.error(), named("concertId", "UNKNOWN_FIELD"));
        let beside_a_body = call("CreateHold").query("seatIds=A-1-1");
        assert_eq!(beside_a_body.error(), named("seatIds", "UNKNOWN_FIELD"));
    }

    #[test]
    fn wrong_types_are_named_by_their_path() {
        let cases = [
            ("CreateHold", json!({"seatIds": ["A-1-1", 2]}), "seatIds[1]"),
            ("CreateHold", json!({"seatIds": "A-1-1"}), "seatIds"),
            ("CreateHold", json!({"seatIds": [null]}), "seatIds[0]"),
            ("CreateHold", json!({"bestAvailable": []}), "bestAvailable"),
            ("CreateHold", json!({"bestAvailable": {"quantity": "two"}}), "bestAvailable.quantity"),
            ("CreateHold", json!({"bestAvailable": {"quantity": 1.5}}), "bestAvailable.quantity"),
            ("CreateHold", json!({"bestAvailable": {"accessible": 1}}), "bestAvailable.accessible"),
            (
                "CreateConcert",
                json!({"prices": [{"price": {"minorUnits": true}}]}),
                "prices[0].price.minorUnits",
            ),
            (
                "CreateConcert",
                json!({"prices": [{"price": {"minorUnits": "+5"}}]}),
                "prices[0].price.minorUnits",
            ),
            (
                "CreateConcert",
                json!({"prices": [{"price": {"minorUnits": ""}}]}),
                "prices[0].price.minorUnits",
            ),
            ("CreateConcert", json!({"startTime": 1_700_000_000}), "startTime"),
            ("CreateBooking", json!({"paymentMethod": 1}), "paymentMethod"),
        ];
        for (method, body, field) in cases {
            assert_eq!(call(method).body(&body).error(), named(field, "WRONG_TYPE"), "{body}");
        }
        for query in ["pageSize=ten", "pageSize=", "pageSize=1.5", "pageSize=0x10"] {
            assert_eq!(call("ListBookings").query(query).error(), named("pageSize", "WRONG_TYPE"), "{query}");
        }
    }

    #[test]
    fn numbers_out_of_range_are_not_wrapped_around() {
        let quantities = ["2147483648", "-2147483649", "1e30", "1e300", "9223372036854775808"];
        for quantity in quantities {
            let body = format!(r#"{{"bestAvailable": {{"quantity": {quantity}}}}}"#);
            let expected = named("bestAvailable.quantity", "OUT_OF_RANGE");
            assert_eq!(call("CreateHold").body(body).error(), expected, "{quantity}");
        }
        let amounts = [
            "9223372036854775808",
            "9223372036854775808.0",
            r#""9223372036854775808""#,
            r#""-9223372036854775809""#,
        ];
        for amount in amounts {
            let body = format!(r#"{{"amount": {{"minorUnits": {amount}}}}}"#);
            assert_eq!(
                call("CreateTopUp").body(body).error(),
                named("amount.minorUnits", "OUT_OF_RANGE"),
                "{amount}"
            );
        }
        let enormous = call("ListBookings").query("pageSize=99999999999999999999999999999999999999999999");
        assert_eq!(enormous.error(), named("pageSize", "OUT_OF_RANGE"));
    }

    #[test]
    fn other_mistakes_have_reasons_of_their_own() {
        let time = call("CreateConcert").body(json!({"startTime": "tomorrow"}));
        assert_eq!(time.error(), named("startTime", "MALFORMED"));
        let method = call("CreateBooking").body(json!({"paymentMethod": "PAYMENT_METHOD_GOLD"}));
        assert_eq!(method.error(), named("paymentMethod", "UNKNOWN_VALUE"));
        let twice = call("ListBookings").query("pageSize=1&pageSize=2");
        assert_eq!(twice.error(), named("pageSize", "DUPLICATE"));
        let section = json!({"seated": {"rows": 1}, "standing": {"capacity": 1}});
        let both = call("CreateVenue").body(json!({"sections": [section]}));
        assert_eq!(both.error(), named("sections[0].standing", "CONFLICT"));
    }

    #[test]
    fn a_field_is_given_once() {
        let price =
            r#"{"sectionId": "A", "price": {"minorUnits": 1, "currencyCode": "KRW", "minorUnits": 1}}"#;
        let cases = [
            ("CreateHold", r#"{"seatIds": ["A-1-1"], "seatIds": ["A-1-1"]}"#.to_owned(), "seatIds"),
            ("CreateHold", r#"{"seatIds": null, "seatIds": ["A-1-1"]}"#.to_owned(), "seatIds"),
            // The same name, escaped.
            ("CreateHold", r#"{"seatIds": ["A-1-1"], "seat\u0049ds": []}"#.to_owned(), "seatIds"),
            ("CreateConcert", format!(r#"{{"prices": [{price}]}}"#), "prices[0].price.minorUnits"),
            ("CreateConcert", format!(r#"{{"prices": [{{}}, {price}]}}"#), "prices[1].price.minorUnits"),
        ];
        for (method, body, field) in cases {
            assert_eq!(call(method).body(&body).error(), named(field, "DUPLICATE"), "{body}");
        }
        // Contracts write names in another way than JSON; only the JSON name is a field.
        let both_spellings = r#"{"seatIds": ["A-1-1"], "seat_ids": ["A-1-2"]}"#;
        assert_eq!(call("CreateHold").body(both_spellings).error(), named("seat_ids", "UNKNOWN_FIELD"));
        let many: String = (0..1000).map(|number| format!("\"{number}\": 1, \"{number}\": 1,")).collect();
        assert_eq!(call("CreateHold").body(format!("{{{many} \"x\": 1}}")).errors().len(), MAX_ERRORS);
    }

    #[test]
    fn all_wrong_fields_are_named_at_once_up_to_a_limit() {
        let call_with_three = call("CreateHold").query("x=1").body(json!({"seatIds": [1, "A-1-1"], "y": 0}));
        let expected =
            [named("seatIds[0]", "WRONG_TYPE"), named("y", "UNKNOWN_FIELD"), named("x", "UNKNOWN_FIELD")];
        assert_eq!(call_with_three.errors(), expected);
        let call_with_many = call("CreateHold").body(json!({"seatIds": vec![0; 1000]}));
        assert_eq!(call_with_many.errors().len(), MAX_ERRORS);
    }

    #[test]
    fn a_long_name_is_not_repeated_in_full() {
        let long = "é".repeat(100_000);
        let (field, reason) = call("CreateHold").body(json!({long: 1})).error();
        assert_eq!((field.chars().count(), reason.as_str()), (json_body::MAX_NAME_LENGTH, "UNKNOWN_FIELD"));
    }

    #[test]
    fn a_body_that_is_no_object_is_malformed() {
        let deep = "[".repeat(1000);
        let deep_object = "{\"bestAvailable\":".repeat(100_000);
        let bodies = [
            "null",
            "[]",
            "[{}]",
            "5",
            "\"{}\"",
            "{",
            "{\"seatIds\": [}",
            "{} {}",
            " ",
            "{a: 1}",
            "\u{feff}{}",
            &deep,
            &deep_object,
        ];
        for body in bodies {
            match call("CreateHold").body(body).decode() {
                Err(RequestError::BodyMalformed(why)) => {
                    assert!(why.contains("line 1 column"), "{why}");
                }
                other => panic!("{body:.40}: {other:?}"),
            }
        }
        let mut latin1 = call("CreateHold");
        latin1.body = b"{\"seatIds\": [\"\xe9\"]}".to_vec();
        assert!(matches!(latin1.decode(), Err(RequestError::BodyMalformed(_))));
    }

    #[test]
    fn a_body_of_countless_values_is_refused() {
        let seats = |count| json!({"seatIds": vec![""; count]});
        assert!(call("CreateHold").body(seats(MAX_VALUES - 10)).decode().is_ok());
        let too_many = call("CreateHold").body(seats(MAX_VALUES)).decode();
        assert_eq!(too_many, Err(RequestError::BodyMalformed("it has more than 100000 values".to_owned())));
    }

    #[test]
    fn a_body_must_be_declared_as_json() {
        let accepted = [
            "application/json",
            "Application/JSON",
            "application/json; charset=utf-8",
            "application/json;charset=\"UTF-8\"",
            "application/json; profile=x",
        ];
        for media_type in accepted {
            assert!(
                call("CreateHold").body("{}").header("content-type", media_type).decode().is_ok(),
                "{media_type}"
            );
        }
        let refused = [
            "text/plain",
            "application/json; charset=latin1",
            "application/jsonx",
            "application/x-www-form-urlencoded",
            "",
        ];
        let unsupported = |call: Call| matches!(call.decode(), Err(RequestError::MediaTypeUnsupported(_)));
        for media_type in refused {
            assert!(
                unsupported(call("CreateHold").body("{}").header("content-type", media_type)),
                "{media_type}"
            );
        }
        assert!(unsupported(call("CreateHold").body("{}").without_header("content-type")));
        assert!(unsupported(call("CreateHold").body("{}").header("content-encoding", "gzip")));
    }

    #[test]
    fn the_key_comes_from_the_header_only() {
        let missing = call("CreateHold").body("{}").without_header(IDEMPOTENCY_KEY);
        assert_eq!(missing.decode(), Err(RequestError::IdempotencyKeyMissing));

        let made_up = |call: Call| call.message()["requestId"].as_str().unwrap().to_owned();
        let optional = || call("CreateVenue").body("{}").without_header(IDEMPOTENCY_KEY);
        assert!(uuid::Uuid::parse_str(&made_up(optional())).is_ok());
        assert_ne!(made_up(optional()), made_up(optional()));
        assert_eq!(made_up(call("CreateVenue").body("{}")), "key-1");

        let too_long = "k".repeat(256);
        for key in ["", "two words", "schlüssel", &too_long] {
            let call = call("CreateHold").body("{}").header(IDEMPOTENCY_KEY, key);
            assert_eq!(call.error(), named(IDEMPOTENCY_KEY, "MALFORMED"), "{key}");
        }
        let mut twice = call("CreateHold").body("{}");
        twice.headers.append(IDEMPOTENCY_KEY, HeaderValue::from_static("key-2"));
        assert_eq!(twice.error(), named(IDEMPOTENCY_KEY, "MALFORMED"));
        assert!(call("CreateHold").header(IDEMPOTENCY_KEY, &too_long[..255]).decode().is_ok());
    }

    #[test]
    fn a_method_without_a_key_ignores_the_header() {
        assert_eq!(call("GetWallet").message(), json!({}));
    }

    #[test]
    fn problems_name_what_is_wrong() {
        let problem = Problem::from(call("CreateHold").body(json!({"seatIds": [5]})).decode().unwrap_err());
        let body: Json = serde_json::from_str(&problem.to_json()).unwrap();
        assert_eq!(body["status"], 400);
        assert_eq!(body["reason"], "FIELD_INVALID");
        assert_eq!(body["detail"], "seatIds[0] must be text");
        assert_eq!(body["errors"][0]["field"], "seatIds[0]");
        let statuses = [
            (RequestError::BodyMalformed(String::new()), 400, "BODY_MALFORMED"),
            (RequestError::MediaTypeUnsupported(""), 415, "MEDIA_TYPE_UNSUPPORTED"),
            (RequestError::IdempotencyKeyMissing, 400, "IDEMPOTENCY_KEY_MISSING"),
        ];
        for (error, status, reason) in statuses {
            let problem = Problem::from(error);
            assert_eq!((problem.status().as_u16(), problem.reason()), (status, reason));
        }
    }

    #[test]
    fn a_response_is_written_with_its_zeros() {
        use boxoffice_proto::{
            booking::v1::{
                BookedSeat, Booking, BookingState, GetBookingResponse, GetSeatMapResponse, SeatMap,
                SeatMapSection, SeatMapStanding, seat_map_section::Arrangement,
            },
            common::v1::Money,
        };
        let response = |method: &str, bytes: Vec<u8>| -> Json {
            let message = decode_response(&route(method).output, &bytes).unwrap();
            serde_json::from_slice(&write_json(&message).unwrap()).unwrap()
        };
        let booking = Booking {
            booking_id: "bkg_1".into(),
            state: BookingState::Confirmed.into(),
            seats: vec![BookedSeat::default()],
            total: Some(Money { currency_code: "KRW".into(), minor_units: 0 }),
            create_time: Some(prost_types::Timestamp { seconds: 1_767_225_600, nanos: 5_000_000 }),
            ..Booking::default()
        };
        let expected = json!({
            "bookingId": "bkg_1",
            "concertId": "",
            "state": "BOOKING_STATE_CONFIRMED",
            "seats": [{
                "seatId": "", "sectionId": "", "rowLabel": "", "seatLabel": "",
                "state": "BOOKED_SEAT_STATE_UNSPECIFIED",
            }],
            "total": {"currencyCode": "KRW", "minorUnits": "0"},
            "createTime": "2026-01-01T00:00:00.005Z",
            "failureReason": "",
        });
        let bytes = GetBookingResponse { booking: Some(booking) }.encode_to_vec();
        assert_eq!(response("GetBooking", bytes), json!({"booking": expected}));
        assert_eq!(response("GetBooking", vec![]), json!({}));

        let section = SeatMapSection {
            arrangement: Some(Arrangement::Standing(SeatMapStanding { capacity: 0 })),
            ..SeatMapSection::default()
        };
        let seat_map = SeatMap { sections: vec![section], ..SeatMap::default() };
        let bytes = GetSeatMapResponse { seat_map: Some(seat_map) }.encode_to_vec();
        let section = json!({"sectionId": "", "displayName": "", "standing": {"capacity": 0}});
        assert_eq!(response("GetSeatMap", bytes)["seatMap"]["sections"], json!([section]));
    }

    #[test]
    fn a_response_that_is_garbage_is_an_error() {
        let output = route("GetBooking").output;
        assert!(matches!(decode_response(&output, b"\xff\xff"), Err(ResponseError::Decode(..))));
    }

    #[test]
    fn fields_and_values_from_a_newer_service_do_no_harm() {
        let output = route("GetBooking").output;
        // booking { state: 99, field 1000: 1 }
        let message = decode_response(&output, &[0x0a, 0x05, 0x18, 99, 0xc0, 0x3e, 1]).unwrap();
        let json: Json = serde_json::from_slice(&write_json(&message).unwrap()).unwrap();
        assert_eq!(json["booking"]["state"], 99);
    }

    /// A message with the kinds of fields that the contracts don't have yet.
    fn sample() -> MessageDescriptor {
        let field = |name: &str, number, label: Label, kind: Type| FieldDescriptorProto {
            name: Some(name.into()),
            number: Some(number),
            label: Some(label.into()),
            r#type: Some(kind.into()),
            ..Default::default()
        };
        let entry = DescriptorProto {
            name: Some("SeatsByIdEntry".into()),
            field: vec![
                field("key", 1, Label::Optional, Type::Int32),
                field("value", 2, Label::Optional, Type::String),
            ],
            options: Some(MessageOptions { map_entry: Some(true), ..Default::default() }),
            ..Default::default()
        };
        let map = FieldDescriptorProto {
            type_name: Some(".sample.Sample.SeatsByIdEntry".into()),
            ..field("seats_by_id", 1, Label::Repeated, Type::Message)
        };
        let message = DescriptorProto {
            name: Some("Sample".into()),
            field: vec![
                map,
                field("picture", 2, Label::Optional, Type::Bytes),
                field("ratio", 3, Label::Optional, Type::Double),
                field("count", 4, Label::Optional, Type::Uint64),
                field("sizes", 5, Label::Repeated, Type::Uint32),
            ],
            nested_type: vec![entry],
            ..Default::default()
        };
        let file = FileDescriptorProto {
            name: Some("sample.proto".into()),
            package: Some("sample".into()),
            syntax: Some("proto3".into()),
            message_type: vec![message],
            ..Default::default()
        };
        let pool =
            DescriptorPool::from_file_descriptor_set(prost_types::FileDescriptorSet { file: vec![file] });
        pool.unwrap().get_message_by_name("sample.Sample").unwrap()
    }

    fn read_sample(json: Json) -> Result<Json, Vec<(String, String)>> {
        let Json::Object(object) = json else { panic!("{json}") };
        let mut reader = Reader::default();
        let message = reader.message(&sample(), object, |_| true);
        if reader.errors.is_empty() {
            return Ok(serde_json::to_value(message).unwrap());
        }
        Err(reader.errors.into_iter().map(|error| (error.field, error.reason.into_owned())).collect())
    }

    #[test]
    fn every_kind_of_field_is_read() {
        let json = json!({
            "seatsById": {"-5": "A-1-1"}, "picture": "+/8=", "ratio": 0.5, "count": u64::MAX.to_string(), "sizes": [1, 2],
        });
        assert_eq!(read_sample(json.clone()), Ok(json));
        assert_eq!(read_sample(json!({"picture": "-_8"})), Ok(json!({"picture": "+/8="})));
        assert_eq!(
            read_sample(json!({"seatsById": {"x": "A"}})),
            Err(vec![named("seatsById.x", "WRONG_TYPE")])
        );
        assert_eq!(
            read_sample(json!({"seatsById": {"1": 5}})),
            Err(vec![named("seatsById.1", "WRONG_TYPE")])
        );
        assert_eq!(read_sample(json!({"seatsById": []})), Err(vec![named("seatsById", "WRONG_TYPE")]));
        assert_eq!(read_sample(json!({"picture": "?"})), Err(vec![named("picture", "MALFORMED")]));
        assert_eq!(read_sample(json!({"count": -1})), Err(vec![named("count", "OUT_OF_RANGE")]));
        assert_eq!(read_sample(json!({"sizes": [1, -1]})), Err(vec![named("sizes[1]", "OUT_OF_RANGE")]));
        assert_eq!(read_sample(json!({"ratio": "0.5"})), Err(vec![named("ratio", "WRONG_TYPE")]));
    }

    /// Fills a message with values that follow from a number.
    fn filled(descriptor: &MessageDescriptor, seed: &mut u64) -> DynamicMessage {
        let mut next = |limit: u64| {
            *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (*seed >> 33) % limit
        };
        let mut message = DynamicMessage::new(descriptor.clone());
        if descriptor.full_name() == "google.protobuf.Timestamp" {
            message.set_field_by_name("seconds", Value::I64(next(253_402_300_800) as i64));
            message.set_field_by_name("nanos", Value::I32(next(1_000_000_000) as i32));
            return message;
        }
        for field in descriptor.fields() {
            let count = if field.is_list() { next(4) } else { 1 };
            if next(3) == 0 {
                continue;
            }
            let values: Vec<Value> = (0..count)
                .map(|_| match field.kind() {
                    Kind::Bool => Value::Bool(next(2) == 1),
                    Kind::Int32 => Value::I32(next(1 << 32) as i32),
                    Kind::Int64 => Value::I64((next(1 << 31) as i64).wrapping_mul(-3_037_000_499)),
                    Kind::String => Value::String("aé\"\\\n😀"[..[0, 3, 6, 10][next(4) as usize]].to_owned()),
                    Kind::Enum(values) => {
                        let index = next(values.values().len() as u64) as usize;
                        Value::EnumNumber(values.values().nth(index).unwrap().number())
                    }
                    Kind::Message(inner) => {
                        let mut inner_seed = next(u64::MAX);
                        Value::Message(filled(&inner, &mut inner_seed))
                    }
                    other => panic!("no values for {other:?}"),
                })
                .collect();
            let value =
                if field.is_list() { Value::List(values) } else { values.into_iter().next().unwrap() };
            message.set_field(&field, value);
        }
        message
    }

    proptest::proptest! {
        /// What prost-reflect writes by the rules of protobuf JSON, we read as the same message.
        #[test]
        fn canonical_json_is_read_as_the_message_it_was(seed: u64) {
            let mut seed = seed;
            for route in routes().unwrap() {
                let message = filled(&route.input, &mut seed);
                let Ok(Json::Object(object)) = serde_json::from_slice(&write_json(&message).unwrap()) else {
                    panic!("{message:?}")
                };
                let mut reader = Reader::default();
                let read = reader.message(&route.input, object, |_| true);
                assert_eq!(reader.errors, []);
                assert_eq!(read.encode_to_vec(), message.encode_to_vec());
            }
        }
    }
}
