//! Encryption: with a [`Keyring`], the ID in the cookie and the data in the store cannot be read, altered or moved.
//!
//! ```
//! # use jam_session::{Error, Keyring, MemorySessions};
//! # fn main() -> Result<(), Error> {
//! # let keyring = Keyring::generate()?;
//! # let secret = keyring.primary_secret();
//! // In production: Keyring::from_env()?
//! let keyring = Keyring::new(secret)?;
//! let sessions = MemorySessions::builder().encrypt(keyring).build()?;
//! # Ok(())
//! # }
//! ```
//!
//! An encryption key is made from a secret: 32 random bytes as URL-safe base64, with or without `=`. Make one with
//! [`Keyring::generate`], or with `head -c 32 /dev/urandom | base64 | tr -- +/ -_`. The first key of a keyring encrypts, and
//! every key decrypts.
//!
//! # What is encrypted, and how
//!
//! | encrypted | form | decrypts only |
//! |---|---|---|
//! | the whole ID in the cookie | base64url | as an ID of the same `namespace` |
//! | the whole record: user, times, hashes, data | bytes | as the record of the same name, of the same `namespace` |
//!
//! Both consist of a format byte, four bytes that identify the key, a random 192-bit nonce, the ciphertext of [XAES-256-GCM], and
//! its 128-bit tag. That is 45 bytes more than the plaintext. Two keys are derived from each secret by HKDF-Expand with SHA-256,
//! one for IDs and one for records. The cookie's name is not authenticated, so you can change it.
//!
//! Random 192-bit nonces do not run out. After 2⁸⁰ encryptions, the chance of a repeated nonce is 2⁻³²; at a million per second
//! that takes 38 billion years. So you never have to change a key because of how often it was used.
//!
//! A cookie that fails to decrypt counts as absent, and the store is not asked. There is one exception: a sign-out that carries
//! a user's cookie which cannot be decrypted is answered with 401, because its session may still be live. The cookie stays.
//!
//! A record that fails to decrypt is an error: [`ErrorKind::WrongKey`] if none of the keys encrypted it, and otherwise
//! [`ErrorKind::Corrupt`]. The record and the cookie stay unchanged, and the user can sign in again.
//!
//! An encrypted store still reveals how many sessions there are, which of them belong to the same (unnamed) user, how long each
//! record is, and when it ends. Set a [`pepper`](crate::Builder::pepper) as well, so that session keys cannot be guessed from it.
//!
//! # Turning it on
//!
//! By default a keyring refuses plain IDs and records, so turning it on signs all users out. To keep existing sessions, take
//! these steps in order, and deploy each one to all processes before you begin the next.
//!
//! 1. `Keyring::new(a)?.opens_only()`: writes plain text, and reads both.
//! 2. `Keyring::new(a)?.accept_plain_until(time)`: writes encrypted, and reads both until `time`. Set `time` once, to one
//!    [`max_lifetime`](crate::Builder::max_lifetime) after the moment by which every process will have reached this step. Until
//!    `time`, an attacker who can write to the store can still plant plain records.
//! 3. `Keyring::new(a)?`: at any time after that.
//!
//! To turn encryption off, go back: step 2, then step 1, and one `max_lifetime` later no keyring.
//!
//! Skipping a step signs users out, because a cookie that a process cannot decrypt counts as absent there. A user's cookie stays
//! in the browser until the next login, and works again once the process has its key. A visitor's cookie is replaced by the
//! next visitor's session.
//!
//! # Changing the key
//!
//! To replace key `a` by key `b` without signing users out, deploy each of these steps to all processes before the next:
//!
//! 1. `Keyring::new(a)?.also_opens(b)?`, or `a,b` in the environment variable.
//! 2. `Keyring::new(b)?.also_opens(a)?`, or `b,a`.
//! 3. One `max_lifetime` later: `Keyring::new(b)?`, or `b`.
//!
//! While some processes are at step 1 and others at step 2, they encrypt each other's records again. That loses nothing, but do
//! not stay in this state.
//!
//! The old key has to stay for one `max_lifetime`, because existing cookies are not encrypted again. New IDs are encrypted with
//! the first key. A record that was encrypted with another key, or not at all, is encrypted again with the first key, in the
//! background, when it is next used.
//!
//! # When a key has leaked
//!
//! Switch to a keyring with only a new secret: `Keyring::new(b)?`. This signs all users out, which is the point.
//!
//! An attacker with the old key can read the data in any copy of the store, and with write access to the store can forge sessions
//! of any user. A copy of the store and the old key alone do not suffice to sign in, because records contain only hashes of the
//! secrets in the cookies.
//!
//! # What encryption does not prevent
//!
//! An attacker who can write to the store can delete records. Such an attacker can also restore an older copy of a record
//! under its own name. This can bring back old data, an ID that was rotated away, or a session that has ended. The absolute
//! timeout cannot be moved, because it is inside the record. So control who can write to the store; encryption protects
//! against those who can read it.
//!
//! Secrets and keys are wiped from memory when they are dropped. This does not cover copies that the compiler makes, nor the
//! environment variable that a secret came from.
//!
//! [XAES-256-GCM]: https://c2sp.org/XAES-256-GCM

use std::{
    env::{self, VarError},
    fmt,
    time::SystemTime,
};

use base64::prelude::{BASE64_URL_SAFE as PADDED, BASE64_URL_SAFE_NO_PAD as UNPADDED, Engine};
use ctutils::CtEq;
use hmac::{Hmac, KeyInit as _, Mac};
use sha2::Sha256;
use xaes_256_gcm::{Nonce, Tag, Xaes256Gcm, aead::AeadInOut};
use zeroize::{Zeroize, Zeroizing};

use crate::{
    clock::millis,
    error::{Error, ErrorKind},
    random::{self, random},
};

/// The keys that encrypt and decrypt IDs and records. See the [module docs](self).
///
/// The first key encrypts, and every key decrypts.
#[doc(alias = "encryption", alias = "aes", alias = "aead")]
#[derive(Clone)]
#[must_use]
pub struct Keyring {
    /// Never empty. The first one encrypts.
    secrets: Vec<KeySecret>,
    opens_only: bool,
    plain_until: Option<SystemTime>,
}

/// Boxed, because moving an array would leave a copy behind.
type KeySecret = Box<Zeroizing<[u8; 32]>>;

impl Keyring {
    /// Creates a keyring from one secret. Its key encrypts and decrypts.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] if the secret is empty, is not URL-safe base64, does not have 32 bytes, or is all zeros.
    pub fn new(secret: impl AsRef<str>) -> Result<Self, Error> {
        Ok(Self { secrets: vec![parse(secret.as_ref())?], opens_only: false, plain_until: None })
    }

    /// Adds a key that only decrypts: a previous one, or one that other processes already encrypt with. Default: none.
    ///
    /// # Errors
    /// The errors of [`new`](Self::new), and [`ErrorKind::Config`] if the keyring already has this secret.
    #[doc(alias = "rotate", alias = "fallback")]
    pub fn also_opens(mut self, secret: impl AsRef<str>) -> Result<Self, Error> {
        let secret = parse(secret.as_ref())?;
        if self.secrets.iter().any(|other| other.ct_eq(&**secret).to_bool()) {
            return Err(config("a secret is on the keyring twice: remove one of them"));
        }
        self.secrets.push(secret);
        Ok(self)
    }

    /// Creates a keyring from the environment variable `JAM_SESSION_AES_SECRET`: one secret, or several separated by commas. The
    /// first key encrypts, and every key decrypts.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] if the variable is not set, is empty, or is not Unicode, and the errors of
    /// [`also_opens`](Self::also_opens).
    pub fn from_env() -> Result<Self, Error> {
        match env::var(VARIABLE).map(Zeroizing::new) {
            Ok(text) => Self::from_list(&text),
            Err(VarError::NotPresent) => {
                Err(config("the environment variable JAM_SESSION_AES_SECRET is not set: set it to a secret"))
            }
            Err(VarError::NotUnicode(_)) => {
                Err(config("the environment variable JAM_SESSION_AES_SECRET is not Unicode: set it to a secret"))
            }
        }
    }

    /// Creates a keyring with a new random key.
    ///
    /// Without this key, nothing that it encrypted can be read. Store its [`primary_secret`](Self::primary_secret), unless the
    /// sessions end with the process.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`] if the system has no random bytes.
    pub fn generate() -> Result<Self, Error> {
        let mut secret = Box::new(Zeroizing::new([0; LENGTH]));
        // Filled in place, because moving a secret would leave copies behind.
        random::fill(secret.as_mut_slice())?;
        Ok(Self { secrets: vec![secret], opens_only: false, plain_until: None })
    }

    /// Writes plain text, and reads both plain and encrypted text. Default: off.
    ///
    /// This is the first step of [turning encryption on](self#turning-it-on), and the last of turning it off. It protects
    /// nothing.
    pub fn opens_only(mut self) -> Self {
        self.opens_only = true;
        self
    }

    /// Also reads plain IDs and records until this time. Default: never.
    ///
    /// Plain records are encrypted when they are next used; cookies are not. It is for [turning encryption
    /// on](self#turning-it-on) in a live system.
    pub fn accept_plain_until(mut self, time: SystemTime) -> Self {
        self.plain_until = Some(time);
        self
    }

    /// Returns the secret of the key that encrypts, so that you can store it. With it, sessions can be read and forged.
    pub fn primary_secret(&self) -> String {
        self.secrets.first().map(|secret| PADDED.encode(&secret[..])).unwrap_or_default()
    }

    fn from_list(text: &str) -> Result<Self, Error> {
        let mut secrets = text.split(',').map(str::trim_ascii);
        let ring = Self::new(secrets.next().unwrap_or_default())?;
        secrets.try_fold(ring, Self::also_opens)
    }
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keyring").finish_non_exhaustive()
    }
}

/// The derived keys of a keyring, for one namespace. IDs and records have separate keys.
pub(crate) struct Keys {
    pub(crate) ids: Sealer,
    pub(crate) records: Sealer,
    encrypts: bool,
    /// In milliseconds since 1970.
    plain_until: u64,
}

/// Encrypts and decrypts one kind of text.
pub(crate) struct Sealer {
    ring: Vec<Key>,
    /// The associated data of every text: its format, its kind and the namespace. Each part has its length in front, except what
    /// the caller adds at the end, so no two combinations are equal.
    bound: Vec<u8>,
    encrypts: bool,
}

/// A key that is derived from a secret, for one kind of text.
struct Key {
    name: [u8; KEY_NAME],
    cipher: Xaes256Gcm,
}

/// A decrypted text.
pub(crate) struct Decrypted {
    pub(crate) text: Vec<u8>,
    /// Whether the text should be encrypted again, because the keyring has changed.
    pub(crate) stale: bool,
}

impl Keys {
    pub(crate) fn new(keyring: &Keyring, namespace: &str) -> Result<Self, Error> {
        let plain_until = match keyring.plain_until {
            _ if keyring.opens_only => u64::MAX,
            Some(time) => time.duration_since(SystemTime::UNIX_EPOCH).map(millis).unwrap_or(0),
            None => 0,
        };
        Ok(Self {
            ids: Sealer::new(keyring, namespace, b'i', b"jam-session ids")?,
            records: Sealer::new(keyring, namespace, b'r', b"jam-session records")?,
            encrypts: !keyring.opens_only,
            plain_until,
        })
    }

    /// Returns whether new texts are encrypted.
    pub(crate) fn encrypts(&self) -> bool {
        self.encrypts
    }

    /// Returns whether plain text is accepted at that time.
    pub(crate) fn takes_plain(&self, now: u64) -> bool {
        now < self.plain_until
    }
}

impl Sealer {
    fn new(keyring: &Keyring, namespace: &str, kind: u8, purpose: &[u8]) -> Result<Self, Error> {
        // Allocated at its full size, because growing would leave copies behind.
        let mut ring = Vec::with_capacity(keyring.secrets.len());
        for secret in &keyring.secrets {
            ring.push(Key::new(secret, purpose)?);
        }
        let mut bound = vec![SEALED, kind];
        bound.extend_from_slice(&(namespace.len() as u64).to_be_bytes());
        bound.extend_from_slice(namespace.as_bytes());
        Ok(Self { ring, bound, encrypts: !keyring.opens_only })
    }

    /// Encrypts a text, so that it decrypts only with the same associated data.
    ///
    /// # Errors
    /// `Unavailable` if the system has no random bytes.
    pub(crate) fn seal(&self, aad: &[u8], text: &[u8]) -> Result<Vec<u8>, Error> {
        self.seal_with(random()?, aad, text)
    }

    fn seal_with(&self, nonce: [u8; NONCE], aad: &[u8], text: &[u8]) -> Result<Vec<u8>, Error> {
        let failed = || Error::new(ErrorKind::TooLarge, "the text is too large to be encrypted");
        let key = self.ring.first().ok_or_else(failed)?;
        let mut sealed = Vec::with_capacity(text.len() + OVERHEAD);
        sealed.push(SEALED);
        sealed.extend_from_slice(&key.name);
        sealed.extend_from_slice(&nonce);
        let start = sealed.len();
        sealed.extend_from_slice(text);
        let tag = key
            .cipher
            .encrypt_inout_detached(&Nonce::from(nonce), &self.bound_to(aad), (&mut sealed[start..]).into())
            .map_err(|_| failed())?;
        sealed.extend_from_slice(&tag);
        Ok(sealed)
    }

    /// Decrypts a text.
    ///
    /// # Errors
    /// `WrongKey` if no key of the keyring encrypted it. `Corrupt` if one did, but the text was altered or moved.
    pub(crate) fn open(&self, aad: &[u8], sealed: &[u8]) -> Result<Decrypted, Error> {
        let corrupt = || Error::new(ErrorKind::Corrupt, "an encrypted text was altered, cut or moved");
        let rest = sealed.strip_prefix(&[SEALED]).ok_or_else(corrupt)?;
        let (name, rest) = rest.split_first_chunk::<KEY_NAME>().ok_or_else(corrupt)?;
        let (nonce, rest) = rest.split_first_chunk::<NONCE>().ok_or_else(corrupt)?;
        let (text, tag) = rest.split_last_chunk::<TAG>().ok_or_else(corrupt)?;
        let (nonce, tag, bound) = (Nonce::from(*nonce), Tag::from(*tag), self.bound_to(aad));
        let mut error = wrong_key();
        // Key names are short, so two keys may share one.
        for (at, key) in self.ring.iter().enumerate().filter(|(_, key)| key.name == *name) {
            let mut text = text.to_vec();
            match key.cipher.decrypt_inout_detached(&nonce, &bound, text.as_mut_slice().into(), &tag) {
                Ok(()) => return Ok(Decrypted { text, stale: self.encrypts && at > 0 }),
                Err(_) => error = corrupt(),
            }
        }
        Err(error)
    }

    fn bound_to(&self, aad: &[u8]) -> Vec<u8> {
        [&self.bound, aad].concat()
    }
}

/// Returns whether these bytes look like an encrypted text, of any key.
pub(crate) fn is_sealed(bytes: &[u8]) -> bool {
    bytes.first() == Some(&SEALED) && bytes.len() > OVERHEAD
}

impl Key {
    fn new(secret: &KeySecret, purpose: &[u8]) -> Result<Self, Error> {
        let mut name = [0; KEY_NAME];
        name.copy_from_slice(&expand(secret, b"jam-session key name")?[..KEY_NAME]);
        Ok(Self { name, cipher: Xaes256Gcm::new((&*expand(secret, purpose)?).into()) })
    }
}

/// HKDF-Expand of RFC 5869 to 32 bytes. The Extract step is not needed, because secrets are uniformly random.
fn expand(secret: &KeySecret, purpose: &[u8]) -> Result<Zeroizing<[u8; 32]>, Error> {
    let mac = Hmac::<Sha256>::new_from_slice(&***secret).map_err(|_| config("a secret does not fit HMAC"))?;
    let mut full = mac.chain_update(purpose).chain_update([1]).finalize().into_bytes();
    let mut key = Zeroizing::new([0; 32]);
    key.copy_from_slice(&full);
    full.as_mut_slice().zeroize();
    Ok(key)
}

fn parse(text: &str) -> Result<KeySecret, Error> {
    let digits = text.trim_end_matches('=');
    let padded = digits.len() != text.len();
    if digits.is_empty() {
        return Err(config("a secret is empty: make one with Keyring::generate"));
    }
    if !digits.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_') {
        return Err(config("a secret is not URL-safe base64: only A-Z, a-z, 0-9, - and _, and = at the end"));
    }
    let length = digits.len() * 3 / 4;
    if length != LENGTH {
        let size = if length < LENGTH { "short" } else { "long" };
        return Err(config(format!("a secret is too {size}: it has {length} bytes, and must have {LENGTH}")));
    }
    let mut secret = Box::new(Zeroizing::new([0; LENGTH]));
    let decoded = match padded {
        true => PADDED.decode_slice(text, &mut secret[..]),
        false => UNPADDED.decode_slice(text, &mut secret[..]),
    };
    if decoded.ok() != Some(LENGTH) {
        return Err(config("a secret is not base64: its last character or its padding is wrong for 32 bytes"));
    }
    if secret.iter().all(|byte| *byte == 0) {
        return Err(config("a secret is all zeros: make a random one"));
    }
    Ok(secret)
}

fn config(message: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::Config, message)
}

pub(crate) fn wrong_key() -> Error {
    Error::new(ErrorKind::WrongKey, "the key that encrypted this is not on the keyring")
}

const VARIABLE: &str = "JAM_SESSION_AES_SECRET";

/// The format: the first byte of every encrypted text. Plain text begins with another byte.
pub(crate) const SEALED: u8 = 2;

/// How many bytes encryption adds.
pub(crate) const OVERHEAD: usize = 1 + KEY_NAME + NONCE + TAG;

const LENGTH: usize = 32;
const KEY_NAME: usize = 4;
const NONCE: usize = 24;
const TAG: usize = 16;

#[cfg(test)]
mod tests {
    use shake::{
        Shake128,
        digest::{ExtendableOutput, Update, XofReader},
    };

    use std::sync::Arc;

    use bytes::Bytes;

    use super::*;
    use crate::record::{
        codec::{Codec, Form},
        id::{Owners, RecordId, Sid},
        token::{IdText, SessionId},
    };

    fn xaes(key: [u8; 32]) -> Xaes256Gcm {
        Xaes256Gcm::new(&key.into())
    }

    fn seal(key: [u8; 32], nonce: [u8; 24], aad: &[u8], text: &[u8]) -> Vec<u8> {
        let mut sealed = text.to_vec();
        let tag = xaes(key).encrypt_inout_detached(&nonce.into(), aad, sealed.as_mut_slice().into()).unwrap();
        sealed.extend_from_slice(&tag);
        sealed
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// <https://c2sp.org/XAES-256-GCM>, section "Test vectors".
    #[test]
    fn the_cipher_is_that_of_its_specification() {
        let nonce = *b"ABCDEFGHIJKLMNOPQRSTUVWX";
        let sealed = seal([1; 32], nonce, b"", b"XAES-256-GCM");
        assert_eq!(hex(&sealed), "ce546ef63c9cc60765923609b33a9a1974e96e52daf2fcf7075e2271");
        let sealed = seal([3; 32], nonce, b"c2sp.org/XAES-256-GCM", b"XAES-256-GCM");
        assert_eq!(hex(&sealed), "986ec1832593df5443a179437fd083bf3fdb41abd740a21f71eb769d");
    }

    /// The same, section "Accumulated randomized tests".
    #[test]
    fn ten_thousand_random_messages_are_sealed_as_specified() {
        fn array<const N: usize>(random: &mut impl XofReader) -> [u8; N] {
            let mut bytes = [0; N];
            random.read(&mut bytes);
            bytes
        }
        fn string(random: &mut impl XofReader) -> Vec<u8> {
            let [length] = array(random);
            let mut bytes = vec![0; usize::from(length)];
            random.read(&mut bytes);
            bytes
        }
        let mut random = Shake128::default().finalize_xof();
        let mut sum = Shake128::default();
        for _ in 0..10_000 {
            let (key, nonce) = (array(&mut random), array(&mut random));
            let (text, aad) = (string(&mut random), string(&mut random));
            let sealed = seal(key, nonce, &aad, &text);
            sum.update(&sealed);
            let (mut opened, tag) = (sealed[..text.len()].to_vec(), Tag::try_from(&sealed[text.len()..]).unwrap());
            xaes(key).decrypt_inout_detached(&nonce.into(), &aad, opened.as_mut_slice().into(), &tag).unwrap();
            assert_eq!(opened, text);
        }
        let sum: [u8; 32] = array(&mut sum.finalize_xof());
        assert_eq!(hex(&sum), "e6b9edf2df6cec60c8cbd864e2211b597fb69a529160cd040d56c0c210081939");
    }

    fn secret(byte: u8) -> String {
        let bytes: [u8; 32] = std::array::from_fn(|i| byte.wrapping_add(i as u8));
        PADDED.encode(bytes)
    }

    fn keys(keyring: Keyring, namespace: &str) -> Keys {
        Keys::new(&keyring, namespace).unwrap()
    }

    fn ring(bytes: &[u8]) -> Keyring {
        let ring = Keyring::new(secret(bytes[0])).unwrap();
        bytes[1..].iter().try_fold(ring, |ring, byte| ring.also_opens(secret(*byte))).unwrap()
    }

    /// What IDs are bound to, and three records: the kind, and the associated data.
    fn uses(keys: &Keys) -> [(&Sealer, Vec<u8>); 4] {
        let owners = Owners::new("sessions", b"").unwrap();
        let record = |owner, sid| RecordId::new(owner, Sid::parse(sid).unwrap()).to_string().into_bytes();
        [
            (&keys.ids, Vec::new()),
            (&keys.records, record(None, "AAAAAAAAQACAAAAAAAAAAA")),
            (&keys.records, record(None, "BBBBBBBBQACAAAAAAAAAAA")),
            (&keys.records, record(Some(owners.owner("ada")), "AAAAAAAAQACAAAAAAAAAAA")),
        ]
    }

    #[test]
    fn what_is_sealed_opens_as_what_it_is_and_nothing_else() {
        let ours = keys(ring(&[1]), "sessions");
        for (i, (sealer, aad)) in uses(&ours).into_iter().enumerate() {
            let sealed = sealer.seal(&aad, b"text").unwrap();
            assert_eq!(sealed.len(), 4 + OVERHEAD);
            assert_ne!(sealed, sealer.seal(&aad, b"text").unwrap(), "a new nonce each time");
            for (j, (other, aad)) in uses(&ours).into_iter().enumerate() {
                match other.open(&aad, &sealed) {
                    Ok(opened) => assert!(i == j && opened.text == b"text" && !opened.stale),
                    Err(error) => assert!(i != j && error.kind() == ErrorKind::Corrupt),
                }
            }
            for namespace in ["session", "sessionss", "", "sessions\0"] {
                let other = keys(ring(&[1]), namespace);
                let (other, aad) = &uses(&other)[i];
                assert_eq!(other.open(aad, &sealed).err().unwrap().kind(), ErrorKind::Corrupt);
            }
        }
    }

    #[test]
    fn a_bit_flipped_or_a_byte_cut_anywhere_is_refused() {
        let keys = keys(ring(&[1, 2]), "sessions");
        for (sealer, aad) in uses(&keys) {
            let sealed = sealer.seal(&aad, b"a text of some length").unwrap();
            for bit in 0..sealed.len() * 8 {
                let mut flipped = sealed.clone();
                flipped[bit / 8] ^= 1 << (bit % 8);
                let kind = sealer.open(&aad, &flipped).err().unwrap().kind();
                let in_name = (8..40).contains(&bit);
                assert_eq!(kind, if in_name { ErrorKind::WrongKey } else { ErrorKind::Corrupt });
            }
            for length in 0..sealed.len() {
                assert_eq!(sealer.open(&aad, &sealed[..length]).err().unwrap().kind(), ErrorKind::Corrupt);
                assert!(sealer.open(&aad, &sealed[sealed.len() - length..]).is_err());
            }
            let longer = [&sealed[..], b"\0"].concat();
            assert_eq!(sealer.open(&aad, &longer).err().unwrap().kind(), ErrorKind::Corrupt);
        }
    }

    #[test]
    fn the_first_key_seals_and_every_key_opens() {
        let (old, both, new) = (keys(ring(&[1]), "s"), keys(ring(&[2, 1]), "s"), keys(ring(&[2]), "s"));
        let by_old = old.ids.seal(b"", b"text").unwrap();
        let by_both = both.ids.seal(b"", b"text").unwrap();
        assert!(both.ids.open(b"", &by_old).unwrap().stale);
        assert!(!both.ids.open(b"", &by_both).unwrap().stale);
        assert!(!new.ids.open(b"", &by_both).unwrap().stale);
        for (keys, sealed) in [(&new, &by_old), (&old, &by_both)] {
            assert_eq!(keys.ids.open(b"", sealed).err().unwrap().kind(), ErrorKind::WrongKey);
        }
        let opens_only = keys(ring(&[2, 1]).opens_only(), "s");
        assert!(!opens_only.encrypts() && opens_only.takes_plain(u64::MAX - 1));
        assert!(!opens_only.ids.open(b"", &by_old).unwrap().stale);
    }

    #[test]
    fn plain_text_is_taken_until_the_time_that_was_said() {
        let time = SystemTime::UNIX_EPOCH + std::time::Duration::from_millis(1000);
        let until = keys(ring(&[1]).accept_plain_until(time), "s");
        assert!(until.encrypts() && until.takes_plain(999) && !until.takes_plain(1000));
        let never = keys(ring(&[1]), "s");
        assert!(never.encrypts() && !never.takes_plain(0));
    }

    /// Sealed by version 0.1.0: every later version must open them. They were made by another program than this crate.
    #[test]
    fn the_golden_texts_are_opened_and_sealed() {
        const PLAIN_IDS: [&str; 2] = [
            "AAAAAAAAQACAAAAAAAAAAA.AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8",
            "Rii4kzINEgUu4Shaqdfvmg.AAAAAAAAQACAAAAAAAAAAA.AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8",
        ];
        const SEALED_IDS: [&str; 2] = [
            "Auta208AAQIDBAUGBwgJCgsMDQ4PEBESExQVFheXaRANL9jUVMlaRNnqXftno6xtZC_3ySKLgIYv9BnPaW2FLCQlkXghbwcB0hk4eR0YrwYKj0ZTXuz2Qj8eJbEse6DEDECDV3GtbbEL_pvU27jA",
            "Auta208AAQIDBAUGBwgJCgsMDQ4PEBESExQVFheEQTh4BePcW918Uu2fT9JHk4lKUwPRySKLhIQvwgnIekulJCY1v3Ukb3YP1yBXahk1oRI7jFlJfs3UYCkJHpElI9cB0y-5kEnpVBcDaSkNRwIa4n6fBZQ7dfxjUoIvxWcdR3Dh4uoKpX8",
        ];
        let record = include_str!("../../tests/golden/record-v1.json").trim_ascii_end();
        let sealed_record = include_str!("../../tests/golden/record-v1-sealed.txt").trim_ascii_end();
        let keys = keys(ring(&[0]), "sessions");
        let seal = |sealer: &Sealer, aad: &[u8], text: &str| {
            let nonce = std::array::from_fn(|i| i as u8);
            UNPADDED.encode(sealer.seal_with(nonce, aad, text.as_bytes()).unwrap())
        };
        for (plain, sealed) in PLAIN_IDS.into_iter().zip(SEALED_IDS) {
            assert_eq!(seal(&keys.ids, b"", plain), sealed);
            let read = |keys, text| match SessionId::read(keys, text, || 0) {
                IdText::Id(id) => id,
                IdText::Foreign | IdText::Malformed => panic!("{text} is no ID"),
            };
            let (read, same) = (read(Some(&keys), sealed), read(None, plain));
            assert!(read.is_proven && !same.is_proven);
            assert!(matches!(SessionId::read(None, sealed, || 0), IdText::Foreign));
            assert!(read.record == same.record && read.secret.hash().matches(&same.secret.hash()));
        }
        let id = PLAIN_IDS[1].rsplit_once('.').unwrap().0.parse::<RecordId>().unwrap();
        assert_eq!(seal(&keys.records, id.to_string().as_bytes(), record), sealed_record);

        let owners = Owners::new("sessions", b"").unwrap();
        let keys = Some(Arc::new(keys));
        let codec = Codec { form: Form::Text, owners, serializer: None, keys, max_size: 1 << 20 };
        let sealed = UNPADDED.decode(sealed_record).unwrap();
        let (contents, stale) = codec.read(id, &sealed.into(), 0).unwrap();
        assert!(contents.key.as_deref() == Some("ada") && !stale);
        // What is plain is not taken.
        assert_eq!(codec.read(id, &Bytes::from(record), 0).err().unwrap().kind(), ErrorKind::Unreadable);
    }

    #[test]
    fn a_secret_has_32_bytes_in_one_of_two_forms() {
        let padded = secret(1);
        assert_eq!(padded.len(), 44);
        assert_eq!(Keyring::new(&padded).unwrap().primary_secret(), padded);
        assert_eq!(Keyring::new(padded.trim_end_matches('=')).unwrap().primary_secret(), padded);
        let generated = Keyring::generate().unwrap().primary_secret();
        assert_ne!(generated, Keyring::generate().unwrap().primary_secret());
        assert_eq!(Keyring::new(&generated).unwrap().primary_secret(), generated);
    }

    #[test]
    fn a_wrong_secret_is_refused_in_words() {
        let good = secret(1);
        let with_last = |last: &str| format!("{}{last}", &good[..42]);
        for (text, word) in [
            ("", "empty"),
            ("=", "empty"),
            ("hunter2", "short"),
            (&good[..42], "short"),
            (&good[..40], "short"),
            (&format!("{}A", &good[..43]), "long"),
            (&"A".repeat(43), "zeros"),
            (&format!("{}=", "A".repeat(43)), "zeros"),
            (&good.replace('A', "+"), "URL-safe"),
            (&good.replace('A', "/"), "URL-safe"),
            (&format!(" {good}"), "URL-safe"),
            (&format!("{good}\n"), "URL-safe"),
            (&good.replace('A', "é"), "URL-safe"),
            (&format!("{good}="), "not base64"),
            (&with_last("B"), "not base64"),
            (&with_last("9="), "not base64"),
            (&"A".repeat(4096), "long"),
        ] {
            for error in [Keyring::new(text), ring(&[9]).also_opens(text)].map(Result::unwrap_err) {
                assert_eq!(error.kind(), ErrorKind::Config);
                assert!(error.to_string().contains(word), "{text}: {error}");
                assert!(text.len() < 5 || !error.to_string().contains(text));
            }
        }
        assert!(ring(&[1]).also_opens(&good).unwrap_err().to_string().contains("twice"));
        assert!(ring(&[1]).also_opens(good.trim_end_matches('=')).is_err());
    }

    #[test]
    fn a_list_has_commas_between_and_its_order_counts() {
        let (a, b, c) = (secret(1), secret(2), secret(3));
        for list in [format!("{a},{b},{c}"), format!(" {a} ,\n{b}, {c}\n")] {
            let ring = Keyring::from_list(&list).unwrap();
            assert_eq!(ring.primary_secret(), a);
            assert_eq!(ring.secrets.len(), 3);
        }
        for list in ["".to_owned(), ",".to_owned(), format!("{a},"), format!(",{a}"), format!("{a},,{b}")] {
            assert!(Keyring::from_list(&list).unwrap_err().to_string().contains("empty"), "{list}");
        }
        assert!(Keyring::from_list(&format!("{a},{a}")).is_err());
        assert!(Keyring::from_list(&format!("{a};{b}")).is_err());
    }

    #[test]
    fn p13_a_keyring_does_not_print_itself_and_is_wiped() {
        let printed = format!("{:?}", ring(&[1, 2]));
        assert_eq!(printed, "Keyring { .. }");
        fn is_wiped<T: zeroize::ZeroizeOnDrop>(_: &T) {}
        is_wiped(&keys(ring(&[1]), "s").ids.ring[0].cipher);
        is_wiped(&*ring(&[1]).secrets[0]);
    }
}
