//! The store on SQLite and on Postgres: the same bodies on both.

use chrono::TimeDelta;
use mesh::{Failure, database::Database};

use super::*;
use crate::domain::{
    concert::{Refusal, SectionPrice},
    layout::Arrangement,
};

/// Runs each body on a fresh database of either kind.
macro_rules! on_both_databases {
    ($($body:ident),* $(,)?) => {
        mod sqlite {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $body() {
                    let file = mesh_test::sqlite::create_database();
                    super::$body(super::Office::open(file.url()).await).await;
                }
            )*
        }
        mod postgres {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                #[ignore = "needs Postgres: scripts/test runs it"]
                async fn $body() {
                    let database = mesh_test::postgres::create_database().await;
                    super::$body(super::Office::open(database.url()).await).await;
                }
            )*
        }
    };
}

on_both_databases!(
    what_is_written_is_read,
    a_venue_is_found_by_its_organizers_alone,
    a_draft_is_seen_by_its_organizers_alone,
    only_its_organizers_find_a_concert_to_change_it,
    a_change_of_what_someone_else_changed_is_refused,
    a_concert_that_is_being_sold_is_not_cancelled,
    a_cancelled_concert_is_not_sold,
    a_draft_is_not_sold,
    of_fifty_pairs_that_sell_and_cancel_one_wins_each,
    of_fifty_pairs_that_publish_and_cancel_one_wins_each,
    upcoming_concerts_are_listed_by_their_start,
    an_organizer_lists_drafts_too_and_the_newest_first,
    a_list_is_stable_while_concerts_are_made,
    concerts_that_start_at_once_are_listed_one_after_the_other,
    an_older_count_of_places_is_ignored,
    the_schema_refuses_what_the_rules_forbid,
);

/// An organiser with a venue.
struct Office {
    database: Database,
    venue: Venue,
    now: DateTime<Utc>,
}

impl Office {
    async fn open(url: &str) -> Self {
        let database = Database::open(&url.parse().unwrap(), 10).await.unwrap();
        database.migrate(crate::MIGRATIONS).await.unwrap();
        let now = DateTime::from_timestamp(1_800_000_000, 123_456_000).unwrap();
        let arrangement = Arrangement::Seated { rows: 2, seats_per_row: 4, accessible: vec![(1, 1)] };
        let venue = Venue {
            id: VenueId::new(),
            organizer: OrganizerId::new(),
            display_name: "Hall".to_owned(),
            time_zone: "Asia/Seoul".to_owned(),
            sections: vec![Section { id: "A".to_owned(), display_name: "Stalls".to_owned(), arrangement }],
            create_time: now,
        };
        insert_venue(database.writer(), &venue).await.unwrap();
        Self { database, venue, now }
    }

    fn organizer(&self) -> OrganizerId {
        self.venue.organizer
    }

    /// A draft that starts in so many hours.
    async fn draft_in(&self, hours: i64) -> Concert {
        let start_time = self.now + TimeDelta::hours(hours);
        let concert = Concert {
            id: ConcertId::new(),
            organizer: self.organizer(),
            venue: self.venue.id,
            title: format!("In {hours} hours"),
            description: "A concert".to_owned(),
            genre: "rock".to_owned(),
            start_time,
            end_time: start_time + TimeDelta::hours(4),
            sale_open_time: self.now - TimeDelta::days(1),
            sale_close_time: start_time,
            prices: vec![SectionPrice { section_id: "A".to_owned(), minor_units: 100 }],
            max_seats_per_fan: 4,
            stage: Stage::Draft,
            unbooked_places: None,
            version: 1,
            create_time: self.now,
        };
        insert_concert(self.database.writer(), &concert).await.unwrap();
        concert
    }

    async fn published_in(&self, hours: i64) -> Concert {
        let mut concert = self.draft_in(hours).await;
        self.change(&mut concert, Stage::Published).await.unwrap();
        concert
    }

    async fn change(&self, concert: &mut Concert, stage: Stage) -> Result<(), Error> {
        concert.stage = stage;
        change_stage(self.database.writer(), concert).await
    }

    async fn begin_sale(&self, concert: &Concert) -> Result<(), Error> {
        begin_sale(self.database.writer(), concert.id).await
    }

    async fn stored(&self, concert: &Concert) -> Concert {
        find_own_concert(self.database.reader(), concert.id, &[self.organizer()]).await.unwrap()
    }

    /// The titles of a page, and the token of the next one.
    async fn list(&self, listing: Listing, size: i32, token: &str) -> (Vec<String>, String) {
        let page = Page::read(Some(size), token, &[]).unwrap();
        let mut found = list_concerts(self.database.reader(), listing, None, &page).await.unwrap();
        let token = page.next_token(&mut found, Position::after);
        (found.into_iter().map(|concert| concert.title).collect(), token)
    }

    /// The titles of all pages of one concert each.
    async fn list_all(&self, listing: Listing) -> Vec<String> {
        let (mut titles, mut token) = self.list(listing, 1, "").await;
        while !token.is_empty() {
            let (more, next) = self.list(listing, 1, &token).await;
            titles.extend(more);
            token = next;
        }
        titles
    }
}

fn reason<T>(outcome: Result<T, Error>) -> &'static str {
    match outcome {
        Ok(_) => "none",
        Err(error) => Failure::from(error).info().reason,
    }
}

async fn what_is_written_is_read(office: Office) {
    let venue = find_venue(office.database.reader(), office.venue.id, &[office.organizer()]).await.unwrap();
    assert_eq!(venue, office.venue);
    let concert = office.draft_in(10).await;
    assert_eq!(office.stored(&concert).await, concert);
}

async fn a_venue_is_found_by_its_organizers_alone(office: Office) {
    let find =
        async |id, owners: &[OrganizerId]| reason(find_venue(office.database.reader(), id, owners).await);
    assert_eq!(find(office.venue.id, &[OrganizerId::new(), office.organizer()]).await, "none");
    assert_eq!(find(office.venue.id, &[OrganizerId::new()]).await, "VENUE_NOT_FOUND");
    assert_eq!(find(office.venue.id, &[]).await, "VENUE_NOT_FOUND");
    assert_eq!(find(VenueId::new(), &[office.organizer()]).await, "VENUE_NOT_FOUND");
}

async fn a_draft_is_seen_by_its_organizers_alone(office: Office) {
    let (own, foreign) = ([office.organizer()], [OrganizerId::new()]);
    let mut concert = office.draft_in(10).await;
    let see = async |viewer| reason(find_concert(office.database.reader(), concert.id, viewer).await);
    assert_eq!(see(Viewer::Organizers(&own)).await, "none");
    assert_eq!(see(Viewer::Organizers(&foreign)).await, "CONCERT_NOT_FOUND");
    assert_eq!(see(Viewer::Public).await, "CONCERT_NOT_FOUND");
    office.change(&mut concert, Stage::Published).await.unwrap();
    let see = async |viewer| reason(find_concert(office.database.reader(), concert.id, viewer).await);
    assert_eq!(see(Viewer::Organizers(&foreign)).await, "none");
    assert_eq!(see(Viewer::Public).await, "none");
}

async fn only_its_organizers_find_a_concert_to_change_it(office: Office) {
    let concert = office.published_in(10).await;
    let reader = office.database.reader();
    let foreign = find_own_concert(reader, concert.id, &[OrganizerId::new()]).await;
    assert_eq!(reason(foreign), "CONCERT_NOT_FOUND");
    let absent = find_own_concert(reader, ConcertId::new(), &[office.organizer()]).await;
    assert_eq!(reason(absent), "CONCERT_NOT_FOUND");
}

async fn a_change_of_what_someone_else_changed_is_refused(office: Office) {
    let mut seen_by_one = office.draft_in(10).await;
    let mut seen_by_other = seen_by_one.clone();
    office.change(&mut seen_by_one, Stage::Published).await.unwrap();
    assert_eq!(seen_by_one.version, 2);
    let refused = office.change(&mut seen_by_other, Stage::Cancelled).await;
    assert!(matches!(refused, Err(Error::ChangedMeanwhile)), "{refused:?}");
    assert_eq!(office.stored(&seen_by_one).await, seen_by_one);
}

async fn a_concert_that_is_being_sold_is_not_cancelled(office: Office) {
    let mut concert = office.published_in(10).await;
    for _ in 0..2 {
        office.begin_sale(&concert).await.unwrap();
    }
    let before = office.stored(&concert).await;
    assert!(matches!(office.change(&mut concert, Stage::Cancelled).await, Err(Error::HasBookings)));
    assert_eq!(office.stored(&concert).await, before);
}

async fn a_cancelled_concert_is_not_sold(office: Office) {
    let mut concert = office.published_in(10).await;
    office.change(&mut concert, Stage::Cancelled).await.unwrap();
    let refused = office.begin_sale(&concert).await;
    assert!(matches!(refused, Err(Error::Refused(Refusal::Cancelled))), "{refused:?}");
    assert_eq!(office.stored(&concert).await.stage, Stage::Cancelled);
}

async fn a_draft_is_not_sold(office: Office) {
    let mut concert = office.draft_in(10).await;
    assert_eq!(reason(office.begin_sale(&concert).await), "CONCERT_NOT_FOUND");
    let nobody = begin_sale(office.database.writer(), ConcertId::new()).await;
    assert_eq!(reason(nobody), "CONCERT_NOT_FOUND");
    office.change(&mut concert, Stage::Cancelled).await.expect("it was never sold");
}

async fn of_fifty_pairs_that_sell_and_cancel_one_wins_each(office: Office) {
    let mut races = Vec::new();
    for hours in 0..50 {
        let concert = office.published_in(hours).await;
        let (database, mut cancelled, sold) = (office.database.clone(), concert.clone(), concert.id);
        cancelled.stage = Stage::Cancelled;
        let cancel = tokio::spawn({
            let database = database.clone();
            async move { change_stage(database.writer(), &mut cancelled).await }
        });
        let sell = tokio::spawn(async move { begin_sale(database.writer(), sold).await });
        races.push((concert, sell, cancel));
    }
    for (concert, sell, cancel) in races {
        let (sold, cancelled) = (sell.await.unwrap(), cancel.await.unwrap());
        let stage = office.stored(&concert).await.stage;
        match (sold, cancelled) {
            (Ok(()), Err(Error::HasBookings)) => assert_eq!(stage, Stage::Published),
            (Err(Error::Refused(Refusal::Cancelled)), Ok(())) => assert_eq!(stage, Stage::Cancelled),
            both => panic!("one must win and the other hear why not: {both:?}"),
        }
    }
}

async fn of_fifty_pairs_that_publish_and_cancel_one_wins_each(office: Office) {
    let mut races = Vec::new();
    for hours in 0..50 {
        let concert = office.draft_in(hours).await;
        let change = |stage| {
            let (database, mut changed) = (office.database.clone(), Concert { stage, ..concert.clone() });
            tokio::spawn(async move { change_stage(database.writer(), &mut changed).await })
        };
        races.push((concert.clone(), change(Stage::Published), change(Stage::Cancelled)));
    }
    for (concert, publish, cancel) in races {
        let stage = match (publish.await.unwrap(), cancel.await.unwrap()) {
            (Ok(()), Err(Error::ChangedMeanwhile)) => Stage::Published,
            (Err(Error::ChangedMeanwhile), Ok(())) => Stage::Cancelled,
            both => panic!("one must win and the other hear why not: {both:?}"),
        };
        let stored = office.stored(&concert).await;
        assert_eq!((stored.stage, stored.version), (stage, 2));
    }
}

async fn upcoming_concerts_are_listed_by_their_start(office: Office) {
    for hours in [30, 10, 20] {
        office.published_in(hours).await;
    }
    office.draft_in(15).await;
    let mut cancelled = office.published_in(16).await;
    office.change(&mut cancelled, Stage::Cancelled).await.unwrap();
    office.published_in(-5).await;
    let upcoming = Listing::Upcoming { now: office.now };
    let expected = ["In 10 hours", "In 20 hours", "In 30 hours"];
    assert_eq!(office.list(upcoming, 50, "").await, (expected.map(str::to_owned).to_vec(), String::new()));
    assert_eq!(office.list_all(upcoming).await, expected);

    let jazz = Page::read(None, "", &[]).unwrap();
    let reader = office.database.reader();
    assert_eq!(list_concerts(reader, upcoming, Some("jazz"), &jazz).await.unwrap(), []);
    assert_eq!(list_concerts(reader, upcoming, Some("rock"), &jazz).await.unwrap().len(), 3);
}

async fn an_organizer_lists_drafts_too_and_the_newest_first(office: Office) {
    office.published_in(30).await;
    office.draft_in(10).await;
    let mut cancelled = office.published_in(20).await;
    office.change(&mut cancelled, Stage::Cancelled).await.unwrap();
    let own = Listing::Of(office.organizer());
    assert_eq!(office.list_all(own).await, ["In 20 hours", "In 10 hours", "In 30 hours"]);
    assert_eq!(office.list(Listing::Of(OrganizerId::new()), 50, "").await, (vec![], String::new()));
}

async fn a_list_is_stable_while_concerts_are_made(office: Office) {
    for hours in [10, 20, 30, 40] {
        office.published_in(hours).await;
    }
    let upcoming = Listing::Upcoming { now: office.now };
    let (first, token) = office.list(upcoming, 2, "").await;
    assert_eq!(first, ["In 10 hours", "In 20 hours"]);
    office.published_in(15).await;
    office.published_in(35).await;
    let (rest, token) = office.list(upcoming, 50, &token).await;
    assert_eq!(rest, ["In 30 hours", "In 35 hours", "In 40 hours"], "none twice, none left out");
    assert_eq!(token, "");
}

async fn concerts_that_start_at_once_are_listed_one_after_the_other(office: Office) {
    let mut made = Vec::new();
    for _ in 0..5 {
        made.push(office.published_in(10).await.id);
    }
    let (mut listed, mut token) = (Vec::new(), String::new());
    loop {
        let page = Page::read(Some(2), &token, &[]).unwrap();
        let upcoming = Listing::Upcoming { now: office.now };
        let mut found = list_concerts(office.database.reader(), upcoming, None, &page).await.unwrap();
        token = page.next_token(&mut found, Position::after);
        listed.extend(found.into_iter().map(|concert| concert.id));
        if token.is_empty() {
            break;
        }
    }
    assert_eq!(listed, made);
}

async fn an_older_count_of_places_is_ignored(office: Office) {
    let concert = office.published_in(10).await;
    let report = async |places, seconds| {
        let count_time = office.now + TimeDelta::seconds(seconds);
        record_availability(office.database.writer(), concert.id, places, count_time).await.unwrap();
        office.stored(&concert).await.unbooked_places
    };
    assert_eq!(office.stored(&concert).await.unbooked_places, None);
    assert_eq!(report(8, 10).await, Some(8));
    assert_eq!(report(0, 20).await, Some(0));
    assert_eq!(report(5, 15).await, Some(0), "counted before");
    assert_eq!(report(5, 20).await, Some(0), "counted at the same moment");
    assert_eq!(report(1, 21).await, Some(1));
}

async fn the_schema_refuses_what_the_rules_forbid(office: Office) {
    let concert = office.published_in(10).await;
    office.begin_sale(&concert).await.unwrap();
    let before = office.stored(&concert).await;
    for statement in [
        "UPDATE concert SET state = 3",
        "UPDATE concert SET state = 4",
        "UPDATE concert SET end_time = start_time",
        "UPDATE concert SET sale_open_time = sale_close_time",
        "UPDATE concert SET max_seats_per_fan = 11",
        "DELETE FROM venue",
    ] {
        let outcome = office.database.writer().execute_unprepared(statement).await;
        assert!(outcome.is_err(), "{statement}");
    }
    assert_eq!(office.stored(&concert).await, before);
}
