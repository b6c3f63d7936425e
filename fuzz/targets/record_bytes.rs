//! Run with `mkdir -p fuzz/corpus/record_bytes`, then `cargo +nightly fuzz run record_bytes fuzz/corpus/record_bytes tests/corpus/record_bytes`.

#![no_main]

#[allow(dead_code)]
#[path = "../../tests/it/parsers.rs"]
mod parsers;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| parsers::record_bytes(bytes));
