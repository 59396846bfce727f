//! Stopping without losing a call.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

/// How long a server waits for calls in flight before it drops them.
pub const DRAIN_LIMIT: Duration = Duration::from_secs(20);

/// Tells everything in a process that it should stop.
#[derive(Debug, Clone, Default)]
pub struct Shutdown(CancellationToken);

impl Shutdown {
    /// Nobody has asked yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks everyone to stop.
    pub fn begin(&self) {
        self.0.cancel();
    }

    /// Whether everyone has been asked to stop.
    pub fn has_begun(&self) -> bool {
        self.0.is_cancelled()
    }

    /// Waits until everyone is asked to stop.
    pub async fn begun(&self) {
        self.0.cancelled().await;
    }

    /// Waits until everyone is asked to stop, on its own.
    pub fn begun_owned(&self) -> impl Future<Output = ()> + Send + 'static {
        self.0.clone().cancelled_owned()
    }

    /// Begins on SIGTERM or Ctrl-C; a second signal ends the process at once.
    ///
    /// # Errors
    /// If the system lets us install no signal handler.
    pub fn on_signals(&self) -> std::io::Result<()> {
        use tokio::signal::unix::{SignalKind, signal};
        let (mut terminate, mut interrupt) =
            (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let shutdown = self.clone();
        tokio::spawn(async move {
            tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
            tracing::info!("stopping: finishing the calls in flight");
            shutdown.begin();
            tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
            tracing::warn!("stopping at once");
            std::process::exit(1);
        });
        Ok(())
    }
}
