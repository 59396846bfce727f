//! Passwords: which may be chosen, and how they are hashed without stalling everything else.

use std::sync::{Arc, LazyLock};

use argon2::{
    Algorithm, Argon2, Params, PasswordHash, PasswordHasher as _, PasswordVerifier as _, Version,
    password_hash,
};
use secrecy::{ExposeSecret, SecretString};
use thiserror::Error;
use tokio::sync::Semaphore;

use crate::{email::EmailAddress, error::Error};

/// The fewest characters of a password.
const SHORTEST: usize = 8;
/// The most characters of a password.
const LONGEST: usize = 128;
/// Memory in KiB, passes and lanes of argon2id: the least that OWASP recommends
/// (<https://cheatsheetseries.owasp.org/cheatsheets/Password_Storage_Cheat_Sheet.html>).
const COST: (u32, u32, u32) = (19 * 1024, 2, 1);
/// A hash of no password, its salt and digest being random. Who logs in with an unknown e-mail is checked against it, so
/// that the answer takes as long as for a known one. Its costs are those of real hashes.
const NOBODYS_HASH: &str =
    "$argon2id$v=19$m=19456,t=2,p=1$IZMMdLF2nn+/ou1GsYhYpQ$Erutuk2my1Xb5azW3tZdndXw1UVBENz4VbrToKu5IeA";

/// A password in plain text, never shown and wiped when dropped.
#[derive(Clone)]
pub(crate) struct Password(SecretString);

/// Why a text can't be a password.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub(crate) enum PasswordError {
    #[error("is required")]
    Missing,
    #[error("must have {SHORTEST} to {LONGEST} characters")]
    WrongLength,
    #[error("is one that many people have, and so the first to be tried")]
    TooCommon,
    #[error("must not be the e-mail address")]
    SameAsEmail,
}

impl Password {
    /// A password that someone signs up with. `email` is theirs, if it could be read.
    pub(crate) fn choose(text: &str, email: Option<&EmailAddress>) -> Result<Self, PasswordError> {
        if text.is_empty() {
            return Err(PasswordError::Missing);
        }
        if !(SHORTEST..=LONGEST).contains(&text.chars().count()) {
            return Err(PasswordError::WrongLength);
        }
        let lower_case = text.to_lowercase();
        if is_common(&lower_case) {
            return Err(PasswordError::TooCommon);
        }
        if email.is_some_and(|email| lower_case == email.as_str()) {
            return Err(PasswordError::SameAsEmail);
        }
        Ok(Self(text.into()))
    }

    /// A password that someone logs in with. No account has one longer than this takes.
    pub(crate) fn enter(text: &str) -> Result<Self, PasswordError> {
        match text.chars().count() {
            0 => Err(PasswordError::Missing),
            1..=LONGEST => Ok(Self(text.into())),
            _ => Err(PasswordError::WrongLength),
        }
    }

    fn bytes(&self) -> &[u8] {
        self.0.expose_secret().as_bytes()
    }
}

impl PasswordError {
    /// The reason for programs.
    pub(crate) fn reason(self) -> &'static str {
        match self {
            Self::Missing => "REQUIRED",
            Self::WrongLength => "OUT_OF_RANGE",
            Self::TooCommon => "TOO_COMMON",
            Self::SameAsEmail => "SAME_AS_EMAIL",
        }
    }
}

fn common_passwords() -> impl Iterator<Item = &'static str> {
    include_str!("common_passwords.txt").lines().filter(|line| !line.starts_with('#'))
}

fn is_common(lower_case: &str) -> bool {
    common_passwords().any(|common| common == lower_case)
}

/// Hashes and checks passwords, 20 to 70 ms of a core and 19 MiB each: on threads of their own, a few at a time. Those
/// that wait are counted, and more are refused: what could not be finished in time is better not begun.
#[derive(Debug, Clone)]
pub(crate) struct PasswordHasher {
    /// A place for each password that is being hashed or waits.
    places: Arc<Semaphore>,
    /// A place for each password that is being hashed.
    threads: Arc<Semaphore>,
}

static ARGON2: LazyLock<Argon2<'static>> = LazyLock::new(|| {
    let (memory, passes, lanes) = COST;
    let params = Params::new(memory, passes, lanes, None).expect("the costs are within argon2's limits");
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
});

impl PasswordHasher {
    /// Hashes at most `threads` passwords at once while at most `queue_limit` wait.
    pub(crate) fn new(threads: usize, queue_limit: usize) -> Self {
        Self {
            places: Arc::new(Semaphore::new(threads + queue_limit)),
            threads: Arc::new(Semaphore::new(threads)),
        }
    }

    /// How many passwords this machine should hash at once: a core is left for everything else.
    pub(crate) fn default_threads() -> usize {
        std::thread::available_parallelism().map_or(1, |cores| cores.get().saturating_sub(1).max(1))
    }

    /// The hash to store, with a salt of its own.
    pub(crate) async fn hash(&self, password: Password) -> Result<String, Error> {
        self.run(move || {
            let hash: PasswordHash = ARGON2
                .hash_password(password.bytes())
                .map_err(|error| Error::cryptography("hashing a password")(error.to_string()))?;
            Ok(hash.to_string())
        })
        .await
    }

    /// Whether the password is the one that was hashed. `stored` is None where there is no such account: that takes as
    /// long, and the password is wrong.
    pub(crate) async fn verify(&self, password: Password, stored: Option<String>) -> Result<bool, Error> {
        self.run(move || {
            let stored = stored.as_deref().unwrap_or(NOBODYS_HASH);
            match ARGON2.verify_password(password.bytes(), stored) {
                Ok(()) => Ok(true),
                Err(password_hash::Error::PasswordInvalid) => Ok(false),
                Err(error) => Err(Error::cryptography("checking a password")(error.to_string())),
            }
        })
        .await
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let place = Arc::clone(&self.places).try_acquire_owned().map_err(|_| Error::PasswordQueueFull)?;
        let thread = Arc::clone(&self.threads)
            .acquire_owned()
            .await
            .map_err(Error::cryptography("waiting for a thread"))?;
        let work = move || {
            // Held until the work is done, even if the caller has given up: it can't be stopped half-way.
            let _held = (place, thread);
            work()
        };
        tokio::task::spawn_blocking(work).await.map_err(Error::cryptography("a thread for passwords"))?
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn refusal(text: &str) -> Option<PasswordError> {
        Password::choose(text, EmailAddress::parse("fan@example.com").ok().as_ref()).err()
    }

    #[test]
    fn a_long_phrase_is_accepted_and_a_weak_password_is_not() {
        let phrase = "when the lights go down in the city, the band begins to play 42!";
        assert_eq!(phrase.chars().count(), 64);
        assert_eq!(refusal(phrase), None);
        assert_eq!(refusal(""), Some(PasswordError::Missing));
        assert_eq!(refusal("7 chars"), Some(PasswordError::WrongLength));
        assert_eq!(refusal("8 chars!"), None);
        assert_eq!(refusal(&"가나다라마바사아".repeat(16)), None, "128 characters, 384 bytes");
        assert_eq!(refusal(&"x".repeat(129)), Some(PasswordError::WrongLength));
        assert_eq!(refusal("PassWord123"), Some(PasswordError::TooCommon));
        assert_eq!(refusal("Fan@Example.com"), Some(PasswordError::SameAsEmail));
    }

    #[test]
    fn logging_in_takes_whatever_was_once_chosen() {
        assert!(Password::enter("short").is_ok());
        assert_eq!(Password::enter("").err(), Some(PasswordError::Missing));
        assert_eq!(Password::enter(&"x".repeat(129)).err(), Some(PasswordError::WrongLength));
    }

    #[test]
    fn the_list_has_only_what_would_pass_otherwise() {
        let mut count = 0;
        for common in common_passwords() {
            assert_eq!(common, common.to_lowercase());
            assert!(common.len() >= SHORTEST && common.trim() == common, "{common}");
            count += 1;
        }
        assert!(count >= 200, "{count}");
    }

    #[tokio::test]
    async fn a_password_is_known_by_its_hash() {
        let hasher = PasswordHasher::new(1, 1);
        let password = Password::choose("correct horse battery", None).unwrap();
        let hash = hasher.hash(password.clone()).await.unwrap();
        assert!(hasher.verify(password.clone(), Some(hash.clone())).await.unwrap());
        let wrong = Password::enter("correct horse batterz").unwrap();
        assert!(!hasher.verify(wrong, Some(hash.clone())).await.unwrap());
        assert!(!hasher.verify(password.clone(), None).await.unwrap());
        assert_ne!(hasher.hash(password).await.unwrap(), hash, "each has a salt of its own");
    }

    #[tokio::test]
    async fn nobodys_hash_costs_what_a_real_one_does() {
        let hash = PasswordHasher::new(1, 0).hash(Password::enter("x").unwrap()).await.unwrap();
        let costs = |hash: &str| hash.rsplitn(3, '$').last().map(str::to_owned);
        assert_eq!(costs(NOBODYS_HASH).as_deref(), Some("$argon2id$v=19$m=19456,t=2,p=1"));
        assert_eq!(costs(&hash), costs(NOBODYS_HASH));
        let lengths = |hash: &str| hash.split('$').map(str::len).collect::<Vec<_>>();
        assert_eq!(lengths(&hash), lengths(NOBODYS_HASH));
    }

    #[tokio::test]
    async fn who_finds_the_queue_full_is_refused_at_once() {
        let hasher = PasswordHasher::new(1, 2);
        let (release, held) = std::sync::mpsc::channel::<()>();
        let working = hasher.run(move || {
            // Ends when the test drops the sender.
            let _ = held.recv();
            Ok(())
        });
        let waiting = || hasher.run(|| Ok(()));
        let mut first = Box::pin(futures_util::future::join3(working, waiting(), waiting()));
        assert!((&mut first).now_or_never().is_none());
        assert!(matches!(waiting().await, Err(Error::PasswordQueueFull)));
        drop(release);
        let (worked, second, third) = first.await;
        assert!(worked.is_ok() && second.is_ok() && third.is_ok());
        waiting().await.expect("there is room again");
    }

    #[tokio::test]
    async fn who_gives_up_waiting_leaves_the_queue() {
        let hasher = PasswordHasher::new(1, 1);
        let (release, held) = std::sync::mpsc::channel::<()>();
        let mut working = Box::pin(hasher.run(move || {
            let _ = held.recv();
            Ok(())
        }));
        assert!((&mut working).now_or_never().is_none());
        let mut waiting = Box::pin(hasher.run(|| Ok(())));
        assert!((&mut waiting).now_or_never().is_none());
        assert!(matches!(hasher.run(|| Ok(())).await, Err(Error::PasswordQueueFull)));
        drop(waiting);
        let mut next = Box::pin(hasher.run(|| Ok(())));
        assert!((&mut next).now_or_never().is_none());
        drop(working);
        assert!((&mut next).now_or_never().is_none(), "work that began is not stopped");
        drop(release);
        next.await.unwrap();
    }
}
