//! What a service needs and may be away: told by name, and never by the service's own health.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use mesh::server::{Dependency, Options};
use mesh_test::wait_until;
use tokio::net::TcpListener;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use crate::{
    service::Fake,
    world::{Mesh, PATIENCE, Service, connect},
};

async fn health(service: &Service, name: &str) -> Result<ServingStatus, tonic::Code> {
    let mut health = HealthClient::new(connect(service.address).await);
    let answer = health.check(HealthCheckRequest { service: name.to_owned() }).await;
    answer.map(|answer| answer.into_inner().status()).map_err(|status| status.code())
}

async fn wait_for(service: &Service, expected: ServingStatus) {
    wait_until("the database's health to change", PATIENCE, async || {
        match health(service, "database").await {
            Ok(status) if status == expected => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
}

#[tokio::test]
async fn a_dependency_that_is_away_is_named_and_the_service_serves_on() {
    let is_up = Arc::new(AtomicBool::new(true));
    let answers = Arc::clone(&is_up);
    let dependency = Dependency::new("database", move || {
        let is_up = answers.load(Ordering::Relaxed);
        // One that is away says nothing for long.
        async move { is_up || std::future::pending().await }
    });
    let options = Options { dependencies: vec![dependency], ..Options::new("booking") };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let service = Mesh::new().serve_on(listener, options, &Fake::willing());
    wait_for(&service, ServingStatus::Serving).await;
    is_up.store(false, Ordering::Relaxed);
    wait_for(&service, ServingStatus::NotServing).await;
    assert_eq!(health(&service, "").await, Ok(ServingStatus::Serving));
    assert_eq!(health(&service, "redis").await, Err(tonic::Code::NotFound));
    is_up.store(true, Ordering::Relaxed);
    wait_for(&service, ServingStatus::Serving).await;
}
