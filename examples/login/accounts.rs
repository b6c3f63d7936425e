//! Accounts: who there is, what their passwords are, and how often one may be tried.

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

/// The users of this demonstration. Their passwords keep the rules below.
pub(crate) const DEMO: [(&str, &str); 2] = [("ada", "analytical engine"), ("grace", "nanoseconds matter")];

/// The users, here in memory: in your application this is a table, and outlives the process.
#[derive(Clone)]
pub(crate) struct Accounts(Arc<Inner>);

struct Inner {
    hashes: Mutex<HashMap<String, String>>,
    /// Of no password: an unknown user name must take as long as a wrong password, or it tells who has an account.
    nobody: String,
    /// Attempts by user name, from anywhere: many addresses are easy to come by.
    attempts: DefaultKeyedRateLimiter<String>,
    /// Limits how often a user's other sessions are ended: one count for each user name and each way to do it.
    endings: DefaultKeyedRateLimiter<(String, Ending)>,
}

/// A way to end sessions elsewhere. Each has a limit of its own: who has used up one can still take another.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) enum Ending {
    One,
    Others,
    All,
}

/// Why a password was not accepted.
pub(crate) enum Refused {
    Wrong,
    /// It was not looked at. After so long it would be.
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

    /// Whether the password is that user's. Whatever goes wrong on the way is a no.
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

    /// Whether this user's sessions elsewhere may be ended now, or how long that takes. It refuses the logins that are under way,
    /// and asks for no password: without a limit, a thief with a copy of the cookie could keep its owner out.
    pub(crate) fn may_end(&self, name: &str, ending: Ending) -> Result<(), Duration> {
        within(&self.0.endings, &(name.to_owned(), ending))
    }

    /// Forgets attempts that no longer count. Whoever makes up names would fill the memory.
    pub(crate) fn forget_attempts(&self) {
        self.0.attempts.retain_recent();
        self.0.endings.retain_recent();
    }

    fn hashes(&self) -> MutexGuard<'_, HashMap<String, String>> {
        self.0.hashes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is wrong with a new password, by the rules of NIST SP 800-63B-4: long, not a known one, and that is all. Which
/// characters there have to be makes nothing safer.
pub(crate) fn check_new(name: &str, current: &str, new: &str, again: &str) -> Result<(), &'static str> {
    const LENGTH: std::ops::RangeInclusive<usize> = 15..=256;
    // In your application, look it up among those that have leaked.
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

/// Whether it is within the limit, or how long until it is.
fn within<K: Clone + Eq + Hash>(limit: &DefaultKeyedRateLimiter<K>, key: &K) -> Result<(), Duration> {
    limit.check_key(key).map_err(|refusal| refusal.wait_time_from(limit.clock().now()))
}

fn hash(password: &str) -> Result<String, password_hash::Error> {
    Ok(Argon2::default().hash_password(password.as_bytes())?.to_string())
}

/// Hashes off the threads that serve requests. Each takes 19 MiB and one core: more at a time would only take turns, and the
/// memory.
async fn at_work<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, JoinError> {
    static HASHING: Semaphore = Semaphore::const_new(4);
    let permit = HASHING.acquire().await;
    spawn_blocking(move || {
        // Whoever asked may have gone by now, but the work is under way.
        let _permit = permit;
        work()
    })
    .await
}

/// Ten at once, and then one each half minute: 2880 guesses a day. Fewer would be a way to lock somebody out.
const ATTEMPTS: Quota = Quota::per_minute(NonZeroU32::new(2).unwrap()).allow_burst(NonZeroU32::new(10).unwrap());

/// Five at once, and then one each two minutes: fewer than logins, so that one of those gets through.
const ENDINGS: Quota = Quota::per_hour(NonZeroU32::new(30).unwrap()).allow_burst(NonZeroU32::new(5).unwrap());
