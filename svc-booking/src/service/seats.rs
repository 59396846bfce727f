//! Seats: what there is, what is free, and what changes.

use std::{pin::Pin, sync::Arc, time::Duration};

use boxoffice_proto::booking::v1::{
    GetSeatMapRequest, GetSeatMapResponse, GetSeatsRequest, GetSeatsResponse, SeatChange, SeatMap,
    SeatMapRow, SeatMapRows, SeatMapSeat, SeatMapSection, SeatMapStanding, SeatState as ProtoSeatState,
    SectionAvailability, WatchSeatsRequest, WatchSeatsResponse,
    seat_map_section::Arrangement as ProtoArrangement, seat_service_server::SeatService,
};
use futures_util::Stream;
use mesh::{
    context::Context,
    field::{self, money},
    id::ConcertId,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::{
    Shared,
    domain::{
        layout::{Arrangement, Section},
        sale::Sale,
    },
    error::Error,
    holds::{Changes, Revision, SeatState},
};

/// Changes within this time are one message: at most four a second.
const COALESCE: Duration = Duration::from_millis(250);
/// Messages that wait for a slow watcher; the changes of further ones are gathered meanwhile.
const BACKLOG: usize = 4;

#[tonic::async_trait]
impl SeatService for Shared {
    async fn get_seat_map(
        &self,
        request: Request<GetSeatMapRequest>,
    ) -> Result<Response<GetSeatMapResponse>, Status> {
        let message = request.into_inner();
        let sale = self.catalog.find(field::id("concert_id", &message.concert_id)?).await?;
        check_section(&sale, &message.section_id)?;
        let sections = sale.layout.sections.iter().filter(|section| is_wanted(section, &message.section_id));
        let seat_map = SeatMap {
            layout_version: sale.layout.version.clone(),
            sections: sections.map(|section| self.write_section(&sale, section)).collect(),
        };
        Ok(Response::new(GetSeatMapResponse { seat_map: Some(seat_map) }))
    }

    async fn get_seats(
        &self,
        request: Request<GetSeatsRequest>,
    ) -> Result<Response<GetSeatsResponse>, Status> {
        let message = request.into_inner();
        let sale = self.catalog.find(field::id("concert_id", &message.concert_id)?).await?;
        check_section(&sale, &message.section_id)?;
        let view = self.view(&sale).await?;
        let sections = sale.layout.sections.iter().zip(&view.sections);
        let sections = sections.filter(|(section, _)| is_wanted(section, &message.section_id)).map(
            |(section, (available, seat_states))| SectionAvailability {
                section_id: section.id.clone(),
                available: *available as i32,
                seat_states: seat_states.clone(),
            },
        );
        Ok(Response::new(GetSeatsResponse {
            layout_version: sale.layout.version.clone(),
            revision: view.revision.clone(),
            sections: sections.collect(),
        }))
    }

    type WatchSeatsStream = Pin<Box<dyn Stream<Item = Result<WatchSeatsResponse, Status>> + Send>>;

    async fn watch_seats(
        &self,
        request: Request<WatchSeatsRequest>,
    ) -> Result<Response<Self::WatchSeatsStream>, Status> {
        let message = request.into_inner();
        let concert: ConcertId = field::id("concert_id", &message.concert_id)?;
        let sale = self.catalog.find(concert).await?;
        let now = self.snapshot(&sale).await?.revision;
        let since = match message.revision.as_str() {
            "" => now,
            // Whatever this stream did not give out is of another epoch: the watcher is told to start over.
            text => text.parse().unwrap_or(Revision { epoch: !now.epoch, number: 0 }),
        };
        let (sender, receiver) = mpsc::channel(BACKLOG);
        let watching = watch(self.clone(), sale, since, sender);
        tokio::spawn(Context::current().without_deadline().scope(watching));
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

/// Sends what changes until the watcher leaves. The first message only says where the stream starts.
async fn watch(
    shared: Shared,
    sale: Arc<Sale>,
    mut since: Revision,
    watcher: mpsc::Sender<Result<WatchSeatsResponse, Status>>,
) {
    let Ok(Some(mut revisions)) = shared.holds.watch(sale.concert).await else { return };
    revisions.mark_changed();
    let mut is_first = true;
    loop {
        tokio::select! {
            () = watcher.closed() => return,
            changed = revisions.changed() => if changed.is_err() { return },
        }
        revisions.mark_unchanged();
        let changes = match shared.changes_since(&sale, since).await {
            Ok(changes) => changes,
            Err(error) => {
                // The stream ends, and the watcher comes back.
                let _ = watcher.send(Err(error.into())).await;
                return;
            }
        };
        since = changes.revision;
        if !is_first && changes.seats.as_ref().is_some_and(Vec::is_empty) {
            continue;
        }
        is_first = false;
        if watcher.send(Ok(write_changes(&sale, changes))).await.is_err() {
            return;
        }
        tokio::time::sleep(COALESCE).await;
    }
}

fn write_changes(sale: &Sale, changes: Changes) -> WatchSeatsResponse {
    let reset = changes.seats.is_none();
    let change = |(seat, state)| SeatChange {
        seat_id: sale.layout.seat_id(seat),
        state: match state {
            SeatState::Available => ProtoSeatState::Available.into(),
            SeatState::Held => ProtoSeatState::Held.into(),
            SeatState::Sold => ProtoSeatState::Sold.into(),
        },
    };
    let changed = changes.seats.unwrap_or_default().into_iter().map(change).collect();
    WatchSeatsResponse { revision: changes.revision.to_string(), changes: changed, reset }
}

impl Shared {
    fn write_section(&self, sale: &Sale, section: &Section) -> SeatMapSection {
        let arrangement = match section.arrangement {
            Arrangement::Standing { capacity } => {
                ProtoArrangement::Standing(SeatMapStanding { capacity: capacity as i32 })
            }
            Arrangement::Seated { rows, seats_per_row } => {
                let row = |row: u32| {
                    let first = section.first + row * seats_per_row;
                    let seats = (first..first + seats_per_row).map(|ordinal| {
                        let seat = sale.layout.seat(ordinal);
                        let accessible = sale.layout.is_accessible(ordinal);
                        SeatMapSeat { seat_id: seat.seat_id, seat_label: seat.seat_label, accessible }
                    });
                    SeatMapRow { row_label: (row + 1).to_string(), seats: seats.collect() }
                };
                ProtoArrangement::Seated(SeatMapRows { rows: (0..rows).map(row).collect() })
            }
        };
        SeatMapSection {
            section_id: section.id.clone(),
            display_name: section.display_name.clone(),
            price: Some(money(section.price, self.currency)),
            arrangement: Some(arrangement),
        }
    }
}

fn is_wanted(section: &Section, section_id: &str) -> bool {
    section_id.is_empty() || section.id == section_id
}

fn check_section(sale: &Sale, section_id: &str) -> Result<(), Error> {
    if section_id.is_empty() || sale.layout.section(section_id).is_some() {
        return Ok(());
    }
    Err(Error::Unknown { field: "section_id".into(), what: "section", value: section_id.into() })
}
