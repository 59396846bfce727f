//! Reads a JSON body into values, and notes which fields stand more than once: of two values the client meant one, and
//! nobody knows which.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value as Json};

use crate::transcode::MAX_ERRORS;

/// A longer field name is cut where it is repeated to the client.
pub(crate) const MAX_NAME_LENGTH: usize = 100;

/// A body that is an object.
#[derive(Debug, Default)]
pub(crate) struct Body {
    pub(crate) object: Map<String, Json>,
    /// The paths of fields that stand more than once, some of them if they are many.
    pub(crate) given_again: Vec<String>,
}

/// Reads a body.
///
/// # Errors
/// If it is not one JSON object.
pub(crate) fn parse(bytes: &[u8]) -> Result<Body, serde_json::Error> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let mut given_again = Vec::new();
    let object = (&mut deserializer).deserialize_map(Object(&mut given_again))?;
    deserializer.end()?;
    Ok(Body { object, given_again })
}

/// As much of a field's name as is repeated to the client.
pub(crate) fn short_name(name: &str) -> &str {
    name.char_indices().nth(MAX_NAME_LENGTH).map_or(name, |(end, _)| &name[..end])
}

/// Writes a step before the paths that were noted since: they began where the step leads.
fn put_before(paths: &mut [String], step: &str) {
    for path in paths {
        let separator = if path.starts_with('[') { "" } else { "." };
        *path = format!("{step}{separator}{path}");
    }
}

/// Reads an object. Paths that are noted begin with its fields.
struct Object<'a>(&'a mut Vec<String>);

impl<'de> Visitor<'de> for Object<'_> {
    type Value = Map<String, Json>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Self::Value, A::Error> {
        let mut object = Map::new();
        let begin = self.0.len();
        while let Some(name) = entries.next_key::<String>()? {
            let noted = self.0.len();
            let value = entries.next_value_seed(Value(self.0))?;
            if self.0.len() > noted {
                put_before(&mut self.0[noted..], short_name(&name));
            }
            if object.contains_key(&name) {
                let name = short_name(&name);
                let is_noted = self.0[begin..].iter().any(|path| path == name);
                if !is_noted && self.0.len() < MAX_ERRORS {
                    self.0.push(name.to_owned());
                }
            }
            object.insert(name, value);
        }
        Ok(object)
    }
}

/// Reads any value.
struct Value<'a>(&'a mut Vec<String>);

impl<'de> DeserializeSeed<'de> for Value<'_> {
    type Value = Json;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Json, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Value<'_> {
    type Value = Json;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Json, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E>(self, flag: bool) -> Result<Json, E> {
        Ok(Json::Bool(flag))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Json, E> {
        Ok(Json::Number(number.into()))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Json, E> {
        Ok(Json::Number(number.into()))
    }

    fn visit_f64<E: serde::de::Error>(self, number: f64) -> Result<Json, E> {
        Number::from_f64(number).map(Json::Number).ok_or_else(|| E::custom("a number is not finite"))
    }

    fn visit_str<E>(self, text: &str) -> Result<Json, E> {
        Ok(Json::String(text.to_owned()))
    }

    fn visit_string<E>(self, text: String) -> Result<Json, E> {
        Ok(Json::String(text))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Json, A::Error> {
        let mut list = Vec::new();
        loop {
            let noted = self.0.len();
            let Some(item) = items.next_element_seed(Value(self.0))? else { return Ok(Json::Array(list)) };
            if self.0.len() > noted {
                put_before(&mut self.0[noted..], &format!("[{}]", list.len()));
            }
            list.push(item);
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, entries: A) -> Result<Json, A::Error> {
        Object(self.0).visit_map(entries).map(Json::Object)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given_again(body: &str) -> Vec<String> {
        parse(body.as_bytes()).unwrap().given_again
    }

    #[test]
    fn values_are_those_that_serde_json_reads() {
        let texts = [
            r#"{"a": [1, -1, 18446744073709551615, 1.5, 1e300, true, null, "x\u00e9\n", {"b": {}}, [], [[]]], "c": ""}"#,
            "{}",
            " {\"a\": 9223372036854775808} ",
            "{\"a\": 123456789012345678901234567890}",
        ];
        for text in texts {
            let expected: Map<String, Json> = serde_json::from_str(text).unwrap();
            assert_eq!(parse(text.as_bytes()).unwrap().object, expected, "{text}");
            assert!(given_again(text).is_empty(), "{text}");
        }
    }

    #[test]
    fn a_field_that_stands_again_is_noted_with_its_path() {
        assert_eq!(given_again(r#"{"a": 1, "b": 2, "a": 1}"#), ["a"]);
        assert_eq!(given_again(r#"{"a": {"b": [[{}, {"c": 1, "c": 1, "c": 1}]]}}"#), ["a.b[0][1].c"]);
        assert_eq!(given_again(r#"{"x": {"a": 1, "a": 1}, "x": {"b": 1, "b": 1}}"#), ["x.a", "x.b", "x"]);
        assert_eq!(given_again(r#"{"a": [{"b": 1}, {"b": 1}], "c": {"b": 1}}"#), [""; 0]);
        let long = "é".repeat(1000);
        let path = given_again(&format!(r#"{{"{long}": {{"a": 1, "a": 2}}}}"#)).remove(0);
        assert_eq!(path.chars().count(), MAX_NAME_LENGTH + ".a".len());
    }
}
