//! Every option of the module, and what is refused.

use std::{sync::Arc, time::Duration};

use zeroize::Zeroizing;

use crate::{
    backend::Backend,
    clock::Clock,
    error::{Error, ErrorKind},
    record::{
        Serializer,
        codec::{Codec, Form},
        id::{Owners, Sid},
        keyring::{Keyring, Keys},
    },
    sessions::{Policy, Sessions},
};

/// Sets up [`Sessions`]. `T` is what they are made from: a backend in hand, a file, a server.
///
/// What is wrong with an option is said when the sessions are made, as an [`ErrorKind::Config`].
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
    options: Options,
}

struct Options {
    namespace: String,
    default_ttl: Option<Duration>,
    max_lifetime: Duration,
    anonymous_lifetime: Duration,
    touch_interval: Option<Duration>,
    rework_grace: Duration,
    request_time: Duration,
    max_size: usize,
    pepper: Option<Zeroizing<Vec<u8>>>,
    keyring: Option<Keyring>,
    id_factory: Option<IdFactory>,
    serializer: Option<Arc<dyn Serializer>>,
    clock: Clock,
    form: Form,
}

pub(crate) type IdFactory = Arc<dyn Fn() -> String + Send + Sync>;

impl<T> Builder<T> {
    pub(crate) fn new(from: T) -> Self {
        let options = Options {
            namespace: "sessions".to_owned(),
            default_ttl: Some(Duration::from_secs(3600)),
            max_lifetime: 30 * DAY,
            anonymous_lifetime: DAY,
            touch_interval: None,
            rework_grace: Duration::from_secs(10),
            request_time: Duration::from_secs(1),
            max_size: 1 << 20,
            pepper: None,
            keyring: None,
            id_factory: None,
            serializer: None,
            clock: Clock::system(),
            form: Form::default(),
        };
        Self { from, options }
    }

    /// Writes payloads in a form that people can read.
    pub(crate) fn in_text(mut self) -> Self {
        self.options.form = Form::Text;
        self
    }

    /// Sets the key prefix in the store. Applications with different namespaces never share sessions. Default: `sessions`.
    ///
    /// After a change, existing sessions are not found.
    #[doc(alias = "sessions_key", alias = "redis_sessions_key", alias = "prefix")]
    pub fn namespace(mut self, namespace: impl Into<String>) -> Self {
        self.options.namespace = namespace.into();
        self
    }

    /// Ends a session that is not used for so long; an hour unless set, `None` for no such limit.
    ///
    /// It ends no later than that, and at most [`touch_interval`](Self::touch_interval) earlier. A session may have
    /// [one of its own](crate::Session::set_ttl).
    pub fn default_ttl(mut self, ttl: impl Into<Option<Duration>>) -> Self {
        self.options.default_ttl = ttl.into();
        self
    }

    /// Ends a session so long after its login, used or not; 30 days unless set. Only a new login starts it anew.
    ///
    /// NIST SP 800-63B-4 calls this the overall timeout, and wants it at 30 days at most.
    pub fn max_lifetime(mut self, lifetime: Duration) -> Self {
        self.options.max_lifetime = lifetime;
        self
    }

    /// The same for sessions that nobody has signed in to; a day unless set.
    pub fn anonymous_lifetime(mut self, lifetime: Duration) -> Self {
        self.options.anonymous_lifetime = lifetime;
        self
    }

    /// How long the backend may go without hearing that a session is still read; a tenth of its idle time, and at most five
    /// minutes, unless set. Less means more writes; more means that a session may end that much too early.
    pub fn touch_interval(mut self, interval: Duration) -> Self {
        self.options.touch_interval = Some(interval);
        self
    }

    /// How long the ID before a [`rework`](Sessions::rework) still leads to the session, for requests that were on their
    /// way; 10 s unless set, zero for not at all. It is never extended.
    pub fn rework_grace(mut self, grace: Duration) -> Self {
        self.options.rework_grace = grace;
        self
    }

    /// How long all calls to the backend that one request needs, or one call of the module, may take together; a second
    /// unless set. After that the answer is [`ErrorKind::Unavailable`].
    pub fn request_time(mut self, time: Duration) -> Self {
        self.options.request_time = time;
        self
    }

    /// How many bytes a record may have; 1 MiB unless set. A larger one fails with [`ErrorKind::TooLarge`], and nothing of
    /// it is applied. Sealing, with [`encrypt`](Self::encrypt), adds 45 that do not count.
    pub fn max_size(mut self, bytes: usize) -> Self {
        self.options.max_size = bytes;
        self
    }

    /// A secret of at least 16 bytes, without which session keys cannot be guessed from the names of records.
    ///
    /// It never rotates: under another one no session of before is found, by nobody.
    pub fn pepper(mut self, secret: impl Into<Vec<u8>>) -> Self {
        self.options.pepper = Some(Zeroizing::new(secret.into()));
        self
    }

    /// Seals IDs and records with the keys of that ring. What is plain, or sealed with other keys, is then not taken: see
    /// [`keyring`](crate::keyring) for how to turn this on, and change keys, without signing anyone out.
    pub fn encrypt(mut self, keyring: Keyring) -> Self {
        self.options.keyring = Some(keyring);
        self
    }

    /// Makes the public part of a session ID, the handle in [`list`](Sessions::list): 22 to 43 characters of `[A-Za-z0-9_-]`,
    /// never the same again. A version 4 UUID in its short form unless set.
    ///
    /// The secret part, 256 random bits, is not up to it. It is tried once when the sessions are made.
    pub fn id_factory(mut self, factory: impl Fn() -> String + Send + Sync + 'static) -> Self {
        self.options.id_factory = Some(Arc::new(factory));
        self
    }

    /// Turns data into bytes; `serde_json` unless set.
    pub fn serializer(mut self, serializer: impl Serializer) -> Self {
        self.options.serializer = Some(Arc::new(serializer));
        self
    }

    /// Tells the time; for tests that must not wait. See [`Clock`].
    pub fn clock(mut self, clock: Clock) -> Self {
        self.options.clock = clock;
        self
    }

    /// What was made from, and the options if they are good.
    pub(crate) fn check(self) -> Result<(T, Policy), Error> {
        Ok((self.from, self.options.check()?))
    }
}

impl<B: Backend> Builder<B> {
    /// Makes the sessions.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] if an option cannot work, in words.
    pub fn build(self) -> Result<Sessions<B>, Error> {
        let (backend, policy) = self.check()?;
        backend.set_clock(policy.clock.clone());
        Ok(Sessions::with(backend, policy))
    }
}

impl<T> std::fmt::Debug for Builder<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Builder").finish_non_exhaustive()
    }
}

impl Options {
    fn check(self) -> Result<Policy, Error> {
        let refuse = |message: &'static str| Err(Error::new(ErrorKind::Config, message));
        if self.namespace.is_empty() || self.namespace.len() > 256 {
            return refuse("namespace must have 1 to 256 bytes");
        }
        if self.namespace.contains(['{', '}']) {
            return refuse("namespace must not contain braces: they decide the slot in a Redis Cluster");
        }
        // A backend may count in whole milliseconds.
        let too_short = |time: Duration| time < Duration::from_millis(1);
        if self.default_ttl.is_some_and(too_short) {
            return refuse("default_ttl must not be zero; None is for no idle limit");
        }
        if too_short(self.max_lifetime) || too_short(self.anonymous_lifetime) {
            return refuse("max_lifetime and anonymous_lifetime must not be zero");
        }
        if too_short(self.request_time) {
            return refuse("request_time must not be zero");
        }
        if self.pepper.as_ref().is_some_and(|pepper| pepper.len() < 16) {
            return refuse("the pepper must have at least 16 bytes");
        }
        if self.id_factory.as_ref().is_some_and(|make| Sid::parse(&make()).is_none()) {
            return refuse("the id_factory must give 22 to 43 characters of A-Z, a-z, 0-9, _ and -");
        }
        let owners =
            Owners::new(&self.namespace, self.pepper.as_ref().map(|pepper| pepper.as_slice()).unwrap_or_default())?;
        let keys = self.keyring.as_ref().map(|ring| Keys::new(ring, &self.namespace)).transpose()?.map(Arc::new);
        Ok(Policy {
            #[cfg(feature = "redis")]
            namespace: self.namespace,
            codec: Codec { form: self.form, owners, serializer: self.serializer, keys, max_size: self.max_size },
            default_ttl: self.default_ttl,
            max_lifetime: self.max_lifetime,
            anonymous_lifetime: self.anonymous_lifetime,
            touch_interval: self.touch_interval,
            rework_grace: self.rework_grace,
            request_time: self.request_time,
            id_factory: self.id_factory,
            clock: self.clock,
        })
    }
}

const DAY: Duration = Duration::from_secs(86_400);
