//! What Prometheus sees.

use std::{collections::HashMap, net::SocketAddr};

/// The values of an admin port's metrics, by series.
pub(crate) async fn scrape(admin: SocketAddr) -> HashMap<String, f64> {
    let response = reqwest::get(format!("http://{admin}/metrics")).await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["content-type"], "text/plain; version=0.0.4");
    let text = response.text().await.unwrap();
    let series = text.lines().filter(|line| !line.starts_with('#'));
    series
        .map(|line| {
            let (name, value) = line.rsplit_once(' ').unwrap();
            (name.to_owned(), value.parse().unwrap())
        })
        .collect()
}
