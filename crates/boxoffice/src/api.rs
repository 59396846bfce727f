//! A client of the REST API, as a frontend would write one: for the demo, the sell-out and the tests.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, bail};
use reqwest::{Method, RequestBuilder, StatusCode, header::HeaderMap};
use serde_json::Value;
use uuid::Uuid;

/// How long a call is waited for.
const TIMEOUT: Duration = Duration::from_secs(30);
/// How often a call is tried at each of several gateways.
const ROUNDS: usize = 2;

/// The REST API of a running Boxoffice: of its gateway, or of one of its gateways, each in turn.
#[derive(Debug, Clone)]
pub struct Api {
    client: reqwest::Client,
    bases: Arc<[String]>,
    /// Calls made so far.
    calls: Arc<AtomicUsize>,
}

/// An answer, good or bad.
#[derive(Debug, Clone)]
pub struct Reply {
    /// Its HTTP status.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its JSON; null if it has none.
    pub body: Value,
}

/// Somebody who is logged in.
#[derive(Debug, Clone)]
pub struct Login {
    /// For the header `Authorization`.
    pub access_token: String,
    /// Trades for a new pair.
    pub refresh_token: String,
}

impl Api {
    /// The API at a base URL, such as `http://127.0.0.1:8080`.
    ///
    /// # Errors
    /// If the HTTP client can't be made.
    pub fn new(base: impl Into<String>) -> anyhow::Result<Self> {
        Self::of_gateways([base.into()])
    }

    /// The API that any of these gateways answers, by their base URLs. A call whose connection is refused or breaks is sent
    /// again, as it stands, to the next one: it has an idempotency key, or may be sent again without.
    ///
    /// # Errors
    /// If the HTTP client can't be made.
    ///
    /// # Panics
    /// If there is no gateway.
    pub fn of_gateways(bases: impl IntoIterator<Item = String>) -> anyhow::Result<Self> {
        let bases: Arc<[String]> =
            bases.into_iter().map(|base| base.trim_end_matches('/').to_owned()).collect();
        assert!(!bases.is_empty(), "no gateway");
        let client = reqwest::Client::builder()
            .timeout(TIMEOUT)
            .pool_max_idle_per_host(1024)
            .tcp_nodelay(true)
            .redirect(reqwest::redirect::Policy::none())
            .build()?;
        Ok(Self { client, bases, calls: Arc::default() })
    }

    /// The base URLs.
    pub fn bases(&self) -> &[String] {
        &self.bases
    }

    /// Sends a call. Any status is an answer.
    ///
    /// # Errors
    /// If no answer came.
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        token: Option<&str>,
        key: Option<&str>,
        body: Option<&Value>,
    ) -> anyhow::Result<Reply> {
        let gateways = self.bases.len();
        let tries = if gateways == 1 { 1 } else { ROUNDS * gateways };
        let first = self.calls.fetch_add(1, Ordering::Relaxed);
        let mut tried = 0;
        loop {
            let base = &self.bases[(first + tried) % gateways];
            let mut request = self.client.request(method.clone(), format!("{base}{path}"));
            if let Some(token) = token {
                request = request.bearer_auth(token);
            }
            if let Some(key) = key {
                request = request.header("Idempotency-Key", key);
            }
            if let Some(body) = body {
                request = request.json(body);
            }
            tried += 1;
            match Reply::of(request).await {
                Err(error) if tried < tries && !error.is_timeout() => {}
                answer => return answer.with_context(|| format!("{path} was not answered")),
            }
        }
    }

    /// Reads something.
    ///
    /// # Errors
    /// If no answer came.
    pub async fn get(&self, path: &str, token: Option<&str>) -> anyhow::Result<Reply> {
        self.send(Method::GET, path, token, None, None).await
    }

    /// Reads something as it comes over the wire.
    ///
    /// # Errors
    /// If no answer came, or not a good one.
    pub async fn get_raw(&self, path: &str, accept_encoding: Option<&str>) -> anyhow::Result<Vec<u8>> {
        let mut request = self.client.get(format!("{}{path}", self.bases[0]));
        if let Some(encoding) = accept_encoding {
            request = request.header(reqwest::header::ACCEPT_ENCODING, encoding);
        }
        Ok(request.send().await?.error_for_status()?.bytes().await?.into())
    }

    /// Posts something, with a new idempotency key.
    ///
    /// # Errors
    /// If no answer came.
    pub async fn post(&self, path: &str, token: Option<&str>, body: &Value) -> anyhow::Result<Reply> {
        self.send(Method::POST, path, token, Some(&new_key()), Some(body)).await
    }

    /// Signs somebody up; one who has an account already keeps it.
    ///
    /// # Errors
    /// If it was refused.
    pub async fn sign_up(&self, email: &str, password: &str, name: &str) -> anyhow::Result<()> {
        let body = serde_json::json!({"email": email, "password": password, "displayName": name});
        self.post("/v1/users", None, &body).await?.expect_success("signing up").map(|_| ())
    }

    /// Logs somebody in.
    ///
    /// # Errors
    /// If it was refused.
    pub async fn log_in(&self, email: &str, password: &str) -> anyhow::Result<Login> {
        let body = serde_json::json!({"email": email, "password": password});
        let body = self.post("/v1/sessions", None, &body).await?.expect_success("logging in")?;
        Ok(Login { access_token: text(&body, "/accessToken")?, refresh_token: text(&body, "/refreshToken")? })
    }

    /// Puts money into somebody's wallet, through the sandbox provider.
    ///
    /// # Errors
    /// If it was refused.
    pub async fn top_up(&self, token: &str, minor_units: i64) -> anyhow::Result<()> {
        let amount = serde_json::json!({"currencyCode": "KRW", "minorUnits": minor_units.to_string()});
        let body = serde_json::json!({"provider": "PAYMENT_PROVIDER_SANDBOX", "amount": amount});
        self.post("/v1/wallet/top-ups", Some(token), &body).await?.expect_success("topping up").map(|_| ())
    }
}

impl Reply {
    async fn of(request: RequestBuilder) -> reqwest::Result<Self> {
        let response = request.send().await?;
        let (status, headers) = (response.status(), response.headers().clone());
        let bytes = response.bytes().await?;
        Ok(Self { status, headers, body: serde_json::from_slice(&bytes).unwrap_or(Value::Null) })
    }

    /// The reason of a refusal, such as `SEAT_TAKEN`. Empty: none was given.
    pub fn reason(&self) -> &str {
        self.body["reason"].as_str().unwrap_or_default()
    }

    /// The body of an answer that must be good.
    ///
    /// # Errors
    /// If it is a refusal.
    pub fn expect_success(self, what: &str) -> anyhow::Result<Value> {
        if self.status.is_success() {
            return Ok(self.body);
        }
        bail!("{what} was refused: {} {}", self.status, self.body)
    }
}

/// A new idempotency key.
pub fn new_key() -> String {
    Uuid::now_v7().to_string()
}

/// The text at a place in an answer, such as `/concert/concertId`.
///
/// # Errors
/// If there is none.
pub fn text(body: &Value, place: &str) -> anyhow::Result<String> {
    body.pointer(place)
        .and_then(Value::as_str)
        .map(str::to_owned)
        .with_context(|| format!("no {place} in {body}"))
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;

    #[tokio::test]
    async fn a_call_that_one_gateway_does_not_answer_is_sent_to_the_next_by_the_same_key() {
        let [gateway, hasty, closed] = [(); 3].map(|()| std::net::TcpListener::bind("127.0.0.1:0").unwrap());
        let urls = [&closed, &hasty, &gateway].map(|at| format!("http://{}", at.local_addr().unwrap()));
        drop(closed);
        let [gateway, hasty] = [gateway, hasty].map(|listener| {
            listener.set_nonblocking(true).unwrap();
            TcpListener::from_std(listener).unwrap()
        });
        // Takes a call, and hangs up.
        tokio::spawn(async move {
            while let Ok((mut call, _)) = hasty.accept().await {
                let _ = call.read(&mut [0; 4096]).await;
            }
        });
        // Answers with the key of the call.
        tokio::spawn(async move {
            while let Ok((mut call, _)) = gateway.accept().await {
                let mut request = vec![0; 4096];
                let length = call.read(&mut request).await.unwrap();
                let request = String::from_utf8_lossy(&request[..length]).to_lowercase();
                let key = request.lines().find_map(|line| line.strip_prefix("idempotency-key: ")).unwrap();
                let answer = format!(
                    "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n\"{key}\"",
                    key.len() + 2
                );
                call.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        let api = Api::of_gateways(urls).unwrap();
        for number in 0..6 {
            let key = format!("key-{number}");
            let reply = api.send(Method::POST, "/", None, Some(&key), None).await.unwrap();
            assert_eq!(reply.body, key);
        }
    }
}
