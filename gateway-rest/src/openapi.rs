//! The description of the REST API (OpenAPI 3.1), made from the contracts and their comments.

use std::collections::BTreeMap;

use anyhow::{bail, ensure};
use boxoffice_proto::policy::{Access, IdempotencyKey};
use prost_reflect::{
    EnumDescriptor, FieldDescriptor, FileDescriptor, Kind, MessageDescriptor, OneofDescriptor,
};
use serde_json::{Map, Value as Json, json};

use crate::{
    descriptors::{Caching, Route},
    event_stream::RESET,
    transcode::IDEMPOTENCY_KEY,
};

/// The tag of what only the gateway has.
const GATEWAY: &str = "Gateway";

/// Describes the routes, and what the gateway has beside them.
///
/// # Errors
/// If a contract has something that there is no description for.
pub fn describe(routes: &[Route]) -> anyhow::Result<Json> {
    let mut schemas = Schemas::default();
    let mut paths: BTreeMap<String, Map<String, Json>> = own_paths();
    let mut tags = BTreeMap::from([(GATEWAY.to_owned(), "What only the gateway has.".to_owned())]);
    for route in routes {
        let path = paths.entry(client_path(&route.path)).or_default();
        let verb = route.http_method.as_str().to_lowercase();
        ensure!(
            path.insert(verb, operation(route, &mut schemas)?).is_none(),
            "{} is declared twice",
            route.path
        );
        let service = route.method.parent_service();
        tags.insert(tag(route), comment(&service.parent_file(), service.path()));
    }
    let tags: Vec<Json> = tags
        .into_iter()
        .map(|(name, description)| json!({"name": name, "description": description}))
        .collect();
    let mut components = schemas.finished;
    components.insert("Problem".to_owned(), problem_schema());
    Ok(json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Boxoffice",
            "version": env!("CARGO_PKG_VERSION"),
            "description": INTRODUCTION,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "tags": tags,
        "paths": paths,
        "components": {
            "schemas": components,
            "responses": problem_responses(),
            "securitySchemes": {
                "accessToken": {
                    "type": "http",
                    "scheme": "bearer",
                    "bearerFormat": "JWT",
                    "description": "The `accessToken` that `POST /v1/sessions` answers with.",
                },
            },
        },
    }))
}

const INTRODUCTION: &str = "\
Sells concert tickets: find a concert, hold seats, pay, get in.

64-bit numbers are strings in answers; requests may send them as numbers too. Times are RFC 3339. Answers leave no field \
out but those that have no value; new fields and enum values may appear at any time, so ignore those you don't know. \
Requests are taken strictly: an unknown field is refused.

Errors are `application/problem+json`. `reason` says what went wrong, for programs; `detail` says it for developers. \
Where a call takes an `Idempotency-Key`, repeating it with the same key and body gives the same answer and does nothing \
twice.";

/// What the gateway has beside the routes of the contracts.
fn own_paths() -> BTreeMap<String, Map<String, Json>> {
    let get = |id: &str, summary: &str, description: &str, responses: Json| {
        let operation = json!({
            "tags": [GATEWAY],
            "operationId": id,
            "summary": summary,
            "description": description,
            "security": [],
            "responses": responses,
        });
        Map::from_iter([("get".to_owned(), operation)])
    };
    let text = |description: &str| {
        let content = json!({"text/plain": {"schema": {"type": "string"}}});
        json!({"description": description, "content": content})
    };
    let jwks = json!({
        "type": "object",
        "required": ["keys"],
        "properties": {"keys": {"type": "array", "items": {"type": "object"}}},
    });
    let jwks = json!({"description": "A JSON Web Key Set.", "content": {"application/jwk-set+json": {"schema": jwks}}});
    BTreeMap::from([
        (
            "/healthz".to_owned(),
            get("getHealth", "Says whether the gateway runs", "", json!({"200": text("It runs.")})),
        ),
        (
            "/readyz".to_owned(),
            get(
                "getReadiness",
                "Says whether the gateway takes calls",
                "It does not once it is about to stop. Services that are down don't count: calls that need them say so.",
                json!({"200": text("It takes calls."), "503": problem_reference("ServiceUnavailable")}),
            ),
        ),
        (
            "/.well-known/jwks.json".to_owned(),
            get(
                "getSigningKeys",
                "The public keys that access tokens are verified with",
                "Ed25519 keys as RFC 8037 has them.",
                json!({"200": jwks, "503": problem_reference("ServiceUnavailable")}),
            ),
        ),
    ])
}

fn operation(route: &Route, schemas: &mut Schemas) -> anyhow::Result<Json> {
    let method = &route.method;
    let description = client_words(&comment(&method.parent_file(), method.path()));
    let mut operation = json!({
        "tags": [tag(route)],
        "operationId": lower_first(method.name()),
        "summary": first_sentence(&description),
        "description": description,
        "security": match route.policy.access {
            // A token is welcome: what its owner may see is shown too.
            Access::Public => json!([{}, {"accessToken": []}]),
            _ => json!([{"accessToken": []}]),
        },
        "responses": responses(route, schemas)?,
    });
    let parameters = parameters(route, schemas)?;
    if !parameters.is_empty() {
        operation["parameters"] = parameters.into();
    }
    if route.takes_body {
        let schema = schemas.body(route)?;
        let is_required = schema.get("required").is_some();
        operation["requestBody"] =
            json!({"required": is_required, "content": {"application/json": {"schema": schema}}});
    }
    Ok(operation)
}

fn parameters(route: &Route, schemas: &mut Schemas) -> anyhow::Result<Vec<Json>> {
    let mut parameters = Vec::new();
    for field in &route.path_fields {
        let (description, _) = field_comment(field);
        let schema = schemas.kind(&field.kind(), Side::Request)?;
        let parameter = json!({
            "name": field.json_name(), "in": "path", "required": true, "description": description, "schema": schema,
        });
        parameters.push(parameter);
    }
    for field in route.input.fields().filter(|field| route.is_query_field(field)) {
        let (description, is_required) = field_comment(&field);
        let schema = schemas.kind(&field.kind(), Side::Request)?;
        let parameter = json!({
            "name": field.json_name(),
            "in": "query",
            "required": is_required,
            "description": description,
            "schema": schema,
        });
        parameters.push(parameter);
    }
    let mut header = |name: &str, is_required: bool, description: &str, schema: Json| {
        parameters.push(json!({
            "name": name, "in": "header", "required": is_required, "description": description, "schema": schema,
        }));
    };
    let key = json!({"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]+$"});
    match route.policy.idempotency_key {
        IdempotencyKey::None => {}
        IdempotencyKey::Required => {
            header(IDEMPOTENCY_KEY, true, "A key of your own for this call, such as a UUID.", key);
        }
        IdempotencyKey::Optional => {
            header(
                IDEMPOTENCY_KEY,
                false,
                "A key of your own for this call. Without one, the call is new.",
                key,
            );
        }
    }
    if route.caching != Caching::NoStore {
        let description = "The `ETag` of the answer you have.";
        header("If-None-Match", false, description, json!({"type": "string"}));
    }
    if route.policy.streams {
        let description = "The `id` of the last event you have. Browsers send it by themselves.";
        header("Last-Event-ID", false, description, json!({"type": "string"}));
    }
    Ok(parameters)
}

fn responses(route: &Route, schemas: &mut Schemas) -> anyhow::Result<Json> {
    let mut responses = Map::new();
    responses.insert("200".to_owned(), success(route, schemas)?);
    if route.caching != Caching::NoStore {
        responses.insert("304".to_owned(), json!({"description": "The answer you have is the current one."}));
    }
    for problem in PROBLEMS {
        if (problem.applies)(route) {
            responses.insert(problem.status.to_owned(), problem_reference(problem.name));
        }
    }
    responses.insert("default".to_owned(), problem_reference("Problem"));
    Ok(responses.into())
}

fn success(route: &Route, schemas: &mut Schemas) -> anyhow::Result<Json> {
    let mut headers = Map::new();
    if route.policy.idempotency_key != IdempotencyKey::None {
        let header = json!({
            "description": "`true` if this is the answer to an earlier call with the same key.",
            "schema": {"type": "string", "enum": ["true"]},
        });
        headers.insert("Idempotency-Replayed".to_owned(), header);
    }
    if route.caching != Caching::NoStore {
        let header = json!({"description": "The version of the answer.", "schema": {"type": "string"}});
        headers.insert("ETag".to_owned(), header);
    }
    let mut response = if route.policy.streams {
        let data = schemas.object(&route.output, Side::Response, |field| field.name() != RESET)?;
        json!({
            "description": "Server-sent events. `data` of each is JSON as in `x-event-data`, `id` its `revision`. The \
                            event `reset` says that events were missed: read everything anew. The event `error` \
                            carries a `Problem` and is the last. A comment comes every 15 s while nothing happens.",
            "content": {"text/event-stream": {"schema": {"type": "string"}, "x-event-data": data}},
        })
    } else {
        let description = comment(&route.output.parent_file(), route.output.path());
        let schema = schemas.message(&route.output, Side::Response)?;
        json!({"description": description, "content": {"application/json": {"schema": schema}}})
    };
    if !headers.is_empty() {
        response["headers"] = headers.into();
    }
    Ok(response)
}

/// A way in which a call can fail.
struct ProblemResponse {
    status: &'static str,
    name: &'static str,
    description: &'static str,
    header: Option<(&'static str, &'static str)>,
    applies: fn(&Route) -> bool,
}

const RETRY_AFTER: (&str, &str) = ("Retry-After", "Seconds after which trying again may help.");

const PROBLEMS: [ProblemResponse; 12] = [
    ProblemResponse {
        status: "400",
        name: "BadRequest",
        description: "Something in the request is wrong; `errors` names the fields.",
        header: None,
        applies: |_| true,
    },
    ProblemResponse {
        status: "401",
        name: "Unauthorized",
        description: "No token, or not a valid one.",
        header: Some(("WWW-Authenticate", "Always `Bearer`.")),
        applies: |_| true,
    },
    ProblemResponse {
        status: "403",
        name: "Forbidden",
        description: "You may not do this.",
        header: None,
        applies: |route| matches!(route.policy.access, Access::Organizer | Access::Admin),
    },
    ProblemResponse {
        status: "404",
        name: "NotFound",
        description: "There is no such thing, or it is not yours.",
        header: None,
        applies: |_| true,
    },
    ProblemResponse {
        status: "409",
        name: "Conflict",
        description: "The state of things forbids it now.",
        header: None,
        applies: |_| true,
    },
    ProblemResponse {
        status: "413",
        name: "ContentTooLarge",
        description: "The body is too large.",
        header: None,
        applies: |route| route.takes_body,
    },
    ProblemResponse {
        status: "415",
        name: "UnsupportedMediaType",
        description: "The body is not declared as JSON.",
        header: None,
        applies: |route| route.takes_body,
    },
    ProblemResponse {
        status: "422",
        name: "UnprocessableContent",
        description: "The idempotency key was used before, for another request.",
        header: None,
        applies: |route| route.policy.idempotency_key != IdempotencyKey::None,
    },
    ProblemResponse {
        status: "429",
        name: "TooManyRequests",
        description: "Too many calls for the moment.",
        header: Some(RETRY_AFTER),
        applies: |_| true,
    },
    ProblemResponse {
        status: "500",
        name: "InternalServerError",
        description: "A bug on our side. Quote `traceId`.",
        header: None,
        applies: |_| true,
    },
    ProblemResponse {
        status: "503",
        name: "ServiceUnavailable",
        description: "Something that the call needs is down for the moment.",
        header: Some(RETRY_AFTER),
        applies: |_| true,
    },
    ProblemResponse {
        status: "504",
        name: "GatewayTimeout",
        description: "It took too long. Whether it took effect is unknown: repeat it with the same key, or look.",
        header: Some(RETRY_AFTER),
        applies: |_| true,
    },
];

fn problem_responses() -> Map<String, Json> {
    let content = json!({"application/problem+json": {"schema": reference("Problem")}});
    let mut responses = Map::new();
    responses.insert("Problem".to_owned(), json!({"description": "Any other failure.", "content": content}));
    for problem in PROBLEMS {
        let mut response = json!({"description": problem.description, "content": content});
        if let Some((name, description)) = problem.header {
            response["headers"] = json!({name: {"description": description, "schema": {"type": "string"}}});
        }
        responses.insert(problem.name.to_owned(), response);
    }
    responses
}

fn problem_reference(name: &str) -> Json {
    json!({"$ref": format!("#/components/responses/{name}")})
}

fn problem_schema() -> Json {
    let text = |description: &str| json!({"type": "string", "description": description});
    json!({
        "type": "object",
        "description": "What a client gets instead of an answer (RFC 9457).",
        "required": ["type", "title", "status", "detail", "reason", "domain", "metadata", "errors"],
        "properties": {
            "type": text("`reason` and `domain` as one identifier, `urn:boxoffice:error:…`."),
            "title": text("`reason` in words."),
            "status": {"type": "integer", "description": "The HTTP status."},
            "detail": text("What went wrong, in English, for developers."),
            "reason": text("What went wrong, for programs, such as `SEAT_TAKEN`."),
            "domain": text("Which service's reasons it is one of, such as `boxoffice.booking`."),
            "metadata": {
                "type": "object",
                "description": "Details for programs; which ones, depends on the reason.",
                "additionalProperties": {"type": "string"},
            },
            "errors": {
                "type": "array",
                "description": "What in the request is wrong.",
                "items": {
                    "type": "object",
                    "required": ["field", "reason", "description"],
                    "properties": {
                        "field": text("A field of the body (`prices[0].price.minorUnits`), a parameter or a header."),
                        "reason": text("What is wrong with it, for programs, such as `REQUIRED`."),
                        "description": text("What is wrong with it, for developers."),
                    },
                },
            },
            "traceId": text("Identifies the call in our logs."),
        },
    })
}

/// Which way a message goes. Requests are taken strictly, answers are read leniently.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Request,
    Response,
}

/// The schemas of messages and enums, by name, as they are needed.
#[derive(Default)]
struct Schemas {
    finished: Map<String, Json>,
    /// Which message or enum has a name: names of two packages must not meet.
    owners: BTreeMap<String, String>,
}

impl Schemas {
    /// The schema of a route's body: the request without what comes in the path and the header.
    fn body(&mut self, route: &Route) -> anyhow::Result<Json> {
        let mut schema = self.object(&route.input, Side::Request, |field| route.is_open(field))?;
        // `Request of …` says nothing here.
        schema.as_object_mut().map(|schema| schema.remove("description"));
        Ok(schema)
    }

    /// A reference to the schema of a message.
    fn message(&mut self, descriptor: &MessageDescriptor, side: Side) -> anyhow::Result<Json> {
        let name = match side {
            Side::Request => format!("{}Input", descriptor.name()),
            Side::Response => descriptor.name().to_owned(),
        };
        if self.claim(&name, descriptor.full_name())? {
            let schema = self.object(descriptor, side, |_| true)?;
            self.finished.insert(name.clone(), schema);
        }
        Ok(reference(&name))
    }

    /// Whether a name is new. It is taken from then on, so that a message may contain itself.
    fn claim(&mut self, name: &str, owner: &str) -> anyhow::Result<bool> {
        match self.owners.get(name) {
            None => {
                self.owners.insert(name.to_owned(), owner.to_owned());
                Ok(true)
            }
            Some(known) if known == owner => Ok(false),
            Some(known) => bail!("{owner} and {known} would both be described as {name}"),
        }
    }

    fn object(
        &mut self,
        descriptor: &MessageDescriptor,
        side: Side,
        is_shown: impl Fn(&FieldDescriptor) -> bool,
    ) -> anyhow::Result<Json> {
        let mut properties = Map::new();
        let mut required = Vec::new();
        for field in descriptor.fields().filter(is_shown) {
            let (description, is_demanded) = field_comment(&field);
            let mut schema = self.field(&field, side)?;
            if side == Side::Request && !is_demanded {
                schema = or_null(schema);
            }
            if !description.is_empty() {
                schema["description"] = description.into();
            }
            // Answers write zeros out: only what can be absent is not always there.
            let is_required = match side {
                Side::Request => is_demanded,
                Side::Response => !field.supports_presence(),
            };
            if is_required {
                required.push(field.json_name().to_owned());
            }
            properties.insert(field.json_name().to_owned(), schema);
        }
        let mut schema = json!({
            "type": "object",
            "description": client_words(&comment(&descriptor.parent_file(), descriptor.path())),
            "properties": properties,
        });
        if !required.is_empty() {
            schema["required"] = required.into();
        }
        if side == Side::Request {
            schema["additionalProperties"] = false.into();
            let choices: Vec<Json> = descriptor
                .oneofs()
                .filter(|oneof| !oneof.is_synthetic())
                .map(|oneof| choice(&oneof))
                .collect();
            if !choices.is_empty() {
                schema["allOf"] = choices.into();
            }
        }
        Ok(schema)
    }

    fn field(&mut self, field: &FieldDescriptor, side: Side) -> anyhow::Result<Json> {
        let kind = field.kind();
        if let (true, Some(entry)) = (field.is_map(), kind.as_message()) {
            let values = self.kind(&entry.map_entry_value_field().kind(), side)?;
            return Ok(json!({"type": "object", "additionalProperties": values}));
        }
        let schema = self.kind(&kind, side)?;
        Ok(if field.is_list() { json!({"type": "array", "items": schema}) } else { schema })
    }

    fn kind(&mut self, kind: &Kind, side: Side) -> anyhow::Result<Json> {
        Ok(match kind {
            Kind::Bool => json!({"type": "boolean"}),
            Kind::String => json!({"type": "string"}),
            Kind::Bytes => json!({"type": "string", "contentEncoding": "base64"}),
            Kind::Double => json!({"type": "number", "format": "double"}),
            Kind::Float => json!({"type": "number", "format": "float"}),
            Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => json!({"type": "integer", "format": "int32"}),
            Kind::Uint32 | Kind::Fixed32 => json!({"type": "integer", "minimum": 0, "maximum": u32::MAX}),
            Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => match side {
                Side::Request => {
                    json!({"type": ["string", "integer"], "format": "int64", "pattern": "^-?[0-9]+$"})
                }
                Side::Response => json!({"type": "string", "format": "int64"}),
            },
            Kind::Uint64 | Kind::Fixed64 => match side {
                Side::Request => {
                    json!({"type": ["string", "integer"], "format": "uint64", "pattern": "^[0-9]+$"})
                }
                Side::Response => json!({"type": "string", "format": "uint64"}),
            },
            Kind::Enum(descriptor) => self.enumeration(descriptor)?,
            Kind::Message(descriptor) => match descriptor.full_name() {
                "google.protobuf.Timestamp" => json!({"type": "string", "format": "date-time"}),
                "google.protobuf.Duration" => json!({"type": "string", "pattern": r"^-?[0-9]+(\.[0-9]+)?s$"}),
                "google.protobuf.FieldMask" => json!({"type": "string"}),
                name if name.starts_with("google.protobuf.") => bail!("there is no description for {name}"),
                _ => self.message(descriptor, side)?,
            },
        })
    }

    fn enumeration(&mut self, descriptor: &EnumDescriptor) -> anyhow::Result<Json> {
        let name = descriptor.name();
        if self.claim(name, descriptor.full_name())? {
            let file = descriptor.parent_file();
            let mut description = client_words(&comment(&file, descriptor.path()));
            let mut names = Vec::new();
            for value in descriptor.values() {
                names.push(value.name().to_owned());
                let meaning = client_words(&comment(&file, value.path()));
                description.push_str(&format!("\n- `{}`: {meaning}", value.name()));
            }
            let schema = json!({"type": "string", "enum": names, "description": description});
            self.finished.insert(name.to_owned(), schema);
        }
        Ok(reference(name))
    }
}

fn reference(name: &str) -> Json {
    json!({"$ref": format!("#/components/schemas/{name}")})
}

/// A field that may be left out may also be null.
fn or_null(mut schema: Json) -> Json {
    match schema.get_mut("type") {
        Some(Json::Array(names)) => names.push("null".into()),
        Some(name) => *name = json!([name, "null"]),
        None => return json!({"anyOf": [schema, {"type": "null"}]}),
    }
    schema
}

/// Of the fields of a oneof, one may be given; or must be, if its comment says so.
fn choice(oneof: &OneofDescriptor) -> Json {
    let given = |field: FieldDescriptor| {
        let name = field.json_name();
        json!({"required": [name], "properties": {name: {"not": {"type": "null"}}}})
    };
    let given: Vec<Json> = oneof.fields().map(given).collect();
    let (_, is_required) = split_required(&comment(&oneof.parent_file(), oneof.path()));
    if is_required {
        return json!({"oneOf": given});
    }
    let none = json!({"not": {"anyOf": given}});
    let at_most_one = [given, vec![none]].concat();
    json!({"oneOf": at_most_one})
}

/// What a field means, and whether its comment says that it is required.
fn field_comment(field: &FieldDescriptor) -> (String, bool) {
    let file = field.parent_message().parent_file();
    let (description, is_required) = split_required(&comment(&file, field.path()));
    (client_words(&description), is_required)
}

fn split_required(comment: &str) -> (String, bool) {
    match comment.strip_suffix("Required.") {
        Some(rest) => (rest.trim_end().to_owned(), true),
        None => (comment.to_owned(), false),
    }
}

/// The comment above an element of a contract, on one line.
fn comment(file: &FileDescriptor, path: &[i32]) -> String {
    let info = file.file_descriptor_proto().source_code_info.as_ref();
    let location = info.and_then(|info| info.location.iter().find(|location| location.path == path));
    let lines = location.map(|location| location.leading_comments()).unwrap_or_default().lines();
    let lines = lines.map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("buf:lint:"));
    lines.collect::<Vec<_>>().join(" ")
}

/// A text with the fields in backticks spelled as clients spell them.
fn client_words(text: &str) -> String {
    let is_field_name = |word: &str| {
        word.contains('_')
            && word.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
    };
    let parts =
        text.split('`').map(|word| if is_field_name(word) { lower_camel(word) } else { word.to_owned() });
    parts.collect::<Vec<_>>().join("`")
}

/// A path with its parameters spelled as clients spell fields.
fn client_path(path: &str) -> String {
    let segments = path
        .split('/')
        .map(|segment| if segment.starts_with('{') { lower_camel(segment) } else { segment.to_owned() });
    segments.collect::<Vec<_>>().join("/")
}

fn lower_camel(name: &str) -> String {
    let mut words = name.split('_');
    let first = words.next().unwrap_or_default().to_owned();
    words.fold(first, |name, word| {
        let (initial, rest) = word.split_at(word.len().min(1));
        name + &initial.to_ascii_uppercase() + rest
    })
}

fn lower_first(name: &str) -> String {
    let (initial, rest) = name.split_at(name.len().min(1));
    initial.to_ascii_lowercase() + rest
}

fn first_sentence(text: &str) -> &str {
    text.split_inclusive(". ").next().unwrap_or_default().trim_end_matches([' ', '.'])
}

/// The heading of a route: the name of its service, without `Service`.
fn tag(route: &Route) -> String {
    let service = route.method.parent_service();
    service.name().trim_end_matches("Service").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::descriptors::routes;

    fn description() -> Json {
        describe(&routes().unwrap()).unwrap()
    }

    #[test]
    fn a_route_is_described_from_its_contract() {
        let description = description();
        let operation = &description["paths"]["/v1/concerts/{concertId}/holds"]["post"];
        assert_eq!(operation["operationId"], "createHold");
        assert_eq!(operation["summary"], "Holds seats for the caller: all of them or none");
        assert_eq!(operation["security"], json!([{"accessToken": []}]));
        let parameters: Vec<(&str, &str, bool)> = operation["parameters"]
            .as_array()
            .unwrap()
            .iter()
            .map(|parameter| {
                let text = |key: &str| parameter[key].as_str().unwrap();
                (text("name"), text("in"), parameter["required"].as_bool().unwrap())
            })
            .collect();
        assert_eq!(parameters, [("concertId", "path", true), ("Idempotency-Key", "header", true)]);
        let body = &operation["requestBody"]["content"]["application/json"]["schema"];
        let fields: Vec<&String> = body["properties"].as_object().unwrap().keys().collect();
        assert_eq!(fields, ["bestAvailable", "seatIds"]);
        assert_eq!(body["additionalProperties"], false);
        assert_eq!(
            operation["responses"]["200"]["content"]["application/json"]["schema"],
            reference("CreateHoldResponse")
        );
        assert_eq!(operation["responses"]["422"], problem_reference("UnprocessableContent"));
        assert!(operation["responses"].get("403").is_none());
    }

    #[test]
    fn requests_and_answers_differ() {
        let schemas = &description()["components"]["schemas"];
        assert_eq!(schemas["Money"]["properties"]["minorUnits"]["type"], "string");
        assert_eq!(schemas["Money"]["required"], json!(["currencyCode", "minorUnits"]));
        assert!(schemas["Money"].get("additionalProperties").is_none());
        assert_eq!(
            schemas["MoneyInput"]["properties"]["minorUnits"]["type"],
            json!(["string", "integer", "null"])
        );
        assert_eq!(schemas["MoneyInput"]["additionalProperties"], false);
        let given = |name: &str| json!({"required": [name], "properties": {name: {"not": {"type": "null"}}}});
        assert_eq!(
            schemas["SectionInput"]["allOf"],
            json!([{"oneOf": [given("seated"), given("standing")]}])
        );
        let nothing_or = |name: &str| json!([reference(name), {"type": "null"}]);
        assert_eq!(schemas["SectionInput"]["properties"]["seated"]["anyOf"], nothing_or("SeatedAreaInput"));
        assert_eq!(schemas["SectionInput"]["properties"]["displayName"]["type"], json!(["string", "null"]));
    }

    #[test]
    fn comments_are_spelled_as_clients_spell_fields() {
        let description = description();
        let parameters = description["paths"]["/v1/bookings"]["get"]["parameters"].as_array().unwrap();
        let token = parameters.iter().find(|parameter| parameter["name"] == "pageToken").unwrap();
        assert_eq!(
            token["description"],
            "Where to go on: `nextPageToken` of the page before, with the same filters."
        );
        let text = serde_json::to_string(&description).unwrap();
        for leaked in ["request_id", "best_available", "buf:lint", "Required."] {
            assert!(!text.contains(leaked), "{leaked}");
        }
    }

    #[test]
    fn every_reference_leads_somewhere() {
        fn references<'a>(json: &'a Json, found: &mut Vec<&'a str>) {
            match json {
                Json::Object(object) => {
                    found.extend(object.get("$ref").and_then(Json::as_str));
                    object.values().for_each(|value| references(value, found));
                }
                Json::Array(items) => items.iter().for_each(|item| references(item, found)),
                _ => {}
            }
        }
        let description = description();
        let mut found = Vec::new();
        references(&description, &mut found);
        assert!(found.len() > 100);
        for reference in found {
            assert!(description.pointer(reference.trim_start_matches('#')).is_some(), "{reference}");
        }
    }

    #[test]
    fn everything_has_a_description() {
        let description = description();
        for (path, operations) in description["paths"].as_object().unwrap() {
            for operation in operations.as_object().unwrap().values() {
                assert_ne!(operation["summary"], "", "{path}");
            }
        }
        for (name, schema) in description["components"]["schemas"].as_object().unwrap() {
            assert_ne!(schema["description"], "", "{name}");
        }
    }

    #[test]
    fn an_event_stream_says_so() {
        let operation = &description()["paths"]["/v1/concerts/{concertId}/seats/events"]["get"];
        assert!(operation["responses"]["200"]["content"].get("text/event-stream").is_some());
        assert_eq!(operation["parameters"][2]["name"], "Last-Event-ID");
    }
}
