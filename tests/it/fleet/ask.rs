//! The commands of a request and its answers. Both are JSON, so that the same walk also works over a socket.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// One request. Its number is unique in a walk, and the name of whatever it writes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Ask {
    pub id: usize,
    pub what: What,
    /// Recorded after that.
    pub writes: Vec<Write>,
    pub save: bool,
    /// It saves once more if the store's answer to the first save was lost.
    pub again: bool,
    /// Recorded after the save.
    pub late: Vec<Write>,
    /// Where the handler waits until it is let go on.
    pub wait: Option<Moment>,
    pub end: End,
    /// It writes without having loaded.
    pub blind: bool,
    /// It signs in with a `Login`, taken before the handler waits with what it has loaded, or kept since an earlier request.
    pub takes_login: bool,
    pub kept: Option<Kept>,
}

/// A `Login` that an earlier request has taken.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Kept {
    pub by: usize,
    pub login: Value,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum What {
    /// Reads, or only writes.
    Visit,
    /// Does not look at the session.
    Unused,
    Bind(String),
    Create(String),
    /// Signs out everywhere, and in again.
    ClearAndBind(String),
    /// Signs out everywhere else, and in: a new password, or a link that resets it.
    OthersAndBind(String),
    Rework,
    Delete,
    Clear,
    /// Signs out everywhere else, and keeps the session under a new ID.
    ClearOthers,
    /// The sessions of whoever is signed in.
    List,
    /// Ends one of them, by its handle.
    Revoke(String),
    /// Takes a `Login` and hands it out, to be kept until another request comes with it.
    TakeLogin(String),
    /// Writes more than a session may hold.
    Huge,
    /// Of the module, without a session.
    ListOf(String),
    ClearOf(String),
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Write {
    /// One more of that counter, by `modify`.
    Add(usize),
    /// A value under a name that no other request writes.
    Put(usize),
    Take(usize),
    /// A value under a name that all write.
    Theme(usize),
    /// Ends where it began.
    Idle,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum Moment {
    Come,
    Loaded,
    Recorded,
    Saved,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum End {
    Well,
    Fail,
    Panic,
}

/// What the handler says.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Said {
    pub id: usize,
    /// What it loaded.
    pub seen: Option<Seen>,
    /// `ok`, `gone` or `cross-site`.
    pub saved: Option<String>,
    /// That was the answer to its second try.
    pub again: bool,
    /// What there was after the save.
    pub after: Option<Seen>,
    pub list: Option<Vec<Seen>>,
    pub revoked: Option<bool>,
    /// The `Login` that it has taken.
    pub login: Option<Value>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Seen {
    pub handle: Option<String>,
    pub key: Option<String>,
    pub data: BTreeMap<String, Value>,
}

/// A whole response.
#[derive(Clone, Debug, Default)]
pub struct Reply {
    pub status: u16,
    /// With names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Ask {
    pub fn new(id: usize, what: What) -> Self {
        let (writes, late) = (vec![], vec![]);
        let (wait, kept) = (None, None);
        let (save, again, blind, takes_login) = (false, false, false, false);
        Self { id, what, writes, save, again, late, wait, end: End::Well, blind, takes_login, kept }
    }

    /// The user whom it signs in.
    pub fn login(&self) -> Option<&str> {
        match &self.what {
            What::Bind(user) | What::Create(user) | What::ClearAndBind(user) | What::OthersAndBind(user) => Some(user),
            _ => None,
        }
    }

    /// Whether its login counts under the limit of sessions, unless it switches from a session of another user.
    pub fn is_limited(&self) -> bool {
        self.login().is_some() && !self.logs_in_and_clears()
    }

    /// Whether it ends sessions besides the login that it makes.
    pub fn logs_in_and_clears(&self) -> bool {
        matches!(self.what, What::ClearAndBind(_) | What::OthersAndBind(_))
    }

    /// Whether it ends sessions whatever else goes wrong.
    pub fn signs_out(&self) -> bool {
        matches!(self.what, What::Delete | What::Clear | What::ClearOthers) || self.logs_in_and_clears()
    }

    /// Whether what it writes goes to the session that it came with.
    pub fn is_plain(&self) -> bool {
        matches!(self.what, What::Visit | What::Rework | What::Huge)
    }

    /// Whether it writes what makes a session of nothing.
    pub fn is_kept(writes: &[Write]) -> bool {
        writes.iter().any(|write| matches!(write, Write::Add(_) | Write::Put(_) | Write::Theme(_)))
    }
}

impl Reply {
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.headers.iter().filter(move |(header, _)| header == name).map(|(_, value)| value.as_str())
    }

    pub fn said(&self) -> Option<Said> {
        serde_json::from_slice(&self.body).ok()
    }
}

pub const COUNTERS: usize = 2;
