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

#[cfg(test)]
mod tests {
    use boxoffice_proto::payment::v1::{CreateTopUpRequest, CreateTopUpResponse};
    use chrono::{DateTime, TimeDelta};
    use mesh::{
        clock::Clock,
        database::Database,
        id::UserId,
        idempotency::{Once, RequestKey},
        lane::Lane,
        money::Currency,
    };

    use super::*;
    use crate::{MIGRATIONS, store::cashier::Cashier};

    #[tokio::test]
    async fn a_key_is_forgotten_when_its_time_has_passed() {
        let file = mesh_test::sqlite::create_database();
        let database = Database::open(&file.url().parse().unwrap(), 1).await.unwrap();
        database.migrate(MIGRATIONS).await.unwrap();
        let clock = Clock::manual(DateTime::from_timestamp(1_800_000_000, 0).unwrap());
        let fan = UserId::new();
        let begin = async || {
            let mut request = CreateTopUpRequest { request_id: "key".into(), ..Default::default() };
            let key = RequestKey::take(fan, "method", &mut request, |request| &mut request.request_id);
            idempotency::begin::<CreateTopUpResponse>(&database, &clock, key.unwrap()).await.unwrap()
        };
        let Once::Fresh(fresh) = begin().await else { panic!("the key was never used") };
        fresh.commit(CreateTopUpResponse::default()).await.unwrap();
        assert!(matches!(begin().await, Once::Replayed(_)));

        clock.advance(idempotency::LIFETIME + TimeDelta::seconds(1));
        let payments = Lane::start(Cashier::new(database.clone(), clock.clone()));
        let (database, clock) = (database.clone(), clock.clone());
        let shutdown = Shutdown::new();
        start(Shared { database, clock, currency: Currency::KRW, psp: None, payments }, shutdown.clone());
        mesh_test::wait_until("the key to be forgotten", Duration::from_secs(20), async || {
            match begin().await {
                Once::Fresh(_) => Ok(()),
                Once::Replayed(_) => Err("it is remembered".to_owned()),
            }
        })
        .await;
        shutdown.begin();
    }
}
