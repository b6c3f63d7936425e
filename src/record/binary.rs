//! The form for machines.
//!
//! | bytes | |
//! |---|---|
//! | 1 | the format, 1 |
//! | 1 | what there is: a key and an owner (1), a sign-in (2), an idle time (4), no data any more (8), a serializer's data (16) |
//! | text | the tag of namespace and pepper |
//! | 16 | the owner, if there is one |
//! | text | the `sid` |
//! | text | the session key, if there is one |
//! | 32 | the hash of the secret |
//! | 1 | how many secrets of before there are: 40 bytes each, a hash and until when it counts |
//! | 8 each | created, signed in, seen, deadline, idle time |
//! | 4 | how many bytes follow |
//! | the rest | the [fields](crate::Data), or what the serializer wrote |
//!
//! A text has its length in front. Numbers are big-endian, and times milliseconds since 1970. A bit that this version does
//! not know is a record that it cannot read.

use bytes::Bytes;

use super::{Body, Contents, Stored};
use crate::record::{
    data::{len_len, push_len, take_len},
    id::{Owner, RecordId},
    token::SecretHash,
};

pub(super) const FORMAT: u8 = 1;

const OWNED: u8 = 1;
const SIGNED_IN: u8 = 2;
const IDLE: u8 = 4;
const ENDED: u8 = 8;
const OWN: u8 = 16;
const ALL: u8 = OWNED | SIGNED_IN | IDLE | ENDED | OWN;

/// How long the secrets of before get.
pub(super) fn previous_len(previous: &[(SecretHash, u64)]) -> usize {
    previous.len() * PREVIOUS_LEN
}

pub(super) fn write(namespace: &str, id: RecordId, contents: &Contents, own: Option<&[u8]>) -> Vec<u8> {
    // There never are more than four.
    let previous = &contents.previous[..contents.previous.len().min(usize::from(u8::MAX))];
    let times =
        [Some(contents.created), contents.signed_in, Some(contents.written), Some(contents.deadline), contents.idle];
    let body_len = own.map_or_else(|| contents.data.len(), <[u8]>::len);
    // To the byte: it needs no second place then, and leaves no room over.
    let len = 2
        + text_len(namespace)
        + id.owner().map_or(0, |owner| owner.as_bytes().len())
        + text_len(id.sid())
        + contents.key.as_deref().map_or(0, text_len)
        + contents.hash.as_bytes().len()
        + 1
        + previous_len(previous)
        + times.iter().flatten().count() * 8
        + BODY_LEN
        + if contents.ended { 0 } else { body_len };
    let mut out = Vec::with_capacity(len);
    let flag = |is_there: bool, flag: u8| if is_there { flag } else { 0 };
    out.push(FORMAT);
    out.push(
        flag(contents.key.is_some(), OWNED)
            | flag(contents.signed_in.is_some(), SIGNED_IN)
            | flag(contents.idle.is_some(), IDLE)
            | flag(contents.ended, ENDED)
            | flag(own.is_some(), OWN),
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
    out.push(previous.len() as u8);
    for (hash, until) in previous {
        out.extend_from_slice(hash.as_bytes());
        out.extend_from_slice(&until.to_be_bytes());
    }
    for time in times.into_iter().flatten() {
        out.extend_from_slice(&time.to_be_bytes());
    }
    match own {
        _ if contents.ended => out.extend_from_slice(&[0; BODY_LEN]),
        _ => {
            // One that is longer is larger than any record may be.
            out.extend_from_slice(&u32::try_from(body_len).unwrap_or(u32::MAX).to_be_bytes());
            match own {
                Some(own) => out.extend_from_slice(own),
                None => contents.data.write(&mut out),
            }
        }
    }
    debug_assert_eq!(out.len(), len);
    out
}

pub(super) fn read(id: RecordId, payload: &Bytes) -> Option<Stored<'_>> {
    let mut rest = &payload[1..];
    let [flags] = take(&mut rest)?;
    let has = |flag| flags & flag != 0;
    if flags & !ALL != 0 {
        return None;
    }
    let namespace = take_text(&mut rest)?;
    let owner = if has(OWNED) { Some(Owner::from_bytes(take(&mut rest)?)) } else { None };
    let sid = take_text(&mut rest)?;
    let key = if has(OWNED) { Some(take_text(&mut rest)?.into()) } else { None };
    let hash = SecretHash::from_bytes(take(&mut rest)?);
    let [count] = take(&mut rest)?;
    let mut previous = Vec::new();
    for _ in 0..count {
        previous.push((SecretHash::from_bytes(take(&mut rest)?), u64::from_be_bytes(take(&mut rest)?)));
    }
    let created = u64::from_be_bytes(take(&mut rest)?);
    let signed_in = if has(SIGNED_IN) { Some(u64::from_be_bytes(take(&mut rest)?)) } else { None };
    let written = u64::from_be_bytes(take(&mut rest)?);
    let deadline = u64::from_be_bytes(take(&mut rest)?);
    let idle = if has(IDLE) { Some(u64::from_be_bytes(take(&mut rest)?)) } else { None };
    if u32::from_be_bytes(take(&mut rest)?) as usize != rest.len() {
        return None;
    }
    let body = match has(OWN) {
        true => Body::Own(rest),
        false => Body::Fields(rest),
    };
    let is_of_id = owner == id.owner() && sid == id.sid();
    Some(Stored {
        namespace,
        is_of_id,
        key,
        hash,
        previous,
        created,
        signed_in,
        written,
        deadline,
        idle,
        ended: has(ENDED),
        body,
    })
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

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (taken, after) = rest.split_first_chunk()?;
    *rest = after;
    Some(*taken)
}

const PREVIOUS_LEN: usize = 40;
const BODY_LEN: usize = 4;
