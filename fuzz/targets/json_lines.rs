//! Run with `mkdir -p fuzz/corpus/json_lines`, then `cargo +nightly fuzz run json_lines fuzz/corpus/json_lines tests/corpus/json_lines`.

#![no_main]

#[allow(dead_code)]
#[path = "../../tests/it/parsers.rs"]
mod parsers;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| parsers::json_lines(bytes));
