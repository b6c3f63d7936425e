//! Run with `mkdir -p fuzz/corpus/cookie_header`, then `cargo +nightly fuzz run cookie_header fuzz/corpus/cookie_header tests/corpus/cookie_header`.

#![no_main]

#[allow(dead_code)]
#[path = "../../tests/it/parsers.rs"]
mod parsers;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| parsers::cookie_header(bytes));
