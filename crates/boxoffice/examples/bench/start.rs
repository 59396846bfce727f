//! How long each process takes until it serves, and how much memory it has when it has nothing to do.

use std::time::Duration;

use mesh::config::Secret;

use crate::deployment::{Deployment, new_database};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Starts of each process. The first one migrates its database.
    #[arg(long, default_value_t = 4)]
    starts: usize,
    /// How long they have nothing to do before their memory is looked at, in seconds.
    #[arg(long, default_value_t = 5)]
    idle: u64,
}

pub(crate) async fn run(options: Options, collector: &str) -> anyhow::Result<()> {
    let secret = || String::from_utf8(Secret::random().expose().to_vec());
    let mut deployment = Deployment::prepare(vec![
        ("SERVICE_TOKEN_KEY", secret()?),
        ("KEY_ENCRYPTION_KEY", secret()?),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", collector.to_owned()),
        ("PSP", "sandbox".to_owned()),
    ])
    .await?;
    for (name, variable) in [
        ("svc-user", "USER_URL"),
        ("svc-concert", "CONCERT_URL"),
        ("svc-payment", "PAYMENT_URL"),
        ("svc-booking", "BOOKING_URL"),
    ] {
        let database = new_database().await;
        for _ in 1..options.starts {
            deployment.start_service(name, &database).await?;
            print_last_start(&mut deployment);
        }
        let address = deployment.start_service(name, &database).await?;
        deployment.tell(variable, format!("http://{address}"));
    }
    for _ in 1..options.starts {
        deployment.start_gateway().await?;
        print_last_start(&mut deployment);
    }
    deployment.start_gateway().await?;
    tokio::time::sleep(Duration::from_secs(options.idle)).await;
    for process in &deployment.processes {
        let (start, memory) = (process.until_serving.as_millis(), process.memory()? as f64 / 1e6);
        println!(
            "{}: {start} ms until it serves, {memory:.1} MB after {} s without work",
            process.name, options.idle
        );
    }
    Ok(())
}

/// Says how long the last start took, and ends that process.
fn print_last_start(deployment: &mut Deployment) {
    if let Some(process) = deployment.processes.pop() {
        println!("{}: {} ms until it serves", process.name, process.until_serving.as_millis());
    }
}
