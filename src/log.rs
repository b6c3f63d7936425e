//! Logging macros that give every message the target `jam_session`.

macro_rules! line {
    ($level:ident, $($line:tt)*) => { tracing::$level!(target: "jam_session", $($line)*) };
}

macro_rules! debug_line {
    ($($line:tt)*) => { $crate::log::line!(debug, $($line)*) };
}
macro_rules! info_line {
    ($($line:tt)*) => { $crate::log::line!(info, $($line)*) };
}
macro_rules! warn_line {
    ($($line:tt)*) => { $crate::log::line!(warn, $($line)*) };
}
macro_rules! error_line {
    ($($line:tt)*) => { $crate::log::line!(error, $($line)*) };
}

pub(crate) use {debug_line as debug, error_line as error, info_line as info, line, warn_line as warn};
