//! What calls need and may be away for a while: shown by an entry of the health service with its name, and by a metric.
//! The service's own health says nothing of it: a database that blips must not take every replica out of the balance.

use std::{fmt, future::Future, pin::Pin, sync::Arc, time::Duration};

use opentelemetry::{KeyValue, metrics::Gauge};
use tonic_health::{ServingStatus, server::HealthReporter};

use crate::metrics;

/// How often it is looked at.
const PERIOD: Duration = Duration::from_secs(2);
/// How long an answer is waited for.
const PATIENCE: Duration = Duration::from_secs(1);

type Check = dyn Fn() -> Pin<Box<dyn Future<Output = bool> + Send>> + Send + Sync;

/// Something that calls need.
#[derive(Clone)]
pub struct Dependency {
    name: &'static str,
    check: Arc<Check>,
}

impl Dependency {
    /// What is called `name`, such as `database`, and whether it answers now.
    pub fn new<Answer: Future<Output = bool> + Send + 'static>(
        name: &'static str,
        answers: impl Fn() -> Answer + Send + Sync + 'static,
    ) -> Self {
        Self { name, check: Arc::new(move || Box::pin(answers())) }
    }

    /// Tells by a metric whether it answers, for ever.
    pub async fn watch(self, service: &'static str) {
        self.report(service, None).await;
    }

    /// Tells for ever whether it answers.
    pub(super) async fn report(self, service: &'static str, health: Option<HealthReporter>) {
        let gauge: Gauge<u64> = metrics::meter()
            .u64_gauge("dependency.up")
            .with_description("Whether what a service needs answers: 1, or 0")
            .build();
        let labels = [KeyValue::new("service", service), KeyValue::new("dependency", self.name)];
        loop {
            let is_up = tokio::time::timeout(PATIENCE, (self.check)()).await.unwrap_or(false);
            if let Some(health) = &health {
                let status = if is_up { ServingStatus::Serving } else { ServingStatus::NotServing };
                health.set_service_status(self.name, status).await;
            }
            gauge.record(is_up.into(), &labels);
            tokio::time::sleep(PERIOD).await;
        }
    }
}

impl fmt::Debug for Dependency {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name)
    }
}
