//! Venues and concerts in the database. Reads take who reads: another organiser's is not found.

mod entity;
#[cfg(test)]
mod tests;

use std::{fmt, str::FromStr};

use chrono::{DateTime, Utc};
use mesh::{
    id::{ConcertId, Id, OrganizerId, VenueId},
    page::Page,
};
use sea_orm::{
    ActiveModelTrait, ColumnTrait, Condition, ConnectionTrait, EntityTrait, ExprTrait, IntoActiveModel,
    QueryFilter, QueryOrder, QuerySelect, sea_query::Expr,
};

use self::entity::{concert, venue};
use crate::{
    domain::{
        concert::{Concert, Stage},
        layout::Section,
    },
    error::Error,
};

/// A venue, as kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Venue {
    pub(crate) id: VenueId,
    pub(crate) organizer: OrganizerId,
    pub(crate) display_name: String,
    pub(crate) time_zone: String,
    pub(crate) sections: Vec<Section>,
    pub(crate) create_time: DateTime<Utc>,
}

/// Who reads.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Viewer<'a> {
    /// Anyone: sees what is published.
    Public,
    /// A member of these organisers: sees their drafts too.
    Organizers(&'a [OrganizerId]),
}

/// Which concerts to list.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Listing {
    /// Published ones that are not over, the next one first.
    Upcoming { now: DateTime<Utc> },
    /// All of an organiser, the newest first.
    Of(OrganizerId),
}

pub(crate) async fn insert_venue(connection: &impl ConnectionTrait, venue: &Venue) -> Result<(), Error> {
    let row = venue::Model {
        id: venue.id.uuid(),
        organizer: venue.organizer.uuid(),
        display_name: venue.display_name.clone(),
        time_zone: venue.time_zone.clone(),
        layout: write_json("layout", &venue.sections)?,
        create_time: venue.create_time,
    };
    row.into_active_model().insert(connection).await?;
    Ok(())
}

/// A venue of one of these organisers.
pub(crate) async fn find_venue(
    connection: &impl ConnectionTrait,
    id: VenueId,
    owners: &[OrganizerId],
) -> Result<Venue, Error> {
    let venue = venue_of(connection, id).await?;
    if owners.contains(&venue.organizer) { Ok(venue) } else { Err(Error::VenueNotFound) }
}

/// The venue of a concert that was found: its owner was checked then.
pub(crate) async fn venue_of(connection: &impl ConnectionTrait, id: VenueId) -> Result<Venue, Error> {
    let row = venue::Entity::find_by_id(id.uuid()).one(connection).await?.ok_or(Error::VenueNotFound)?;
    Ok(Venue {
        id,
        organizer: OrganizerId::from_uuid(row.organizer),
        display_name: row.display_name,
        time_zone: row.time_zone,
        sections: read_json("layout", &row.layout)?,
        create_time: row.create_time,
    })
}

pub(crate) async fn insert_concert(
    connection: &impl ConnectionTrait,
    concert: &Concert,
) -> Result<(), Error> {
    let row = concert::Model {
        id: concert.id.uuid(),
        organizer: concert.organizer.uuid(),
        venue: concert.venue.uuid(),
        title: concert.title.clone(),
        description: concert.description.clone(),
        genre: concert.genre.clone(),
        start_time: concert.start_time,
        end_time: concert.end_time,
        sale_open_time: concert.sale_open_time,
        sale_close_time: concert.sale_close_time,
        prices: write_json("prices", &concert.prices)?,
        max_seats_per_fan: concert.max_seats_per_fan,
        state: stage_number(concert.stage),
        has_sale_begun: false,
        unbooked_places: None,
        count_time: None,
        version: concert.version,
        create_time: concert.create_time,
    };
    row.into_active_model().insert(connection).await?;
    Ok(())
}

/// A concert that the viewer may see.
pub(crate) async fn find_concert(
    connection: &impl ConnectionTrait,
    id: ConcertId,
    viewer: Viewer<'_>,
) -> Result<Concert, Error> {
    let row = concert::Entity::find_by_id(id.uuid()).one(connection).await?.ok_or(Error::ConcertNotFound)?;
    let concert = concert_from(row)?;
    let is_own = matches!(viewer, Viewer::Organizers(owners) if owners.contains(&concert.organizer));
    // A cancelled concert was seen by everyone if it was published: fans should learn of it.
    if concert.stage == Stage::Draft && !is_own { Err(Error::ConcertNotFound) } else { Ok(concert) }
}

/// A concert of one of these organisers.
pub(crate) async fn find_own_concert(
    connection: &impl ConnectionTrait,
    id: ConcertId,
    owners: &[OrganizerId],
) -> Result<Concert, Error> {
    let concert = find_concert(connection, id, Viewer::Organizers(owners)).await?;
    if owners.contains(&concert.organizer) { Ok(concert) } else { Err(Error::ConcertNotFound) }
}

pub(crate) async fn list_concerts(
    connection: &impl ConnectionTrait,
    listing: Listing,
    genre: Option<&str>,
    page: &Page<Position>,
) -> Result<Vec<Concert>, Error> {
    use concert::Column;

    let mut query = concert::Entity::find().limit(page.rows());
    if let Some(genre) = genre {
        query = query.filter(Column::Genre.eq(genre));
    }
    let after = page.after;
    query = match listing {
        Listing::Upcoming { now } => {
            let query = query
                .filter(Column::State.eq(stage_number(Stage::Published)))
                .filter(Column::EndTime.gt(now))
                .order_by_asc(Column::StartTime)
                .order_by_asc(Column::Id);
            match after {
                Some(Position { start, id }) => query.filter(
                    Condition::any()
                        .add(Column::StartTime.gt(start))
                        .add(Condition::all().add(Column::StartTime.eq(start)).add(Column::Id.gt(id.uuid()))),
                ),
                None => query,
            }
        }
        Listing::Of(organizer) => {
            let query = query.filter(Column::Organizer.eq(organizer.uuid())).order_by_desc(Column::Id);
            match after {
                Some(Position { id, .. }) => query.filter(Column::Id.lt(id.uuid())),
                None => query,
            }
        }
    };
    query.all(connection).await?.into_iter().map(concert_from).collect()
}

/// Where a list goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Position {
    start: DateTime<Utc>,
    id: ConcertId,
}

impl Position {
    /// After this concert.
    pub(crate) fn after(concert: &Concert) -> Self {
        Self { start: concert.start_time, id: concert.id }
    }
}

impl fmt::Display for Position {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} {}", self.start.timestamp_micros(), self.id)
    }
}

impl FromStr for Position {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (micros, id) = text.split_once(' ').ok_or(())?;
        let start = micros.parse().ok().and_then(DateTime::from_timestamp_micros).ok_or(())?;
        Ok(Self { start, id: id.parse().map_err(|_| ())? })
    }
}

/// Writes a change of a concert's stage, if nobody changed the concert since it was read. Cancelling one that was booked
/// is refused in the same statement, so that it can't race with [`begin_sale`].
pub(crate) async fn change_stage(
    connection: &impl ConnectionTrait,
    concert: &mut Concert,
) -> Result<(), Error> {
    use concert::Column;

    let mut update = concert::Entity::update_many()
        .col_expr(Column::State, Expr::value(stage_number(concert.stage)))
        .col_expr(Column::Version, Expr::value(concert.version + 1))
        .filter(Column::Id.eq(concert.id.uuid()))
        .filter(Column::Version.eq(concert.version));
    if concert.stage == Stage::Cancelled {
        update = update.filter(Column::HasSaleBegun.eq(false));
    }
    if update.exec(connection).await?.rows_affected == 1 {
        concert.version += 1;
        return Ok(());
    }
    let row = concert::Entity::find_by_id(concert.id.uuid())
        .one(connection)
        .await?
        .ok_or(Error::ConcertNotFound)?;
    Err(if row.has_sale_begun && concert.stage == Stage::Cancelled {
        Error::HasBookings
    } else {
        Error::ChangedMeanwhile
    })
}

/// Lets booking book a concert: from now on it can't be cancelled.
pub(crate) async fn begin_sale(connection: &impl ConnectionTrait, id: ConcertId) -> Result<(), Error> {
    use concert::Column;

    let updated = concert::Entity::update_many()
        .col_expr(Column::HasSaleBegun, Expr::value(true))
        .filter(Column::Id.eq(id.uuid()))
        .filter(Column::State.eq(stage_number(Stage::Published)))
        .exec(connection)
        .await?;
    if updated.rows_affected == 1 {
        return Ok(());
    }
    match find_concert(connection, id, Viewer::Public).await?.stage {
        Stage::Cancelled => Err(crate::domain::concert::Refusal::Cancelled.into()),
        Stage::Draft | Stage::Published => Err(Error::NotPublished),
    }
}

/// Notes how many places are left, unless a later count is known.
pub(crate) async fn record_availability(
    connection: &impl ConnectionTrait,
    id: ConcertId,
    unbooked_places: i64,
    count_time: DateTime<Utc>,
) -> Result<(), Error> {
    use concert::Column;

    concert::Entity::update_many()
        .col_expr(Column::UnbookedPlaces, Expr::value(unbooked_places))
        .col_expr(Column::CountTime, Expr::value(count_time))
        .filter(Column::Id.eq(id.uuid()))
        .filter(Column::CountTime.is_null().or(Column::CountTime.lt(count_time)))
        .exec(connection)
        .await?;
    Ok(())
}

fn concert_from(row: concert::Model) -> Result<Concert, Error> {
    Ok(Concert {
        id: ConcertId::from_uuid(row.id),
        organizer: OrganizerId::from_uuid(row.organizer),
        venue: VenueId::from_uuid(row.venue),
        title: row.title,
        description: row.description,
        genre: row.genre,
        start_time: row.start_time,
        end_time: row.end_time,
        sale_open_time: row.sale_open_time,
        sale_close_time: row.sale_close_time,
        prices: read_json("prices", &row.prices)?,
        max_seats_per_fan: row.max_seats_per_fan,
        stage: stage_from(row.state)?,
        unbooked_places: row.unbooked_places,
        version: row.version,
        create_time: row.create_time,
    })
}

fn stage_number(stage: Stage) -> i16 {
    match stage {
        Stage::Draft => 1,
        Stage::Published => 2,
        Stage::Cancelled => 3,
    }
}

fn stage_from(number: i16) -> Result<Stage, Error> {
    match number {
        1 => Ok(Stage::Draft),
        2 => Ok(Stage::Published),
        3 => Ok(Stage::Cancelled),
        other => Err(Error::Database(sea_orm::DbErr::Type(format!("concert.state is {other}")))),
    }
}

fn read_json<T: serde::de::DeserializeOwned>(what: &'static str, text: &str) -> Result<T, Error> {
    serde_json::from_str(text).map_err(|source| Error::Corrupt { what, source })
}

fn write_json(what: &'static str, value: &impl serde::Serialize) -> Result<String, Error> {
    serde_json::to_string(value).map_err(|source| Error::Corrupt { what, source })
}
