//! Changes: the operations that a handler records, and their effect on a session.
//!
//! A handler never writes to the backend. It records [`Change`]s. Applied in order to the [base](super), they result in
//! [`Staged`]: the state that the handler sees and that a commit writes. After a conflict, the same changes are applied to the
//! current record (a rebase).

use std::{fmt, sync::Arc, time::Duration};

use crate::{
    error::Error,
    record::{
        data::Data,
        value::{Raw, from_raw, json},
    },
    session::{presented::Base, sign_in::SignIn},
    sessions::creation::check_key,
};

/// One operation that a handler recorded.
#[derive(Clone)]
pub(crate) enum Change {
    Set(Arc<str>, Raw),
    Remove(Arc<str>),
    /// The last field is the value that the closure returned. `None` if it has not run on this base yet.
    Modify(Arc<str>, Modify, Option<Raw>),
    /// Replaces all data. Used until the current data is known, and with it the difference.
    Replace(Data),
    Ttl(Duration),
    Bind(SignIn),
    Create(SignIn, Data),
    Rework,
    Delete,
    Clear,
    ClearOthers,
    /// Completes a `clear_others` whose new ID is stored: ends the other sessions. `login` means that a login made that ID.
    EndOthers {
        login: bool,
    },
    /// A closure that failed on this base. It fails the commit.
    Failed(Error),
}

/// Computes a new value from the old one, both as JSON.
pub(crate) type Modify = Arc<dyn Fn(Option<&[u8]>) -> Result<Raw, Error> + Send + Sync>;

/// The base with the changes applied: the state that the handler sees and that a commit writes.
#[derive(Clone, Default)]
pub(crate) struct Staged {
    /// Which other sessions end. This runs after a login.
    pub(crate) clear: Clearing,
    pub(crate) identity: Identity,
    pub(crate) ttl: Option<Duration>,
    pub(crate) data: Data,
    /// Whether the data is independent of concurrent writes to the loaded session.
    pub(crate) fresh: bool,
    /// Whether the data began empty, whatever the base is.
    pub(crate) known: bool,
    /// Whether the loaded session has ended, so that its data can only be read.
    pub(crate) gone: bool,
}

/// Which sessions of the user end. If several were recorded, the widest one counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Clearing {
    #[default]
    Nothing,
    /// All except the loaded one, which already has its new ID. `login` means that a login made that ID.
    Rest {
        login: bool,
    },
    /// All except the loaded one.
    Others,
    All,
}

/// Which session the request has after the commit. The last one counts, except that `Rework` only replaces `Keep`.
#[derive(Clone, Default, PartialEq)]
pub(crate) enum Identity {
    #[default]
    Keep,
    Rework,
    /// A session of this user. It keeps the data if the previous session was a visitor's or the same user's.
    Bind(SignIn),
    /// A session of this user that starts with the given data.
    Create(SignIn),
    /// No session, or a new visitor's session if data is written afterwards.
    Delete,
}

impl Staged {
    /// Returns this data without changes.
    pub(crate) fn on(data: Data) -> Self {
        Self { data, ..Self::default() }
    }

    /// Returns this base without changes.
    pub(crate) fn on_base(base: &Base) -> Self {
        match base {
            Base::Live(opened) => Self::on(opened.loaded.contents.data.clone()),
            Base::Gone(opened) => Self { gone: true, ..Self::on(opened.loaded.contents.data.clone()) },
            Base::Nothing | Base::Superseded(_) | Base::Refused | Base::Unreadable(_) => Self::default(),
        }
    }

    /// Applies the same changes to other data (a rebase). Closures run again in order, each on the result of the one before.
    ///
    /// `key` is the session key of the loaded session.
    pub(crate) fn rebase(changes: &[Change], data: Data, key: Option<&str>) -> Result<Self, Error> {
        let mut staged = Self::on(data);
        for change in changes {
            for change in change.clone().unresolved().resolve(&staged) {
                staged.apply(&change, key)?;
            }
        }
        Ok(staged)
    }

    /// Applies one more change. `key` is the session key of the loaded session.
    pub(crate) fn apply(&mut self, change: &Change, key: Option<&str>) -> Result<(), Error> {
        match change {
            Change::Set(name, value) | Change::Modify(name, _, Some(value)) => self.data.set(name, value.clone()),
            // The session is not loaded, so the value cannot be computed yet.
            Change::Modify(_, _, None) => {}
            Change::Remove(name) => self.data.remove(name),
            Change::Replace(data) => self.data = data.clone(),
            Change::Ttl(ttl) => self.ttl = Some(*ttl),
            Change::Bind(new) => {
                if self.leaves_user(key, new.key()) || self.gone {
                    self.start_afresh();
                }
                self.identity = Identity::Bind(new.clone());
            }
            Change::Create(new, data) => {
                self.leaves_user(key, new.key());
                self.start_afresh();
                self.data = data.clone();
                self.identity = Identity::Create(new.clone());
            }
            Change::Rework => {
                if self.identity == Identity::Keep {
                    self.identity = Identity::Rework;
                }
            }
            Change::Delete => {
                self.ttl = None;
                self.start_afresh();
                self.identity = Identity::Delete;
            }
            Change::Clear => {
                self.clear = Clearing::All;
                match self.identity {
                    // A login in the same request comes first, and keeps its current data.
                    Identity::Bind(_) | Identity::Create(_) => {}
                    Identity::Keep | Identity::Rework | Identity::Delete => {
                        self.ttl = None;
                        self.start_afresh();
                    }
                }
            }
            Change::ClearOthers => self.clear = self.clear.max(Clearing::Others),
            Change::EndOthers { login } => self.clear = self.clear.max(Clearing::Rest { login: *login }),
            Change::Failed(error) => return Err(error.clone()),
        }
        Ok(())
    }

    /// Returns the session key after the changes.
    pub(crate) fn key<'a>(&'a self, loaded: Option<&'a str>) -> Option<&'a str> {
        match &self.identity {
            Identity::Bind(user) | Identity::Create(user) => Some(user.key()),
            Identity::Delete => None,
            Identity::Keep | Identity::Rework => loaded.filter(|_| self.clear != Clearing::All),
        }
    }

    /// Returns whether data was written after a sign-out, which belongs to a new visitor's session.
    pub(crate) fn is_left_behind(&self) -> bool {
        let signs_in = matches!(self.identity, Identity::Bind(_) | Identity::Create(_));
        self.fresh && !signs_in && !self.data.is_empty()
    }

    /// Returns whether signing in as `new` leaves another user's session. Data never moves from one user to another.
    fn leaves_user(&mut self, key: Option<&str>, new: &str) -> bool {
        let leaves = self.key(key).is_some_and(|key| key != new);
        if leaves {
            self.ttl = None;
        }
        leaves
    }

    fn start_afresh(&mut self) {
        self.data = Data::default();
        self.fresh = true;
        self.known = true;
    }
}

impl Change {
    /// Resolves the change against `staged`: runs a closure, and turns a whole update into its difference.
    pub(crate) fn resolve(self, staged: &Staged) -> Vec<Self> {
        match self {
            Self::Modify(name, modify, None) => match modify(staged.data.raw(&name)) {
                Ok(value) => vec![Self::Modify(name, modify, Some(value))],
                Err(error) => vec![Self::Failed(error)],
            },
            Self::Replace(data) => data
                .difference_from(&staged.data)
                .into_iter()
                .map(|(name, value)| match value {
                    Some(value) => Self::Set(name, value),
                    None => Self::Remove(name),
                })
                .collect(),
            other => vec![other],
        }
    }

    /// Returns the same change for another base, where a closure runs again.
    pub(crate) fn unresolved(self) -> Self {
        match self {
            Self::Modify(name, modify, _) => Self::Modify(name, modify, None),
            other => other,
        }
    }

    /// Returns whether the change ends sessions. It then takes effect even if other changes fail.
    pub(crate) fn is_ending(&self) -> bool {
        matches!(self, Self::Delete) || self.is_clearing()
    }

    /// Returns whether the change is a login with a valid session key.
    pub(crate) fn is_possible_login(&self) -> bool {
        matches!(self, Self::Bind(user) | Self::Create(user, _) if check_key(user.key()).is_ok())
    }

    /// Returns whether the change also ends other sessions.
    pub(crate) fn is_clearing(&self) -> bool {
        matches!(self, Self::Clear | Self::ClearOthers | Self::EndOthers { .. })
    }

    /// Returns whether the change [undoes](Self::is_undone_by) others.
    pub(crate) fn starts_afresh(&self) -> bool {
        matches!(self, Self::Delete | Self::Create(..))
    }

    /// Returns whether a later `change` undoes this one completely.
    pub(crate) fn is_undone_by(&self, change: &Change) -> bool {
        match change {
            _ if self.is_clearing() => false,
            Self::Delete => true,
            Self::Create(..) => !matches!(self, Self::Ttl(_) | Self::Bind(_) | Self::Delete | Self::Create(..)),
            _ => false,
        }
    }

    /// Wraps the closure of a `modify` call.
    pub(crate) fn modifier<T, F>(change: F) -> Modify
    where
        T: serde::Serialize + serde::de::DeserializeOwned,
        F: Fn(Option<T>) -> T + Send + Sync + 'static,
    {
        Arc::new(move |old| {
            let old = old.map(from_raw).transpose()?;
            json(change(old))
        })
    }
}

impl fmt::Debug for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Change").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn data(value: serde_json::Value) -> Data {
        Data::from_serialize(value).unwrap()
    }

    fn set(name: &str, value: u8) -> Change {
        Change::Set(name.into(), super::json(value).unwrap())
    }

    fn bind(key: &str) -> Change {
        Change::Bind(key.into())
    }

    fn create(key: &str) -> Change {
        Change::Create(key.into(), data(json!({"new": 1})))
    }

    /// What several verbs in one request come to: the key, and the data, of ada's session with `{"old": 1}`.
    #[test]
    fn the_table_of_verbs_holds() {
        use Change::{Clear, ClearOthers, Delete, Rework};
        use Clearing::{All, Nothing, Others};
        type Row = (Vec<Change>, Option<&'static str>, serde_json::Value, Clearing);
        let table: Vec<Row> = vec![
            (vec![set("a", 1)], Some("ada"), json!({"old": 1, "a": 1}), Nothing),
            (vec![Rework, set("a", 1)], Some("ada"), json!({"old": 1, "a": 1}), Nothing),
            (vec![bind("ada"), Rework], Some("ada"), json!({"old": 1}), Nothing),
            (vec![set("a", 1), bind("ada"), set("b", 2)], Some("ada"), json!({"old": 1, "a": 1, "b": 2}), Nothing),
            (vec![set("a", 1), bind("grace"), set("b", 2)], Some("grace"), json!({"b": 2}), Nothing),
            (vec![bind("grace"), bind("ada")], Some("ada"), json!({}), Nothing),
            (vec![set("a", 1), create("ada"), set("b", 2)], Some("ada"), json!({"new": 1, "b": 2}), Nothing),
            (vec![create("grace"), Delete], None, json!({}), Nothing),
            (vec![set("a", 1), Delete, set("b", 2)], None, json!({"b": 2}), Nothing),
            (vec![Delete, Rework], None, json!({}), Nothing),
            (vec![Delete, bind("ada"), set("b", 2)], Some("ada"), json!({"b": 2}), Nothing),
            (vec![set("a", 1), Clear, set("b", 2)], None, json!({"b": 2}), All),
            (vec![create("ada"), Clear], Some("ada"), json!({"new": 1}), All),
            (vec![Clear, bind("grace")], Some("grace"), json!({}), All),
            (vec![set("a", 1), ClearOthers, set("b", 2)], Some("ada"), json!({"old": 1, "a": 1, "b": 2}), Others),
            (vec![Rework, ClearOthers], Some("ada"), json!({"old": 1}), Others),
            (vec![ClearOthers, bind("ada"), set("a", 1)], Some("ada"), json!({"old": 1, "a": 1}), Others),
            (vec![bind("grace"), ClearOthers], Some("grace"), json!({}), Others),
            (vec![ClearOthers, Delete], None, json!({}), Others),
            (vec![ClearOthers, Clear], None, json!({}), All),
            (vec![Clear, ClearOthers, set("a", 1)], None, json!({"a": 1}), All),
        ];
        for (row, (log, key, expected, clear)) in table.into_iter().enumerate() {
            let staged = Staged::rebase(&log, data(json!({"old": 1})), Some("ada")).unwrap();
            assert_eq!(staged.key(Some("ada")), key, "row {row}");
            assert!(staged.data.same_as(&data(expected)), "row {row}");
            assert_eq!(staged.clear, clear, "row {row}");
        }
    }

    #[test]
    fn a_whole_update_is_its_difference() {
        let staged = Staged::on(data(json!({"a": 1, "b": 2, "c": 3})));
        let log = Change::Replace(data(json!({"a": 1, "b": 9}))).resolve(&staged);
        // Meanwhile another request has written `a` and `d`.
        let rebased = Staged::rebase(&log, data(json!({"a": 7, "b": 2, "c": 3, "d": 4})), None).unwrap();
        assert!(rebased.data.same_as(&data(json!({"a": 7, "b": 9, "d": 4}))));
    }

    #[test]
    fn a_modify_runs_again_only_on_a_rebase() {
        let modify = Change::modifier(|n: Option<u64>| n.unwrap_or(0) + 1);
        let change = Change::Modify("n".into(), modify, None);
        let staged = Staged::on(data(json!({"n": 1})));
        let log = change.resolve(&staged);

        let mut first = staged.clone();
        first.apply(&log[0], None).unwrap();
        assert_eq!(first.data.get::<u64>("n").unwrap(), Some(2));

        let again = Staged::rebase(&log, data(json!({"n": 10})), None).unwrap();
        assert_eq!(again.data.get::<u64>("n").unwrap(), Some(11));
    }
}
