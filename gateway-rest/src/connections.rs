//! Connections with clients: how many, how slow they may be, and how they end.

use std::{io, sync::Arc, time::Duration};

use axum::body::Body;
use http::Request;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{conn::auto::Builder, graceful::GracefulShutdown},
};
use mesh::{
    server::Prompt,
    shutdown::{DRAIN_LIMIT, Shutdown},
};
use tokio::{net::TcpListener, sync::Semaphore};

use crate::entry::Entry;

/// Connections at once; more wait to be accepted.
const MAX_CONNECTIONS: usize = 20_000;
/// How long the head of a request may take. Idle connections are closed after that, too.
const HEAD_LIMIT: Duration = Duration::from_secs(60);
const MAX_HEAD_BYTES: usize = 64 * 1024;
const MAX_CONCURRENT_STREAMS: u32 = 200;
/// A client that resets streams faster than they are dropped is attacking (CVE-2023-44487).
const MAX_PENDING_RESETS: usize = 50;
const KEEPALIVE_PERIOD: Duration = Duration::from_secs(30);
/// How long to wait when the system has no more files to give.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves until `stop` begins; then accepts nothing more, lets calls in flight finish, and after [`DRAIN_LIMIT`] drops
/// the rest.
pub(crate) async fn serve(listener: TcpListener, entry: Entry, stop: Shutdown) {
    let builder = Arc::new(builder());
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let connections = GracefulShutdown::new();
    let abandon = Shutdown::new();
    loop {
        let accept = async {
            let place = Arc::clone(&room).acquire_owned().await.expect("never closed");
            listener.accept().await.map(|(stream, from)| (stream, from, place))
        };
        let accepted = tokio::select! {
            accepted = accept => accepted,
            () = stop.begun() => break,
        };
        let (stream, from, place) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                pause_after(&error).await;
                continue;
            }
        };
        // Small answers must not wait for more to send.
        let _ = stream.set_nodelay(true);
        let entry = entry.clone();
        let service = service_fn(move |request: Request<Incoming>| {
            let answer = entry.clone().respond(from, request.map(Body::new));
            async { Ok::<_, std::convert::Infallible>(answer.await) }
        });
        let (builder, watcher) = (Arc::clone(&builder), connections.watcher());
        let (stop, abandon) = (stop.clone(), abandon.clone());
        tokio::spawn(async move {
            // The limits below begin with the first byte. Nothing is lost with a client that sent none.
            let mut first = [0];
            let has_begun = tokio::select! {
                biased;
                begun = tokio::time::timeout(HEAD_LIMIT, stream.peek(&mut first)) => matches!(begun, Ok(Ok(1..))),
                () = stop.begun() => false,
            };
            if !has_begun {
                return;
            }
            // The builder itself waits for ever to see whether a first `P` becomes HTTP/2.
            let stream = TokioIo::new(Prompt::new(stream, &stop));
            let connection = builder.serve_connection(stream, service).into_owned();
            let connection = watcher.watch(connection);
            tokio::select! {
                outcome = connection => {
                    if let Err(error) = outcome {
                        tracing::debug!(error, "a connection broke");
                    }
                }
                () = abandon.begun() => {}
            }
            drop(place);
        });
    }
    drop(listener);
    if tokio::time::timeout(DRAIN_LIMIT, connections.shutdown()).await.is_err() {
        abandon.begin();
        tracing::warn!("calls were dropped that did not finish in time");
    }
}

fn builder() -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_LIMIT).max_buf_size(MAX_HEAD_BYTES);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(KEEPALIVE_PERIOD)
        .max_concurrent_streams(MAX_CONCURRENT_STREAMS)
        .max_pending_accept_reset_streams(MAX_PENDING_RESETS)
        .max_header_list_size(MAX_HEAD_BYTES as u32);
    builder
}

/// A client that left while it was being accepted is no reason to wait; anything else passes, if at all, with time.
async fn pause_after(error: &io::Error) {
    let is_about_one_client = matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionRefused
    );
    if !is_about_one_client {
        tracing::warn!(%error, "can't accept a connection");
        tokio::time::sleep(ACCEPT_PAUSE).await;
    }
}
