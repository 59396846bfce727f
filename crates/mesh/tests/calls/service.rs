//! A service whose handlers do what a test says.

use std::sync::{Arc, Mutex};

use boxoffice_proto::{
    booking::v1::{
        CancelBookingRequest, CancelBookingResponse, CreateBookingRequest, CreateBookingResponse,
        GetBookingRequest, GetBookingResponse, GetSeatMapRequest, GetSeatMapResponse, GetSeatsRequest,
        GetSeatsResponse, ListBookingsRequest, ListBookingsResponse, WatchSeatsRequest, WatchSeatsResponse,
        booking_service_server::{BookingService, BookingServiceServer},
        seat_service_server::{SeatService, SeatServiceServer},
    },
    concert::v1::{
        BeginSaleRequest, BeginSaleResponse, CreateVenueRequest, CreateVenueResponse, GetSaleRequest,
        GetSaleResponse, GetVenueRequest, GetVenueResponse, ReportAvailabilityRequest,
        ReportAvailabilityResponse,
        sale_service_server::{SaleService, SaleServiceServer},
        venue_service_server::{VenueService, VenueServiceServer},
    },
    payment::v1::{
        PayRequest, PayResponse, RefundRequest, RefundResponse, VoidRequest, VoidResponse,
        payment_service_server::{PaymentService, PaymentServiceServer},
    },
    user::v1::{
        CreateSessionRequest, CreateSessionResponse, DeleteCurrentSessionRequest,
        DeleteCurrentSessionResponse, ListSigningKeysRequest, ListSigningKeysResponse, RefreshSessionRequest,
        RefreshSessionResponse,
        key_service_server::{KeyService, KeyServiceServer},
        session_service_server::{SessionService, SessionServiceServer},
    },
};
use futures_util::{
    FutureExt, StreamExt,
    future::BoxFuture,
    stream::{self, BoxStream},
};
use http::HeaderMap;
use mesh::{
    Failure,
    auth::{self, Caller},
};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, service::Routes};

/// A service of any kind. Whatever it is asked, it does the same deed, and answers with an empty message if that went
/// well. `WatchSeats` sends one change before.
#[derive(Clone)]
pub(crate) struct Fake {
    deed: Arc<dyn Fn() -> BoxFuture<'static, Result<(), Status>> + Send + Sync>,
    seen: Arc<Mutex<Vec<Seen>>>,
}

/// A call that reached a handler.
#[derive(Clone)]
pub(crate) struct Seen {
    pub(crate) headers: HeaderMap,
    pub(crate) caller: Caller,
}

/// Holds handlers up until it is opened.
#[derive(Clone, Default)]
pub(crate) struct Gate(CancellationToken);

impl Gate {
    pub(crate) fn open(&self) {
        self.0.cancel();
    }
}

impl Fake {
    pub(crate) fn doing<F>(deed: impl Fn() -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<(), Status>> + Send + 'static,
    {
        Self { deed: Arc::new(move || deed().boxed()), seen: Arc::default() }
    }

    /// The same service, which does something else before.
    pub(crate) fn after<F>(&self, first: impl Fn() -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<(), Status>> + Send + 'static,
    {
        let deed = Arc::clone(&self.deed);
        let deed = move || {
            let (first, deed) = (first(), Arc::clone(&deed));
            async move {
                first.await?;
                deed().await
            }
            .boxed()
        };
        Self { deed: Arc::new(deed), seen: Arc::clone(&self.seen) }
    }

    /// It does what it is asked.
    pub(crate) fn willing() -> Self {
        Self::doing(|| async { Ok(()) })
    }

    /// It never answers.
    pub(crate) fn hanging() -> Self {
        Self::doing(std::future::pending)
    }

    /// It does what it is asked once the gate is open.
    pub(crate) fn behind(gate: &Gate) -> Self {
        let gate = gate.clone();
        Self::doing(move || {
            let gate = gate.clone();
            async move {
                gate.0.cancelled().await;
                Ok(())
            }
        })
    }

    /// It answers with a failure.
    pub(crate) fn failing(failure: impl Fn() -> Failure + Send + Sync + 'static) -> Self {
        Self::doing(move || std::future::ready(Err(failure().into())))
    }

    /// The calls that reached it so far.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// How many calls reached it so far.
    pub(crate) fn calls(&self) -> usize {
        self.seen.lock().unwrap().len()
    }

    pub(crate) fn routes(&self) -> Routes {
        Routes::new(SeatServiceServer::new(self.clone()))
            .add_service(BookingServiceServer::new(self.clone()))
            .add_service(VenueServiceServer::new(self.clone()))
            .add_service(SaleServiceServer::new(self.clone()))
            .add_service(PaymentServiceServer::new(self.clone()))
            .add_service(SessionServiceServer::new(self.clone()))
            .add_service(KeyServiceServer::new(self.clone()))
    }

    fn note<T>(&self, request: &Request<T>) {
        let headers = request.metadata().clone().into_headers();
        self.seen.lock().unwrap().push(Seen { headers, caller: auth::caller(request) });
    }

    async fn answer<Q, R: Default>(&self, request: Request<Q>) -> Result<Response<R>, Status> {
        self.note(&request);
        (self.deed)().await?;
        Ok(Response::new(R::default()))
    }
}

/// Handlers that do the deed.
macro_rules! implement {
    ($service:ident: $($method:ident($request:ty) -> $response:ty),* $(,)?) => {
        #[tonic::async_trait]
        impl $service for Fake {
            $(
                async fn $method(&self, request: Request<$request>) -> Result<Response<$response>, Status> {
                    self.answer(request).await
                }
            )*
        }
    };
}

implement!(BookingService:
    create_booking(CreateBookingRequest) -> CreateBookingResponse,
    get_booking(GetBookingRequest) -> GetBookingResponse,
    list_bookings(ListBookingsRequest) -> ListBookingsResponse,
    cancel_booking(CancelBookingRequest) -> CancelBookingResponse,
);
implement!(VenueService:
    create_venue(CreateVenueRequest) -> CreateVenueResponse,
    get_venue(GetVenueRequest) -> GetVenueResponse,
);
implement!(SaleService:
    get_sale(GetSaleRequest) -> GetSaleResponse,
    begin_sale(BeginSaleRequest) -> BeginSaleResponse,
    report_availability(ReportAvailabilityRequest) -> ReportAvailabilityResponse,
);
implement!(PaymentService:
    pay(PayRequest) -> PayResponse,
    void(VoidRequest) -> VoidResponse,
    refund(RefundRequest) -> RefundResponse,
);
implement!(SessionService:
    create_session(CreateSessionRequest) -> CreateSessionResponse,
    refresh_session(RefreshSessionRequest) -> RefreshSessionResponse,
    delete_current_session(DeleteCurrentSessionRequest) -> DeleteCurrentSessionResponse,
);
implement!(KeyService: list_signing_keys(ListSigningKeysRequest) -> ListSigningKeysResponse);

#[tonic::async_trait]
impl SeatService for Fake {
    async fn get_seat_map(
        &self,
        request: Request<GetSeatMapRequest>,
    ) -> Result<Response<GetSeatMapResponse>, Status> {
        self.answer(request).await
    }

    async fn get_seats(
        &self,
        request: Request<GetSeatsRequest>,
    ) -> Result<Response<GetSeatsResponse>, Status> {
        self.answer(request).await
    }

    type WatchSeatsStream = BoxStream<'static, Result<WatchSeatsResponse, Status>>;

    async fn watch_seats(
        &self,
        request: Request<WatchSeatsRequest>,
    ) -> Result<Response<Self::WatchSeatsStream>, Status> {
        self.note(&request);
        let change = WatchSeatsResponse { revision: "1".into(), ..Default::default() };
        let deed = stream::once((self.deed)()).filter_map(async |outcome| outcome.err().map(Err));
        Ok(Response::new(stream::iter([Ok(change)]).chain(deed).boxed()))
    }
}
