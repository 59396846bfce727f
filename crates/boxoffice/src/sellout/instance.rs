//! The Boxoffice that a concert is sold out on: one that runs somewhere, or a throwaway one.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, bail, ensure};
use mesh::id::UserId;
use reqwest::{StatusCode, Url};
use uuid::Uuid;

use crate::{
    api::{Api, text},
    embedded::{self, Embedded},
    sweep,
};

/// How long holds last in a throwaway instance: abandoned seats come back within the sale.
const SHORT_HOLD: Duration = Duration::from_secs(3);
/// How long a running instance has to give its first answer.
const FIRST_ANSWER: Duration = Duration::from_secs(5);
/// How long to wait before asking again one that says it is not ready.
const PAUSE: Duration = Duration::from_millis(100);

/// The API of a Boxoffice whose gateways are at these addresses.
///
/// # Errors
/// One clear sentence, within seconds: one is no address, nobody answers there, or somebody who is no Boxoffice.
pub(super) async fn reach(addresses: &[String]) -> anyhow::Result<Api> {
    for address in addresses {
        reach_one(address).await?;
    }
    Api::of_gateways(addresses.iter().cloned())
}

async fn reach_one(address: &str) -> anyhow::Result<()> {
    let url = Url::parse(address).ok().filter(|url| url.has_host());
    let Some(url) = url.filter(|url| url.scheme() == "http" && url.query().is_none()) else {
        bail!(
            "--url {address} is no address of REST, such as http://127.0.0.1:8080 (https is not spoken here)"
        );
    };
    let api = Api::new(url)?;
    let answered = tokio::time::timeout(FIRST_ANSWER, first_answer(&api)).await;
    answered
        .unwrap_or_else(|_| bail!("no answer within {} s", FIRST_ANSWER.as_secs()))
        .with_context(|| format!("no Boxoffice can be used at {address}"))
}

/// Checks that a Boxoffice writes to these databases.
///
/// # Errors
/// If what it has just acknowledged is not there.
pub(super) async fn check_databases(api: &Api, databases: &sweep::Databases) -> anyhow::Result<()> {
    let run = Uuid::now_v7().simple().to_string();
    let (email, password) = (format!("witness-{run}@sellout.example"), format!("sell-out-{run}"));
    api.sign_up(&email, &password, "Witness").await?;
    let login = api.log_in(&email, &password).await?;
    api.top_up(&login.access_token, 1).await?;
    let account =
        api.get("/v1/users/me", Some(&login.access_token)).await?.expect_success("reading an account")?;
    let fan: UserId = text(&account, "/user/userId")?.parse()?;
    ensure!(
        databases.have_wallet_of(fan).await?,
        "the databases are another server's: a wallet that was made at {} is not in them. Name those of that server by \
         --data-dir, or by --booking-database-url and --payment-database-url",
        api.bases().join(", ")
    );
    Ok(())
}

/// Reads the list of concerts, as soon as there is one.
async fn first_answer(api: &Api) -> anyhow::Result<()> {
    loop {
        let reply = api.get("/v1/concerts", None).await.map_err(|error| {
            // The last cause is what the system said, such as "Connection refused".
            anyhow::anyhow!("{}", error.root_cause())
        })?;
        match (reply.status, reply.reason()) {
            (StatusCode::OK, _) if reply.body["concerts"].is_array() => return Ok(()),
            // A Boxoffice that has just started.
            (StatusCode::SERVICE_UNAVAILABLE, reason) if !reason.is_empty() => {
                tokio::time::sleep(PAUSE).await
            }
            (status, _) => bail!("GET /v1/concerts is answered with {status}, and not with concerts"),
        }
    }
}

/// An instance for one sale.
pub(super) struct Throwaway {
    pub(super) embedded: Embedded,
    directory: tempfile::TempDir,
}

impl Throwaway {
    pub(super) async fn start() -> anyhow::Result<Self> {
        let directory = tempfile::tempdir()?;
        let options =
            embedded::Options { hold_ttl: SHORT_HOLD, ..embedded::Options::throwaway(directory.path()) };
        Ok(Self { embedded: Embedded::start(options).await?, directory })
    }

    pub(super) fn databases(&self) -> sweep::Databases {
        let data_dir: PathBuf = self.directory.path().into();
        sweep::Databases { data_dir, booking_database_url: None, payment_database_url: None }
    }
}
