//! Redis, on servers that these tests start themselves, and that end with them whatever happens.

#![allow(unreachable_pub)] // Nothing in a binary is reachable from outside, and `pub(crate)` everywhere says no more.

mod connect;
mod contract;
mod cost;
mod failover;
mod faults;
pub mod harness;
mod process;
mod proxy;
mod replays;
mod wire;
