//! The parsers of untrusted input: the cookie header, the text of an ID, a record. No input makes them panic.
//!
//! The fuzz targets call the same functions. Their interesting inputs are in `tests/corpus`, and are run here.

use std::{
    convert::Infallible,
    future::ready,
    sync::{
        LazyLock, Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, Request, Response, header};
use jam_session::{
    Cleared, Created, Durability, ErrorKind, JsonSessions, Keyring, MemoryBackend, Outcome, Owner, Record, RecordId,
    Session, SessionLayer, Sessions,
    conformance::{Answer, Call, Fault, Faulty, Verb},
};
use tokio::runtime::Runtime;
use tower::{Layer, ServiceExt, service_fn};

/// However slow the machine is.
const PATIENCE: Duration = Duration::from_secs(300);

/// Without a keyring, with one, and with one that is about to be turned on.
static KEYRINGS: LazyLock<[Option<Keyring>; 3]> = LazyLock::new(|| {
    let keyring = || Keyring::new("AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8").unwrap();
    [None, Some(keyring()), Some(keyring().opens_only())]
});

static RUNTIME: LazyLock<Runtime> =
    LazyLock::new(|| tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap());

/// A `Cookie` header: whatever is in it, the visitor is nobody, and no cookie is set.
pub fn cookie_header(bytes: &[u8]) {
    static LAYERS: LazyLock<[SessionLayer; 3]> =
        LazyLock::new(|| [0, 1, 2].map(|i| SessionLayer::new(sessions(i, || None))));
    let Ok(value) = HeaderValue::from_bytes(bytes) else { return };
    for layer in &*LAYERS {
        let mut request = Request::new(());
        request.headers_mut().insert(header::COOKIE, value.clone());
        let service = layer.layer(service_fn(async |request: Request<()>| {
            let session = request.extensions().get::<Session>().unwrap();
            session.load().await.unwrap();
            assert!(session.key().is_none() && session.data().unwrap().is_empty());
            Ok::<_, Infallible>(Response::new(()))
        }));
        let response = RUNTIME.block_on(service.oneshot(request)).unwrap();
        assert!(!response.headers().contains_key(header::SET_COOKIE));
    }
}

/// The text of an ID, or of a part of one: what is read is written again as it was.
pub fn id_text(bytes: &[u8]) {
    static SESSIONS: LazyLock<[Sessions<Holds>; 3]> = LazyLock::new(|| [0, 1, 2].map(|i| sessions(i, || None)));
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(id) = text.parse::<RecordId>() {
        assert_eq!(id.to_string(), text);
    }
    if let Ok(owner) = text.parse::<Owner>() {
        assert_eq!(owner.to_string(), text);
    }
    for sessions in &*SESSIONS {
        RUNTIME.block_on(async {
            assert!(sessions.get(text).await.unwrap().is_none());
            let deleted = sessions.delete(text).await.map_err(|error| error.kind());
            // It may be an ID of another process, by a key that this one does not have.
            assert!(matches!(deleted, Ok(()) | Err(ErrorKind::Unauthorized)), "{deleted:?}");
        });
    }
}

/// The payload of a record: what is read of it can be written again.
pub fn record_bytes(bytes: &[u8]) {
    const PLAIN: &str = "Rii4kzINEgUu4Shaqdfvmg.AAAAAAAAQACAAAAAAAAAAA.AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8";
    const SEALED: &str = "Auta208AAQIDBAUGBwgJCgsMDQ4PEBESExQVFheEQTh4BePcW918Uu2fT9JHk4lKUwPRySKLhIQvwgnIekulJCY1v3Ukb3YP1yBX\
        ahk1oRI7jFlJfs3UYCkJHpElI9cB0y-5kEnpVBcDaSkNRwIa4n6fBZQ7dfxjUoIvxWcdR3Dh4uoKpX8";
    // Made once: deriving keys takes longer than all that is tried here.
    static HELD: Mutex<Option<Bytes>> = Mutex::new(None);
    static SESSIONS: LazyLock<[Sessions<Holds>; 3]> =
        LazyLock::new(|| [0, 1, 2].map(|i| sessions(i, || HELD.lock().unwrap().clone())));
    *HELD.lock().unwrap() = Some(bytes.to_vec().into());
    for (i, sessions) in SESSIONS.iter().enumerate() {
        let id = if i == 1 { SEALED } else { PLAIN };
        RUNTIME.block_on(async {
            if let Ok(Some(data)) = sessions.get(id).await {
                let names: Vec<_> = data.names().map(str::to_owned).collect();
                let mut values = names.iter().map(|name| data.get::<serde_json::Value>(name));
                // The binary form is taken apart as far as the values. They are read one by one, and each may be broken.
                match values.find_map(|value| value.err()) {
                    None => sessions.update(id, &data).await.unwrap(),
                    Some(error) => assert_eq!(error.kind(), ErrorKind::Data),
                }
                sessions.rework(id).await.unwrap();
            }
            sessions.list("ada").await.unwrap();
            sessions.clear("ada").await.unwrap();
            let _ = sessions.delete(id).await;
        });
    }
}

/// A file given as `sessions.json`: it is opened, perhaps with a torn end cut off, or refused and left as it is.
pub fn json_lines(bytes: &[u8]) {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let name = format!("jam-session-lines-{}-{}", std::process::id(), NEXT.fetch_add(1, Relaxed));
    let folder = std::env::temp_dir().join(name);
    // Another process may have had the same number, and been killed.
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir(&folder).unwrap();
    let path = folder.join("sessions.json");
    std::fs::write(&path, bytes).unwrap();
    RUNTIME.block_on(async {
        let patient = || JsonSessions::builder(&path).durability(Durability::Flush).request_time(PATIENCE);
        match patient().open().await {
            Ok(sessions) => {
                sessions.list("ada").await.unwrap();
                let id = sessions.create("ada", serde_json::json!({"n": 1})).await.unwrap();
                assert!(sessions.get(&id).await.unwrap().is_some());
                sessions.close().await.unwrap();
                // What was written behind it is found again.
                let sessions = patient().open().await.unwrap();
                assert!(sessions.get(&id).await.unwrap().is_some());
                sessions.close().await.unwrap();
            }
            Err(_) => assert_eq!(std::fs::read(&path).unwrap(), bytes),
        }
    });
    std::fs::remove_dir_all(folder).unwrap();
}

fn sessions(keyring: usize, holds: fn() -> Option<Bytes>) -> Sessions<Holds> {
    let builder = Sessions::over(holding(holds));
    match &KEYRINGS[keyring] {
        None => builder.build().unwrap(),
        Some(keyring) => builder.encrypt(keyring.clone()).build().unwrap(),
    }
}

/// A store that holds the same under every name, or nothing.
type Holds = Faulty<MemoryBackend>;

fn holding(payload: fn() -> Option<Bytes>) -> Holds {
    let backend = Faulty::new(MemoryBackend::default());
    // The store in it is never asked.
    backend.faults().always(None, Fault::Before);
    let record = move |id| payload().map(|payload| Record::new(id, 1, Duration::from_secs(60), payload));
    let answer = move |call: &Call| {
        let name = call.id.or_else(|| format!("{}.AAAAAAAAQACAAAAAAAAAAA", call.owner?).parse().ok());
        let record = name.and_then(&record);
        match call.verb {
            Verb::Load => Answer::Load(record),
            Verb::Create => Answer::Create(Created::done()),
            Verb::Update => Answer::Update(if record.is_some() { Outcome::Done } else { Outcome::Gone }),
            Verb::Touch => Answer::Touch,
            Verb::Delete => Answer::Delete(record.is_some()),
            Verb::List => Answer::List(record.into_iter().collect()),
            Verb::Clear => Answer::Clear(Cleared::Done(u64::from(record.is_some()))),
            _ => Answer::Close,
        }
    };
    backend.faults().always(None, Fault::change(move |call, _| ready(Ok(answer(&call)))));
    backend
}

#[cfg(test)]
mod replay {
    fn replay(corpus: &str, target: fn(&[u8])) {
        let folder = format!("{}/tests/corpus/{corpus}", env!("CARGO_MANIFEST_DIR"));
        let mut tried = 0;
        for entry in std::fs::read_dir(folder).unwrap() {
            let bytes = std::fs::read(entry.unwrap().path()).unwrap();
            target(&bytes);
            // Cut anywhere, and with each byte another, it is no worse.
            for at in 0..bytes.len().min(600) {
                target(&bytes[..at]);
                let mut other = bytes.clone();
                other[at] = other[at].wrapping_add(1);
                target(&other);
            }
            tried += 1;
        }
        assert!(tried > 3, "the corpus of {corpus} is gone");
    }

    #[test]
    fn nothing_in_a_cookie_header_makes_it_panic() {
        replay("cookie_header", super::cookie_header);
    }

    #[test]
    fn nothing_in_an_id_makes_it_panic() {
        replay("id_text", super::id_text);
    }

    #[test]
    fn nothing_in_a_record_makes_it_panic() {
        replay("record_bytes", super::record_bytes);
    }

    #[test]
    fn json_lines() {
        let folder = format!("{}/tests/corpus/json_lines", env!("CARGO_MANIFEST_DIR"));
        for entry in std::fs::read_dir(folder).unwrap() {
            let bytes = std::fs::read(entry.unwrap().path()).unwrap();
            super::json_lines(&bytes);
            // Each of these is a file on the disk: not at every byte.
            for at in (0..bytes.len()).step_by(23) {
                super::json_lines(&bytes[..at]);
                let mut other = bytes.clone();
                other[at] ^= 1;
                super::json_lines(&other);
            }
        }
    }
}
