//! Randomness: bytes from the operating system, and SplitMix64 for numbers that nobody gains anything by guessing.

use std::{
    hash::{BuildHasher, RandomState},
    sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use crate::error::{Error, ErrorKind};

/// Bytes from the operating system, for secrets and names.
///
/// # Errors
/// `Unavailable` if the system has none.
pub(crate) fn random<const N: usize>() -> Result<[u8; N], Error> {
    let mut bytes = [0; N];
    fill(&mut bytes)?;
    Ok(bytes)
}

/// The same in place: a secret that is moved leaves copies behind.
pub(crate) fn fill(bytes: &mut [u8]) -> Result<(), Error> {
    getrandom::fill(bytes).map_err(|_| Error::new(ErrorKind::Unavailable, "the system gave no random bytes"))
}

/// A version for a write, different each time: SplitMix64 from a random start in each process. A version is not a secret, and
/// asking the system for random bytes takes longer than all else that a write does in this crate.
pub(crate) fn random_version() -> i64 {
    static START: LazyLock<u64> = LazyLock::new(|| RandomState::new().hash_one(0));
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let state = COUNT.fetch_add(STEP, Relaxed).wrapping_add(*START);
    (mix(state) & i64::MAX as u64).cast_signed()
}

/// SplitMix64: the difference between one state and the next.
pub(crate) const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// SplitMix64: the number of a state, different for each.
pub(crate) fn mix(state: u64) -> u64 {
    let mut bits = state;
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}
