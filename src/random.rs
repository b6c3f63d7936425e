//! Randomness: bytes from the operating system, and SplitMix64 for numbers that need not be secret.

use std::{
    process,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::{SystemTime, UNIX_EPOCH},
};

use crate::error::{Error, ErrorKind};

/// Returns random bytes from the operating system, for secrets and names.
///
/// # Errors
/// `Unavailable` if the system has none.
pub(crate) fn random<const N: usize>() -> Result<[u8; N], Error> {
    let mut bytes = [0; N];
    fill(&mut bytes)?;
    Ok(bytes)
}

/// The same in place, because moving a secret would leave copies behind.
pub(crate) fn fill(bytes: &mut [u8]) -> Result<(), Error> {
    getrandom::fill(bytes).map_err(|_| Error::new(ErrorKind::Unavailable, "the system gave no random bytes"))
}

/// Returns a version for a write. It differs each time, even in copies of this process.
///
/// A forked process, or a virtual machine that is started twice from one snapshot, has the same memory. Two versions derived from
/// memory alone would be equal, and an update that finds its own version in the store counts as done, so it would be lost.
/// Therefore each version contains new bytes from the operating system (which differ after a fork, and after a snapshot if the
/// kernel is told of it), the time, and the process ID if the system has no random bytes. It is not a secret.
pub(crate) fn random_version() -> i64 {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(STEP, Relaxed);
    let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64;
    // The process ID is not needed with random bytes, because a copy of the process gets other bytes.
    let random = random().map_or_else(|_| mix(process::id().into()), u64::from_ne_bytes);
    (mix(count ^ mix(time) ^ random) & i64::MAX as u64).cast_signed()
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
