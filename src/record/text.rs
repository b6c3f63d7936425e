//! The form for people: a JSON object.
//!
//! ```text
//! {"v":1,"realm":"…","id":"…","key":"ada","hash":"…","created":…,"signed_in":…,"seen":…,"deadline":…,"data":{…}}
//! ```
//!
//! Times are milliseconds since 1970. What a serializer of one's own wrote follows the last brace, and there is no `data`.

use std::{borrow::Cow, io::Write};

use bytes::Bytes;
use serde::{Deserialize, Deserializer, de::Error as _};

use super::{Body, Contents, Stored};
use crate::{
    error::{Error, ErrorKind},
    record::{data::Fields, id::RecordId, token::SecretHash},
};

pub(super) const FORMAT: u8 = b'{';

/// How long the secrets of before get.
pub(super) fn previous_len(previous: &[(SecretHash, u64)]) -> usize {
    let digits = |until: u64| until.checked_ilog10().map_or(1, |log| log as usize + 1);
    let all: usize = previous.iter().map(|(_, until)| r#"["",],"#.len() + HASH_LEN + digits(*until)).sum();
    // The last one has no comma.
    if previous.is_empty() { 0 } else { r#","previous":[]"#.len() + all - 1 }
}

pub(super) fn write(namespace: &str, id: RecordId, contents: &Contents, own: Option<&[u8]>) -> Result<Vec<u8>, Error> {
    let mut out = Vec::with_capacity(320 + own.map_or_else(|| 2 * contents.data.len(), <[u8]>::len));
    write_all(&mut out, namespace, id, contents, own)
        .map_err(|_| Error::new(ErrorKind::Data, "a session could not be written as JSON"))?;
    Ok(out)
}

fn write_all(
    out: &mut Vec<u8>,
    namespace: &str,
    id: RecordId,
    contents: &Contents,
    own: Option<&[u8]>,
) -> std::io::Result<()> {
    write!(out, r#"{{"v":1,"realm":"{namespace}","id":"{id}""#)?;
    if let Some(key) = &contents.key {
        out.extend_from_slice(br#","key":"#);
        serde_json::to_writer(&mut *out, &**key)?;
    }
    write!(out, r#","hash":"{}""#, contents.hash)?;
    for (i, (hash, until)) in contents.previous.iter().enumerate() {
        write!(out, r#"{}["{hash}",{until}]"#, if i == 0 { r#","previous":["# } else { "," })?;
    }
    if !contents.previous.is_empty() {
        out.push(b']');
    }
    write!(out, r#","created":{}"#, contents.created)?;
    if let Some(signed_in) = contents.signed_in {
        write!(out, r#","signed_in":{signed_in}"#)?;
    }
    write!(out, r#","seen":{},"deadline":{}"#, contents.written, contents.deadline)?;
    if let Some(idle) = contents.idle {
        write!(out, r#","idle":{idle}"#)?;
    }
    match own {
        _ if contents.ended => out.extend_from_slice(br#","ended":true}"#),
        Some(own) => {
            out.push(b'}');
            out.extend_from_slice(own);
        }
        None => {
            for (i, (name, value)) in contents.data.fields().enumerate() {
                out.extend_from_slice(if i == 0 { br#","data":{"# } else { b"," });
                serde_json::to_writer(&mut *out, name)?;
                out.push(b':');
                out.extend_from_slice(value);
            }
            out.extend_from_slice(if contents.data.is_empty() { br#","data":{}}"# } else { b"}}" });
        }
    }
    Ok(())
}

pub(super) fn read(id: RecordId, payload: &Bytes) -> Option<Stored<'_>> {
    let mut heads = serde_json::Deserializer::from_slice(payload).into_iter::<Head<'_>>();
    let head = heads.next()?.ok().filter(|head| head.v == 1)?;
    let body = match head.data {
        Some(data) => Body::Data(data.into()),
        None => Body::Own(&payload[heads.byte_offset()..]),
    };
    Some(Stored {
        namespace: head.namespace,
        is_of_id: head.id.parse().ok() == Some(id),
        key: head.key,
        hash: head.hash,
        previous: head.previous,
        created: head.created,
        signed_in: head.signed_in,
        written: head.written,
        deadline: head.deadline,
        idle: head.idle,
        ended: head.ended,
        body,
    })
}

/// What is in front of the data, and the data. Names that this version does not know are passed over.
#[derive(Deserialize)]
struct Head<'a> {
    v: u32,
    #[serde(default, rename = "realm")]
    namespace: &'a str,
    #[serde(default)]
    id: &'a str,
    #[serde(borrow)]
    key: Option<Cow<'a, str>>,
    hash: SecretHash,
    #[serde(default)]
    previous: Vec<(SecretHash, u64)>,
    created: u64,
    signed_in: Option<u64>,
    #[serde(rename = "seen")]
    written: u64,
    deadline: u64,
    idle: Option<u64>,
    #[serde(default)]
    ended: bool,
    #[serde(borrow)]
    data: Option<Fields<'a>>,
}

impl<'de> Deserialize<'de> for SecretHash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <&str>::deserialize(deserializer)?;
        Self::parse(text).ok_or_else(|| D::Error::custom("not a hash"))
    }
}

/// 32 bytes, in base64.
const HASH_LEN: usize = 43;
