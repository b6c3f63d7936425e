//! Redis errors, without the Redis keys, commands and URIs that they may quote.

use std::{borrow::Cow, error::Error as StdError, fmt, io, sync::Arc};

use redis::{ErrorKind as Redis, RedisError, ServerError, ServerErrorKind};
use rustls::{CertificateError, Error as TlsError};

/// A failure of Redis or of the connection to it.
///
/// The errors of redis-rs may quote commands, keys and URIs, so only their kind is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) kind: FailureKind,
    detail: Cow<'static, str>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FailureKind {
    /// The connection was lost, or could not be opened.
    Lost,
    /// No answer in time.
    Silent,
    /// The server is no longer the one to write to.
    Demoted,
    /// The server knows neither the script nor its hash.
    NoScript,
    /// The credentials are wrong, or rights are missing.
    Denied,
    /// The slot is on another node of the Cluster, or on its way there.
    Moved,
    /// The server refused for a temporary reason: `LOADING`, `CLUSTERDOWN`, `OOM`, …
    Refused,
    /// The Redis key has another type than expected.
    OtherType,
    /// The answer does not match the command.
    Garbage,
    /// The options cannot work with this server.
    Config,
}

impl Failure {
    pub(super) const fn new(kind: FailureKind, detail: &'static str) -> Self {
        Self { kind, detail: Cow::Borrowed(detail) }
    }

    pub(super) fn silent() -> Self {
        Self::new(FailureKind::Silent, "Redis did not answer in time")
    }

    pub(super) fn garbage() -> Self {
        Self::new(FailureKind::Garbage, "Redis sent an answer that does not match the command")
    }

    /// Returns whether a retry cannot help.
    pub(super) fn lasts(&self) -> bool {
        matches!(self.kind, FailureKind::Denied | FailureKind::Config)
    }

    /// Reads an error that the server sent. Redis 6.2 wraps the error of a command in a script.
    fn answer(code: &str, details: Option<&str>) -> Self {
        let details = details.unwrap_or_default();
        let is_inner =
            |code: &str| [format!("-{code} "), format!(": {code} ")].iter().any(|text| details.contains(text));
        let inner = PASSING.iter().find(|code| is_inner(code));
        let code = inner.copied().unwrap_or(code);
        if code == "NOPERM" || DENIED_IN_SCRIPT.iter().any(|words| details.contains(words)) {
            return Self::no_right(details);
        }
        if code == "ERR" && details.starts_with("unknown command") {
            return NO_COMMAND;
        }
        if code == "ERR" && details.contains("cluster support disabled") {
            return NO_CLUSTER;
        }
        let kind = match code {
            "NOSCRIPT" => FailureKind::NoScript,
            "READONLY" | "MASTERDOWN" | "NOREPLICAS" => FailureKind::Demoted,
            "NOAUTH" | "WRONGPASS" => FailureKind::Denied,
            "MOVED" | "ASK" | "TRYAGAIN" => FailureKind::Moved,
            "WRONGTYPE" => FailureKind::OtherType,
            _ => FailureKind::Refused,
        };
        // A code is one word in capitals. Anything else may quote data.
        let is_code = code.len() <= 20 && code.bytes().all(|byte| byte.is_ascii_uppercase());
        let code = if is_code { code } else { "an error" };
        let detail = match cause(code) {
            Some(cause) => format!("{cause}: Redis answered {code}"),
            None => format!("Redis answered {code}"),
        };
        Self { kind, detail: detail.into() }
    }

    /// Reads which right the ACL of the user lacks. Only the name of the command is kept from the server's text.
    fn no_right(details: &str) -> Self {
        let command = details.split_once("run the '").and_then(|(_, rest)| rest.split_once('\'')).map(|(name, _)| name);
        let is_name = |name: &&str| {
            name.len() <= 30 && name.bytes().all(|byte| byte.is_ascii_lowercase() || matches!(byte, b'|' | b'-' | b'_'))
        };
        let detail = match command.filter(is_name) {
            Some(name) => format!("the ACL of the Redis user lacks +{name}: Redis answered NOPERM"),
            None if details.contains(" key") => {
                "the ACL of the Redis user does not cover the keys of this namespace: Redis answered NOPERM".to_owned()
            }
            None => return SOME_RIGHT,
        };
        Self { kind: FailureKind::Denied, detail: detail.into() }
    }

    /// Reads why a database could not be selected.
    fn no_database(details: &str) -> Self {
        let is = |word| details.contains(word);
        match () {
            () if is("permission") => Self::no_right(details),
            () if is("Authentication required") => CREDENTIALS,
            () if is("unknown command") => NO_COMMAND,
            () if is("cluster mode") => Self::new(FailureKind::Config, "a Redis Cluster has only database 0"),
            () => Self::new(FailureKind::Config, "the Redis server has no database with the number in the URI"),
        }
    }
}

impl From<RedisError> for Failure {
    fn from(error: RedisError) -> Self {
        match error.kind() {
            _ if error.is_timeout() => Self::silent(),
            Redis::Io => Self::lost(&error),
            Redis::ClusterConnectionNotFound => LOST,
            Redis::Parse | Redis::UnexpectedReturnType => Self::garbage(),
            Redis::AuthenticationFailed => CREDENTIALS,
            Redis::InvalidClientConfig | Redis::EmptySentinelList | Redis::RESP3NotSupported => {
                known(&error).unwrap_or(Self::new(FailureKind::Config, "Redis cannot be reached with these options"))
            }
            Redis::Server(ServerErrorKind::ResponseError) if error.to_string().starts_with(NO_SELECT) => {
                Self::no_database(error.detail().unwrap_or_default())
            }
            // For a pipeline, `code` is that of the first failure only.
            Redis::Server(kind) => Self::answer(code(kind), error.detail()),
            _ => Self::answer(error.code().unwrap_or_default(), error.detail()),
        }
    }
}

impl Failure {
    fn lost(error: &RedisError) -> Self {
        // redis-rs hands out the `Arc` that it keeps the cause in.
        let io = error.source().and_then(|cause| cause.downcast_ref::<Arc<dyn StdError + Send + Sync>>());
        let io = io.and_then(|cause| cause.downcast_ref::<io::Error>());
        match known(error).or_else(|| tls_failure(io?)) {
            Some(failure) => failure,
            None if says(error, &["AuthenticationFailed", "WRONGPASS", "NOAUTH"]) => CREDENTIALS,
            None if error.is_connection_refusal() => Self::new(FailureKind::Lost, "Redis refused the connection"),
            None => LOST,
        }
    }
}

impl From<&ServerError> for Failure {
    fn from(error: &ServerError) -> Self {
        Self::answer(error.code(), error.details())
    }
}

/// For the connection of a Cluster, which keeps no more than the text. `known` finds the failure in it.
impl From<Failure> for RedisError {
    fn from(failure: Failure) -> Self {
        (Redis::InvalidClientConfig, "cannot connect", failure.detail.into_owned()).into()
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.detail)
    }
}

impl StdError for Failure {}

/// The cause, if a TLS connection failed because of TLS.
pub(super) fn tls_failure(error: &io::Error) -> Option<Failure> {
    Some(match error.get_ref()?.downcast_ref()? {
        TlsError::InvalidMessage(_) => NO_TLS,
        TlsError::InvalidCertificate(certificate) => match certificate {
            CertificateError::UnknownIssuer => UNTRUSTED,
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => OTHER_HOST,
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => EXPIRED,
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => NOT_YET,
            _ => BAD_CERTIFICATE,
        },
        TlsError::AlertReceived(_) => TLS_ENDED,
        TlsError::PeerIncompatible(_) => NO_COMMON_TLS,
        _ => return None,
    })
}

/// One of our own failures, found in a text that a Cluster's connection made of it.
fn known(error: &RedisError) -> Option<Failure> {
    let text = error.detail()?;
    KNOWN.into_iter().find(|known| text.contains(&*known.detail))
}

fn says(error: &RedisError, words: &[&str]) -> bool {
    error.detail().is_some_and(|detail| words.iter().any(|word| detail.contains(word)))
}

fn code(kind: ServerErrorKind) -> &'static str {
    match kind {
        ServerErrorKind::BusyLoading => "LOADING",
        ServerErrorKind::NoScript => "NOSCRIPT",
        ServerErrorKind::Moved => "MOVED",
        ServerErrorKind::Ask => "ASK",
        ServerErrorKind::TryAgain => "TRYAGAIN",
        ServerErrorKind::ClusterDown => "CLUSTERDOWN",
        ServerErrorKind::CrossSlot => "CROSSSLOT",
        ServerErrorKind::MasterDown => "MASTERDOWN",
        ServerErrorKind::ReadOnly => "READONLY",
        ServerErrorKind::NoPerm => "NOPERM",
        _ => "ERR",
    }
}

/// What an error code means, and what to do about it.
fn cause(code: &str) -> Option<&'static str> {
    Some(match code {
        "LOADING" => "Redis is still loading its data; wait",
        "BUSY" => "a slow script blocks Redis",
        "OOM" => "Redis has used up its memory; raise maxmemory, or set maxmemory-policy volatile-ttl",
        "MISCONF" => "Redis cannot save to its disk and refuses writes; see its log",
        "READONLY" => "the Redis server is a replica; connect to its master",
        "MASTERDOWN" => "the Redis server is a replica that has lost its master; start the master",
        "NOREPLICAS" => "the Redis master has fewer replicas than min-replicas-to-write; start them",
        "CLUSTERDOWN" => "a part of the Redis Cluster is down; start its nodes",
        "MOVED" | "ASK" | "TRYAGAIN" => "a slot of the Redis Cluster is being moved",
        "NOAUTH" => "Redis requires a password, and the URI has none",
        "WRONGPASS" => "Redis does not accept the credentials",
        "WRONGTYPE" => {
            "a Redis key of this namespace holds foreign data: check whether another application writes to it"
        }
        _ => return None,
    })
}

/// Errors that a command in a script may give for reasons outside the script.
const PASSING: [&str; 8] =
    ["OOM", "READONLY", "NOREPLICAS", "MASTERDOWN", "MISCONF", "CLUSTERDOWN", "LOADING", "WRONGTYPE"];
/// What a script says that runs a command for which its user lacks the right: until 7.0, and since.
const DENIED_IN_SCRIPT: [&str; 2] = ["The user executing the script can't", "ACL failure in script"];
/// How redis-rs begins its error about `SELECT`.
const NO_SELECT: &str = "Redis server refused to switch database";

pub(super) const LOST: Failure = Failure::new(FailureKind::Lost, "the connection to Redis was lost");
const CREDENTIALS: Failure = Failure::new(FailureKind::Denied, "Redis does not accept the credentials in the URI");
/// Before 7.2, Redis does not say which command a script may not run.
pub(super) const SOME_RIGHT: Failure = Failure::new(
    FailureKind::Denied,
    "the ACL of the Redis user lacks a command that sessions need: Redis answered NOPERM",
);
pub(super) const NO_COMMAND: Failure = Failure::new(
    FailureKind::Config,
    "the server does not know a command that sessions need: it may be a sentinel, or only partly compatible with Redis",
);
pub(super) const SENTINEL: Failure = Failure::new(
    FailureKind::Config,
    "the server is a sentinel and holds no data: give its URI to `.sentinel(…)` on the builder",
);
pub(super) const NO_SENTINEL: Failure =
    Failure::new(FailureKind::Config, "a server that was given to `.sentinel(…)` is not a sentinel");
pub(super) const OF_CLUSTER: Failure =
    Failure::new(FailureKind::Config, "the Redis server is a node of a Cluster: call `.cluster([…])` on the builder");
pub(super) const NO_CLUSTER: Failure = Failure::new(
    FailureKind::Config,
    "the Redis server is not a node of a Cluster: leave out `.cluster(…)` on the builder",
);
pub(super) const INSECURE: Failure = Failure::new(
    FailureKind::Config,
    "`#insecure` in a Redis URI is not supported: make the server's certificate trusted",
);
pub(super) const NO_NAME: Failure =
    Failure::new(FailureKind::Config, "TLS needs a host name or an IP address in the Redis URI");
pub(super) const NO_ROOTS: Failure = Failure::new(
    FailureKind::Config,
    "the system has no TLS certificate authorities: install them (ca-certificates), or set SSL_CERT_FILE",
);
pub(super) const NO_TLS: Failure =
    Failure::new(FailureKind::Config, "the Redis server does not speak TLS on this port: use redis://");
pub(super) const ONLY_TLS: Failure =
    Failure::new(FailureKind::Config, "the Redis server speaks TLS on this port: use rediss://");
const UNTRUSTED: Failure = Failure::new(
    FailureKind::Config,
    "the TLS certificate of the Redis server is not trusted: add its authority to the system's, or set SSL_CERT_FILE",
);
const OTHER_HOST: Failure = Failure::new(
    FailureKind::Config,
    "the TLS certificate of the Redis server is for another host: use a host name that it contains",
);
const EXPIRED: Failure =
    Failure::new(FailureKind::Config, "the TLS certificate of the Redis server has expired: renew it");
const NOT_YET: Failure =
    Failure::new(FailureKind::Config, "the TLS certificate of the Redis server is not valid yet: check the clocks");
const BAD_CERTIFICATE: Failure =
    Failure::new(FailureKind::Config, "the TLS certificate of the Redis server is not one for a server");
const TLS_ENDED: Failure = Failure::new(
    FailureKind::Config,
    "the Redis server ended the TLS handshake; if it wants a client certificate, set tls-auth-clients no",
);
pub(super) const NO_COMMON_TLS: Failure = Failure::new(
    FailureKind::Config,
    "the Redis server and this process have no TLS version or cipher suite in common",
);
/// What may have to be found in a text.
const KNOWN: [Failure; 13] = [
    CREDENTIALS,
    INSECURE,
    NO_NAME,
    NO_ROOTS,
    NO_TLS,
    ONLY_TLS,
    UNTRUSTED,
    OTHER_HOST,
    EXPIRED,
    NOT_YET,
    BAD_CERTIFICATE,
    TLS_ENDED,
    NO_COMMON_TLS,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_says_its_code_and_nothing_of_what_it_is_about() {
        let secret = "sessions:{fVJZcPs5bTnULFhpr8ooOA}:s:AAAAAAAAQACAAAAAAAAAAA";
        let quoting = RedisError::from((Redis::InvalidClientConfig, "Redis URL did not parse", secret.to_owned()));
        let printed = format!("{0} {0:?}", Failure::from(quoting));
        assert!(!printed.contains("sessions"), "{printed}");

        let failure =
            Failure::answer("ERR", Some(&format!("running script {secret}: -OOM command not allowed {secret}")));
        assert!(failure.to_string().ends_with(": Redis answered OOM"), "{failure}");
        let inner =
            Failure::answer("ERR", Some("Error running script (call to f_1): @user_script:1: WRONGTYPE Operation"));
        assert_eq!(inner.kind, FailureKind::OtherType);
        let failure = Failure::answer(secret, Some(secret));
        assert_eq!(failure.to_string(), "Redis answered an error");
    }

    #[test]
    fn a_missing_right_is_named_in_the_words_of_every_server() {
        for (code, details, said) in [
            ("NOPERM", "this user has no permissions to run the 'zadd' command or its subcommand", "lacks +zadd:"),
            ("NOPERM", "User app has no permissions to run the 'cluster|slots' command", "lacks +cluster|slots:"),
            ("NOPERM", "No permissions to access a key", "keys of this namespace"),
            ("NOPERM", "this user has no permissions to access one of the keys used as arguments", "keys of this"),
            (
                "ERR",
                "ACL failure in script: User app has no permissions to run the 'set' command script: f",
                "lacks +set:",
            ),
            ("ERR", "The user executing the script can't run this command or subcommand script: f", "lacks a command"),
            ("ERR", "The user executing the script can't access at least one of the keys mentioned", "keys of this"),
        ] {
            let failure = Failure::answer(code, Some(details));
            assert!(failure.kind == FailureKind::Denied && failure.to_string().contains(said), "{failure}");
            assert!(failure.to_string().ends_with("NOPERM"));
        }
    }

    #[test]
    fn each_answer_has_an_outcome() {
        for (code, kind) in [
            ("READONLY", FailureKind::Demoted),
            ("NOREPLICAS", FailureKind::Demoted),
            ("LOADING", FailureKind::Refused),
            ("CLUSTERDOWN", FailureKind::Refused),
            ("OOM", FailureKind::Refused),
            ("NOSCRIPT", FailureKind::NoScript),
            ("WRONGPASS", FailureKind::Denied),
            ("BUSY", FailureKind::Refused),
        ] {
            assert_eq!(Failure::answer(code, None).kind, kind, "{code}");
        }
    }

    #[test]
    fn a_tls_error_names_its_cause_also_behind_a_cluster() {
        let invalid = |cause| io::Error::new(io::ErrorKind::InvalidData, TlsError::InvalidCertificate(cause));
        for (cause, said) in [
            (CertificateError::UnknownIssuer, "not trusted"),
            (CertificateError::NotValidForName, "another host"),
            (CertificateError::Expired, "expired"),
            (CertificateError::NotValidYet, "not valid yet"),
            (CertificateError::BadSignature, "not one for a server"),
        ] {
            let failure = Failure::from(RedisError::from(invalid(cause)));
            assert!(failure.kind == FailureKind::Config && failure.to_string().contains(said), "{failure}");
            // What a Cluster's connection makes of it.
            let text = RedisError::from(failure.clone()).to_string();
            let failed = RedisError::from((Redis::Io, "Failed to create initial connections", text));
            assert_eq!(Failure::from(failed), failure);
        }
        let lost = RedisError::from(io::Error::from(io::ErrorKind::ConnectionReset));
        assert_eq!(Failure::from(lost), LOST);
    }
}
