//! Sessions: logging in, refreshing, logging out.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use mesh::{
    auth::User,
    clock::Clock,
    config::Secret,
    database::Database,
    failure::chain,
    id::{SessionId, UserId},
};

use crate::{
    email::EmailAddress,
    error::Error,
    keyring::{AccessToken, Keyring},
    login_throttle::LoginThrottle,
    password::{Password, PasswordHasher},
    refresh_token::{RefreshToken, Succession},
    store::{
        account,
        session::{self, REFRESH_TOKEN_LIFETIME},
    },
};

/// What someone who logged in is given.
pub(crate) struct TokenPair {
    pub(crate) session: SessionId,
    pub(crate) access: AccessToken,
    pub(crate) refresh: RefreshToken,
    pub(crate) refresh_expire_time: DateTime<Utc>,
    /// Whether the same request was given this pair before.
    pub(crate) is_replay: bool,
}

/// Opens, prolongs and ends sessions.
pub(crate) struct Sessions {
    database: Database,
    clock: Clock,
    keyring: Arc<Keyring>,
    passwords: PasswordHasher,
    throttle: LoginThrottle,
    succession: Succession,
}

impl Sessions {
    pub(crate) fn new(
        database: Database,
        clock: Clock,
        keyring: Arc<Keyring>,
        passwords: PasswordHasher,
        secret: &Secret,
    ) -> Self {
        let (throttle, succession) = (LoginThrottle::default(), Succession::new(secret));
        Self { database, clock, keyring, passwords, throttle, succession }
    }

    /// Opens a session.
    pub(crate) async fn log_in(&self, email: &EmailAddress, password: Password) -> Result<TokenPair, Error> {
        let attempt = self
            .throttle
            .admit(email, self.clock.now())
            .map_err(|retry_after| Error::LoginThrottled { retry_after })?;
        let Some(user) = self.check_password(email, password).await? else {
            attempt.fail();
            return Err(Error::CredentialsInvalid);
        };
        attempt.succeed();

        let (session, refresh, now) = (SessionId::new(), RefreshToken::random(), self.clock.now());
        session::start(&self.database, session, user, &refresh.hash(), now).await?;
        self.pair(session, user, refresh, now).await
    }

    /// The user with this e-mail and password. It takes as long for an unknown e-mail as for a wrong password.
    async fn check_password(
        &self,
        email: &EmailAddress,
        password: Password,
    ) -> Result<Option<UserId>, Error> {
        let found = account::find_credentials(self.database.reader(), email).await?;
        let (user, hash) = found.unzip();
        let is_right = self.passwords.verify(password, hash).await?;
        Ok(user.filter(|_| is_right))
    }

    /// Trades a refresh token for the next pair. `request_key` is the request's idempotency key.
    pub(crate) async fn refresh(&self, token: &RefreshToken, request_key: &str) -> Result<TokenPair, Error> {
        let successor = self.succession.successor(token, request_key);
        let now = self.clock.now();
        let rotated =
            session::rotate(&self.database, &token.hash(), &successor.hash(), request_key, now).await;
        if let Err(Error::RefreshTokenReused { session }) = rotated {
            tracing::warn!(session.id = %session, "a used refresh token came again: its session was ended");
            self.publish_revocations().await;
        }
        let rotation = rotated?;
        let pair = self.pair(rotation.session, rotation.user, successor, rotation.time).await?;
        Ok(TokenPair { is_replay: rotation.is_replay, ..pair })
    }

    /// Ends a session. Its access tokens are refused here at once, elsewhere within seconds.
    pub(crate) async fn log_out(&self, user: &User) -> Result<(), Error> {
        session::revoke(self.database.writer(), user.session, user.id, self.clock.now()).await?;
        self.publish_revocations().await;
        Ok(())
    }

    /// An access token for a session, with the rights that its user has at a time.
    pub(crate) async fn access_token(
        &self,
        session: SessionId,
        user: UserId,
        time: DateTime<Utc>,
    ) -> Result<AccessToken, Error> {
        let rights = session::find_rights(self.database.reader(), session, user, time).await?;
        let organizers = rights.ok_or(Error::SessionEnded)?;
        // Nobody is an administrator yet.
        self.keyring.sign(&User { id: user, session, organizers, is_admin: false }, time)
    }

    async fn pair(
        &self,
        session: SessionId,
        user: UserId,
        refresh: RefreshToken,
        time: DateTime<Utc>,
    ) -> Result<TokenPair, Error> {
        let access = self.access_token(session, user, time).await?;
        let refresh_expire_time = time + REFRESH_TOKEN_LIFETIME;
        Ok(TokenPair { session, access, refresh, refresh_expire_time, is_replay: false })
    }

    /// Makes known at once that a session has ended. It did end: if this fails, the worker's next reading makes it known.
    async fn publish_revocations(&self) {
        if let Err(error) = self.keyring.refresh().await {
            tracing::warn!(error = chain(&error), "an ended session is made known later");
        }
    }
}
