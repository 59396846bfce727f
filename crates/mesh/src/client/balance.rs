//! Which endpoint of a neighbour gets a call. One endpoint for now; this is where more will be told apart.

use std::time::Duration;

use http::{Request, Response, Uri};
use tonic::{
    body::Body,
    transport::{Channel, Endpoint, Error},
};
use tower::{Service, ServiceExt};

const CONNECT_LIMIT: Duration = Duration::from_secs(1);
// Without these, a connection through a partition that was repaired stays wedged.
const KEEPALIVE_PERIOD: Duration = Duration::from_secs(5);
const KEEPALIVE_LIMIT: Duration = Duration::from_secs(3);

pub(super) struct Balance {
    channel: Channel,
}

impl Balance {
    pub(super) fn new(uri: Uri) -> Self {
        let endpoint = Endpoint::from(uri)
            .connect_timeout(CONNECT_LIMIT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEPALIVE_PERIOD)
            .keep_alive_timeout(KEEPALIVE_LIMIT)
            .keep_alive_while_idle(true);
        Self { channel: endpoint.connect_lazy() }
    }

    pub(super) async fn send(&self, request: Request<Body>) -> Result<Response<Body>, Error> {
        let mut channel = self.channel.clone();
        channel.ready().await?.call(request).await
    }
}
