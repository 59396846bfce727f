//! Concerts.

use boxoffice_proto::concert::v1::{
    CancelConcertRequest, CancelConcertResponse, Concert as ProtoConcert, ConcertState, CreateConcertRequest,
    CreateConcertResponse, GetConcertRequest, GetConcertResponse, ListConcertsRequest, ListConcertsResponse,
    PublishConcertRequest, PublishConcertResponse, SaleState as ProtoSaleState,
    SectionPrice as ProtoSectionPrice, VenueSummary, concert_service_server::ConcertService,
};
use mesh::{
    Failure, auth,
    field::{self, Fields, money, timestamp},
    id::{ConcertId, OrganizerId, VenueId},
    idempotency::{self, Once, RequestKey},
    page::Page,
};
use tonic::{Request, Response, Status};

use super::{check_membership, organizers_of};
use crate::{
    Shared,
    domain::concert::{
        Concert, DEFAULT_LENGTH, DEFAULT_SEATS_PER_FAN, FURTHEST_START, MAX_SEATS_PER_FAN, SaleState,
        SectionPrice, Stage, State,
    },
    error::Error,
    store::{self, Listing, Venue, Viewer},
};

const CREATE_CONCERT: &str = "/boxoffice.concert.v1.ConcertService/CreateConcert";
const CANCEL_CONCERT: &str = "/boxoffice.concert.v1.ConcertService/CancelConcert";
/// The highest price of a place, in minor units: a booking of ten stays far from an overflow.
const MAX_PRICE: i64 = 1_000_000_000;

#[tonic::async_trait]
impl ConcertService for Shared {
    async fn create_concert(
        &self,
        request: Request<CreateConcertRequest>,
    ) -> Result<Response<CreateConcertResponse>, Status> {
        let user = auth::user(&request)?;
        let mut message = request.into_inner();
        let key = RequestKey::take(user.id, CREATE_CONCERT, &mut message, |message| &mut message.request_id)?;
        let (concert, mut fields) = self.read_concert(&message)?;
        check_membership(&user, concert.organizer)?;
        let venue = store::find_venue(self.database.reader(), concert.venue, &[concert.organizer]).await?;
        check_prices(&mut fields, &concert.prices, &venue);
        fields.finish()?;
        let fresh = match idempotency::begin(&self.database, &self.clock, key).await? {
            Once::Replayed(response) => return Ok(response),
            Once::Fresh(fresh) => fresh,
        };
        store::insert_concert(fresh.transaction(), &concert).await?;
        let concert = Some(self.write_concert(&concert, &venue));
        Ok(fresh.commit(CreateConcertResponse { concert }).await?)
    }

    async fn publish_concert(
        &self,
        request: Request<PublishConcertRequest>,
    ) -> Result<Response<PublishConcertResponse>, Status> {
        let user = auth::user(&request)?;
        let id = field::id("concert_id", &request.get_ref().concert_id)?;
        let mut concert = store::find_own_concert(self.database.reader(), id, &user.organizers).await?;
        if concert.stage != Stage::Published {
            concert.publish(self.clock.now()).map_err(Error::from)?;
            store::change_stage(self.database.writer(), &mut concert).await?;
        }
        let concert = Some(self.describe(&concert).await?);
        Ok(Response::new(PublishConcertResponse { concert }))
    }

    async fn cancel_concert(
        &self,
        request: Request<CancelConcertRequest>,
    ) -> Result<Response<CancelConcertResponse>, Status> {
        let user = auth::user(&request)?;
        let mut message = request.into_inner();
        let key = RequestKey::take(user.id, CANCEL_CONCERT, &mut message, |message| &mut message.request_id)?;
        let id = field::id("concert_id", &message.concert_id)?;
        let fresh = match idempotency::begin(&self.database, &self.clock, key).await? {
            Once::Replayed(response) => return Ok(response),
            Once::Fresh(fresh) => fresh,
        };
        let mut concert = store::find_own_concert(fresh.transaction(), id, &user.organizers).await?;
        if concert.stage != Stage::Cancelled {
            concert.cancel(self.clock.now()).map_err(Error::from)?;
            store::change_stage(fresh.transaction(), &mut concert).await?;
        }
        let venue = store::venue_of(fresh.transaction(), concert.venue).await?;
        let concert = Some(self.write_concert(&concert, &venue));
        Ok(fresh.commit(CancelConcertResponse { concert }).await?)
    }

    async fn get_concert(
        &self,
        request: Request<GetConcertRequest>,
    ) -> Result<Response<GetConcertResponse>, Status> {
        let organizers = organizers_of(&request);
        let id = field::id("concert_id", &request.get_ref().concert_id)?;
        let concert =
            store::find_concert(self.database.reader(), id, Viewer::Organizers(&organizers)).await?;
        Ok(Response::new(GetConcertResponse { concert: Some(self.describe(&concert).await?) }))
    }

    async fn list_concerts(
        &self,
        request: Request<ListConcertsRequest>,
    ) -> Result<Response<ListConcertsResponse>, Status> {
        let own = organizers_of(&request);
        let message = request.into_inner();
        let mut fields = Fields::new();
        let genre = fields.text("genre", &message.genre, 0..=50);
        fields.finish()?;
        let page =
            Page::read(message.page_size, &message.page_token, &[&message.organizer_id, &message.genre])?;
        let listing = if message.organizer_id.is_empty() {
            Listing::Upcoming { now: self.clock.now() }
        } else {
            let organizer: OrganizerId = field::id("organizer_id", &message.organizer_id)?;
            if !own.contains(&organizer) {
                return Err(Error::OrganizerNotFound.into());
            }
            Listing::Of(organizer)
        };
        let genre = Some(genre.as_str()).filter(|genre| !genre.is_empty());
        let mut found = store::list_concerts(self.database.reader(), listing, genre, &page).await?;
        let next_page_token = page.next_token(&mut found, store::Position::after);
        let mut concerts = Vec::with_capacity(found.len());
        for concert in &found {
            concerts.push(self.describe(concert).await?);
        }
        Ok(Response::new(ListConcertsResponse { concerts, next_page_token }))
    }
}

impl Shared {
    /// The concert that a request describes; what its venue decides is still to be checked.
    fn read_concert(&self, message: &CreateConcertRequest) -> Result<(Concert, Fields), Failure> {
        let now = self.clock.now();
        let mut fields = Fields::new();
        let organizer = fields.id::<OrganizerId>("organizer_id", &message.organizer_id);
        let venue = fields.id::<VenueId>("venue_id", &message.venue_id);
        let title = fields.text("title", &message.title, 1..=200);
        let description = fields.text("description", &message.description, 0..=10_000);
        let genre = fields.text("genre", &message.genre, 0..=50);
        let start = fields.time("start_time", message.start_time.as_ref());
        let end = match &message.end_time {
            Some(end) => fields.time("end_time", Some(end)),
            None => start.map(|start| start + DEFAULT_LENGTH),
        };
        let open = fields.time("sale_open_time", message.sale_open_time.as_ref());
        let close = fields.time("sale_close_time", message.sale_close_time.as_ref());
        let max_seats = message.max_seats_per_fan.unwrap_or(DEFAULT_SEATS_PER_FAN);
        fields.number("max_seats_per_fan", max_seats.into(), 1..=MAX_SEATS_PER_FAN);
        let mut prices = Vec::with_capacity(message.prices.len().min(200));
        for (index, price) in message.prices.iter().enumerate() {
            let path = format!("prices[{index}].price");
            let minor_units = fields.money(&path, price.price.as_ref(), self.currency, 0..=MAX_PRICE)?;
            prices.push(SectionPrice { section_id: price.section_id.clone(), minor_units });
        }
        let times = start.zip(end).zip(open.zip(close));
        let Some(((start_time, end_time), (sale_open_time, sale_close_time))) = times else {
            return Err(fields.finish_with(times).expect_err("a time was noted as wrong"));
        };
        fields.check(start_time > now, "start_time", "OUT_OF_RANGE", "must be in the future");
        let is_near = start_time < now + FURTHEST_START;
        fields.check(is_near, "start_time", "OUT_OF_RANGE", "must be within the next hundred years");
        fields.check(end_time > start_time, "end_time", "OUT_OF_RANGE", "must be after the concert's start");
        let opens_first = sale_close_time > sale_open_time;
        fields.check(opens_first, "sale_close_time", "OUT_OF_RANGE", "must be after the sale's opening");
        let closes_in_time = sale_close_time <= end_time;
        fields.check(
            closes_in_time,
            "sale_close_time",
            "OUT_OF_RANGE",
            "must not be after the concert's end",
        );
        let Some((organizer, venue)) = organizer.zip(venue) else {
            return Err(fields.finish_with(None::<()>).expect_err("an id was noted as wrong"));
        };
        let concert = Concert {
            id: ConcertId::new(),
            organizer,
            venue,
            title,
            description,
            genre,
            start_time,
            end_time,
            sale_open_time,
            sale_close_time,
            prices,
            max_seats_per_fan: max_seats.clamp(1, MAX_SEATS_PER_FAN as i32) as i16,
            stage: Stage::Draft,
            unbooked_places: None,
            version: 1,
            create_time: now,
        };
        Ok((concert, fields))
    }

    async fn describe(&self, concert: &Concert) -> Result<ProtoConcert, Failure> {
        let venue = store::venue_of(self.database.reader(), concert.venue).await?;
        Ok(self.write_concert(concert, &venue))
    }

    fn write_concert(&self, concert: &Concert, venue: &Venue) -> ProtoConcert {
        let now = self.clock.now();
        let price = |price: &SectionPrice| ProtoSectionPrice {
            section_id: price.section_id.clone(),
            price: Some(money(price.minor_units, self.currency)),
        };
        ProtoConcert {
            concert_id: concert.id.to_string(),
            organizer_id: concert.organizer.to_string(),
            venue: Some(VenueSummary {
                venue_id: venue.id.to_string(),
                display_name: venue.display_name.clone(),
            }),
            time_zone: venue.time_zone.clone(),
            title: concert.title.clone(),
            description: concert.description.clone(),
            genre: concert.genre.clone(),
            start_time: Some(timestamp(concert.start_time)),
            end_time: Some(timestamp(concert.end_time)),
            sale_open_time: Some(timestamp(concert.sale_open_time)),
            sale_close_time: Some(timestamp(concert.sale_close_time)),
            prices: concert.prices.iter().map(price).collect(),
            max_seats_per_fan: concert.max_seats_per_fan.into(),
            state: write_state(concert.state(now)).into(),
            sale_state: write_sale_state(concert.sale_state(now)).into(),
            create_time: Some(timestamp(concert.create_time)),
            etag: format!("\"{}\"", concert.version),
        }
    }
}

/// Every section has one price, and every price its section.
fn check_prices(fields: &mut Fields, prices: &[SectionPrice], venue: &Venue) {
    for (index, price) in prices.iter().enumerate() {
        let field = format!("prices[{index}].section_id");
        if !venue.sections.iter().any(|section| section.id == price.section_id) {
            fields.wrong(field, "UNKNOWN", "is not a section of the venue");
        } else if prices[..index].iter().any(|earlier| earlier.section_id == price.section_id) {
            fields.wrong(field, "DUPLICATE", "stands twice");
        }
    }
    let has_price = |id: &str| prices.iter().any(|price| price.section_id == id);
    let sections = venue.sections.iter().map(|section| section.id.as_str());
    let unpriced: Vec<&str> = sections.filter(|id| !has_price(id)).collect();
    if !unpriced.is_empty() {
        let description = format!("needs one for every section, and has none for {}", unpriced.join(", "));
        fields.wrong("prices", "REQUIRED", description);
    }
}

pub(super) fn write_state(state: State) -> ConcertState {
    match state {
        State::Draft => ConcertState::Draft,
        State::Published => ConcertState::Published,
        State::Cancelled => ConcertState::Cancelled,
        State::Ended => ConcertState::Ended,
    }
}

fn write_sale_state(state: SaleState) -> ProtoSaleState {
    match state {
        SaleState::NotOpen => ProtoSaleState::NotOpen,
        SaleState::Open => ProtoSaleState::Open,
        SaleState::SoldOut => ProtoSaleState::SoldOut,
        SaleState::Closed => ProtoSaleState::Closed,
    }
}
