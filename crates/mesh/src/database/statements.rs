//! Statements as spans, where the level of this module is debug when the database is opened; otherwise they cost nothing.
//!
//! A span tells the text of a statement and not its values, which may be personal data. What no statement of a service is
//! (`BEGIN`, `COMMIT`, savepoints, migrations) is no span.

use opentelemetry::KeyValue;
use sea_orm::{DatabaseBackend, DatabaseConnection, Statement};

use crate::telemetry::span::Span;

fn are_spans() -> bool {
    tracing::enabled!(tracing::Level::DEBUG)
}

/// Has the statements of a connection be spans.
pub(super) fn watched(mut connection: DatabaseConnection) -> DatabaseConnection {
    if are_spans() {
        connection.set_metric_callback(|statement| {
            let mut span = span_of(statement.statement);
            span.set_age(statement.elapsed);
            if statement.failed {
                span.set_failed();
            }
        });
    }
    connection
}

/// Begins the span of a statement, for who has it done without such a connection.
pub(super) fn begin(statement: &Statement) -> Span {
    if are_spans() { span_of(statement) } else { Span::none() }
}

fn span_of(statement: &Statement) -> Span {
    let system = match statement.db_backend {
        DatabaseBackend::Sqlite => "sqlite",
        _ => "postgresql",
    };
    let name = statement.sql.split_whitespace().next().unwrap_or(system);
    Span::of_question("database", system, name, KeyValue::new("db.query.text", statement.sql.clone()))
}
