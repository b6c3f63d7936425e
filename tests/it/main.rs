//! All integration tests, in one binary. Functions named `p07_…` prove promise 7 of `src/guide/promises.md`.

// A test binary has no public face; and in tests, a panic is the answer.
#![allow(unreachable_pub, missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod client;
mod events;
mod example;
mod folder;
mod model;
mod ports;
mod random;
mod store;

mod all;
mod audit;
mod authority;
mod cancellation;
mod concurrency;
mod conformance;
mod cookies;
mod cost;
mod disks;
mod encryption;
mod ended;
mod endings;
mod faults;
mod fleet;
mod floors;
mod histories;
mod http;
mod identity;
mod json;
mod late;
mod limit;
mod login;
mod logins;
mod logs;
mod lost;
mod manifest;
mod many_streams;
mod memory;
mod module;
mod parsers;
mod promises;
#[cfg(feature = "redis")]
mod redis;
mod rotation;
mod search;
mod secrets;
mod streams;
mod time;
mod values;
