//! Accounts: the users, their passwords, and rate limits for login attempts.

use std::{
    collections::HashMap,
    fmt,
    hash::Hash,
    num::NonZeroU32,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use argon2::{
    Argon2,
    password_hash::{self, PasswordHasher, PasswordVerifier, phc::PasswordHash},
};
use governor::{DefaultKeyedRateLimiter, Quota, clock::Clock};
use tokio::{
    sync::Semaphore,
    task::{JoinError, spawn_blocking},
};

/// The users of this demonstration. Their passwords follow the rules below.
pub(crate) const DEMO: [(&str, &str); 2] = [("ada", "analytical engine"), ("grace", "nanoseconds matter")];

/// The users. They are in memory here; in your application this is a database table.
#[derive(Clone)]
pub(crate) struct Accounts(Arc<Inner>);

struct Inner {
    hashes: Mutex<HashMap<String, String>>,
    /// A hash that no password matches. Unknown user names are checked against it, so that they take as long as a wrong password
    /// and do not reveal who has an account.
    nobody: String,
    /// Attempts by user name, from any address, because attackers can use many addresses.
    attempts: DefaultKeyedRateLimiter<String>,
    /// Limits how often a user's other sessions can be ended, with one count per user name and way of ending them.
    endings: DefaultKeyedRateLimiter<(String, Ending)>,
}

/// A way to end sessions elsewhere. Each has a separate limit, so a user who has used up one can still use another.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) enum Ending {
    One,
    Others,
    All,
}

/// Why a password was not accepted.
pub(crate) enum Refused {
    Wrong,
    /// The password was not checked, because of the rate limit. Try again after this time.
    TooManyAttempts(Duration),
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Wrong => f.write_str("That is not your password."),
            Self::TooManyAttempts(wait) => {
                write!(f, "Too many attempts. Please wait {} seconds.", wait.as_secs().max(1))
            }
        }
    }
}

impl Accounts {
    pub(crate) fn demo() -> Result<Self, password_hash::Error> {
        let hashes = DEMO.iter().map(|(name, password)| Ok(((*name).to_owned(), hash(password)?)));
        Ok(Self(Arc::new(Inner {
            hashes: Mutex::new(hashes.collect::<Result<_, password_hash::Error>>()?),
            nobody: hash("")?,
            attempts: DefaultKeyedRateLimiter::keyed(ATTEMPTS),
            endings: DefaultKeyedRateLimiter::keyed(ENDINGS),
        })))
    }

    /// Returns whether the password is correct. Any error counts as wrong.
    pub(crate) async fn verify(&self, name: &str, password: String) -> Result<(), Refused> {
        let name = name.to_owned();
        within(&self.0.attempts, &name).map_err(Refused::TooManyAttempts)?;
        let known = self.hashes().get(&name).cloned();
        let (is_known, hash) = (known.is_some(), known.unwrap_or_else(|| self.0.nobody.clone()));
        let matches = at_work(move || {
            let hash = PasswordHash::new(&hash);
            hash.is_ok_and(|hash| Argon2::default().verify_password(password.as_bytes(), &hash).is_ok())
        });
        if matches.await.unwrap_or(false) && is_known { Ok(()) } else { Err(Refused::Wrong) }
    }

    pub(crate) async fn change_password(&self, name: &str, password: String) -> Result<(), Box<dyn std::error::Error>> {
        let hash = at_work(move || hash(&password)).await??;
        self.hashes().insert(name.to_owned(), hash);
        Ok(())
    }

    /// Checks whether this user may end sessions elsewhere now, or returns how long to wait. Ending them refuses pending
    /// logins and needs no password, so without a limit a thief with a copy of the cookie could keep the owner from signing
    /// in.
    pub(crate) fn may_end(&self, name: &str, ending: Ending) -> Result<(), Duration> {
        within(&self.0.endings, &(name.to_owned(), ending))
    }

    /// Forgets attempts that no longer count. Otherwise an attacker who makes up user names could fill the memory.
    pub(crate) fn forget_attempts(&self) {
        self.0.attempts.retain_recent();
        self.0.endings.retain_recent();
    }

    fn hashes(&self) -> MutexGuard<'_, HashMap<String, String>> {
        self.0.hashes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns what is wrong with a new password, by the rules of NIST SP 800-63B-4: it must be long, and must not be a known one.
/// Rules about the kinds of characters do not make passwords safer.
pub(crate) fn check_new(name: &str, current: &str, new: &str, again: &str) -> Result<(), &'static str> {
    const LENGTH: std::ops::RangeInclusive<usize> = 15..=256;
    // In your application, look it up in a list of leaked passwords.
    const KNOWN: [&str; 4] = ["123456789012345", "1234567890123456", "passwordpassword", "qwertyuiopasdfghjkl"];

    let lowercase = new.to_lowercase();
    match new.chars().count() {
        _ if new != again => Err("The two new passwords are not the same."),
        length if length < *LENGTH.start() => {
            Err("Use at least 15 characters. A few words that do not belong together will do.")
        }
        length if length > *LENGTH.end() => Err("Use at most 256 characters."),
        _ if new == current => Err("That is the password you have. Choose another one."),
        _ if lowercase.contains(&name.to_lowercase()) || KNOWN.contains(&lowercase.as_str()) => {
            Err("That one is easy to guess. Choose another one.")
        }
        _ => Ok(()),
    }
}

/// Checks a rate limit, or returns how long to wait.
fn within<K: Clone + Eq + Hash>(limit: &DefaultKeyedRateLimiter<K>, key: &K) -> Result<(), Duration> {
    limit.check_key(key).map_err(|refusal| refusal.wait_time_from(limit.clock().now()))
}

fn hash(password: &str) -> Result<String, password_hash::Error> {
    Ok(Argon2::default().hash_password(password.as_bytes())?.to_string())
}

/// Hashes passwords on blocking threads. Each hash takes 19 MiB and one core, so running more at a time would only use more
/// memory.
async fn at_work<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, JoinError> {
    static HASHING: Semaphore = Semaphore::const_new(4);
    let permit = HASHING.acquire().await;
    spawn_blocking(move || {
        // The client may have disconnected by now, but the work has started.
        let _permit = permit;
        work()
    })
    .await
}

/// Ten attempts at once, and then one per half minute: 2880 guesses a day. A lower limit would make it easy to lock users out.
const ATTEMPTS: Quota = Quota::per_minute(NonZeroU32::new(2).unwrap()).allow_burst(NonZeroU32::new(10).unwrap());

/// Five at once, and then one per two minutes: fewer than login attempts, so that a login can get through in between.
const ENDINGS: Quota = Quota::per_hour(NonZeroU32::new(30).unwrap()).allow_burst(NonZeroU32::new(5).unwrap());
