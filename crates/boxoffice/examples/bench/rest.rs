//! Calls to the gateway by HTTP/1.1, on connections that are used again, and nothing more: what the generator needs of the
//! two cores is missing to what is measured.

use std::{
    net::SocketAddr,
    sync::{Mutex, PoisonError},
};

use boxoffice::api::Reply;
use bytes::Bytes;
use http::{
    Method, Request,
    header::{AUTHORIZATION, CONTENT_TYPE, HOST},
};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

/// Connections to a gateway.
#[derive(Debug)]
pub(crate) struct Rest {
    gateway: SocketAddr,
    idle: Mutex<Vec<SendRequest<Full<Bytes>>>>,
}

impl Rest {
    /// Connects when it is needed, as often as there are calls at the same time.
    pub(crate) fn new(gateway: SocketAddr) -> Self {
        Self { gateway, idle: Mutex::default() }
    }

    /// Sends a call. Any status is an answer.
    pub(crate) async fn send(
        &self,
        method: Method,
        path: &str,
        token: &str,
        key: Option<&str>,
        body: Option<&Value>,
    ) -> anyhow::Result<Reply> {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, "gateway")
            .header(AUTHORIZATION, format!("Bearer {token}"));
        if let Some(key) = key {
            request = request.header("idempotency-key", key);
        }
        if body.is_some() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        let request = request.body(Full::from(body.map(Value::to_string).unwrap_or_default()))?;
        let mut connection = self.connection().await?;
        let answer = match connection.try_send_request(request).await {
            Ok(answer) => answer,
            // The gateway closed it at the same moment, and the request was not sent.
            Err(mut error) => match error.take_message() {
                Some(request) => {
                    connection = self.connect().await?;
                    connection.send_request(request).await?
                }
                None => return Err(error.into_error().into()),
            },
        };
        let (answer, body) = answer.into_parts();
        let body = body.collect().await?.to_bytes();
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
        let body = if body.is_empty() { Value::Null } else { serde_json::from_slice(&body)? };
        Ok(Reply { status: answer.status, headers: answer.headers, body })
    }

    async fn connection(&self) -> anyhow::Result<SendRequest<Full<Bytes>>> {
        let idle = || self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        while let Some(mut connection) = idle() {
            // One that the gateway closed is not.
            if connection.ready().await.is_ok() {
                return Ok(connection);
            }
        }
        self.connect().await
    }

    async fn connect(&self) -> anyhow::Result<SendRequest<Full<Bytes>>> {
        let stream = TcpStream::connect(self.gateway).await?;
        stream.set_nodelay(true)?;
        let (connection, driver) = handshake(TokioIo::new(stream)).await?;
        tokio::spawn(driver);
        Ok(connection)
    }
}
