//! The builder of [`Sessions`]: one method per option.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use zeroize::Zeroizing;

use crate::{
    backend::{Backend, terms::Limit},
    clock::Clock,
    error::{Error, ErrorKind},
    events::{Event, Listener},
    record::{
        Serializer,
        codec::{Codec, Form},
        keyring::Keyring,
    },
    sessions::{Sessions, policy::Policy},
};

/// Configures and builds [`Sessions`]. `T` is what they are built from: a backend, a file or a server.
///
/// Options that cannot work make the call that builds the sessions fail with [`ErrorKind::Config`], and the message says why.
///
/// ```
/// # use jam_session::MemorySessions;
/// # use std::time::Duration;
/// let sessions = MemorySessions::builder()
///     .default_ttl(Duration::from_secs(30 * 60))
///     .max_lifetime(Duration::from_secs(7 * 86_400))
///     .build()?;
/// # Ok::<(), jam_session::Error>(())
/// ```
#[must_use]
pub struct Builder<T> {
    pub(crate) from: T,
    /// Checks whether a session with that payload fits within the bounds of `from`. The error says which bound is too small.
    pub(crate) fits: fn(&T, &Bytes) -> Result<(), &'static str>,
    policy: Policy,
}

impl<T> Builder<T> {
    pub(crate) fn new(from: T) -> Self {
        Self { from, fits: |_, _| Ok(()), policy: Policy::default() }
    }

    /// Writes records in the human-readable form.
    pub(crate) fn in_text(mut self) -> Self {
        self.policy.form = Form::Text;
        self
    }

    /// Sets the key prefix in the store. Applications with different namespaces never share sessions. Default: `sessions`.
    ///
    /// It must have 1 to 256 bytes, and no braces: in a Redis Cluster these decide the slot.
    ///
    /// After a change, existing sessions are not found.
    ///
    /// On Redis, the namespace is part of each Redis key. Memory, the JSON file and a custom [`Backend`] do
    /// not see it, so give each application a separate store there. Two namespaces in one such store cannot read each other's
    /// sessions, but [`Sessions::count`](crate::Sessions::count) counts both, and [`Sessions::all`](crate::Sessions::all) logs
    /// a warning for each session that it cannot read.
    #[doc(alias = "prefix", alias = "key prefix", alias = "sessions_key", alias = "redis_sessions_key")]
    pub fn namespace(mut self, namespace: impl Into<String>) -> Self {
        self.policy.namespace = namespace.into();
        self
    }

    /// Sets the idle timeout: a session that is not used for this long ends. `None` turns it off. It must be at least 1
    /// millisecond. Default: 1 hour.
    ///
    /// An unused session never lives longer than this (but see promise 18 for the JSON file). It may end up to
    /// [`touch_interval`](Self::touch_interval) earlier, because not every use is recorded.
    /// [`Session::set_ttl`](crate::Session::set_ttl) overrides the timeout for one session.
    #[doc(alias = "idle_timeout", alias = "idle timeout", alias = "expire")]
    pub fn default_ttl(mut self, ttl: impl Into<Option<Duration>>) -> Self {
        self.policy.default_ttl = ttl.into();
        self
    }

    /// Sets the absolute timeout: a session ends this long after its login, used or not. It must be at least 1 millisecond.
    /// Default: 30 days.
    ///
    /// Only a new login starts it again. NIST SP 800-63B-4 calls this the overall timeout, and asks for at most 30 days.
    #[doc(alias = "absolute_timeout", alias = "absolute timeout", alias = "expire")]
    pub fn max_lifetime(mut self, lifetime: Duration) -> Self {
        self.policy.max_lifetime = lifetime;
        self
    }

    /// Sets the absolute timeout of visitors' sessions, which no user has signed in to. It must be at least 1 millisecond.
    /// Default: 1 day.
    pub fn anonymous_lifetime(mut self, lifetime: Duration) -> Self {
        self.policy.anonymous_lifetime = lifetime;
        self
    }

    /// Sets how often, at most, reads renew the idle timeout in the store. Default: 5 minutes.
    ///
    /// A shorter interval means more writes. With a longer one, sessions may end too early by up to the interval. It is
    /// capped at a tenth of the session's idle timeout. With zero, every read renews the timeout, at most once per
    /// millisecond.
    #[doc(alias = "throttle", alias = "write throttling")]
    pub fn touch_interval(mut self, interval: Duration) -> Self {
        self.policy.touch_interval = Some(interval);
        self
    }

    /// Sets how many sessions a user may have, at least 1. Default: 100; above it, the least recently used session ends.
    ///
    /// The store counts writes and [touches](Self::touch_interval) as use. The new session is never the one that ends. With
    /// [`Limit::refuse`], a login above the limit fails instead, with [`ErrorKind::Full`].
    ///
    /// Signing in again in a browser that is already signed in does not add a session. If you lower the limit, it applies from
    /// the user's next login.
    ///
    /// Without a limit, one account can fill the store, and the cost of [`list`](Sessions::list) and
    /// [`clear`](Sessions::clear) is unbounded.
    ///
    /// ```
    /// # use jam_session::{Limit, MemorySessions};
    /// MemorySessions::builder().sessions_per_key(5);
    /// MemorySessions::builder().sessions_per_key(Limit::refuse(5));
    /// MemorySessions::builder().sessions_per_key(Limit::none());
    /// ```
    #[doc(alias = "max_sessions", alias = "concurrent sessions")]
    pub fn sessions_per_key(mut self, limit: impl Into<Limit>) -> Self {
        self.policy.sessions_per_key = limit.into();
        self
    }

    /// Sets how long the previous ID stays valid after a [`rework`](Sessions::rework). Default: 10 seconds.
    ///
    /// The grace is for requests that were already in flight with the previous ID. Using that ID never extends it. With zero, the
    /// previous ID is invalid at once.
    pub fn rework_grace(mut self, grace: Duration) -> Self {
        self.policy.rework_grace = grace;
        self
    }

    /// Sets the time limit for all backend calls of one request together, or for one call on [`Sessions`]. It must be at
    /// least 1 millisecond. Default: 1 second.
    ///
    /// When it runs out, the call fails with [`ErrorKind::Unavailable`].
    #[doc(alias = "timeout")]
    pub fn request_time(mut self, time: Duration) -> Self {
        self.policy.request_time = time;
        self
    }

    /// Sets how often the store is polled while a stream waits for its session to [end](crate::Session::ended). It must be
    /// at least 1 millisecond. Default: 5 seconds.
    ///
    /// It may take up to this long until a stream learns that its session expired or was ended by another process. If this
    /// process ends the session, its streams learn of it at once. Each session is polled once per interval, however many
    /// streams it has.
    pub fn watch_interval(mut self, interval: Duration) -> Self {
        self.policy.watch_interval = interval;
        self
    }

    /// Sets how long streams continue while the store fails. After that, [`ended`](crate::Session::ended) resolves to
    /// [`Unknown`](crate::Ending::Unknown). Default: 1 minute, or the idle timeout if that is shorter.
    ///
    /// Each stream adds a random delay of up to a third of this time, so that they do not all end at once. `unknown_after`
    /// must be at least 1 millisecond, and not longer than [`default_ttl`](Self::default_ttl).
    pub fn unknown_after(mut self, time: Duration) -> Self {
        self.policy.unknown_after = Some(time);
        self
    }

    /// Sets the largest size of a record, in bytes. Default: 1 MiB.
    ///
    /// A write that would exceed it fails with [`ErrorKind::TooLarge`] and changes nothing. The 45 bytes that
    /// [`encrypt`](Self::encrypt) adds do not count. The smallest session takes about 100 bytes, or about 200 in a JSON file, and
    /// a smaller limit is refused.
    pub fn max_size(mut self, bytes: usize) -> Self {
        self.policy.max_size = bytes;
        self
    }

    /// Sets a secret of at least 16 bytes that is hashed into the names of records. Default: none.
    ///
    /// Without it, someone who can read the store can test guesses of a session key against those names. The pepper cannot be
    /// rotated: with a different one, existing sessions are not found.
    pub fn pepper(mut self, secret: impl Into<Vec<u8>>) -> Self {
        self.policy.pepper = Some(Zeroizing::new(secret.into()));
        self
    }

    /// Encrypts IDs and records with a keyring. Default: no encryption.
    ///
    /// IDs and records that are not encrypted, or are encrypted with other keys, are then refused. The
    /// [`keyring`](crate::keyring) docs say how to turn encryption on, and how to change keys, without signing users out.
    pub fn encrypt(mut self, keyring: Keyring) -> Self {
        self.policy.keyring = Some(keyring);
        self
    }

    /// Sets a function that makes the public part of session IDs, the handle in [`list`](Sessions::list). Default: a version 4
    /// UUID in base64.
    ///
    /// It must return 22 to 43 characters of `[A-Za-z0-9_-]`, different each time. The secret part of an ID, 256 random bits,
    /// does not come from it. Building the sessions calls the function once, to test it.
    pub fn id_factory(mut self, factory: impl Fn() -> String + Send + Sync + 'static) -> Self {
        self.policy.id_factory = Some(Arc::new(factory));
        self
    }

    /// Sets the serializer for the data of sessions. Default: `serde_json`.
    pub fn serializer(mut self, serializer: impl Serializer) -> Self {
        self.policy.serializer = Some(Arc::new(serializer));
        self
    }

    /// Sets a function that is called for each [event](crate::events): a login, a sign-out, a new ID. Default: none.
    ///
    /// The function runs inside the request, after the store has confirmed the change, so it must not block. If it panics, the
    /// panic is logged and the request continues.
    #[doc(alias = "audit", alias = "hook")]
    pub fn on_event(mut self, listener: impl Fn(&Event<'_>) + Send + Sync + 'static) -> Self {
        self.policy.on_event = Listener::new(listener);
        self
    }

    /// Sets the clock, so that tests need not wait. Default: the system's clock. See [`Clock`].
    pub fn clock(mut self, clock: Clock) -> Self {
        self.policy.clock = clock;
        self
    }

    /// Returns what the sessions are built from, and the [validated](Policy::check) options.
    pub(crate) fn check(self) -> Result<(T, Policy, Codec), Error> {
        let (policy, codec, smallest) = self.policy.check()?;
        (self.fits)(&self.from, &smallest).map_err(|message| Error::new(ErrorKind::Config, message))?;
        Ok((self.from, policy, codec))
    }
}

impl<B: Backend> Builder<B> {
    /// Builds the sessions.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] if an option cannot work. The message says why.
    pub fn build(self) -> Result<Sessions<B>, Error> {
        let (backend, policy, codec) = self.check()?;
        backend.set_clock(policy.clock.clone());
        Ok(Sessions::with(backend, policy, codec))
    }
}

impl<T> std::fmt::Debug for Builder<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Builder").finish_non_exhaustive()
    }
}

/// Checks that a session of the smallest size fits within the bounds of a store in this process.
pub(crate) fn check_bounds(max_sessions: usize, max_bytes: u64, smallest: u64) -> Result<(), &'static str> {
    if max_sessions == 0 {
        return Err("max_sessions must not be zero: no session fits in that");
    }
    if max_bytes < smallest {
        return Err("max_bytes is so small that no session fits in it");
    }
    Ok(())
}
