//! What the service does by itself: keeps its keys up to date, and forgets what has expired.

use std::{future::Future, time::Duration};

use mesh::{failure::chain, idempotency, shutdown::Shutdown};

use crate::{Shared, error::Error, keyring::REVOCATION_MEMORY, store::session};

/// How often keys and ended sessions are read: another process may have changed them.
const KEY_PERIOD: Duration = Duration::from_secs(2);
/// How often what has expired is deleted.
const EXPIRY_PERIOD: Duration = Duration::from_secs(600);

/// Works until shutdown.
pub(crate) fn start(shared: &Shared, shutdown: &Shutdown) {
    repeat(KEY_PERIOD, shared, shutdown, "the signing keys can't be kept up to date", keep_keys);
    repeat(EXPIRY_PERIOD, shared, shutdown, "what has expired can't be deleted", delete_expired);
}

fn repeat<Work>(
    period: Duration,
    shared: &Shared,
    shutdown: &Shutdown,
    complaint: &'static str,
    work: impl Fn(Shared) -> Work + Send + 'static,
) where
    Work: Future<Output = Result<(), Error>> + Send,
{
    let (shared, shutdown) = (shared.clone(), shutdown.clone());
    tokio::spawn(async move {
        loop {
            if let Err(error) = work(shared.clone()).await {
                tracing::warn!(error = chain(&error), "{complaint}");
            }
            tokio::select! { () = tokio::time::sleep(period) => {}, () = shutdown.begun() => return }
        }
    });
}

async fn keep_keys(shared: Shared) -> Result<(), Error> {
    shared.keyring.refresh().await?;
    shared.keyring.rotate_if_due().await
}

async fn delete_expired(shared: Shared) -> Result<(), Error> {
    let now = shared.clock.now();
    session::delete_expired(shared.database.writer(), now, now - REVOCATION_MEMORY).await?;
    idempotency::delete_expired(&shared.database, now).await?;
    shared.keyring.delete_retired().await
}
