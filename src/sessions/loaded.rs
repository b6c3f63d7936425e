//! Sessions as the engine loads them, and the results of lookups, writes and sign-outs.

use std::{sync::Arc, time::Duration};

use crate::{
    error::Error,
    record::{
        Contents, Hint,
        id::{Owner, RecordId},
        secrets::Opening,
        token::SecretHash,
    },
};

/// A live session as it was when it was last read or written.
#[derive(Clone)]
pub(crate) struct Loaded {
    pub(crate) id: RecordId,
    pub(crate) version: i64,
    /// The time to live in the backend.
    pub(crate) ttl: Duration,
    pub(crate) contents: Contents,
    /// The backend's hint for the next write.
    pub(crate) hint: Hint,
    /// Whether the record should be encrypted again, because the keyring has changed.
    pub(crate) stale: bool,
}

/// A session, and the hash of the secret that the request came with.
#[derive(Clone)]
pub(crate) struct Opened {
    pub(crate) loaded: Arc<Loaded>,
    pub(crate) secret: SecretHash,
}

/// A record that exists but cannot be read.
#[derive(Clone)]
pub(crate) struct Unreadable {
    pub(crate) id: RecordId,
    pub(crate) error: Error,
    /// Whether the ID was encrypted with one of our keys, which proves that we issued it.
    pub(crate) is_proven: bool,
}

/// The result of looking up an ID.
pub(crate) enum Found {
    /// There is no live session.
    Nothing,
    /// There is a live session, but the secret does not open it.
    Closed,
    Opened(Opened, Opening),
    Unreadable(Box<Unreadable>),
}

/// The result of a write.
pub(crate) enum WriteOutcome {
    Done(Arc<Loaded>),
    Gone,
    /// Another request wrote this.
    Conflict(Arc<Loaded>),
    /// Another request wrote a record that cannot be read.
    Unreadable(Error),
}

/// The result of a sign-out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EndOutcome {
    /// This call ended the session.
    Now,
    /// The session had already ended.
    Before,
    /// The session lives on, because the secret does not open it.
    Refused,
}

impl Loaded {
    pub(crate) fn is_live_at(&self, now: u64) -> bool {
        self.contents.deadline > now
    }

    pub(crate) fn owner(&self) -> Option<Owner> {
        self.id.owner()
    }

    /// Returns whether changes made to this version may be applied to a later one.
    ///
    /// They may, unless there was a login or a `clear_others` in between. A rotation does not matter.
    pub(crate) fn has_same_login(&self, later: &Contents) -> bool {
        self.contents.logins == later.logins
    }
}

impl Opened {
    /// Opens a session that was just stored, by its newest secret.
    pub(crate) fn newest(loaded: Arc<Loaded>) -> Self {
        let secret = loaded.contents.hash;
        Self { loaded, secret }
    }

    /// Returns what kind of secret it is for the loaded session at that time, or `None` if it does not open it.
    pub(crate) fn opening(&self, now: u64) -> Option<Opening> {
        self.loaded.contents.opening(&self.secret, now)
    }

    /// Returns whether the secret is the newest one of the loaded session.
    pub(crate) fn is_newest(&self) -> bool {
        self.loaded.contents.hash.matches(&self.secret)
    }

    /// Replaces the loaded copy by a later one.
    pub(crate) fn at(&self, loaded: Arc<Loaded>) -> Self {
        Self { loaded, secret: self.secret }
    }

    pub(crate) fn key(&self) -> Option<&str> {
        self.loaded.contents.key.as_deref()
    }
}

impl WriteOutcome {
    /// Returns the session as written, or the error that the outcome means.
    pub(crate) fn done(self) -> Result<Arc<Loaded>, Error> {
        match self {
            Self::Done(loaded) => Ok(loaded),
            Self::Unreadable(error) => Err(error),
            Self::Gone | Self::Conflict(_) => Err(Error::not_found()),
        }
    }
}

/// A session for the tests of the core: its name ends in this number, and its newest secret is made of it.
#[cfg(test)]
pub(crate) fn sample(number: u8, key: Option<&str>, data: crate::record::data::Data) -> Opened {
    let secret = SecretHash::from_bytes([number; 32]);
    let contents = Contents {
        key: key.map(Arc::from),
        hash: secret,
        previous: Vec::new(),
        superseded: Vec::new(),
        logins: 0,
        issued: None,
        created: 0,
        signed_in: key.map(|_| 0),
        written: 0,
        deadline: u64::MAX,
        idle: None,
        data,
    };
    let owner = key.map(|key| Owner::from([key.len() as u8; 16]));
    let sid = format!("AAAAAAAAAAAAAAAAAAAA{number:02}");
    let id = match owner {
        Some(owner) => format!("{owner}.{sid}").parse(),
        None => sid.parse(),
    };
    let loaded = Loaded {
        id: id.unwrap(),
        version: number.into(),
        ttl: Duration::MAX,
        contents,
        hint: Hint::default(),
        stale: false,
    };
    Opened { loaded: Arc::new(loaded), secret }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::data::Data;

    /// Rule 15: what was held back does not land in the session after a new password. Rotation drops nothing.
    #[test]
    fn changes_go_on_over_a_rotation_and_not_over_a_login() {
        let Opened { loaded, secret: first } = sample(1, Some("ada"), Data::default());
        let [second, third] = [2, 3].map(|n| SecretHash::from_bytes([n; 32]));
        let mut now = loaded.contents.clone();
        assert!(now.rotate(&first, second, 10_000, 0) && loaded.has_same_login(&now));
        assert!(now.supersede(&second, third, 0) && !loaded.has_same_login(&now));
        // Changes made after the login apply to its session.
        let after = Loaded { contents: now.clone(), ..Loaded::clone(&loaded) };
        assert!(after.has_same_login(&now));
    }
}
