//! The binary form of a record.
//!
//! | bytes | |
//! |---|---|
//! | 1 | the format, 1 |
//! | 1 | flags: has a session key and an owner (1), a sign-in (2), an idle timeout of its own (4), a secret that is younger than the session (8), a serializer wrote the data (16), logins (32) |
//! | text | the tag of namespace and pepper |
//! | 16 | the owner, if there is one |
//! | text | the `sid` |
//! | text | the session key, if there is one |
//! | 32 | the hash of the secret |
//! | 1 | how many previous secrets follow, 38 bytes each: a hash, and the time until which it is accepted |
//! | 1 | how many superseded secrets follow, in the same format |
//! | 6 each | created, signed in, written, deadline, idle timeout, when the newest secret was made |
//! | 4 | how many logins there were after the first |
//! | 4 | the number of bytes that follow |
//! | the rest | the [fields](crate::Data), or what the serializer wrote |
//!
//! Each text is preceded by its length. Numbers are big-endian. Times are in milliseconds since 1970; a later one than the year
//! 10889 is stored as the last that fits. A record with a flag that this version does not know is unreadable.

use bytes::Bytes;

use crate::record::{
    Contents,
    data::{len_len, push_len, take_len},
    id::{Owner, RecordId},
    parsed::{Body, Parsed},
    token::SecretHash,
    value::Text,
};

pub(super) const FORMAT: u8 = 1;

const OWNED: u8 = 1;
const SIGNED_IN: u8 = 2;
const IDLE: u8 = 4;
const ISSUED: u8 = 8;
const OWN: u8 = 16;
const LOGINS: u8 = 32;
const ALL: u8 = OWNED | SIGNED_IN | IDLE | ISSUED | OWN | LOGINS;

/// The length of the parts that depend on new IDs: old secrets, when the newest one was made, and the number of logins.
pub(super) fn uncounted_len(contents: &Contents) -> usize {
    (contents.previous.len() + contents.superseded.len()) * OLD_SECRET_LEN
        + if contents.issued.is_some() { TIME_LEN } else { 0 }
        + if contents.logins > 0 { 4 } else { 0 }
}

pub(super) fn write(namespace: &str, id: RecordId, contents: &Contents, own: Option<&[u8]>) -> Vec<u8> {
    let times =
        [Some(contents.created), contents.signed_in, Some(contents.written), Some(contents.deadline), contents.idle];
    let body_len = own.map_or_else(|| contents.data.len(), <[u8]>::len);
    // The exact size: one allocation, and no unused capacity.
    let len = 2
        + text_len(namespace)
        + id.owner().map_or(0, |owner| owner.as_bytes().len())
        + text_len(id.sid())
        + contents.key.as_deref().map_or(0, text_len)
        + contents.hash.as_bytes().len()
        + 2
        + uncounted_len(contents)
        + times.iter().flatten().count() * TIME_LEN
        + BODY_LEN
        + body_len;
    let mut out = Vec::with_capacity(len);
    let flag = |is_there: bool, flag: u8| if is_there { flag } else { 0 };
    out.push(FORMAT);
    out.push(
        flag(contents.key.is_some(), OWNED)
            | flag(contents.signed_in.is_some(), SIGNED_IN)
            | flag(contents.idle.is_some(), IDLE)
            | flag(contents.issued.is_some(), ISSUED)
            | flag(own.is_some(), OWN)
            | flag(contents.logins > 0, LOGINS),
    );
    push_text(&mut out, namespace);
    if let Some(owner) = id.owner() {
        out.extend_from_slice(owner.as_bytes());
    }
    push_text(&mut out, id.sid());
    if let Some(key) = &contents.key {
        push_text(&mut out, key);
    }
    out.extend_from_slice(contents.hash.as_bytes());
    for secrets in [&contents.previous, &contents.superseded] {
        // There are never more than sixteen.
        out.push(secrets.len() as u8);
        for (hash, until) in secrets {
            out.extend_from_slice(hash.as_bytes());
            push_time(&mut out, *until);
        }
    }
    for time in times.into_iter().flatten() {
        push_time(&mut out, time);
    }
    if let Some(issued) = contents.issued {
        push_time(&mut out, issued);
    }
    if contents.logins > 0 {
        out.extend_from_slice(&contents.logins.to_be_bytes());
    }
    // A longer body is larger than any record may be.
    out.extend_from_slice(&u32::try_from(body_len).unwrap_or(u32::MAX).to_be_bytes());
    match own {
        Some(own) => out.extend_from_slice(own),
        None => contents.data.write(&mut out),
    }
    debug_assert_eq!(out.len(), len);
    out
}

pub(super) fn read(id: RecordId, payload: &Bytes) -> Option<Parsed<'_>> {
    let mut rest = &payload[1..];
    let [flags] = take(&mut rest)?;
    let has = |flag| flags & flag != 0;
    if flags & !ALL != 0 {
        return None;
    }
    let namespace = take_text(&mut rest)?;
    let owner = if has(OWNED) { Some(Owner::from_bytes(take(&mut rest)?)) } else { None };
    let sid = take_text(&mut rest)?;
    let key = if has(OWNED) { Some(Text(take_text(&mut rest)?.into())) } else { None };
    let hash = take_hash(&mut rest)?;
    let (previous, superseded) = (take_secrets(&mut rest)?, take_secrets(&mut rest)?);
    let contents = Contents {
        key,
        hash,
        previous,
        superseded,
        created: take_time(&mut rest)?,
        signed_in: if has(SIGNED_IN) { Some(take_time(&mut rest)?) } else { None },
        written: take_time(&mut rest)?,
        deadline: take_time(&mut rest)?,
        idle: if has(IDLE) { Some(take_time(&mut rest)?) } else { None },
        issued: if has(ISSUED) { Some(take_time(&mut rest)?) } else { None },
        logins: if has(LOGINS) { u32::from_be_bytes(take(&mut rest)?) } else { 0 },
        data: match u32::from_be_bytes(take(&mut rest)?) as usize == rest.len() {
            true if has(OWN) => Body::Own(rest),
            true => Body::Binary(rest),
            false => return None,
        },
    };
    Some(Parsed { namespace, is_of_id: owner == id.owner() && sid == id.sid(), contents })
}

fn text_len(text: &str) -> usize {
    len_len(text.len()) + text.len()
}

fn push_text(out: &mut Vec<u8>, text: &str) {
    push_len(out, text.len());
    out.extend_from_slice(text.as_bytes());
}

fn take_text<'a>(rest: &mut &'a [u8]) -> Option<&'a str> {
    let (len, after) = take_len(rest)?;
    let (text, after) = after.split_at_checked(len)?;
    *rest = after;
    std::str::from_utf8(text).ok()
}

fn take_hash(rest: &mut &[u8]) -> Option<SecretHash> {
    take(rest).map(SecretHash::from_bytes)
}

fn take_secrets(rest: &mut &[u8]) -> Option<Vec<(SecretHash, u64)>> {
    let [count] = take(rest)?;
    (0..count).map(|_| Some((take_hash(rest)?, take_time(rest)?))).collect()
}

fn push_time(out: &mut Vec<u8>, time: u64) {
    let [_, _, time @ ..] = time.min(MAX_TIME).to_be_bytes();
    out.extend_from_slice(&time);
}

fn take_time(rest: &mut &[u8]) -> Option<u64> {
    let [a, b, c, d, e, f] = take(rest)?;
    Some(u64::from_be_bytes([0, 0, a, b, c, d, e, f]))
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (taken, after) = rest.split_first_chunk()?;
    *rest = after;
    Some(*taken)
}

const TIME_LEN: usize = 6;
const MAX_TIME: u64 = (1 << 48) - 1;
const OLD_SECRET_LEN: usize = 32 + TIME_LEN;
const BODY_LEN: usize = 4;
