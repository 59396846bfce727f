//! A client of the REST API, as a frontend would write one: for the demo, the sell-out and the tests.

use std::time::Duration;

use anyhow::{Context, bail};
use reqwest::{Method, StatusCode, header::HeaderMap};
use serde_json::Value;
use uuid::Uuid;

/// How long a call is waited for.
const TIMEOUT: Duration = Duration::from_secs(30);

/// The REST API of a running Boxoffice.
#[derive(Debug, Clone)]
pub struct Api {
    client: reqwest::Client,
    base: String,
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
        let client = reqwest::Client::builder()
            .timeout(TIMEOUT)
            .pool_max_idle_per_host(1024)
            .tcp_nodelay(true)
            .redirect(reqwest::redirect::Policy::none())
            .build()?;
        Ok(Self { client, base: base.into().trim_end_matches('/').to_owned() })
    }

    /// The base URL.
    pub fn base(&self) -> &str {
        &self.base
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
        let mut request = self.client.request(method, format!("{}{path}", self.base));
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        if let Some(key) = key {
            request = request.header("Idempotency-Key", key);
        }
        if let Some(body) = body {
            request = request.json(body);
        }
        let response = request.send().await.with_context(|| format!("{path} was not answered"))?;
        let (status, headers) = (response.status(), response.headers().clone());
        let bytes = response.bytes().await?;
        let body = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
        Ok(Reply { status, headers, body })
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
        let mut request = self.client.get(format!("{}{path}", self.base));
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
