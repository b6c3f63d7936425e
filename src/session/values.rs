//! The data of a session: how it is loaded, read and changed.

use serde::{Serialize, de::DeserializeOwned};

use crate::{
    error::Error,
    record::{data::Data, value::json},
    session::{
        Session,
        change::{Change, Staged},
    },
};

impl Session {
    /// Loads the session. The axum extractor calls this. Later calls return at once.
    ///
    /// To load it up front for a whole router, use `axum::middleware::from_extractor::<Session>()`.
    ///
    /// # Errors
    /// [`Unavailable`](crate::ErrorKind::Unavailable) if the store fails, or if the sessions are
    /// [closed](crate::Sessions::close). If the record cannot be read, this call succeeds and [`get`](Self::get) fails.
    pub async fn load(&self) -> Result<(), Error> {
        self.0.load().await
    }

    /// Returns the value with this name, or `None`.
    ///
    /// # Errors
    /// * [`Data`](crate::ErrorKind::Data) if the value does not deserialize as a `T`.
    /// * [`NotLoaded`](crate::ErrorKind::NotLoaded) before [`load`](Self::load).
    /// * [`Unreadable`](crate::ErrorKind::Unreadable), [`Corrupt`](crate::ErrorKind::Corrupt) or
    ///   [`WrongKey`](crate::ErrorKind::WrongKey) if the record cannot be read.
    pub fn get<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, Error> {
        // Deserializing is the application's code, and runs outside the lock.
        let value = self.0.pending(|pending| pending.data().map(|data| data.value(name)))?;
        value.map(|value| value.read()).transpose()
    }

    /// Returns all data, including the changes of this request.
    ///
    /// # Errors
    /// [`NotLoaded`](crate::ErrorKind::NotLoaded) before [`load`](Self::load). [`Unreadable`](crate::ErrorKind::Unreadable),
    /// [`Corrupt`](crate::ErrorKind::Corrupt) or [`WrongKey`](crate::ErrorKind::WrongKey) if the record cannot be read.
    pub fn data(&self) -> Result<Data, Error> {
        self.0.pending(|pending| pending.data().cloned())
    }

    /// Writes one value. If there is no session yet, this creates a visitor's session. Writing a value that is already there
    /// does nothing.
    ///
    /// An accepted value is read back exactly: numbers to the last bit, integers up to 128 bits, strings, bytes, sequences and
    /// maps. Three details:
    ///
    /// * As in serde_json, a `Some` of something that serializes as `null`, such as `Some(())`, is read back as `None`.
    /// * A custom [`Serializer`](crate::Serializer) takes only integers that fit in an `i64` or a `u64`.
    /// * If a value serializes the same field twice, as `#[serde(flatten)]` can, reading it back as a map returns the last
    ///   one. Reading it as a struct with that field fails.
    ///
    /// # Errors
    /// [`Data`](crate::ErrorKind::Data) if the value does not serialize, or would not be read back equal: a number that is
    /// `NaN` or infinite, more than 127 levels of nesting, a map with one of the two names that serde_json reserves
    /// (`$serde_json::private::Number` and `…RawValue`), or a value that a custom `Serializer` does not write or read back.
    ///
    /// If the record cannot be read, or would be larger than [`max_size`](crate::Builder::max_size), this call succeeds and
    /// the commit fails.
    pub fn insert(&self, name: &str, value: impl Serialize) -> Result<(), Error> {
        let (name, value) = (name.into(), json(value)?);
        self.0.engine().codec().check_value(&name, &value)?;
        self.0.stage(Change::Set(name, value))
    }

    /// Computes the new value from the old one. Concurrent `modify` calls never lose an update.
    ///
    /// The closure runs again each time another request has written to the session in the meantime, so it should have no side
    /// effects. Write out the type of its argument: `|n: Option<u64>| n.unwrap_or(0) + 1`.
    ///
    /// # Errors
    /// [`Data`](crate::ErrorKind::Data) if the new value would be refused by [`insert`](Self::insert), or if the old one
    /// does not deserialize as a `T`. If the session is not [loaded](Self::load) yet, the closure runs at the commit, and
    /// any such error is returned there. As with `insert`, the commit fails if the record cannot be read, or would be too
    /// large.
    pub fn modify<T: Serialize + DeserializeOwned>(
        &self,
        name: &str,
        change: impl Fn(Option<T>) -> T + Send + Sync + 'static,
    ) -> Result<(), Error> {
        let change = Change::Modify(name.into(), Change::modifier(change), None);
        let mut tries = 0..TRIES_TO_MODIFY;
        loop {
            let known = self.0.pending(|pending| match pending.is_known() {
                true => Ok(Some(Staged::on(pending.staged().data.clone()))),
                false => pending.stage(change.clone()).map(|_| None),
            });
            // The closure is the application's code, and runs outside the lock.
            let Some(before) = known? else { return Ok(()) };
            let resolved = change.clone().resolve(&before);
            if let [Change::Failed(error)] = &resolved[..] {
                return Err(error.clone());
            }
            if let [Change::Modify(name, _, Some(value))] = &resolved[..] {
                self.0.engine().codec().check_value(name, value)?;
            }
            let may_retry = tries.next().is_some();
            let staged = self.0.pending(|pending| {
                // Another clone may have written this name in the meantime, or the closure itself. So the retries are bounded.
                let changed = pending.staged().data.raw(name) != before.data.raw(name);
                if changed && may_retry {
                    return Ok(false);
                }
                // Dropped first, so that the change does not have to copy all of the data.
                drop(before);
                resolved.into_iter().try_for_each(|change| pending.stage(change).map(drop)).map(|()| true)
            });
            if staged? {
                return Ok(());
            }
        }
    }

    /// Removes one value. Removing a value that is not there does nothing.
    pub fn remove(&self, name: &str) {
        self.0.stage_plain(Change::Remove(name.into()));
    }

    /// Returns one value and removes it, for example a message for the next page.
    ///
    /// If the response fails, the value stays. Two requests at the same time may both return it.
    ///
    /// ```
    /// use jam_session::{Error, Session};
    ///
    /// // POST /profile, which then redirects to /profile
    /// async fn save(session: Session) -> Result<(), Error> {
    ///     session.insert("notice", "Your profile is saved.")
    /// }
    ///
    /// // GET /profile
    /// async fn show(session: Session) -> Result<String, Error> {
    ///     Ok(session.take::<String>("notice")?.unwrap_or_default())
    /// }
    /// ```
    ///
    /// # Errors
    /// The errors of [`get`](Self::get). The value then stays.
    #[doc(alias = "flash")]
    pub fn take<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, Error> {
        let value = self.get(name)?;
        if value.is_some() {
            self.remove(name);
        }
        Ok(value)
    }

    /// Replaces all data. The new data can be anything that serializes to a JSON object.
    ///
    /// If the new data has the same value for a name as the old data, a change to that name by a parallel request is kept.
    ///
    /// # Errors
    /// [`Data`](crate::ErrorKind::Data) if it does not serialize to an object, or a value in it would be refused by
    /// [`insert`](Self::insert). [`Unreadable`](crate::ErrorKind::Unreadable), [`Corrupt`](crate::ErrorKind::Corrupt) or
    /// [`WrongKey`](crate::ErrorKind::WrongKey) if the record cannot be read; if the session is not [loaded](Self::load)
    /// yet, the commit returns this error instead.
    pub fn update(&self, data: impl Serialize) -> Result<(), Error> {
        let data = Data::from_serialize(data)?;
        self.0.engine().codec().check_data(&data)?;
        self.0.pending(|pending| pending.replace(data)).map(drop)
    }
}

/// How often a closure runs again because other clones write the same name.
const TRIES_TO_MODIFY: usize = 8;
