//! Tests of the Redis store, against servers that the tests start and stop themselves.

mod batches;
mod clocks;
mod connect;
mod contract;
mod cost;
mod failover;
mod faults;
pub mod harness;
mod layer;
mod pressure;
pub mod process;
pub mod proxy;
mod replays;
mod scan;
mod terms;
mod wire;
