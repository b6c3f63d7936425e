//! The format of a line, written and read.
//!
//! A line begins with the CRC-32 of everything after it, so that any damage is detected. A payload that is a JSON object in one
//! line is written unchanged, and any other payload as base64.

use std::{io::Write, ops::Range};

use base64::prelude::{BASE64_STANDARD as BASE64, Engine};
use bytes::Bytes;
use crc32fast::Hasher;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::record::id::{Owner, RecordId};

/// The content of a line.
#[derive(Debug)]
pub(super) enum Line {
    /// The first line: `records` lines follow that were written with it, and then the changes after change `n`.
    Head { records: u64, n: u64, moment: Option<Moment> },
    /// A record was created or replaced, and others ended together with it.
    Put { id: RecordId, version: i64, time: Expiry, payload: Payload, ends: Vec<RecordId> },
    /// A record, if it still has that version, got a new expiry.
    Touch { id: RecordId, version: i64, time: Expiry },
    /// A record ended.
    End { id: RecordId },
    /// All records of an owner ended, except `keep`.
    Clear { owner: Owner, keep: Option<RecordId> },
    /// Nothing changed. The line says how far the file was synced and, by the file's clock, what had expired.
    Synced { moment: Option<Moment> },
}

/// The number of a change, and the last change that had been synced when the line was written.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) n: u64,
    pub(super) synced: u64,
}

/// The time of the file's clock, and of the wall clock at the same moment, in milliseconds since 1970.
///
/// The file's clock begins with the time of the wall clock. It never goes back, because everything that has expired by it has
/// ended for good. While no process uses the file, it advances by as much as the wall clock does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Moment {
    pub(super) at: u64,
    pub(super) wall: u64,
}

/// When a record expires by the file's clock, and its time to live when it was written, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Expiry {
    pub(super) until: u64,
    pub(super) ttl: u64,
}

/// A record's payload, and whether a line can contain it unchanged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Payload {
    bytes: Bytes,
    plain: bool,
}

/// Why a line cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LineError {
    /// The checksum is wrong, so the line is damaged.
    Sum,
    /// The line was written like this, by another version of this crate.
    Unknown,
}

impl Moment {
    /// Returns the later time of each clock. So a wall clock that was wrong for a while, as without a battery, does not count
    /// as time in which no process ran.
    pub(super) fn later(self, other: Option<Self>) -> Self {
        let other = other.unwrap_or(self);
        Self { at: self.at.max(other.at), wall: self.wall.max(other.wall) }
    }

    fn write(moment: &Option<Self>, out: &mut Vec<u8>) -> std::io::Result<()> {
        match moment {
            Some(Self { at, wall }) => write!(out, r#","at":{at},"wall":{wall}"#),
            None => Ok(()),
        }
    }
}

impl Payload {
    pub(super) fn new(bytes: Bytes) -> Self {
        // The payload must be read back byte for byte, so there is no intermediate form.
        let plain = bytes.first() == Some(&b'{')
            && !bytes.contains(&b'\n')
            && serde_json::from_slice::<&RawValue>(&bytes).is_ok_and(|raw| raw.get().len() == bytes.len());
        Self { bytes, plain }
    }

    pub(super) fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Returns about how many bytes the payload takes in the file.
    fn len(&self) -> usize {
        if self.plain { self.bytes.len() } else { self.bytes.len().div_ceil(3) * 4 }
    }
}

impl Line {
    /// Returns how many bytes a line without a payload takes, at most.
    pub(super) const SHORT: u64 = PUT_WITHOUT_PAYLOAD as u64;

    /// Appends the line and its newline.
    pub(super) fn write(&self, place: Option<Place>, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(SUM_BEFORE);
        out.extend_from_slice(b"00000000");
        out.extend_from_slice(SUM_AFTER);
        // Writing to a vector cannot fail.
        let _ = self.write_rest(place, out);
        let sum = format!("{:08x}", crc32fast::hash(out.get(start + REST..).unwrap_or_default()));
        if let Some(digits) = out.get_mut(start + SUM.start..start + SUM.end) {
            digits.copy_from_slice(sum.as_bytes());
        }
        out.push(b'\n');
    }

    fn write_rest(&self, place: Option<Place>, out: &mut Vec<u8>) -> std::io::Result<()> {
        if let Some(Place { n, synced }) = place {
            write!(out, r#""n":{n},"synced":{synced},"#)?;
        }
        match self {
            Self::Head { records, n, moment } => {
                write!(out, r#""op":"file","format":1,"records":{records},"after":{n}"#)?;
                Moment::write(moment, out)?;
            }
            Self::Put { id, version, time: Expiry { until, ttl }, payload, ends } => {
                write!(out, r#""op":"put","id":"{id}","version":{version},"until":{until},"ttl":{ttl},"#)?;
                for (n, id) in ends.iter().enumerate() {
                    write!(out, r#"{}"{id}""#, if n == 0 { r#""ends":["# } else { "," })?;
                }
                if !ends.is_empty() {
                    out.extend_from_slice(b"],");
                }
                if payload.plain {
                    out.extend_from_slice(br#""json":"#);
                    out.extend_from_slice(&payload.bytes);
                } else {
                    write!(out, r#""base64":"{}""#, BASE64.encode(&payload.bytes))?;
                }
            }
            Self::Touch { id, version, time: Expiry { until, ttl } } => {
                write!(out, r#""op":"touch","id":"{id}","version":{version},"until":{until},"ttl":{ttl}"#)?;
            }
            Self::End { id } => write!(out, r#""op":"end","id":"{id}""#)?,
            Self::Clear { owner, keep: None } => write!(out, r#""op":"clear","owner":"{owner}""#)?,
            Self::Clear { owner, keep: Some(keep) } => {
                write!(out, r#""op":"clear","owner":"{owner}","keep":"{keep}""#)?;
            }
            Self::Synced { moment } => {
                out.extend_from_slice(br#""op":"synced""#);
                Moment::write(moment, out)?;
            }
        }
        out.push(b'}');
        Ok(())
    }

    /// Reads what [`write`](Self::write) wrote, without the newline.
    pub(super) fn read(line: &[u8]) -> Result<(Option<Place>, Self), LineError> {
        check_sum(line).ok_or(LineError::Sum)?;
        // The checksum is correct, so anything unknown from here on was written like this.
        let text = std::str::from_utf8(line).map_err(|_| LineError::Unknown)?;
        let fields: Fields<'_> = serde_json::from_str(text).map_err(|_| LineError::Unknown)?;
        fields.line().ok_or(LineError::Unknown)
    }

    /// Returns how many bytes a record takes in the file, at most.
    pub(super) fn cost(payload: &Payload) -> u64 {
        (payload.len() + PUT_WITHOUT_PAYLOAD) as u64
    }
}

/// Returns whether the bytes are a line that says that change `n` was on the disk.
///
/// If they end with a newline, any suffix of them counts, because the newline before it may be damaged. Without a newline,
/// only the whole counts, because a line that is torn within a user's data may end with anything that this user wrote.
pub(super) fn says_synced(bytes: &[u8], is_whole: bool, n: u64) -> bool {
    if !is_whole {
        return says_so(bytes, n, true);
    }
    // Scan backwards, so that each byte is checksummed once, however many possible beginnings there are.
    let (mut sum, mut end, mut starts) = (Hasher::new(), bytes.len(), Vec::new());
    let windows = bytes.windows(SUM_BEFORE.len()).enumerate().rev();
    for (start, _) in windows.filter(|(_, window)| *window == SUM_BEFORE) {
        let Some((digits, rest)) = bytes.get(start..).and_then(sum_and_rest) else { continue };
        let from = bytes.len() - rest.len();
        let mut longer = Hasher::new();
        longer.update(bytes.get(from..end).unwrap_or_default());
        longer.combine(&sum);
        (sum, end) = (longer, from);
        if format!("{:08x}", sum.clone().finalize()).as_bytes() == digits {
            starts.push(start);
        }
    }
    // A false beginning before the true one has a correct checksum only by chance.
    let starts = starts.into_iter().rev().take(MAX_STARTS);
    starts.filter_map(|start| Some((start, bytes.get(start..)?))).any(|(start, line)| says_so(line, n, start == 0))
}

fn says_so(line: &[u8], n: u64, is_at_start: bool) -> bool {
    match Line::read(line) {
        Ok((Some(place), _)) => place.synced >= n,
        // A complete line of a later version. To be safe, everything before it counts as synced.
        Err(LineError::Unknown) => is_at_start,
        Ok((None, _)) | Err(LineError::Sum) => false,
    }
}

/// Returns whether this may be the beginning of a file of ours, damaged or not.
pub(super) fn is_ours(start: &[u8]) -> bool {
    let found = |name: &[u8]| start.windows(name.len()).any(|window| window == name);
    start.starts_with(SUM_BEFORE) || found(br#""op":"file""#) || found(br#""synced":"#)
}

/// Returns the part that the checksum covers, if it is correct.
fn check_sum(line: &[u8]) -> Option<&[u8]> {
    let (sum, rest) = sum_and_rest(line)?;
    // Compared as text, because `from_str_radix` also accepts capitals and a plus sign.
    let same = format!("{:08x}", crc32fast::hash(rest)).as_bytes() == sum;
    same.then_some(rest)
}

/// Splits a line into the digits of the checksum and the part that it covers.
fn sum_and_rest(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let (sum, rest) = line.strip_prefix(SUM_BEFORE)?.split_at_checked(SUM.len())?;
    Some((sum, rest.strip_prefix(SUM_AFTER)?))
}

#[derive(Deserialize)]
struct Fields<'a> {
    n: Option<u64>,
    synced: Option<u64>,
    op: &'a str,
    at: Option<u64>,
    wall: Option<u64>,
    format: Option<u32>,
    records: Option<u64>,
    after: Option<u64>,
    id: Option<&'a str>,
    version: Option<i64>,
    until: Option<u64>,
    ttl: Option<u64>,
    #[serde(borrow)]
    json: Option<&'a RawValue>,
    base64: Option<&'a str>,
    #[serde(borrow, default)]
    ends: Vec<&'a str>,
    owner: Option<&'a str>,
    keep: Option<&'a str>,
}

impl Fields<'_> {
    fn line(self) -> Option<(Option<Place>, Line)> {
        let place = match (self.n, self.synced) {
            (Some(n), Some(synced)) => Some(Place { n, synced }),
            (None, None) => None,
            _ => return None,
        };
        // None of our files counts that far, and the next number would overflow.
        if [self.n, self.synced, self.after].into_iter().flatten().any(|n| n > MAX_CHANGES) {
            return None;
        }
        let moment = self.at.zip(self.wall).map(|(at, wall)| Moment { at, wall });
        let id = || self.id?.parse().ok();
        let time = || Some(Expiry { until: self.until?, ttl: self.ttl? });
        let line = match self.op {
            "file" if self.format == Some(1) => Line::Head { records: self.records?, n: self.after?, moment },
            "put" => {
                let ends = self.ends.iter().map(|id| id.parse()).collect::<Result<_, _>>().ok()?;
                Line::Put { id: id()?, version: self.version?, time: time()?, payload: self.payload()?, ends }
            }
            "touch" => Line::Touch { id: id()?, version: self.version?, time: time()? },
            "end" => Line::End { id: id()? },
            "clear" => {
                Line::Clear { owner: self.owner?.parse().ok()?, keep: self.keep.map(str::parse).transpose().ok()? }
            }
            "synced" => Line::Synced { moment },
            _ => return None,
        };
        Some((place, line))
    }

    fn payload(&self) -> Option<Payload> {
        match (self.json, self.base64) {
            (Some(json), None) => Some(Payload { bytes: Bytes::copy_from_slice(json.get().as_bytes()), plain: true }),
            (None, Some(text)) => Some(Payload { bytes: BASE64.decode(text).ok()?.into(), plain: false }),
            _ => None,
        }
    }
}

const SUM_BEFORE: &[u8] = br#"{"sum":""#;
const SUM_AFTER: &[u8] = br#"","#;
const SUM: Range<usize> = SUM_BEFORE.len()..SUM_BEFORE.len() + 8;
const REST: usize = SUM.end + SUM_AFTER.len();
const PUT_WITHOUT_PAYLOAD: usize = 260;
const MAX_STARTS: usize = 16;
const MAX_CHANGES: u64 = u64::MAX / 2;

#[cfg(test)]
mod tests {
    use super::*;

    const OWNED: &str = "fVJZcPs5bTnULFhpr8ooOA.AAAAAAAAQACAAAAAAAAAAA";

    fn put(payload: &'static [u8]) -> Line {
        let time = Expiry { until: 1_800_000_000_000, ttl: 3_600_000 };
        let (id, payload) = (OWNED.parse().unwrap(), Payload::new(payload.into()));
        Line::Put { id, version: i64::MAX, time, payload, ends: Vec::new() }
    }

    fn text(line: &Line, place: Option<Place>) -> Vec<u8> {
        let mut out = Vec::new();
        line.write(place, &mut out);
        assert_eq!(out.pop(), Some(b'\n'));
        out
    }

    #[test]
    fn what_is_written_is_read() {
        let id: RecordId = OWNED.parse().unwrap();
        let (owner, visitor) = (id.owner().unwrap(), "AAAAAAAAAAAAAAAAAAAAAA".parse().unwrap());
        let time = Expiry { until: u64::MAX, ttl: 0 };
        let lines = [
            Line::Head { records: 3, n: 4, moment: None },
            Line::Head { records: 3, n: 4, moment: Some(Moment { at: 1, wall: u64::MAX }) },
            put(br#"{"a":1}"#),
            put(b"\0\xff"),
            Line::Put { id, version: 1, time, payload: Payload::new("{}".into()), ends: vec![id] },
            Line::Put { id, version: 1, time, payload: Payload::new("".into()), ends: vec![id, visitor] },
            Line::Touch { id, version: 0, time },
            Line::End { id },
            Line::Clear { owner, keep: None },
            Line::Clear { owner, keep: Some(id) },
            Line::Synced { moment: None },
            Line::Synced { moment: Some(Moment { at: 5, wall: 6 }) },
        ];
        for line in lines {
            for place in [None, Some(Place { n: 7, synced: 6 })] {
                let (found, read) = Line::read(&text(&line, place)).unwrap();
                assert_eq!(format!("{found:?} {read:?}"), format!("{place:?} {line:?}"));
                assert!(serde_json::from_slice::<serde_json::Value>(&text(&line, place)).is_ok());
            }
        }
    }

    #[test]
    fn a_payload_comes_back_to_the_byte_and_is_json_when_it_can_be() {
        let plain: [&'static [u8]; 4] =
            [b"{}", br#"{"b":1,"a":[1.0, 2e5 ]}"#, br#"{"a":1,"a":2}"#, "{\"é\":\"\\u0000\"}".as_bytes()];
        let other: [&'static [u8]; 10] =
            [b"", b"null", b"1", b"[1]", b" {}", b"{} ", b"{\n}", b"{}{}", b"{\"a\":\"\xff\"}", &[0; 100]];
        for (payload, is_plain) in plain.map(|p| (p, true)).into_iter().chain(other.map(|p| (p, false))) {
            let line = text(&put(payload), None);
            let Ok((_, Line::Put { payload: read, .. })) = Line::read(&line) else { panic!("{payload:?}") };
            assert_eq!((read.bytes().as_ref(), read.plain), (payload, is_plain));
            assert!(!line.contains(&b'\n'));
        }
    }

    #[test]
    fn a_line_with_a_bit_flipped_or_its_end_missing_is_broken() {
        let line = text(&put(br#"{"role":"admin"}"#), Some(Place { n: 1, synced: 0 }));
        for bit in 0..line.len() * 8 {
            let mut line = line.clone();
            line[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Line::read(&line).err(), Some(LineError::Sum));
        }
        for end in 0..line.len() {
            assert_eq!(Line::read(&line[..end]).err(), Some(LineError::Sum));
        }
    }

    #[test]
    fn data_that_looks_like_a_line_is_not_taken_for_one() {
        let inner = text(&Line::Synced { moment: None }, Some(Place { n: 9, synced: 8 }));
        let payload = [br#"{"x":"#.as_slice(), &inner, b"}"].concat();
        let line = text(&put(payload.leak()), Some(Place { n: 1, synced: 0 }));
        assert!(!says_synced(&line, true, 8));
        let joined = [b"broken".as_slice(), &inner].concat();
        assert!(says_synced(&joined, true, 8) && !says_synced(&joined, false, 8));
        assert!(says_synced(&inner, true, 8) && says_synced(&inner, false, 8));
        assert!(!says_synced(&inner, true, 9) && !says_synced(&inner, false, 9));
        // However many come before it, and in it.
        let many = [br#"{"sum":"00000000","{"sum":""#.repeat(100).as_slice(), &line].concat();
        assert!(says_synced(&many, true, 0) && !says_synced(&many, true, 1));
    }

    #[test]
    fn a_line_of_a_later_version_is_not_passed_over() {
        let mut line = Vec::new();
        for rest in [r#""op":"file","format":2,"records":0,"after":0}"#, r#""n":1,"synced":0,"op":"merge"}"#] {
            line.clear();
            line.extend_from_slice(format!(r#"{{"sum":"{:08x}",{rest}"#, crc32fast::hash(rest.as_bytes())).as_bytes());
            assert_eq!(Line::read(&line).err(), Some(LineError::Unknown));
        }
    }

    #[test]
    fn a_line_is_never_longer_than_what_it_is_counted_as() {
        let id = format!("{}.{}", "A".repeat(22), "A".repeat(43)).parse().unwrap();
        for payload in [&b"{}"[..], b"\0"] {
            let payload = Payload::new(Bytes::from_static(payload));
            let cost = Line::cost(&payload);
            let time = Expiry { until: u64::MAX, ttl: u64::MAX };
            for ended in [0, 1, 100] {
                let (payload, ends) = (payload.clone(), vec![id; ended]);
                let line = Line::Put { id, version: i64::MIN, time, payload, ends };
                let cost = cost + ended as u64 * Line::SHORT;
                assert!(text(&line, Some(Place { n: 1 << 50, synced: 1 << 50 })).len() < cost as usize);
            }
        }
    }
}
