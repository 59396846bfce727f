//! How often each route was called, what was answered, and how long it took.

use http::StatusCode;
use mesh::calls::{Calls, Ends, Side};

/// What the gateway answers, and last what it doesn't: metrics need a bounded number.
static STATUSES: Ends = Ends {
    label: "status",
    names: &[
        "200", "201", "204", "206", "304", "307", "400", "401", "403", "404", "405", "406", "408", "409",
        "412", "413", "415", "422", "429", "499", "500", "501", "503", "504", "other",
    ],
    faults: &["500", "501", "503", "504"],
};

/// The calls of a route.
pub(crate) fn calls_of(http_method: &str, path: &str) -> Calls {
    let metric = ("http.server.duration", "REST calls; of a stream, until it began");
    let labels = [("method", http_method), ("route", path)];
    Calls::new("gateway", Side::Server, metric, &labels, &STATUSES)
}

/// The place of a status among those that are told apart.
pub(crate) fn place_of(status: StatusCode) -> usize {
    let names = STATUSES.names;
    let last = names.len() - 1;
    names[..last].iter().position(|known| *known == status.as_str()).unwrap_or(last)
}

/// The place of calls that nobody waits for any more.
pub(crate) fn abandoned() -> usize {
    place_of(StatusCode::from_u16(499).expect("three digits"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_has_its_place_and_a_strange_one_the_last() {
        assert_eq!(STATUSES.names[place_of(StatusCode::CONFLICT)], "409");
        assert_eq!(STATUSES.names[place_of(StatusCode::IM_A_TEAPOT)], "other");
        assert_eq!(STATUSES.names[abandoned()], "499");
    }
}
