//! A neighbour of several endpoints: calls are spread, and one that is dead or slow is left alone.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use boxoffice_proto::{
    booking::v1::{CreateHoldRequest, hold_service_client::HoldServiceClient},
    concert::v1::{GetSaleRequest, sale_service_client::SaleServiceClient},
    payment::v1::{PayRequest, payment_service_client::PaymentServiceClient},
    policy,
};
use futures_util::{
    future::{join_all, poll_immediate},
    stream::{self, StreamExt},
};
use mesh::{
    client::{Channel, ROOM},
    server::Options,
};
use mesh_test::wait_until;
use tokio::net::TcpListener;
use tonic::Status;

use crate::{
    service::{Fake, Gate},
    world::{Mesh, PATIENCE, Port, Resetting, reason, wait_for_calls},
};

async fn get_sale(channel: &Channel) -> Result<(), Status> {
    SaleServiceClient::new(channel.clone()).get_sale(GetSaleRequest::default()).await.map(drop)
}

/// Makes calls, some at once; each must be answered.
async fn call(channel: &Channel, calls: usize, at_once: usize) {
    let outcomes = stream::iter(0..calls).map(|_| get_sale(channel)).buffer_unordered(at_once);
    outcomes.for_each(|outcome| async { outcome.expect("every call is answered") }).await;
}

#[tokio::test]
async fn calls_are_spread_over_three_endpoints() {
    let (mesh, fakes) = (Mesh::new(), [Fake::willing(), Fake::willing(), Fake::willing()]);
    let services = join_all(fakes.iter().map(|fake| mesh.serve("concert", fake))).await;
    let channel = mesh.balanced("concert", services.iter().map(|service| service.address));
    for at_once in [1, 30] {
        let before: Vec<usize> = fakes.iter().map(Fake::calls).collect();
        call(&channel, 1500, at_once).await;
        for (fake, before) in fakes.iter().zip(before) {
            let calls = fake.calls() - before;
            assert!((400..=600).contains(&calls), "{calls} of 1500, {at_once} at once");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_dead_endpoint_is_ejected_and_no_call_fails() {
    let (mesh, fake, port, resetting) =
        (Mesh::new(), Fake::willing(), Port::reserve(), Resetting::start().await);
    let alive = mesh.serve("concert", &fake).await;
    let channel = mesh.balanced("concert", [alive.address, port.address(), resetting.address]);
    call(&channel, 100, 1).await;
    assert_eq!(fake.calls(), 100);
    let connections = resetting.connections();
    assert!((1..=10).contains(&connections), "{connections} tries");
    call(&channel, 1000, 10).await;
    assert_eq!(resetting.connections(), connections, "it is left alone");
}

#[tokio::test]
async fn a_slow_endpoint_gets_less() {
    let (mesh, gate) = (Mesh::new(), Gate::default());
    let fakes = [Fake::behind(&gate), Fake::willing(), Fake::willing()];
    let services = join_all(fakes.iter().map(|fake| mesh.serve("concert", fake))).await;
    let channel = mesh.balanced("concert", services.iter().map(|service| service.address));
    let calls = tokio::spawn(async move { call(&channel, 600, 20).await });
    wait_until("the others to answer", PATIENCE, async || match fakes[1].calls() + fakes[2].calls() {
        calls @ ..500 => Err(format!("{calls} answers")),
        _ => Ok(()),
    })
    .await;
    gate.open();
    calls.await.unwrap();
    assert!(fakes[0].calls() < 100, "{} of 600", fakes[0].calls());
}

#[tokio::test]
async fn old_connections_are_given_up_without_a_failed_call() {
    let (mesh, fake) = (Mesh::new(), Fake::willing());
    let age = Some(Duration::from_millis(30));
    let options = Options { max_connection_age: age, ..Options::new("concert") };
    let service = mesh.serve_on(TcpListener::bind("127.0.0.1:0").await.unwrap(), options, &fake);
    let channel = mesh.balanced("concert", [service.address]);
    wait_until("ten connections", PATIENCE, async || {
        call(&channel, 50, 10).await;
        match service.connections() {
            connections @ ..10 => Err(format!("{connections} so far")),
            _ => Ok(()),
        }
    })
    .await;
}

#[tokio::test]
async fn who_begins_something_gives_way_where_many_wait() {
    let mesh = Mesh::new();
    // It accepts, and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let channel = mesh.channel("booking", silent.local_addr().unwrap());
    let begins = policy::method("/boxoffice.booking.v1.HoldService/CreateHold").unwrap();
    let hold =
        async || HoldServiceClient::new(channel.clone()).create_hold(CreateHoldRequest::default()).await;
    let mut going_on: Vec<_> = (0..ROOM / 2).map(|_| Box::pin(get_sale(&channel))).collect();
    for call in &mut going_on {
        assert!(poll_immediate(call).await.is_none(), "it waits");
    }
    // A few may begin in any case.
    let mut begun: Vec<_> = (0..ROOM / 64).map(|_| Box::pin(hold())).collect();
    for call in &mut begun {
        let answered = poll_immediate(call).await;
        assert!(answered.is_none(), "it waits: {answered:?}");
    }
    assert_eq!(reason(&hold().await.unwrap_err()), "TRANSPORT_BUSY");
    assert_eq!(reason(&channel.check_room(begins).unwrap_err().into()), "TRANSPORT_BUSY");
    assert!(poll_immediate(Box::pin(get_sale(&channel))).await.is_none(), "others are let in");
    drop(begun);
    channel.check_room(begins).expect("a few may begin");
}

#[tokio::test]
async fn a_neighbour_that_never_answers_leaves_room_for_the_others() {
    let (mesh, hanging, willing) = (Mesh::new(), Fake::hanging(), Fake::willing());
    let payment = mesh.serve("payment", &hanging).await;
    let concert = mesh.serve("concert", &willing).await;
    let (payment, concert) =
        (mesh.channel("payment", payment.address), mesh.channel("concert", concert.address));
    let pay = async || PaymentServiceClient::new(payment.clone()).pay(PayRequest::default()).await;
    let waiting = AtomicUsize::new(0);
    let fill = join_all((0..ROOM).map(|_| async {
        waiting.fetch_add(1, Ordering::Relaxed);
        pay().await
    }));
    tokio::select! {
        _ = fill => panic!("nobody answers them"),
        () = async {
            wait_for_calls(&hanging, ROOM).await;
            let refused = pay().await.unwrap_err();
            assert_eq!(reason(&refused), "TRANSPORT_BUSY");
            assert!(!payment.is_refusing(), "it says nothing about the neighbour");
            call(&concert, 100, 10).await;
        } => {}
    }
    assert_eq!(waiting.into_inner(), ROOM);
}
