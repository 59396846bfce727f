//! A demo, so that there is something to buy: an organiser, fans with money, and a concert on sale.

use std::{fs, io::Write, os::unix::fs::OpenOptionsExt, path::Path, time::Duration};

use anyhow::Context;
use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Value, json};

use crate::api::{Api, Login, text};

/// What each fan of the demo finds in the wallet, in won.
const ALLOWANCE: i64 = 1_000_000;
/// The fans: one for each of the pages that book, so that whoever follows several does not run into the limit of seats.
const FANS: [&str; 4] = ["Ann", "Bob", "Cho", "Dan"];
const FILE: &str = "demo.txt";

/// Who there is in the demo, and what is on sale.
#[derive(Debug, Clone)]
pub struct Demo {
    /// E-mail and password of the fans.
    pub fans: Vec<(String, String)>,
    /// The concert on sale.
    pub concert_id: String,
    /// Its title.
    pub title: String,
}

/// Finds the demo, or makes one if nothing is on sale. Its passwords are kept in `demo.txt` of the data directory.
///
/// # Errors
/// If a call is refused, or the file can't be kept.
pub async fn seed(api: &Api, data_dir: &Path, now: DateTime<Utc>) -> anyhow::Result<Demo> {
    wait_until_ready(api).await?;
    let accounts = Accounts::read_or_make(api, &data_dir.join(FILE)).await?;
    let listed = api.get("/v1/concerts?pageSize=200", None).await?.expect_success("listing concerts")?;
    let on_sale = listed["concerts"]
        .as_array()
        .and_then(|concerts| concerts.iter().find(|concert| concert["saleState"] == "SALE_STATE_OPEN"));
    let (concert_id, title) = match on_sale {
        Some(concert) => (text(concert, "/concertId")?, text(concert, "/title")?),
        None => make(api, &accounts, now).await?,
    };
    Ok(Demo { fans: accounts.fans, concert_id, title })
}

/// Waits until the services answer.
///
/// # Errors
/// If they do not within half a minute.
pub async fn wait_until_ready(api: &Api) -> anyhow::Result<()> {
    const PATIENCE: Duration = Duration::from_secs(30);
    let ready = async {
        while !api.get("/v1/concerts", None).await.is_ok_and(|reply| reply.status.is_success()) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, ready).await.context("the services did not become ready")
}

/// The accounts of the demo.
struct Accounts {
    organizer: (String, String),
    fans: Vec<(String, String)>,
}

impl Accounts {
    async fn read_or_make(api: &Api, path: &Path) -> anyhow::Result<Self> {
        if let Ok(kept) = fs::read_to_string(path)
            && let Some(accounts) = Self::parse(&kept)
        {
            return Ok(accounts);
        }
        // New names each time: accounts of a list that was lost have passwords that nobody knows.
        let account = |name: &str| {
            let password = new_password();
            (format!("{name}-{}@demo.example", &password[..4]), new_password())
        };
        let fans = FANS.iter().map(|name| account(&name.to_lowercase())).collect();
        let accounts = Self { organizer: account("organizer"), fans };
        for ((email, password), name) in accounts.fans.iter().zip(FANS) {
            let fan = account_of(api, email, password, name).await?;
            api.top_up(&fan.access_token, ALLOWANCE).await?;
        }
        let line = |(email, password): &(String, String)| format!("{email} {password}\n");
        let lines: String = [&accounts.organizer].into_iter().chain(&accounts.fans).map(line).collect();
        let text = format!("# The accounts of the demo: e-mail and password.\n{lines}");
        let mut options = fs::OpenOptions::new();
        let written = options.create(true).truncate(true).write(true).mode(0o600).open(path);
        written
            .and_then(|mut file| file.write_all(text.as_bytes()))
            .with_context(|| format!("{} can't be written", path.display()))?;
        Ok(accounts)
    }

    fn parse(text: &str) -> Option<Self> {
        let mut accounts = text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| {
            line.split_once(' ').map(|(email, password)| (email.to_owned(), password.to_owned()))
        });
        let (organizer, fans) = (accounts.next()?, accounts.collect::<Vec<_>>());
        (fans.len() == FANS.len()).then_some(Self { organizer, fans })
    }
}

fn new_password() -> String {
    const LETTERS: &[u8] = b"abcdefghjkmnpqrstuvwxyz23456789";
    (0..16).map(|_| char::from(LETTERS[rand::random_range(0..LETTERS.len())])).collect()
}

async fn make(api: &Api, accounts: &Accounts, now: DateTime<Utc>) -> anyhow::Result<(String, String)> {
    let (email, password) = &accounts.organizer;
    let organizer = account_of(api, email, password, "Demo Organizer").await?;
    let organizer = Organizer::make(api, &organizer, "Demo Concerts").await?;
    let accessible = ["A-1-1", "A-1-2", "A-1-19", "A-1-20"];
    let stalls = json!({"rows": 10, "seatsPerRow": 20, "accessibleSeatIds": accessible});
    let sections = vec![
        (json!({"sectionId": "A", "displayName": "Stalls", "seated": stalls}), 110_000),
        (
            json!({"sectionId": "B", "displayName": "Balcony", "seated": {"rows": 5, "seatsPerRow": 20}}),
            77_000,
        ),
        (json!({"sectionId": "FLOOR", "displayName": "Floor", "standing": {"capacity": 300}}), 55_000),
    ];
    let concert = Plan { title: "The First Night", genre: "indie", sections, max_seats_per_fan: 4 };
    let concert_id = organizer.publish(api, concert, now).await?;
    Ok((concert_id, "The First Night".to_owned()))
}

/// Signs somebody up, unless they are already, and logs them in.
async fn account_of(api: &Api, email: &str, password: &str, name: &str) -> anyhow::Result<Login> {
    api.sign_up(email, password, name).await?;
    api.log_in(email, password).await
}

/// Somebody who may publish concerts.
#[derive(Debug, Clone)]
pub struct Organizer {
    /// The organiser's id.
    pub organizer_id: String,
    /// A token that carries the right.
    pub access_token: String,
}

/// A concert to be put on sale.
#[derive(Debug, Clone)]
pub struct Plan<'a> {
    /// Its title.
    pub title: &'a str,
    /// Its genre.
    pub genre: &'a str,
    /// Its venue's sections, as `POST /v1/venues` takes them, and what a place in each costs, in won.
    pub sections: Vec<(Value, i64)>,
    /// Seats that a fan may have.
    pub max_seats_per_fan: u32,
}

impl Organizer {
    /// Makes an organiser for somebody who is logged in.
    ///
    /// # Errors
    /// If it was refused.
    pub async fn make(api: &Api, login: &Login, name: &str) -> anyhow::Result<Self> {
        let reply =
            api.post("/v1/organizers", Some(&login.access_token), &json!({"displayName": name})).await?;
        let body = reply.expect_success("making an organiser")?;
        Ok(Self {
            organizer_id: text(&body, "/organizer/organizerId")?,
            access_token: text(&body, "/accessToken")?,
        })
    }

    /// Makes a venue and a concert that is on sale from now on and takes place in thirty days. Its id.
    ///
    /// # Errors
    /// If a call was refused.
    pub async fn publish(&self, api: &Api, plan: Plan<'_>, now: DateTime<Utc>) -> anyhow::Result<String> {
        let token = Some(self.access_token.as_str());
        let venue = json!({
            "organizerId": self.organizer_id, "displayName": "Main Hall", "timeZone": "Asia/Seoul",
            "sections": plan.sections.iter().map(|(section, _)| section).collect::<Vec<_>>(),
        });
        let venue = api.post("/v1/venues", token, &venue).await?.expect_success("making a venue")?;
        let time = |after: TimeDelta| (now + after).to_rfc3339_opts(chrono::SecondsFormat::Secs, true);
        let price = |(section, won): &(Value, i64)| json!({"sectionId": section["sectionId"], "price": {"currencyCode": "KRW", "minorUnits": won.to_string()}});
        let concert = json!({
            "organizerId": self.organizer_id, "venueId": text(&venue, "/venue/venueId")?, "title": plan.title,
            "description": "An evening to try Boxoffice with.", "genre": plan.genre,
            "startTime": time(TimeDelta::days(30)), "saleOpenTime": time(TimeDelta::minutes(-1)),
            "saleCloseTime": time(TimeDelta::days(30)),
            "prices": plan.sections.iter().map(price).collect::<Vec<_>>(),
            "maxSeatsPerFan": plan.max_seats_per_fan,
        });
        let concert = api.post("/v1/concerts", token, &concert).await?.expect_success("making a concert")?;
        let concert_id = text(&concert, "/concert/concertId")?;
        let path = format!("/v1/concerts/{concert_id}/publish");
        api.post(&path, token, &json!({})).await?.expect_success("publishing a concert")?;
        Ok(concert_id)
    }
}
