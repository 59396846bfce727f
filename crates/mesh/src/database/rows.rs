//! Rows as what a statement selects from: how to write many at once.

use chrono::SecondsFormat;
use sea_orm::{ConnectionTrait, DatabaseBackend, DbErr, Value};

use super::sql;

/// Inserts rows with as few statements as possible. `tail` stands after the rows, such as `ON CONFLICT …`.
///
/// # Errors
/// Whatever the database answers; rows before the failing statement are inserted.
pub async fn insert_rows(
    connection: &impl ConnectionTrait,
    table: &str,
    columns: &[&str],
    tail: &str,
    rows: Vec<Vec<Value>>,
) -> Result<(), DbErr> {
    for Rows { query, values, .. } in rows_of(connection.get_database_backend(), rows)? {
        let text = insert_text(table, columns, tail, &query);
        connection.execute_raw(sql(connection, text, values)).await?;
    }
    Ok(())
}

/// Rows to be inserted, for who inserts into several tables.
#[derive(Debug)]
pub struct Insert {
    /// Where to.
    pub table: &'static str,
    /// What a row's values are, in their order.
    pub columns: &'static [&'static str],
    /// What stands after the rows, such as `ON CONFLICT …`.
    pub tail: &'static str,
    /// Any number of them.
    pub rows: Vec<Vec<Value>>,
}

impl Insert {
    /// Inserts the rows by themselves, as [`insert_rows`] does.
    ///
    /// # Errors
    /// Whatever the database answers; rows before the failing statement are inserted.
    pub async fn run(self, connection: &impl ConnectionTrait) -> Result<(), DbErr> {
        insert_rows(connection, self.table, self.columns, self.tail, self.rows).await
    }

    /// The insertion as a part of a statement of Postgres that begins with WITH and has some values already; the name of the part
    /// is `new_` and that of the table. None: there are no rows.
    ///
    /// # Errors
    /// A kind of value that no table of ours has.
    pub fn part(&self, values: &mut Vec<Value>) -> Result<Option<String>, DbErr> {
        if self.rows.is_empty() {
            return Ok(None);
        }
        let query = postgres_rows(values, &self.rows)?;
        let text = insert_text(self.table, self.columns, self.tail, &query);
        Ok(Some(format!("new_{} AS ({text})", self.table)))
    }
}

fn insert_text(table: &str, columns: &[&str], tail: &str, query: &str) -> String {
    format!("INSERT INTO {table} ({}) {query} {tail}", columns.join(", "))
}

/// Some rows of values, for a statement.
#[derive(Debug)]
pub struct Rows {
    /// A query that gives them, in columns named `column1`, `column2`, …
    pub query: String,
    /// The values of the statement: its first ones.
    pub values: Vec<Value>,
    /// How many rows they are.
    pub count: usize,
}

/// Rows, by as few queries as possible.
///
/// On Postgres by one, whatever their number, so that one text is prepared for all: each column is an array. It is written as
/// text, as our drivers have no arrays that hold NULL.
///
/// On SQLite 37 rows are 32 + 4 + 1, so that only a handful of texts are ever prepared.
///
/// # Errors
/// A kind of value that no table of ours has.
pub fn rows_of(backend: DatabaseBackend, rows: Vec<Vec<Value>>) -> Result<Vec<Rows>, DbErr> {
    if rows.is_empty() {
        return Ok(Vec::new());
    }
    if backend == DatabaseBackend::Postgres {
        let (mut values, count) = (Vec::new(), rows.len());
        let query = postgres_rows(&mut values, &rows)?;
        return Ok(vec![Rows { query, values, count }]);
    }
    let mut rows = rows.into_iter();
    let mut queries = Vec::new();
    while rows.len() > 0 {
        let count = 1 << rows.len().ilog2();
        let mut columns = 0;
        let mut values = Vec::new();
        for row in rows.by_ref().take(count) {
            columns = row.len();
            values.extend(row);
        }
        // Not `$1`: the driver looks every such name up, one after the other.
        let row = format!("({})", vec!["?"; columns].join(", "));
        queries.push(Rows { query: format!("VALUES {}", vec![row; count].join(", ")), values, count });
    }
    Ok(queries)
}

/// The query of [`rows_of`] on Postgres, as a part of a statement that has some values already: those of the rows, of which
/// there is one at least, come after them.
///
/// # Errors
/// A kind of value that no table of ours has.
pub fn postgres_rows(values: &mut Vec<Value>, rows: &[Vec<Value>]) -> Result<String, DbErr> {
    let columns = rows[0].len();
    let mut arrays = Vec::with_capacity(columns);
    for column in 0..columns {
        arrays.push(format!("${}::{}[]", values.len() + 1, type_of(&rows[0][column])?));
        let mut text = String::from("{");
        for (number, row) in rows.iter().enumerate() {
            if number > 0 {
                text.push(',');
            }
            write_element(&mut text, &row[column])?;
        }
        text.push('}');
        values.push(text.into());
    }
    let names: Vec<String> = (1..=columns).map(|column| format!("column{column}")).collect();
    Ok(format!("SELECT * FROM unnest({}) AS row({})", arrays.join(", "), names.join(", ")))
}

/// The type that Postgres has for a value.
fn type_of(value: &Value) -> Result<&'static str, DbErr> {
    match value {
        Value::Bool(_) => Ok("boolean"),
        Value::SmallInt(_) => Ok("smallint"),
        Value::Int(_) => Ok("integer"),
        Value::BigInt(_) => Ok("bigint"),
        Value::String(_) => Ok("text"),
        Value::Bytes(_) => Ok("bytea"),
        Value::Uuid(_) => Ok("uuid"),
        Value::ChronoDateTimeUtc(_) => Ok("timestamptz"),
        other => Err(DbErr::Type(format!("no column is of the type of {other:?}"))),
    }
}

/// An element of an array, as the documentation of Postgres has it (8.15.6, Array Input and Output Syntax).
fn write_element(text: &mut String, value: &Value) -> Result<(), DbErr> {
    use std::fmt::Write;

    let written = match value {
        Value::Bool(Some(value)) => write!(text, "{value}"),
        Value::SmallInt(Some(value)) => write!(text, "{value}"),
        Value::Int(Some(value)) => write!(text, "{value}"),
        Value::BigInt(Some(value)) => write!(text, "{value}"),
        Value::Uuid(Some(value)) => write!(text, "{value}"),
        Value::ChronoDateTimeUtc(Some(value)) => {
            write!(text, "\"{}\"", value.to_rfc3339_opts(SecondsFormat::Micros, true))
        }
        Value::String(Some(value)) => {
            text.push('"');
            for character in value.chars() {
                if matches!(character, '"' | '\\') {
                    text.push('\\');
                }
                text.push(character);
            }
            text.push('"');
            Ok(())
        }
        Value::Bytes(Some(value)) => {
            text.push_str("\"\\\\x");
            value.iter().try_for_each(|byte| write!(text, "{byte:02x}")).map(|()| text.push('"'))
        }
        Value::Bool(None)
        | Value::SmallInt(None)
        | Value::Int(None)
        | Value::BigInt(None)
        | Value::Uuid(None)
        | Value::ChronoDateTimeUtc(None)
        | Value::String(None)
        | Value::Bytes(None) => {
            text.push_str("NULL");
            Ok(())
        }
        other => return Err(DbErr::Type(format!("no column is of the type of {other:?}"))),
    };
    written.map_err(|error| DbErr::Type(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sqlite_has_a_handful_of_texts() {
        let rows = (0..37).map(|number: i32| vec![number.into(), "x".into()]).collect();
        let rows = rows_of(DatabaseBackend::Sqlite, rows).unwrap();
        assert_eq!(
            rows.iter().map(|rows| (rows.count, rows.values.len())).collect::<Vec<_>>(),
            [(32, 64), (4, 8), (1, 2)]
        );
        assert_eq!(rows[2].query, "VALUES (?, ?)");
    }

    #[test]
    fn postgres_has_one_text() {
        let rows = vec![
            vec![1.into(), "a \"b\" \\c, {d}".into(), vec![0_u8, 255].into()],
            vec![2.into(), Value::String(None), Value::Bytes(None)],
        ];
        let rows = rows_of(DatabaseBackend::Postgres, rows).unwrap();
        assert_eq!(rows.len(), 1);
        assert_eq!(
            rows[0].query,
            "SELECT * FROM unnest($1::integer[], $2::text[], $3::bytea[]) AS row(column1, column2, column3)"
        );
        let texts = ["{1,2}", r#"{"a \"b\" \\c, {d}",NULL}"#, r#"{"\\x00ff",NULL}"#];
        assert_eq!(rows[0].values, texts.map(Value::from));
        assert!(rows_of(DatabaseBackend::Postgres, Vec::new()).unwrap().is_empty());
        let mut values = vec![0.into()];
        let query = postgres_rows(&mut values, &[vec![1.into()], vec![2.into()]]).unwrap();
        assert_eq!(query, "SELECT * FROM unnest($2::integer[]) AS row(column1)");
        assert_eq!(values, [0.into(), Value::from("{1,2}")]);
        assert!(rows_of(DatabaseBackend::Postgres, vec![vec![1.0.into()]]).is_err());
    }
}
