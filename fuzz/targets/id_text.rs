//! Run with `mkdir -p fuzz/corpus/id_text`, then `cargo +nightly fuzz run id_text fuzz/corpus/id_text tests/corpus/id_text`.

#![no_main]

#[allow(dead_code)]
#[path = "../../tests/it/parsers.rs"]
mod parsers;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| parsers::id_text(bytes));
