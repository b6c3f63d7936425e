//! Failures of Redis, free of keys, commands and URIs.

use std::{borrow::Cow, fmt};

use redis::{ErrorKind as Redis, RedisError, ServerError, ServerErrorKind};

/// A failure of Redis or of the connection to it.
///
/// The errors of redis-rs may quote commands, keys and URIs, so only their kind is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) kind: Kind,
    detail: Cow<'static, str>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
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
    /// The server refused for a reason that may pass: `LOADING`, `CLUSTERDOWN`, `OOM`, …
    Refused,
    /// The answer does not fit the question.
    Garbage,
    /// The options cannot work with this server.
    Config,
}

impl Failure {
    pub(super) fn new(kind: Kind, detail: &'static str) -> Self {
        Self { kind, detail: Cow::Borrowed(detail) }
    }

    pub(super) fn silent() -> Self {
        Self::new(Kind::Silent, "Redis did not answer in time")
    }

    pub(super) fn garbage() -> Self {
        Self::new(Kind::Garbage, "Redis sent an answer that does not fit the question")
    }

    /// Reads an error that the server sent. Redis 6.2 wraps the error of a command in a script.
    fn answer(code: &str, details: Option<&str>) -> Self {
        let inner = details.and_then(|text| PASSING.iter().find(|code| text.contains(&format!("-{code} "))));
        let code = inner.copied().unwrap_or(code);
        let kind = match code {
            "NOSCRIPT" => Kind::NoScript,
            "READONLY" | "MASTERDOWN" | "NOREPLICAS" => Kind::Demoted,
            "NOAUTH" | "WRONGPASS" | "NOPERM" => Kind::Denied,
            _ => Kind::Refused,
        };
        // A code is one word in capitals. Anything else may quote data.
        let is_code = code.len() <= 20 && code.bytes().all(|byte| byte.is_ascii_uppercase());
        Self { kind, detail: format!("Redis answered {}", if is_code { code } else { "an error" }).into() }
    }
}

impl From<RedisError> for Failure {
    fn from(error: RedisError) -> Self {
        match error.kind() {
            _ if error.is_timeout() => Self::silent(),
            // The cluster client reports only as text why it could not connect.
            Redis::Io if says(&error, &["AuthenticationFailed", "WRONGPASS", "NOAUTH"]) => {
                Self::new(Kind::Denied, "Redis does not accept the credentials")
            }
            Redis::Io if error.is_connection_refusal() => Self::new(Kind::Lost, "Redis refused the connection"),
            Redis::Io | Redis::ClusterConnectionNotFound => Self::new(Kind::Lost, "the connection to Redis was lost"),
            Redis::Parse | Redis::UnexpectedReturnType => Self::garbage(),
            Redis::AuthenticationFailed => Self::new(Kind::Denied, "Redis does not accept the credentials"),
            Redis::InvalidClientConfig | Redis::EmptySentinelList | Redis::RESP3NotSupported => {
                Self::new(Kind::Config, "Redis cannot be reached with these options")
            }
            // For a pipeline, `code` is that of the first failure only.
            Redis::Server(kind) => Self::answer(code(kind), error.detail()),
            _ => Self::answer(error.code().unwrap_or_default(), error.detail()),
        }
    }
}

impl From<&ServerError> for Failure {
    fn from(error: &ServerError) -> Self {
        Self::answer(error.code(), error.details())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.detail)
    }
}

impl std::error::Error for Failure {}

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

/// Errors that a command in a script may give for reasons outside the script.
const PASSING: [&str; 7] = ["OOM", "READONLY", "NOREPLICAS", "MASTERDOWN", "MISCONF", "CLUSTERDOWN", "LOADING"];

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
        assert_eq!(failure.to_string(), "Redis answered OOM");
        let failure = Failure::answer(secret, Some(secret));
        assert_eq!(failure.to_string(), "Redis answered an error");
    }

    #[test]
    fn each_answer_has_an_outcome() {
        for (code, kind) in [
            ("READONLY", Kind::Demoted),
            ("NOREPLICAS", Kind::Demoted),
            ("LOADING", Kind::Refused),
            ("CLUSTERDOWN", Kind::Refused),
            ("OOM", Kind::Refused),
            ("NOSCRIPT", Kind::NoScript),
            ("WRONGPASS", Kind::Denied),
            ("BUSY", Kind::Refused),
        ] {
            assert_eq!(Failure::answer(code, None).kind, kind, "{code}");
        }
    }
}
