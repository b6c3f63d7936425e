//! Encryption: IDs and records cannot be read, forged, altered or moved, and key changes sign nobody out.

use std::{
    ffi::OsStr,
    time::{Duration, SystemTime},
};

use base64::prelude::{BASE64_URL_SAFE_NO_PAD as BASE64, Engine};
use jam_session::{
    Backend, BoxError, Data, Error, ErrorKind, JsonSessions, Keyring, Owner, Record, RecordId, Serializer, Session,
    SessionLayer, Sessions, conformance::Verb,
};
use serde_json::json;

use crate::{
    client::{Answer, Client},
    folder::Folder,
    on_every_store,
    store::{Options, PATIENCE, Plain, Store, eventually},
};

on_every_store! {
    p03_an_id_that_does_not_open_never_reaches_the_store,
    p03_a_plain_id_is_not_taken_with_a_keyring,
    p11_a_sealed_record_flipped_or_cut_anywhere_is_an_error_and_stays,
    p11_a_record_that_no_key_opens_hinders_nobody,
    p11_records_cannot_be_swapped_or_moved,
    p11_a_plain_record_is_not_taken_with_a_keyring,
    p13_a_dump_of_a_sealed_store_shows_nothing,
    p15_of_several_cookies_those_that_open_are_tried,
    p08_clear_finds_all_whatever_sealed_them,
    p13_a_serializer_does_not_weaken_the_seal,
    p17_sealing_does_not_count_against_the_size,
    a_session_that_is_only_read_is_encrypted_again_and_keeps_its_cookie,
    the_module_seals_anew_what_it_reads,
    rotation_under_traffic_signs_nobody_out,
}

const A: &str = "the-key-A_the-key-A_the-key-A_the-key-A_thA=";
const B: &str = "the-key-B_the-key-B_the-key-B_the-key-B_thA";
const DAY: Duration = Duration::from_secs(86_400);

fn key_a() -> Keyring {
    Keyring::new(A).unwrap()
}

fn key_b() -> Keyring {
    Keyring::new(B).unwrap()
}

fn with(keyring: Keyring) -> Options {
    Options { keyring: Some(keyring), ..Options::default() }
}

/// A session of that user, seen by a browser at a process with that keyring.
async fn signed_in(store: &Store, keyring: Keyring, user: &str) -> Client {
    let client = Client::new(&store.layer_with(with(keyring)));
    client.does(|session| session.create(user, json!({"card": "4111-1111"}))).await.ok();
    client
}

/// A request that cannot fail and answers nothing.
async fn act(client: &Client, action: impl FnOnce(&Session)) -> Answer {
    client
        .does(|session| {
            action(session);
            Ok(())
        })
        .await
}

async fn user(client: &Client) -> String {
    client.does(|session| Ok(session.key().unwrap_or_default())).await.ok().body
}

/// Stands for a user in the store: the same with and without a keyring.
async fn owner(store: &Store, user: &str, options: Options) -> Owner {
    let sessions = store.sessions_with(Options { keyring: None, ..options });
    let id = sessions.create(user, json!({})).await.unwrap();
    sessions.delete(&id).await.unwrap();
    let record: RecordId = id.as_str().rsplit_once('.').unwrap().0.parse().unwrap();
    record.owner().unwrap()
}

async fn records(store: &Store, user: &str) -> Vec<Record> {
    let owner = owner(store, user, Options::default()).await;
    store.backend().list(owner).await.unwrap()
}

async fn record(store: &Store, user: &str) -> Record {
    let mut records = records(store, user).await;
    assert_eq!(records.len(), 1);
    records.remove(0)
}

/// What somebody can do who can write to the store.
async fn overwrite(store: &Store, id: RecordId, payload: impl Into<bytes::Bytes>) {
    let there = store.backend().load(id).await.unwrap().unwrap();
    let forged = Record::new(id, there.version.wrapping_add(1) & i64::MAX, there.ttl, payload);
    assert!(matches!(store.backend().updates(there.version, forged).await.unwrap(), jam_session::Outcome::Done));
}

fn is_sealed(record: &Record) -> bool {
    record.payload[0] == 2
}

async fn p03_an_id_that_does_not_open_never_reaches_the_store(store: Store) {
    let client = signed_in(&store, key_a(), "ada").await;
    let id = client.id().unwrap();
    assert!(!id.contains('.'));
    let mut forged: Vec<String> = (0..id.len()).map(|end| id[..end].to_owned()).collect();
    let digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    for (at, digit) in id.char_indices() {
        let value = digits.find(digit).unwrap();
        for bit in 0..6 {
            let flipped = &digits[value ^ 1 << bit..][..1];
            forged.push(format!("{}{flipped}{}", &id[..at], &id[at + 1..]));
        }
    }
    forged.extend([format!("{id}A"), format!("{id}="), format!("{id}AAAA"), format!("AAAA{id}"), "Ag".to_owned()]);
    forged.push("A".repeat(id.len()));
    forged.push(signed_in(&store, key_b(), "ada").await.id().unwrap());
    let other = store.sessions_with(Options { namespace: Some("other"), ..with(key_a()) });
    forged.push(other.create("ada", json!({})).await.unwrap().as_str().to_owned());
    // Records are no IDs.
    forged.push(BASE64.encode(&record_of_key_a(&store).await.payload));
    forged.push(BASE64.encode(&record_of_key_a(&store).await.payload[..100]));

    let sessions = store.sessions_with(with(key_a()));
    let thief = Client::new(&SessionLayer::new(sessions.clone()));
    store.faults.calls();
    for text in forged {
        thief.set_id(&text);
        let answer = thief.does(|session| Ok(session.key().is_none().to_string())).await.ok().sets_no_cookie();
        assert_eq!(answer.body, "true");
        assert!(sessions.get(&text).await.unwrap().is_none());
        assert_eq!(sessions.update(&text, json!({})).await.unwrap_err().kind(), ErrorKind::NotFound);
        assert_eq!(sessions.rework(&text).await.unwrap_err().kind(), ErrorKind::NotFound);
        // What has the form of an encrypted ID may be one of another process, and end nothing is not what it was asked for.
        let refused = sessions.delete(&text).await.err().map(|error| error.kind());
        assert!(matches!(refused, None | Some(ErrorKind::Unauthorized)), "{refused:?}");
        assert!(store.faults.calls().is_empty(), "{text}");
    }
    assert_eq!(user(&client).await, "ada");
    // Nor is a sealed one taken where there is no keyring.
    let plain = Client::new(&store.layer());
    plain.set_id(&id);
    store.faults.calls();
    assert_eq!(user(&plain).await, "");
    assert!(store.faults.calls().is_empty());
}

async fn record_of_key_a(store: &Store) -> Record {
    let name = &key_a_name(store).await;
    records(store, "ada").await.into_iter().find(|record| record.payload[1..5] == *name).unwrap()
}

/// The four bytes that name a key in all that it has sealed.
async fn key_a_name(store: &Store) -> Vec<u8> {
    let id = store.sessions_with(with(key_a())).create("nobody", json!({})).await.unwrap();
    BASE64.decode(id.as_str()).unwrap()[1..5].to_vec()
}

async fn p03_a_plain_id_is_not_taken_with_a_keyring(store: Store) {
    let client = Client::new(&store.layer());
    client.does(|session| session.create("ada", json!({}))).await.ok();
    let then = store.clock.now() + Duration::from_secs(60);
    let strict = client.thief().at(&store.layer_with(with(key_a())));
    let moving = client.thief().at(&store.layer_with(with(key_a().accept_plain_until(then))));
    let late = client.thief().at(&store.layer_with(with(key_a().accept_plain_until(then))));
    store.faults.calls();
    assert_eq!(user(&strict).await, "");
    assert!(store.faults.calls().is_empty());
    assert_eq!(user(&moving).await, "ada");
    eventually(async || is_sealed(&record(&store, "ada").await)).await;
    store.pass(Duration::from_secs(60));
    store.faults.calls();
    assert_eq!(user(&late).await, "");
    assert!(store.faults.calls().is_empty());
    // A cookie is only ever set with a new secret: a key that is accepted has to be accepted for as long as a session lives.
    assert_eq!(user(&moving).await, "");
}

async fn p11_a_sealed_record_flipped_or_cut_anywhere_is_an_error_and_stays(store: Store) {
    let client = signed_in(&store, key_a(), "ada").await;
    let sessions = store.sessions_with(with(key_a()));
    let id = client.id().unwrap();
    let good = record(&store, "ada").await;
    assert!(is_sealed(&good));
    let flipped = (0..good.payload.len()).map(|at| {
        let mut payload = good.payload.to_vec();
        payload[at] ^= 1 << (at % 8);
        (payload, if (1..5).contains(&at) { ErrorKind::WrongKey } else { ErrorKind::Corrupt })
    });
    let cut = (5..good.payload.len()).map(|end| (good.payload[..end].to_vec(), ErrorKind::Corrupt));
    for (i, (payload, kind)) in flipped.chain(cut).enumerate() {
        // Another first byte is another format.
        let kind = if i == 0 { ErrorKind::Unreadable } else { kind };
        overwrite(&store, good.id, payload.clone()).await;
        assert_eq!(sessions.get(&id).await.unwrap_err().kind(), kind, "{i}");
        if i % 50 < 6 {
            assert_no_sign_out(&client, kind).await;
        }
        assert_eq!(store.backend().load(good.id).await.unwrap().unwrap().payload, payload);
    }
    overwrite(&store, good.id, good.payload).await;
    assert_eq!(user(&client).await, "ada");
}

/// Neither reading nor writing works, and the cookie stays.
async fn assert_no_sign_out(client: &Client, kind: ErrorKind) {
    let answer = client.does(|session| {
        assert_eq!(session.key(), None);
        assert_eq!(session.get::<String>("card").unwrap_err().kind(), kind);
        session.get::<String>("card").map(drop)
    });
    assert_eq!(answer.await.sets_no_cookie().status, 500);
    assert_eq!(client.does(|session| session.insert("n", 1)).await.sets_no_cookie().status, 500);
    assert_eq!(act(client, Session::clear).await.sets_no_cookie().status, 500);
}

async fn p11_a_record_that_no_key_opens_hinders_nobody(store: Store) {
    // The cookie opens and the record does not: an operator has put the keys in a wrong order, or lost one.
    for (kind, spoil) in [(ErrorKind::WrongKey, 1), (ErrorKind::Corrupt, 40), (ErrorKind::Unreadable, 0)] {
        let client = signed_in(&store, key_a(), "ada").await;
        let sessions = store.sessions_with(with(key_a()));
        let mut spoilt = record(&store, "ada").await;
        let mut payload = spoilt.payload.to_vec();
        payload[spoil] ^= 1;
        spoilt.payload = payload.into();
        overwrite(&store, spoilt.id, spoilt.payload.clone()).await;

        assert_no_sign_out(&client, kind).await;
        let again = client.thief();
        let bind = again.does(|session| {
            session.bind("ada");
            session.insert("n", 1)
        });
        bind.await.ok().new_id().unwrap();
        assert_eq!(user(&again).await, "ada");
        assert_eq!(store.backend().load(spoilt.id).await.unwrap().unwrap().payload, spoilt.payload);
        assert_eq!(sessions.list("ada").await.unwrap().len(), 1);
        // Our keyring has decrypted the ID: that it signs out is not in doubt.
        assert!(act(&client, Session::delete).await.ok().removes_cookie());
        assert!(store.backend().load(spoilt.id).await.unwrap().is_none());
        // One that becomes unreadable while it is being ended is ended all the same.
        let last = record(&store, "ada").await;
        let spy = store.clone();
        store.first(Verb::Update, move || {
            let (spy, payload) = (spy.clone(), spoilt.payload.clone());
            async move { overwrite(&spy, last.id, payload).await }
        });
        sessions.delete(again.id().unwrap()).await.unwrap();
        assert!(store.backend().load(last.id).await.unwrap().is_none());
        assert_eq!(sessions.clear("ada").await.unwrap(), 0);
    }
}

async fn p11_records_cannot_be_swapped_or_moved(store: Store) {
    let ada = [signed_in(&store, key_a(), "ada").await, signed_in(&store, key_a(), "ada").await];
    let mallory = signed_in(&store, key_a(), "mallory").await;
    let sessions = store.sessions_with(with(key_a()));
    let anonymous = Client::new(&SessionLayer::new(sessions.clone()));
    anonymous.does(|session| session.insert("n", 1)).await.ok();
    let other_options = Options { namespace: Some("other"), ..with(key_a()) };
    let other = store.sessions_with(other_options.clone());
    let other_id = other.create("ada", json!({"role": "admin"})).await.unwrap();
    let other_owner = owner(&store, "ada", other_options).await;
    let elsewhere = store.backend().list(other_owner).await.unwrap().remove(0);

    let adas = records(&store, "ada").await;
    let theirs = record(&store, "mallory").await;
    // Between one user's sessions.
    overwrite(&store, adas[0].id, adas[1].payload.clone()).await;
    overwrite(&store, adas[1].id, adas[0].payload.clone()).await;
    for client in &ada {
        assert_eq!(sessions.get(client.id().unwrap()).await.unwrap_err().kind(), ErrorKind::Corrupt);
        assert_no_sign_out(client, ErrorKind::Corrupt).await;
    }
    // From one user to another, from another application, and an ID where a record belongs.
    let id = BASE64.decode(mallory.id().unwrap()).unwrap();
    for payload in [adas[0].payload.clone(), elsewhere.payload.clone(), id.into()] {
        overwrite(&store, theirs.id, payload).await;
        assert_eq!(sessions.get(mallory.id().unwrap()).await.unwrap_err().kind(), ErrorKind::Corrupt);
        assert_no_sign_out(&mallory, ErrorKind::Corrupt).await;
    }
    overwrite(&store, elsewhere.id, adas[0].payload.clone()).await;
    assert_eq!(other.get(&other_id).await.unwrap_err().kind(), ErrorKind::Corrupt);
    // Where it belongs, each is good.
    for (id, payload) in adas.iter().chain([&theirs]).map(|record| (record.id, record.payload.clone())) {
        overwrite(&store, id, payload).await;
    }
    assert_eq!((user(&ada[0]).await, user(&ada[1]).await), ("ada".to_owned(), "ada".to_owned()));
    assert_eq!(user(&mallory).await, "mallory");
}

async fn p11_a_plain_record_is_not_taken_with_a_keyring(store: Store) {
    // Somebody who can write to the store has no key, but knows the format.
    let client = signed_in(&store, key_a(), "ada").await;
    let good = record(&store, "ada").await;
    let plain = store.sessions_with(with(key_a().opens_only()));
    let id = client.id().unwrap();
    plain.update(&id, json!({"role": "admin"})).await.unwrap();
    let forged = record(&store, "ada").await.payload;
    assert!(forged.windows(5).any(|bytes| bytes == b"admin"));

    let strict = store.sessions_with(with(key_a()));
    assert_eq!(strict.get(&id).await.unwrap_err().kind(), ErrorKind::Unreadable);
    assert_no_sign_out(&client, ErrorKind::Unreadable).await;
    assert!(strict.list("ada").await.unwrap().is_empty());
    let until = store.clock.now() + Duration::from_secs(60);
    let moving = store.sessions_with(with(key_a().accept_plain_until(until)));
    assert_eq!(moving.list("ada").await.unwrap().len(), 1);
    store.pass(Duration::from_secs(60));
    assert_eq!(moving.get(&id).await.unwrap_err().kind(), ErrorKind::Unreadable);
    assert_eq!(record(&store, "ada").await.payload, forged);
    overwrite(&store, good.id, good.payload).await;
    assert_eq!(user(&client).await, "ada");
}

async fn p13_a_dump_of_a_sealed_store_shows_nothing(store: Store) {
    let options = Options { rework_grace: Some(DAY), ..with(key_a()) };
    let layer = store.layer_with(options.clone());
    let client = Client::new(&layer);
    client.does(|session| session.create("ada-lovelace", json!({"card-number": "4111-1111"}))).await.ok();
    let mut ids = vec![client.id().unwrap()];
    act(&client, |session| session.rework()).await.ok();
    ids.push(client.id().unwrap());
    act(&client, |session| session.bind("ada-lovelace")).await.ok();
    ids.push(client.id().unwrap());
    client.does(|session| session.insert("pincode", "4711-0815")).await.ok();

    let dump = records(&store, "ada-lovelace").await;
    assert_eq!(dump.len(), 1, "signing in again leaves nothing behind");
    let thief = Client::new(&layer);
    for record in &dump {
        assert!(is_sealed(record));
        let everything = [record.id.to_string().as_bytes(), &record.payload].concat();
        let text = String::from_utf8_lossy(&everything);
        // Each is so long that random bytes do not spell it.
        let words =
            ["lovelace", "card-number", "4111-1111", "pincode", "4711-0815", r#""hash""#, r#""created""#, r#""realm""#];
        for word in words.into_iter().chain(ids.iter().map(|id| &id[..])) {
            assert!(!text.contains(word), "{word}");
        }
        // Nor does any of it work as an ID, as it is or spelled otherwise.
        let name = record.id.to_string();
        let mut tries = vec![name.clone(), BASE64.encode(&record.payload)];
        tries.extend(everything.windows(32).map(|bytes| format!("{name}.{}", BASE64.encode(bytes))));
        for text in tries {
            thief.set_id(&text);
            assert_eq!(user(&thief).await, "");
        }
    }
    assert_eq!(user(&client).await, "ada-lovelace");
}

async fn p15_of_several_cookies_those_that_open_are_tried(store: Store) {
    let client = signed_in(&store, key_a(), "ada").await;
    let foreign = signed_in(&store, key_b(), "mallory").await.id().unwrap();
    let good = client.id().unwrap();
    // However many do not open: none of them counts.
    let bad = [&foreign[..], "AgAA", &good[..40], "x.y.z"].map(|text| format!("__Host-id={text}"));
    let cookies = format!("{}; {}; {}; __Host-id={good}", bad.join("; "), bad.join("; "), bad.join("; "));
    store.faults.calls();
    let request = http::Request::builder().header("cookie", cookies).body(axum::body::Body::empty()).unwrap();
    let answer = client.request(request, async |session: Session| {
        session.load().await.unwrap();
        session.key().unwrap_or_default()
    });
    assert_eq!(answer.await.body, "ada");
    assert_eq!(store.faults.calls(), [Verb::Load]);
}

async fn p08_clear_finds_all_whatever_sealed_them(store: Store) {
    for keyring in [key_a(), key_b(), key_a().opens_only()] {
        store.sessions_with(with(keyring)).create("ada", json!({})).await.unwrap();
    }
    store.sessions().create("ada", json!({})).await.unwrap();
    // The one that has none of the keys is the one that signs out everywhere.
    let stranger = store.sessions_with(with(Keyring::generate().unwrap()));
    assert!(stranger.list("ada").await.unwrap().is_empty());
    assert_eq!(stranger.clear("ada").await.unwrap(), 4);
    assert!(records(&store, "ada").await.is_empty());
}

/// Writes nothing at all, and reads anything.
struct Lax;

impl Serializer for Lax {
    fn write(&self, _: &Data) -> Result<Vec<u8>, BoxError> {
        Ok(Vec::new())
    }

    fn read(&self, _: &[u8]) -> Result<Data, BoxError> {
        Ok(Data::default())
    }
}

async fn p13_a_serializer_does_not_weaken_the_seal(store: Store) {
    let sessions = |keyring: Option<Keyring>| {
        let mut builder = Sessions::over(store.watched()).clock(store.clock.clone()).serializer(Lax);
        builder = builder.request_time(PATIENCE);
        if let Some(keyring) = keyring {
            builder = builder.encrypt(keyring);
        }
        builder.build().unwrap()
    };
    let sealed = sessions(Some(key_a()));
    let id = sealed.create("ada", json!({})).await.unwrap();
    let good = record(&store, "ada").await;
    assert!(is_sealed(&good));
    let plain = sessions(None).create("grace", json!({})).await.unwrap();
    let forged = record(&store, "grace").await.payload;
    assert!(sealed.get(&plain).await.unwrap().is_none());
    let cut = good.payload.slice(..good.payload.len() - 1);
    for payload in [forged, bytes::Bytes::new(), cut, bytes::Bytes::from_static(b"{}")] {
        overwrite(&store, good.id, payload).await;
        assert!(sealed.get(&id).await.is_err());
    }
    overwrite(&store, good.id, good.payload).await;
    assert!(sealed.get(&id).await.unwrap().is_some());
}

async fn p17_sealing_does_not_count_against_the_size(store: Store) {
    // Else what fits today would not be written any more when a keyring comes.
    let plain = store.sessions();
    let id = plain.create("ada", json!({"n": "x".repeat(100)})).await.unwrap();
    let size = record(&store, "ada").await.payload.len();
    let until = store.clock.now() + DAY;
    let sealing = store
        .sessions_with(Options { max_size: Some(size), ..with(Keyring::new(A).unwrap().accept_plain_until(until)) });
    sealing.update(&id, json!({"n": "y".repeat(100)})).await.unwrap();
    assert_eq!(record(&store, "ada").await.payload.len(), size + 45);
    let error = sealing.update(&id, json!({"n": "y".repeat(101)})).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooLarge);
}

/// A new key is no reason for a new cookie: the old one is good as long as its key is on the ring.
async fn a_session_that_is_only_read_is_encrypted_again_and_keeps_its_cookie(store: Store) {
    let until = store.clock.now() + DAY;
    let rings = || [key_b().also_opens(A).unwrap(), key_b().accept_plain_until(until)];
    for (i, (from, to)) in [Some(key_a()), None].into_iter().zip(rings()).enumerate() {
        let name = format!("user{i}");
        let client = Client::new(&store.layer_with(Options { keyring: from, ..Options::default() }));
        client.does(|session| session.create(&name, json!({"n": 1}))).await.ok();
        let before = record(&store, &name).await;
        store.pass(Duration::from_secs(1));
        let client = client.at(&store.layer_with(with(to)));
        store.faults.calls();
        let answer = client.does(|session| Ok(session.get::<u8>("n")?.unwrap().to_string())).await.ok();
        assert_eq!(answer.sets_no_cookie().body, "1");
        until_sealed_anew(&store, &before).await;
        // One write, in the background.
        assert_eq!(store.faults.calls(), [Verb::Load, Verb::Update]);
        let after = record(&store, &name).await;
        store.faults.calls();
        let answer = client.does(|session| Ok(session.get::<u8>("n")?.unwrap().to_string()));
        assert_eq!(answer.await.ok().sets_no_cookie().body, "1");
        assert_eq!(store.faults.calls(), [Verb::Load]);
        assert_eq!(record(&store, &name).await.payload, after.payload);
        // A new ID is at home with the new key alone.
        act(&client, |session| session.rework()).await.ok().new_id().unwrap();
        assert_eq!(user(&client.at(&store.layer_with(with(key_b())))).await, name);
    }
}

async fn until_sealed_anew(store: &Store, before: &Record) {
    eventually(async || store.backend().load(before.id).await.unwrap().unwrap().payload != before.payload).await;
}

async fn the_module_seals_anew_what_it_reads(store: Store) {
    let id = store.sessions_with(with(key_a())).create("ada", json!({"n": 1})).await.unwrap();
    let before = record(&store, "ada").await;
    let both = store.sessions_with(with(key_b().also_opens(A).unwrap()));
    assert!(both.get(&id).await.unwrap().is_some());
    until_sealed_anew(&store, &before).await;
    assert_eq!(both.list("ada").await.unwrap()[0].data.get::<u8>("n").unwrap(), Some(1));
    // A new ID is sealed with the new key.
    let new = both.rework(&id).await.unwrap();
    let only_b = store.sessions_with(with(key_b()));
    assert!(only_b.get(&new).await.unwrap().is_some());
    assert!(only_b.get(&id).await.unwrap().is_none());
    // One from before it is given back as it is.
    assert_eq!(both.rework(&id).await.unwrap(), id);
    both.delete(&id).await.unwrap();
    assert!(only_b.get(&new).await.unwrap().is_none());
}

/// A browser, and whether it ever writes.
struct Visitor {
    client: Client,
    name: String,
    writes: bool,
    written: u64,
}

impl Visitor {
    async fn visit(&mut self, layer: &SessionLayer) {
        let client = self.client.at(layer);
        let writes = self.writes;
        let answer = client.does(|session| {
            if writes {
                session.modify("n", |n: Option<u64>| n.unwrap_or(0) + 1)?;
            }
            let n = session.get::<u64>("n")?.unwrap_or(0);
            Ok(format!("{}:{n}", session.key().unwrap_or_default()))
        });
        let answer = answer.await.ok();
        assert!(!answer.removes_cookie());
        self.written += u64::from(writes);
        assert_eq!(answer.body, format!("{}:{}", self.name, self.written));
    }
}

async fn rotation_under_traffic_signs_nobody_out(store: Store) {
    let forever: SystemTime = store.clock.now() + 365 * DAY;
    let plain = || Options::default();
    let steps: [&dyn Fn() -> Options; 6] = [
        &plain,
        &|| with(key_a().opens_only()),
        &|| with(key_a().accept_plain_until(forever)),
        &|| with(key_a().also_opens(B).unwrap()),
        &|| with(key_b().also_opens(A).unwrap()),
        &|| with(key_b()),
    ];
    let mut processes = [store.layer_with(plain()), store.layer_with(plain())];
    let mut visitors = Vec::new();
    for i in 0..6 {
        let (client, name) = (Client::new(&processes[i % 2]), format!("user{i}"));
        client.does(|session| session.create(&name, json!({}))).await.ok();
        visitors.push(Visitor { client, name, writes: i % 3 == 0, written: 0 });
    }
    for step in steps {
        for process in 0..2 {
            processes[process] = store.layer_with(step());
            // Some come to both processes, in one order and the other, and some with several requests at once.
            let traffic = visitors.drain(..).enumerate().map(|(i, mut visitor)| {
                let processes = processes.clone();
                tokio::spawn(async move {
                    for visit in 0..6 {
                        visitor.visit(&processes[(i + visit) % 2]).await;
                    }
                    if !visitor.writes {
                        let mut tabs: Vec<_> = (0..4)
                            .map(|_| Visitor {
                                client: visitor.client.clone(),
                                name: visitor.name.clone(),
                                writes: false,
                                written: 0,
                            })
                            .collect();
                        let visits = tabs.iter_mut().enumerate().map(|(i, tab)| tab.visit(&processes[i % 2]));
                        futures_util::future::join_all(visits).await;
                    }
                    visitor
                })
            });
            let traffic: Vec<_> = traffic.collect();
            for visitor in futures_util::future::join_all(traffic).await {
                visitors.push(visitor.unwrap());
            }
        }
        // In the real world, before the next step a lifetime passes, and no ID is as old as that; here each gets a new one now.
        for visitor in &mut visitors {
            store.pass(Duration::from_secs(11));
            act(&visitor.client.at(&processes[0]), |session| session.rework()).await.ok().new_id().unwrap();
            let before = record(&store, &visitor.name).await;
            visitor.visit(&processes[0]).await;
            let fresh = async || {
                let after = record(&store, &visitor.name).await;
                after.payload != before.payload || visits_are_free(&store, &visitor.client, &processes[1]).await
            };
            eventually(fresh).await;
        }
    }
    for visitor in &visitors {
        let record = record(&store, &visitor.name).await;
        assert!(is_sealed(&record));
        assert!(!visitor.client.id().unwrap().contains('.'));
        assert_eq!(user(&visitor.client.at(&processes[0])).await, visitor.name);
    }
}

/// Nothing is left to be sealed anew.
async fn visits_are_free(store: &Store, client: &Client, layer: &SessionLayer) -> bool {
    store.faults.calls();
    let answer = client.at(layer).does(|session| Ok(session.key().is_some().to_string())).await.ok();
    tokio::task::yield_now().await;
    answer.body == "true" && answer.set_cookies().is_empty() && store.faults.calls() == [Verb::Load]
}

#[tokio::test]
async fn p13_a_sealed_file_shows_nothing_and_no_file_signs_in() {
    for keyring in [Some(key_a()), None] {
        let folder = Folder::new();
        let options = Options { keyring: keyring.clone(), ..Options::default() };
        let sessions = options.apply(JsonSessions::builder(folder.file())).open().await.unwrap();
        let client = Client::new(&SessionLayer::new(sessions.clone()));
        client.does(|session| session.insert("shopping-cart", "brown-teapot")).await.ok();
        let mut ids = vec![client.id().unwrap()];
        for user in ["ada-lovelace", "grace-hopper"] {
            client.does(|session| session.create(user, json!({"card-number": "4111-1111"}))).await.ok();
            ids.push(client.id().unwrap());
        }
        act(&client, |session| session.rework()).await.ok();
        ids.push(client.id().unwrap());
        sessions.delete(ids.last().unwrap()).await.unwrap();
        let last = sessions.create("grace-hopper", json!({"card-number": "4222-2222"})).await.unwrap();
        sessions.close().await.unwrap();

        // All that was ever written: the file is a journal.
        let dump = std::fs::read_to_string(folder.file()).unwrap();
        assert!(dump.lines().count() > 5);
        assert!(ids.iter().all(|id| !dump.contains(&id[id.len() - 43..])));
        // Each is so long that random bytes do not spell it.
        let words =
            ["brown-teapot", "lovelace", "grace-hopper", "4111-1111", "4222-2222", "shopping-cart", "card-number"];
        let shown = words.map(|word| dump.contains(word));
        assert_eq!(shown, [keyring.is_none(); 7], "{dump}");

        let sessions = options.apply(JsonSessions::builder(folder.file())).open().await.unwrap();
        let is_text = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_' || c == '.';
        let words: std::collections::BTreeSet<_> = dump.split(|c| !is_text(c)).collect();
        let names = words.iter().filter(|word| word.parse::<RecordId>().is_ok());
        let secrets: Vec<_> = words.iter().filter(|word| word.len() == 43).collect();
        for name in names {
            for secret in &secrets {
                assert!(sessions.get(format!("{name}.{secret}")).await.unwrap().is_none());
            }
        }
        for word in words {
            assert!(sessions.get(word).await.unwrap().is_none());
        }
        assert!(sessions.get(&last).await.unwrap().is_some());
    }
}

#[test]
fn p14_a_wrong_secret_is_refused_in_words() {
    for (secret, word) in [("", "empty"), ("hunter2", "short"), (&"A".repeat(44), "long"), (&"A".repeat(43), "zeros")] {
        let error: Error = Keyring::new(secret).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(error.to_string().contains(word), "{error}");
        assert!(key_a().also_opens(secret).is_err());
    }
    assert_eq!(key_a().also_opens(A).unwrap_err().kind(), ErrorKind::Config);
}

/// The environment belongs to the process: each case is one of its own.
#[test]
fn a_keyring_comes_from_the_environment() {
    const VARIABLE: &str = "JAM_SESSION_AES_SECRET";
    const EXPECTED: &str = "JAM_SESSION_TEST_EXPECTS";
    if let Ok(expected) = std::env::var(EXPECTED) {
        match Keyring::from_env() {
            Ok(keyring) => assert_eq!(keyring.primary_secret(), expected),
            Err(error) => assert!(error.to_string().contains(&expected), "{error}"),
        }
        return;
    }
    let list = format!("{A}, {B}");
    for (value, expected) in [
        (Some(OsStr::new(&list)), A),
        (Some(OsStr::new(A)), A),
        (None, "JAM_SESSION_AES_SECRET is not set"),
        (Some(OsStr::new("")), "empty"),
        (Some(OsStr::new("hunter2")), "short"),
        #[cfg(unix)]
        (Some(std::os::unix::ffi::OsStrExt::from_bytes(b"\xff")), "not Unicode"),
    ] {
        let mut test = std::process::Command::new(std::env::current_exe().unwrap());
        test.args(["--exact", "encryption::a_keyring_comes_from_the_environment"]).env(EXPECTED, expected);
        test.env_remove(VARIABLE).envs(value.map(|value| (VARIABLE, value)));
        let output = test.output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && text.contains("1 passed"), "{text}");
    }
}
