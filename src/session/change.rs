//! What a handler records, and what that comes to.
//!
//! A handler never writes to the backend. It records [`Change`]s; applied one after the other to what was loaded they give
//! a [`Plan`], which is what the handler sees and what is written. Should the record have changed meanwhile, the same
//! changes are applied to what is there now.

use std::{fmt, sync::Arc, time::Duration};

use crate::{
    error::Error,
    record::{
        data::Data,
        value::{Raw, json},
    },
};

/// One thing that a handler asked for.
#[derive(Clone)]
pub(crate) enum Change {
    Set(Arc<str>, Raw),
    Remove(Arc<str>),
    /// With what the closure gave when it was recorded; nothing if it was recorded before the session was loaded.
    Modify(Arc<str>, Modify, Option<Raw>),
    /// The whole data, where it is not known yet what it differs from.
    Replace(Data),
    Ttl(Duration),
    Bind(String),
    Create(String, Data),
    Rework,
    Delete,
    Clear,
    ClearOthers,
    /// A closure that failed when it came to it. It fails the commit.
    Failed(Error),
}

/// Makes the new value from the old one, both as JSON.
pub(crate) type Modify = Arc<dyn Fn(Option<&[u8]>) -> Result<Raw, Error> + Send + Sync>;

/// What the changes come to on what was loaded.
#[derive(Clone, Default)]
pub(crate) struct Plan {
    /// It comes first.
    pub(crate) clear: Clearing,
    pub(crate) identity: Identity,
    pub(crate) ttl: Option<Duration>,
    pub(crate) data: Data,
    /// What others write to the loaded session meanwhile does not matter to the data.
    pub(crate) fresh: bool,
    /// The data began empty, whatever is loaded.
    pub(crate) known: bool,
    /// The loaded session is gone; its data is for reading only.
    pub(crate) gone: bool,
}

/// Which sessions of the key that was loaded are to end. The most that was asked for counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Clearing {
    #[default]
    Nothing,
    /// All but the loaded one.
    Others,
    All,
}

/// Which session there is to be afterwards. Later ones win, but for `Rework`, which only wins over `Keep`.
#[derive(Clone, Default, PartialEq)]
pub(crate) enum Identity {
    #[default]
    Keep,
    Rework,
    /// Of this key, and with the data of before if that was anonymous or the same key's.
    Bind(String),
    /// Of this key.
    Create(String),
    /// None; or another anonymous one, if there is data again.
    Delete,
}

/// Whether closures run again, or what they gave is taken.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Modifies {
    Recorded,
    Again,
}

impl Plan {
    /// Nothing asked for yet, on that data.
    pub(crate) fn on(data: Data) -> Self {
        Self { data, ..Self::default() }
    }

    /// What all those changes come to on that data, of a session with that key.
    pub(crate) fn replay(log: &[Change], data: Data, key: Option<&str>) -> Result<Self, Error> {
        let mut plan = Self::on(data);
        log.iter().try_for_each(|change| plan.apply(change, key, Modifies::Again))?;
        Ok(plan)
    }

    /// One more change. `key` is that of the loaded session.
    pub(crate) fn apply(&mut self, change: &Change, key: Option<&str>, modifies: Modifies) -> Result<(), Error> {
        match change {
            Change::Set(name, value) => self.data.set(name, value.clone()),
            Change::Remove(name) => self.data.remove(name),
            Change::Modify(name, modify, recorded) => {
                let value = match recorded {
                    Some(value) if modifies == Modifies::Recorded => value.clone(),
                    _ => modify(self.data.raw(name))?,
                };
                self.data.set(name, value);
            }
            Change::Replace(data) => self.data = data.clone(),
            Change::Ttl(ttl) => self.ttl = Some(*ttl),
            Change::Bind(new) => {
                if self.leave(key, new) || self.gone {
                    self.start_afresh();
                }
                self.identity = Identity::Bind(new.clone());
            }
            Change::Create(new, data) => {
                self.leave(key, new);
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
                    // A login in the same request comes after, and goes on with what it has by now.
                    Identity::Bind(_) | Identity::Create(_) => self.fresh = true,
                    Identity::Keep | Identity::Rework | Identity::Delete => {
                        self.ttl = None;
                        self.start_afresh();
                    }
                }
            }
            Change::ClearOthers => self.clear = self.clear.max(Clearing::Others),
            Change::Failed(error) => return Err(error.clone()),
        }
        Ok(())
    }

    /// Whether signing in as `new` leaves another user's session. Nothing goes over from one user to another.
    fn leave(&mut self, key: Option<&str>, new: &str) -> bool {
        let leaves = self.key(key).is_some_and(|key| key != new);
        if leaves {
            self.ttl = None;
        }
        leaves
    }

    /// The session key that there will be.
    pub(crate) fn key<'a>(&'a self, loaded: Option<&'a str>) -> Option<&'a str> {
        match &self.identity {
            Identity::Bind(key) | Identity::Create(key) => Some(key),
            Identity::Delete => None,
            Identity::Keep | Identity::Rework => loaded.filter(|_| self.clear != Clearing::All),
        }
    }

    fn start_afresh(&mut self) {
        self.data = Data::default();
        self.fresh = true;
        self.known = true;
    }
}

impl Change {
    /// The same change, to be taken as it is from now on: it is known on what. Closures run here.
    pub(crate) fn settle(self, plan: &Plan) -> Vec<Self> {
        match self {
            Self::Modify(name, modify, None) => match modify(plan.data.raw(&name)) {
                Ok(value) => vec![Self::Modify(name, modify, Some(value))],
                Err(error) => vec![Self::Failed(error)],
            },
            Self::Replace(data) => data
                .difference_from(&plan.data)
                .into_iter()
                .map(|(name, value)| match value {
                    Some(value) => Self::Set(name, value),
                    None => Self::Remove(name),
                })
                .collect(),
            other => vec![other],
        }
    }

    /// The same change, to be settled again: what it was recorded on is not what there is.
    pub(crate) fn unsettle(self) -> Self {
        match self {
            Self::Modify(name, modify, _) => Self::Modify(name, modify, None),
            other => other,
        }
    }

    /// Whether it ends sessions: nothing else that goes wrong may take that back.
    pub(crate) fn is_ending(&self) -> bool {
        matches!(self, Self::Delete) || self.is_clearing()
    }

    /// Whether it ends other sessions, too.
    fn is_clearing(&self) -> bool {
        matches!(self, Self::Clear | Self::ClearOthers)
    }

    /// Whether it [undoes](Self::is_undone_by) anything.
    pub(crate) fn starts_afresh(&self) -> bool {
        matches!(self, Self::Delete | Self::Create(..))
    }

    /// Whether a later `change` leaves nothing of this one.
    pub(crate) fn is_undone_by(&self, change: &Self) -> bool {
        match change {
            _ if self.is_clearing() => false,
            Self::Delete => true,
            Self::Create(..) => !matches!(self, Self::Ttl(_) | Self::Bind(_) | Self::Delete | Self::Create(..)),
            _ => false,
        }
    }

    /// A change of one value by a closure.
    pub(crate) fn modifier<T, F>(change: F) -> Modify
    where
        T: serde::Serialize + serde::de::DeserializeOwned,
        F: Fn(Option<T>) -> T + Send + Sync + 'static,
    {
        Arc::new(move |old| {
            let old = old.map(crate::record::value::from_raw).transpose()?;
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
        Change::Bind(key.to_owned())
    }

    fn create(key: &str) -> Change {
        Change::Create(key.to_owned(), data(json!({"new": 1})))
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
            let plan = Plan::replay(&log, data(json!({"old": 1})), Some("ada")).unwrap();
            assert_eq!(plan.key(Some("ada")), key, "row {row}");
            assert!(plan.data.same_as(&data(expected)), "row {row}");
            assert_eq!(plan.clear, clear, "row {row}");
        }
    }

    #[test]
    fn a_whole_update_is_its_difference() {
        let plan = Plan::on(data(json!({"a": 1, "b": 2, "c": 3})));
        let log = Change::Replace(data(json!({"a": 1, "b": 9}))).settle(&plan);
        // Meanwhile another request has written `a` and `d`.
        let replayed = Plan::replay(&log, data(json!({"a": 7, "b": 2, "c": 3, "d": 4})), None).unwrap();
        assert!(replayed.data.same_as(&data(json!({"a": 7, "b": 9, "d": 4}))));
    }

    #[test]
    fn a_modify_runs_again_only_on_a_replay() {
        let modify = Change::modifier(|n: Option<u64>| n.unwrap_or(0) + 1);
        let change = Change::Modify("n".into(), modify, None);
        let plan = Plan::on(data(json!({"n": 1})));
        let log = change.settle(&plan);

        let mut first = plan.clone();
        first.apply(&log[0], None, Modifies::Recorded).unwrap();
        assert_eq!(first.data.get::<u64>("n").unwrap(), Some(2));

        let again = Plan::replay(&log, data(json!({"n": 10})), None).unwrap();
        assert_eq!(again.data.get::<u64>("n").unwrap(), Some(11));
    }
}
