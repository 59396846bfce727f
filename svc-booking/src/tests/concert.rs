//! A concert service that knows a few sales by heart.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use boxoffice_proto::{
    common::v1::ErrorReason as CommonReason,
    concert::v1::{
        BeginSaleRequest, BeginSaleResponse, ConcertState, ErrorReason, GetSaleRequest, GetSaleResponse,
        ReportAvailabilityRequest, ReportAvailabilityResponse, Sale, SeatedArea, Section, SectionPrice,
        StandingArea, sale_service_server::SaleService, section::Arrangement,
    },
};
use chrono::{DateTime, TimeDelta, Utc};
use mesh::{
    Failure,
    clock::Clock,
    field::{money, timestamp},
    id::ConcertId,
    money::Currency,
};
use tonic::{Request, Response, Status};

/// What a seat of section A costs.
pub(crate) const SEAT_PRICE: i64 = 100;
/// What a place on the floor costs.
pub(crate) const FLOOR_PRICE: i64 = 50;
/// Seats that a fan may have.
pub(crate) const SEAT_LIMIT: u32 = 4;

/// The concert service's fake. Clones are the same one.
#[derive(Clone, Default)]
pub(crate) struct FakeConcert(Arc<Mutex<Desk>>);

#[derive(Default)]
struct Desk {
    sales: HashMap<String, Sale>,
    is_down: bool,
    /// What it takes to begin a sale, by a manual clock.
    slowness: Option<(Clock, TimeDelta)>,
    asked: u32,
    begun: Vec<String>,
    /// Places left, by concert, as last reported.
    reported: HashMap<String, i32>,
}

impl FakeConcert {
    /// Puts a concert on sale: section A with two rows of four seats, A-1-1 for wheelchair users; FLOOR with two places.
    pub(crate) fn put_on_sale(&self, open_time: DateTime<Utc>, close_time: DateTime<Utc>) -> ConcertId {
        let id = ConcertId::new();
        let seated = SeatedArea { rows: 2, seats_per_row: 4, accessible_seat_ids: vec!["A-1-1".to_owned()] };
        let section = |id: &str, name: &str, arrangement| Section {
            section_id: id.to_owned(),
            display_name: name.to_owned(),
            arrangement: Some(arrangement),
        };
        let price = |id: &str, minor_units| SectionPrice {
            section_id: id.to_owned(),
            price: Some(money(minor_units, Currency::KRW)),
        };
        let sale = Sale {
            concert_id: id.to_string(),
            state: ConcertState::Published.into(),
            sale_open_time: Some(timestamp(open_time)),
            sale_close_time: Some(timestamp(close_time)),
            end_time: Some(timestamp(close_time)),
            max_seats_per_fan: SEAT_LIMIT as i32,
            layout_version: "layout-1".to_owned(),
            sections: vec![
                section("A", "Stalls", Arrangement::Seated(seated)),
                section("FLOOR", "Floor", Arrangement::Standing(StandingArea { capacity: 2 })),
            ],
            prices: vec![price("A", SEAT_PRICE), price("FLOOR", FLOOR_PRICE)],
        };
        self.lock().sales.insert(id.to_string(), sale);
        id
    }

    pub(crate) fn cancel(&self, concert: ConcertId) {
        let mut desk = self.lock();
        desk.sales.get_mut(&concert.to_string()).expect("a known concert").set_state(ConcertState::Cancelled);
    }

    /// Whether it answers nothing but that it can't, from now on.
    pub(crate) fn set_down(&self, is_down: bool) {
        self.lock().is_down = is_down;
    }

    /// Takes its time to begin a sale, from now on.
    pub(crate) fn set_slow(&self, clock: &Clock, by: TimeDelta) {
        self.lock().slowness = Some((clock.clone(), by));
    }

    /// How often it was asked for a sale.
    pub(crate) fn times_asked(&self) -> u32 {
        self.lock().asked
    }

    /// How often it was told that a concert is being booked.
    pub(crate) fn times_begun(&self, concert: ConcertId) -> usize {
        self.lock().begun.iter().filter(|begun| **begun == concert.to_string()).count()
    }

    /// How many places are left, as it was last told. None: it was told nothing.
    pub(crate) fn places_left(&self, concert: ConcertId) -> Option<i32> {
        self.lock().reported.get(&concert.to_string()).copied()
    }

    fn lock(&self) -> MutexGuard<'_, Desk> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Desk {
    fn sale(&self, concert_id: &str) -> Result<&Sale, Status> {
        if self.is_down {
            return Err(Failure::new(CommonReason::DatabaseUnavailable, "down, as asked").into());
        }
        let absent = || Failure::new(ErrorReason::ConcertNotFound, "there is no such concert").into();
        self.sales.get(concert_id).ok_or_else(absent)
    }
}

#[tonic::async_trait]
impl SaleService for FakeConcert {
    async fn get_sale(&self, request: Request<GetSaleRequest>) -> Result<Response<GetSaleResponse>, Status> {
        let mut desk = self.lock();
        desk.asked += 1;
        let sale = desk.sale(&request.get_ref().concert_id)?.clone();
        Ok(Response::new(GetSaleResponse { sale: Some(sale) }))
    }

    async fn begin_sale(
        &self,
        request: Request<BeginSaleRequest>,
    ) -> Result<Response<BeginSaleResponse>, Status> {
        let mut desk = self.lock();
        let concert_id = request.into_inner().concert_id;
        if desk.sale(&concert_id)?.state() == ConcertState::Cancelled {
            return Err(Failure::new(ErrorReason::ConcertCancelled, "the concert is cancelled").into());
        }
        if let Some((clock, by)) = &desk.slowness {
            clock.advance(*by);
        }
        desk.begun.push(concert_id);
        Ok(Response::new(BeginSaleResponse {}))
    }

    async fn report_availability(
        &self,
        request: Request<ReportAvailabilityRequest>,
    ) -> Result<Response<ReportAvailabilityResponse>, Status> {
        let ReportAvailabilityRequest { concert_id, unbooked_places, .. } = request.into_inner();
        self.lock().reported.insert(concert_id, unbooked_places);
        Ok(Response::new(ReportAvailabilityResponse {}))
    }
}
