//! What booking asks and tells about concerts.

use boxoffice_proto::concert::v1::{
    BeginSaleRequest, BeginSaleResponse, GetSaleRequest, GetSaleResponse, ReportAvailabilityRequest,
    ReportAvailabilityResponse, Sale, SectionPrice as ProtoSectionPrice, sale_service_server::SaleService,
};
use mesh::field::{self, Fields, money, timestamp};
use tonic::{Request, Response, Status};

use super::{concerts::write_state, venues::write_section};
use crate::{
    Shared,
    store::{self, Viewer},
};

#[tonic::async_trait]
impl SaleService for Shared {
    async fn get_sale(&self, request: Request<GetSaleRequest>) -> Result<Response<GetSaleResponse>, Status> {
        let id = field::id("concert_id", &request.get_ref().concert_id)?;
        let reader = self.database.reader();
        let concert = store::find_concert(reader, id, Viewer::Public).await?;
        let venue = store::venue_of(reader, concert.venue).await?;
        let prices = concert.prices.iter().map(|price| ProtoSectionPrice {
            section_id: price.section_id.clone(),
            price: Some(money(price.minor_units, self.currency)),
        });
        let sale = Sale {
            concert_id: concert.id.to_string(),
            state: write_state(concert.state(self.clock.now())).into(),
            sale_open_time: Some(timestamp(concert.sale_open_time)),
            sale_close_time: Some(timestamp(concert.sale_close_time)),
            end_time: Some(timestamp(concert.end_time)),
            max_seats_per_fan: concert.max_seats_per_fan.into(),
            // A venue's layout never changes, so its id names the version.
            layout_version: venue.id.to_string(),
            sections: venue.sections.iter().map(write_section).collect(),
            prices: prices.collect(),
        };
        Ok(Response::new(GetSaleResponse { sale: Some(sale) }))
    }

    async fn begin_sale(
        &self,
        request: Request<BeginSaleRequest>,
    ) -> Result<Response<BeginSaleResponse>, Status> {
        let id = field::id("concert_id", &request.get_ref().concert_id)?;
        store::begin_sale(self.database.writer(), id).await?;
        Ok(Response::new(BeginSaleResponse {}))
    }

    async fn report_availability(
        &self,
        request: Request<ReportAvailabilityRequest>,
    ) -> Result<Response<ReportAvailabilityResponse>, Status> {
        let message = request.into_inner();
        let id = field::id("concert_id", &message.concert_id)?;
        let mut fields = Fields::new();
        let count_time = fields.time("count_time", message.count_time.as_ref());
        let places =
            fields.number("unbooked_places", message.unbooked_places.into(), 0..=i64::from(i32::MAX));
        let count_time = fields.finish_with(count_time)?;
        store::record_availability(self.database.writer(), id, places, count_time).await?;
        Ok(Response::new(ReportAvailabilityResponse {}))
    }
}
