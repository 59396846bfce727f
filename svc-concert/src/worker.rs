//! What the service does by itself: forgets idempotency keys whose time has passed.

use std::time::Duration;

use mesh::{failure::chain, idempotency, shutdown::Shutdown};

use crate::Shared;

const PERIOD: Duration = Duration::from_secs(600);

/// Works until shutdown.
pub(crate) fn start(shared: Shared, shutdown: Shutdown) {
    tokio::spawn(async move {
        loop {
            if let Err(error) = idempotency::delete_expired(&shared.database, shared.clock.now()).await {
                tracing::warn!(error = chain(&error), "old idempotency keys could not be deleted");
            }
            tokio::select! { () = tokio::time::sleep(PERIOD) => {}, () = shutdown.begun() => return }
        }
    });
}
