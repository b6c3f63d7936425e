//! The builder of [`Sessions`]: one method per option.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use zeroize::Zeroizing;

use crate::{
    backend::{Backend, Limit},
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

/// Sets up [`Sessions`]. `T` is what they are built from: a backend, a file, a server.
///
/// An option that cannot work is refused when the sessions are built, with an
/// [`ErrorKind::Config`] that explains why.
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
    /// Whether a session with that payload fits in the bounds of `from`. If not, the error says which one is too small.
    pub(crate) fits: fn(&T, &Bytes) -> Result<(), &'static str>,
    policy: Policy,
}

impl<T> Builder<T> {
    pub(crate) fn new(from: T) -> Self {
        Self { from, fits: |_, _| Ok(()), policy: Policy::default() }
    }

    /// Writes records in the form that people can read.
    pub(crate) fn in_text(mut self) -> Self {
        self.policy.form = Form::Text;
        self
    }

    /// Sets the key prefix in the store. Applications with different namespaces never share sessions. Default: `sessions`.
    ///
    /// After a change, existing sessions are not found.
    ///
    /// On Redis, the namespace is part of each Redis key. Memory, the JSON file and a [`Backend`](crate::Backend) of your own do not
    /// know it: of two namespaces in one such store neither can read the other's sessions, but
    /// [`Sessions::count`](crate::Sessions::count) counts both, and [`Sessions::all`](crate::Sessions::all) logs a warning for each
    /// session that it cannot read. Give each application a store of its own there.
    #[doc(alias = "prefix", alias = "key prefix", alias = "sessions_key", alias = "redis_sessions_key")]
    pub fn namespace(mut self, namespace: impl Into<String>) -> Self {
        self.policy.namespace = namespace.into();
        self
    }

    /// Sets the idle timeout: a session that is not used for this long ends. `None` turns it off. Default: 1 hour.
    ///
    /// A session ends no later than that, and at most [`touch_interval`](Self::touch_interval) earlier. One session can have
    /// [an idle timeout of its own](crate::Session::set_ttl).
    #[doc(alias = "idle_timeout", alias = "idle timeout", alias = "expire")]
    pub fn default_ttl(mut self, ttl: impl Into<Option<Duration>>) -> Self {
        self.policy.default_ttl = ttl.into();
        self
    }

    /// Sets the absolute timeout: a session ends this long after its login, used or not. Default: 30 days.
    ///
    /// Only a new login starts it again. NIST SP 800-63B-4 calls this the overall timeout, and asks for at most 30 days.
    #[doc(alias = "absolute_timeout", alias = "absolute timeout", alias = "expire")]
    pub fn max_lifetime(mut self, lifetime: Duration) -> Self {
        self.policy.max_lifetime = lifetime;
        self
    }

    /// Sets the absolute timeout of sessions that nobody has signed in to. Default: 1 day.
    pub fn anonymous_lifetime(mut self, lifetime: Duration) -> Self {
        self.policy.anonymous_lifetime = lifetime;
        self
    }

    /// Sets how often, at most, a read renews the idle timeout in the store. Default: 5 minutes. It is never more than a tenth
    /// of the session's own idle timeout, whatever is set here.
    ///
    /// A shorter interval means more writes. A longer one means that a session may end that much too early.
    #[doc(alias = "throttle", alias = "write throttling")]
    pub fn touch_interval(mut self, interval: Duration) -> Self {
        self.policy.touch_interval = Some(interval);
        self
    }

    /// Sets how many sessions a user may have. Default: 100; above it, the least recently used session ends.
    ///
    /// The store counts a write and a [touch](Self::touch_interval) as use. The session that begins is never the one that ends.
    /// With [`Limit::refuse`] a login above the limit fails instead, with [`ErrorKind::Full`]. Signing in again on a browser that
    /// is signed in makes no further session. A lower limit than before takes effect at the user's next login.
    ///
    /// Without a limit, one account can fill the store, and [`list`](Sessions::list) and [`clear`](Sessions::clear) take as long
    /// as there are sessions.
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

    /// Sets how long the previous ID still leads to the session after a [`rework`](Sessions::rework), for requests that were
    /// already on their way. Zero ends it at once. Default: 10 seconds.
    ///
    /// Using the previous ID never extends it.
    pub fn rework_grace(mut self, grace: Duration) -> Self {
        self.policy.rework_grace = grace;
        self
    }

    /// Sets the time limit for all backend calls of one request together, or of one call of [`Sessions`]. After that the answer
    /// is [`ErrorKind::Unavailable`]. Default: 1 second.
    #[doc(alias = "timeout")]
    pub fn request_time(mut self, time: Duration) -> Self {
        self.policy.request_time = time;
        self
    }

    /// Sets how often the store is asked whether a session is still there, while a stream waits for it to
    /// [end](crate::Session::ended). Default: 5 seconds.
    ///
    /// This is how late a stream hears of a session that another process has ended, or that has expired. What this process ends
    /// is told at once. The store is asked once for each session, however many streams it has.
    pub fn watch_interval(mut self, interval: Duration) -> Self {
        self.policy.watch_interval = interval;
        self
    }

    /// Sets how long a stream waits while the store cannot be asked, until [`ended`](crate::Session::ended) is
    /// [`Unknown`](crate::Ending::Unknown). Default: 1 minute, or the idle timeout if that is shorter.
    ///
    /// Each stream adds a random part of up to a third, so that not all of them end at one moment. It must not be longer than
    /// [`default_ttl`](Self::default_ttl).
    pub fn unknown_after(mut self, time: Duration) -> Self {
        self.policy.unknown_after = Some(time);
        self
    }

    /// Sets the largest size of a record, in bytes. Default: 1 MiB.
    ///
    /// A write that would exceed it fails with [`ErrorKind::TooLarge`] and changes nothing. The 45
    /// bytes that [`encrypt`](Self::encrypt) adds do not count. A size in which no session fits is refused: the smallest takes
    /// about 100 bytes, and about 200 in a JSON file.
    pub fn max_size(mut self, bytes: usize) -> Self {
        self.policy.max_size = bytes;
        self
    }

    /// Sets a secret that goes into the names of records, so that session keys cannot be guessed from them. At least 16 bytes.
    /// Default: none.
    ///
    /// It cannot be rotated: with a different pepper, existing sessions are not found.
    pub fn pepper(mut self, secret: impl Into<Vec<u8>>) -> Self {
        self.policy.pepper = Some(Zeroizing::new(secret.into()));
        self
    }

    /// Encrypts IDs and records with the keys of that ring. Default: no encryption.
    ///
    /// IDs and records that are plain, or encrypted with other keys, are then refused. The [`keyring`](crate::keyring) docs say
    /// how to turn encryption on, and how to change keys, without signing anybody out.
    pub fn encrypt(mut self, keyring: Keyring) -> Self {
        self.policy.keyring = Some(keyring);
        self
    }

    /// Sets what makes the public part of a session ID, the handle in [`list`](Sessions::list): 22 to 43 characters of
    /// `[A-Za-z0-9_-]`, different each time. Default: a version 4 UUID in its short form.
    ///
    /// The secret part, 256 random bits, does not come from it. The factory is called once when the sessions are built, as a
    /// test.
    pub fn id_factory(mut self, factory: impl Fn() -> String + Send + Sync + 'static) -> Self {
        self.policy.id_factory = Some(Arc::new(factory));
        self
    }

    /// Sets what turns the data of a session into bytes. Default: `serde_json`.
    pub fn serializer(mut self, serializer: impl Serializer) -> Self {
        self.policy.serializer = Some(Arc::new(serializer));
        self
    }

    /// Sets a function that is called for each [event](crate::events): a login, a sign-out, a new ID. Default: none.
    ///
    /// It runs within the request, after the store has confirmed what has happened: it must not wait. If it panics, the request goes
    /// on, and the log says so.
    #[doc(alias = "audit", alias = "hook")]
    pub fn on_event(mut self, listener: impl Fn(&Event<'_>) + Send + Sync + 'static) -> Self {
        self.policy.on_event = Listener::new(listener);
        self
    }

    /// Sets the clock, for tests that must not wait. Default: the system's clock. See [`Clock`].
    pub fn clock(mut self, clock: Clock) -> Self {
        self.policy.clock = clock;
        self
    }

    /// What the sessions are built from, and the options once [checked](Policy::check).
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
    /// [`ErrorKind::Config`] for an option that cannot work, with an explanation.
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
