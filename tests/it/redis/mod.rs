//! Redis, on servers that these tests start themselves, and that end with them whatever happens.

mod connect;
mod contract;
mod cost;
mod failover;
mod faults;
pub mod harness;
mod layer;
pub mod process;
pub mod proxy;
mod replays;
mod wire;
