//! Venues.

use boxoffice_proto::concert::v1::{
    CreateVenueRequest, CreateVenueResponse, GetVenueRequest, GetVenueResponse, SeatedArea,
    Section as ProtoSection, StandingArea, Venue as ProtoVenue, section::Arrangement as ProtoArrangement,
    venue_service_server::VenueService,
};
use mesh::{
    Failure, auth,
    field::{self, Fields, timestamp},
    id::{OrganizerId, VenueId},
    idempotency::{self, Once, RequestKey},
};
use tonic::{Request, Response, Status};

use super::check_membership;
use crate::{
    Shared,
    domain::layout::{self, Arrangement, MAX_PLACES, MAX_ROWS_OR_SEATS, MAX_SECTIONS, Section},
    store::{self, Venue},
};

const CREATE_VENUE: &str = "/boxoffice.concert.v1.VenueService/CreateVenue";

#[tonic::async_trait]
impl VenueService for Shared {
    async fn create_venue(
        &self,
        request: Request<CreateVenueRequest>,
    ) -> Result<Response<CreateVenueResponse>, Status> {
        let user = auth::user(&request)?;
        let mut message = request.into_inner();
        let key = RequestKey::take(user.id, CREATE_VENUE, &mut message, |message| &mut message.request_id)?;
        let venue = self.read_venue(&message)?;
        check_membership(&user, venue.organizer)?;
        let fresh = match idempotency::begin(&self.database, &self.clock, key).await? {
            Once::Replayed(response) => return Ok(response),
            Once::Fresh(fresh) => fresh,
        };
        store::insert_venue(fresh.transaction(), &venue).await?;
        Ok(fresh.commit(CreateVenueResponse { venue: Some(write_venue(&venue)) }).await?)
    }

    async fn get_venue(
        &self,
        request: Request<GetVenueRequest>,
    ) -> Result<Response<GetVenueResponse>, Status> {
        let user = auth::user(&request)?;
        let id: VenueId = field::id("venue_id", &request.get_ref().venue_id)?;
        let venue = store::find_venue(self.database.reader(), id, &user.organizers).await?;
        Ok(Response::new(GetVenueResponse { venue: Some(write_venue(&venue)) }))
    }
}

impl Shared {
    fn read_venue(&self, message: &CreateVenueRequest) -> Result<Venue, Failure> {
        let mut fields = Fields::new();
        let organizer = fields.id::<OrganizerId>("organizer_id", &message.organizer_id);
        let display_name = fields.text("display_name", &message.display_name, 1..=200);
        let time_zone = fields.text("time_zone", &message.time_zone, 1..=64);
        if !time_zone.is_empty() && time_zone.parse::<chrono_tz::Tz>().is_err() {
            fields.wrong("time_zone", "UNKNOWN", "must be an IANA time zone, such as Asia/Seoul");
        }
        let sections = read_sections(&mut fields, &message.sections);
        let organizer = fields.finish_with(organizer)?;
        let create_time = self.clock.now();
        Ok(Venue { id: VenueId::new(), organizer, display_name, time_zone, sections, create_time })
    }
}

fn read_sections(fields: &mut Fields, sections: &[ProtoSection]) -> Vec<Section> {
    if sections.is_empty() {
        fields.wrong("sections", "REQUIRED", "needs at least one section");
    }
    if sections.len() > MAX_SECTIONS {
        fields.wrong("sections", "OUT_OF_RANGE", format!("must have at most {MAX_SECTIONS} sections"));
        return Vec::new();
    }
    let read: Vec<Section> = sections
        .iter()
        .enumerate()
        .filter_map(|(index, section)| read_section(fields, &format!("sections[{index}]"), section))
        .collect();
    if read.len() < sections.len() {
        return read;
    }
    if let Some(index) = layout::duplicate_section(&read) {
        fields.wrong(format!("sections[{index}].section_id"), "DUPLICATE", "stands twice");
    }
    if layout::total_places(&read).is_none() {
        fields.wrong("sections", "OUT_OF_RANGE", format!("must have at most {MAX_PLACES} places in all"));
    }
    read
}

/// The section at a path, if nothing about it is wrong.
fn read_section(fields: &mut Fields, path: &str, section: &ProtoSection) -> Option<Section> {
    let id = section.section_id.clone();
    let has_id = layout::is_section_id(&id);
    fields.check(has_id, &format!("{path}.section_id"), "MALFORMED", "must be 1 to 12 of A-Z and 0-9");
    let display_name = fields.text(&format!("{path}.display_name"), &section.display_name, 0..=100);
    let display_name = if display_name.is_empty() { id.clone() } else { display_name };
    let arrangement = match &section.arrangement {
        None => {
            fields.wrong(path, "REQUIRED", "needs either seated or standing");
            return None;
        }
        Some(ProtoArrangement::Standing(area)) => {
            let capacity = i64::from(area.capacity);
            fields.number(&format!("{path}.standing.capacity"), capacity, 1..=i64::from(MAX_PLACES));
            Arrangement::Standing { capacity: u32::try_from(capacity).ok()? }
        }
        Some(ProtoArrangement::Seated(area)) => {
            let rows = fields.number(&format!("{path}.seated.rows"), area.rows.into(), 1..=MAX_ROWS_OR_SEATS);
            let seats_path = format!("{path}.seated.seats_per_row");
            let seats = fields.number(&seats_path, area.seats_per_row.into(), 1..=MAX_ROWS_OR_SEATS);
            let (rows, seats_per_row) = (u32::try_from(rows).ok()?, u32::try_from(seats).ok()?);
            Arrangement::Seated { rows, seats_per_row, accessible: Vec::new() }
        }
    };
    let is_oversized = match arrangement {
        Arrangement::Seated { rows, seats_per_row, .. } => {
            i64::from(rows.max(seats_per_row)) > MAX_ROWS_OR_SEATS || rows.min(seats_per_row) == 0
        }
        Arrangement::Standing { capacity } => capacity == 0 || capacity > MAX_PLACES,
    };
    if !has_id || is_oversized {
        return None;
    }
    let mut read = Section { id, display_name, arrangement };
    if let Some(ProtoArrangement::Seated(area)) = &section.arrangement {
        let accessible = read_accessible(fields, path, &read, area)?;
        if let Arrangement::Seated { accessible: kept, .. } = &mut read.arrangement {
            *kept = accessible;
        }
    }
    Some(read)
}

fn read_accessible(
    fields: &mut Fields,
    path: &str,
    section: &Section,
    area: &SeatedArea,
) -> Option<Vec<(u32, u32)>> {
    let mut accessible = Vec::with_capacity(area.accessible_seat_ids.len());
    let mut is_fine = true;
    for (index, seat_id) in area.accessible_seat_ids.iter().enumerate() {
        match section.parse_seat_id(seat_id) {
            Some(seat) => accessible.push(seat),
            None => {
                let field = format!("{path}.seated.accessible_seat_ids[{index}]");
                fields.wrong(field, "UNKNOWN", "is not a seat of this section");
                is_fine = false;
            }
        }
    }
    accessible.sort_unstable();
    accessible.dedup();
    is_fine.then_some(accessible)
}

fn write_venue(venue: &Venue) -> ProtoVenue {
    ProtoVenue {
        venue_id: venue.id.to_string(),
        organizer_id: venue.organizer.to_string(),
        display_name: venue.display_name.clone(),
        time_zone: venue.time_zone.clone(),
        sections: venue.sections.iter().map(write_section).collect(),
        create_time: Some(timestamp(venue.create_time)),
    }
}

pub(super) fn write_section(section: &Section) -> ProtoSection {
    let arrangement = match &section.arrangement {
        Arrangement::Seated { rows, seats_per_row, accessible } => ProtoArrangement::Seated(SeatedArea {
            rows: *rows as i32,
            seats_per_row: *seats_per_row as i32,
            accessible_seat_ids: accessible.iter().map(|(row, seat)| section.seat_id(*row, *seat)).collect(),
        }),
        Arrangement::Standing { capacity } => {
            ProtoArrangement::Standing(StandingArea { capacity: *capacity as i32 })
        }
    };
    ProtoSection {
        section_id: section.id.clone(),
        display_name: section.display_name.clone(),
        arrangement: Some(arrangement),
    }
}
