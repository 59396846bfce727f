//! What databases and Redis are asked is a span of the call that it is for, where the level is debug, and nothing elsewhere.

use std::sync::{Arc, Mutex, PoisonError};

use fred::{
    interfaces::KeysInterface,
    types::{Value, scripts::Script},
};
use mesh::{
    context::Context,
    database::{Database, KeptConnection, sql},
    redis::{Question, Redis},
    shutdown::Shutdown,
    telemetry::{self, Export, LogFormat},
};
use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::any_value,
    trace::v1::{Span, span::SpanKind, status::StatusCode},
};
use sea_orm::{ConnectionTrait, DbErr, Statement};
use tokio::net::TcpListener;
use tonic::{Request, Response, Status, transport::server::TcpIncoming};
use tracing_subscriber::{EnvFilter, layer::SubscriberExt};

/// What nobody may read in a span.
const SECRET: &str = "hunter2";

/// A collector that keeps the spans that it is sent.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<Span>>>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let scopes = request.into_inner().resource_spans.into_iter().flat_map(|spans| spans.scope_spans);
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend(scopes.flat_map(|scope| scope.spans));
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

/// An attribute of a span, if it is a text.
fn attribute<'a>(span: &'a Span, key: &str) -> Option<&'a str> {
    let found = span.attributes.iter().find(|attribute| attribute.key == key)?;
    match found.value.as_ref()?.value.as_ref()? {
        any_value::Value::StringValue(text) => Some(text),
        _ => None,
    }
}

/// Asks a database in all ways that services do, four times well and twice in vain; the texts of both statements.
async fn ask(url: &str) -> [&'static str; 2] {
    const WELL: &str = "SELECT $1 AS word";
    const IN_VAIN: &str = "INSERT INTO nowhere VALUES ($1)";
    let database = Database::open(&url.parse().unwrap(), 2).await.unwrap();
    let statement = |text: &str| -> Statement { sql(database.reader(), text, [SECRET.into()]) };
    let well = || statement(WELL);
    database.reader().query_all_raw(well()).await.unwrap();
    let transaction = database.begin().await.unwrap();
    transaction.query_one_raw(well()).await.unwrap();
    transaction.commit().await.unwrap();
    let kept = KeptConnection::new(database.clone());
    kept.commit_alone(well()).await.unwrap();
    let transaction = kept.begin().await.unwrap();
    transaction.query_all_raw(well()).await.unwrap();
    let refused: Result<_, DbErr> = transaction.execute_raw(statement(IN_VAIN)).await;
    transaction.end(refused).await.unwrap_err();
    database.writer().execute_raw(statement(IN_VAIN)).await.unwrap_err();
    database.close().await;
    [WELL, IN_VAIN]
}

/// Asks Redis: a script and a command, and a script that breaks.
async fn ask_redis(redis: &Redis) {
    let script = |text: &str| Script::from_lua(text.to_owned());
    let run = async |text: &str| {
        redis.run::<Value>(&script(text), vec!["key".to_owned()], vec![SECRET.into()]).await
    };
    run("return ARGV[1]").await.unwrap();
    run("return nothing.here").await.unwrap_err();
    let answer = redis.connected().unwrap().get(SECRET).await;
    let _: Option<String> = Question::begin("GET").end(answer).unwrap();
}

#[tokio::test]
#[ignore = "needs Postgres and Redis: scripts/test runs it"]
async fn questions_are_spans_where_the_level_is_debug() {
    let collector = Collector::default();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let export = Export {
        otel_exporter_otlp_endpoint: Some(format!("http://{}", listener.local_addr().unwrap())),
        otel_traces_sampler_arg: 1.0,
        otel_service_name: None,
    };
    let server = tonic::transport::Server::builder().add_service(TraceServiceServer::new(collector.clone()));
    tokio::spawn(server.serve_with_incoming(TcpIncoming::from(listener)));
    let filter = "off,mesh::database=debug,mesh::redis=debug".parse().unwrap();
    let telemetry = telemetry::install("test", LogFormat::Human, &filter, &export).unwrap();

    let (sqlite, server) = (mesh_test::sqlite::create_database(), mesh_test::Redis::start().await);
    let postgres = mesh_test::postgres::create_database().await;
    let redis = Redis::start(&server.url().parse().unwrap());
    redis.wait(&Shutdown::new()).await;
    let ask_all = async || {
        let texts = ask(sqlite.url()).await;
        ask(postgres.url()).await;
        ask_redis(&redis).await;
        texts
    };

    let quiet = tracing_subscriber::registry().with(EnvFilter::new("info"));
    {
        let _quiet = tracing::subscriber::set_default(quiet);
        Context::root().scope(ask_all()).await;
    }
    let call = Context::root();
    let [well, in_vain] = call.scope(ask_all()).await;
    telemetry.flush().await;

    let spans = collector.0.lock().unwrap().clone();
    assert!(!format!("{spans:?}").contains(SECRET), "{spans:#?}");
    let trace_id: Vec<u8> =
        u128::from_str_radix(&call.trace.id().to_string(), 16).unwrap().to_be_bytes().into();
    for span in &spans {
        assert_eq!(span.trace_id, trace_id, "nothing else is a span: {span:#?}");
        assert_eq!(span.kind(), SpanKind::Client);
        assert!(span.end_time_unix_nano >= span.start_time_unix_nano);
    }
    let count = |system: &str, key: &str, what: &str, name: &str, is_failed: bool| {
        let is_it = |span: &&Span| {
            let status = span.status.as_ref().is_some_and(|status| status.code() == StatusCode::Error);
            attribute(span, "db.system.name") == Some(system)
                && attribute(span, key) == Some(what)
                && (span.name == name && status == is_failed)
        };
        spans.iter().filter(is_it).count()
    };
    for system in ["sqlite", "postgresql"] {
        assert_eq!(count(system, "db.query.text", well, "SELECT", false), 4, "{system}: {spans:#?}");
        assert_eq!(count(system, "db.query.text", in_vain, "INSERT", true), 2, "{system}: {spans:#?}");
    }
    assert_eq!(count("redis", "db.operation.name", "EVALSHA", "EVALSHA", false), 1, "{spans:#?}");
    assert_eq!(count("redis", "db.operation.name", "EVALSHA", "EVALSHA", true), 1, "{spans:#?}");
    assert_eq!(count("redis", "db.operation.name", "GET", "GET", false), 1, "{spans:#?}");
    assert_eq!(spans.len(), 2 * 6 + 3, "{spans:#?}");
}
