//! gRPC straight to a service, without the mesh's own client stack, and a close look at its refusals.

use std::net::SocketAddr;

use boxoffice_proto::policy::Reason;
use prost::Message;
use tonic::{
    Code, Request, Status,
    metadata::{Ascii, MetadataKey},
    transport::{Channel, Endpoint},
};
use tonic_prost::ProstCodec;
use tonic_types::pb;

/// A way straight to a service.
pub(crate) async fn connect(service: SocketAddr) -> Channel {
    Endpoint::from_shared(format!("http://{service}")).unwrap().connect().await.unwrap()
}

/// A request with a fan's token.
pub(crate) fn by<T>(token: &str, message: T) -> Request<T> {
    with("authorization", &format!("Bearer {token}"), Request::new(message))
}

/// The same request with one more header.
pub(crate) fn with<T>(name: &str, value: &str, mut request: Request<T>) -> Request<T> {
    let name: MetadataKey<Ascii> = name.parse().unwrap();
    request.metadata_mut().insert(name, value.parse().unwrap());
    request
}

/// Calls the method with this path, with an empty message; what comes back is of no interest.
pub(crate) async fn call_with_nothing(
    channel: &Channel,
    path: &str,
    request: Request<()>,
) -> Result<(), Status> {
    let mut client = tonic::client::Grpc::new(channel.clone());
    client.ready().await.unwrap();
    let path = path.parse().unwrap();
    client.unary(request, path, ProstCodec::<(), ()>::default()).await.map(|_| ())
}

/// Asserts that a status has this reason, and is a whole one: one reason, a text, and the trace id.
#[track_caller]
pub(crate) fn assert_status(what: &str, status: &Status, reason: impl Reason) {
    let info = reason.info();
    let details = pb::Status::decode(status.details()).unwrap().details;
    let of = |name: &str| -> Vec<&[u8]> {
        let is_it = |url: &str| url == format!("type.googleapis.com/google.rpc.{name}");
        details.iter().filter(|any| is_it(&any.type_url)).map(|any| any.value.as_slice()).collect()
    };
    let [error_info] = of("ErrorInfo")[..] else { panic!("{what}: not one ErrorInfo in {status:?}") };
    let found = pb::ErrorInfo::decode(error_info).unwrap();
    assert_eq!(
        (found.domain.as_str(), found.reason.as_str()),
        (info.domain, info.reason),
        "{what}: {status:?}"
    );
    assert_eq!(status.code(), Code::from_i32(info.code), "{what}");
    assert!(!status.message().is_empty(), "{what}");
    let [request_info] = of("RequestInfo")[..] else { panic!("{what}: not one RequestInfo in {status:?}") };
    assert_eq!(pb::RequestInfo::decode(request_info).unwrap().request_id.len(), 32, "{what}");
}
