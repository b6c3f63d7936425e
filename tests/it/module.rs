//! `Sessions` without HTTP: its methods, options, serializers and limits.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use jam_session::{
    Backend, BoxError, Data, ErrorKind, JsonSessions, MemorySessions, Outcome, Serializer, SessionLayer, Sessions,
    conformance::{Answer, Fault, Verb},
};
use serde_json::json;

use crate::{
    client::Client,
    folder::Folder,
    on_every_store,
    store::{Options, PATIENCE, Store, record_id},
};

on_every_store! {
    the_verbs_do_what_they_say,
    any_serializable_object_is_data,
    p12_session_keys_may_hold_any_text,
    p17_a_record_has_a_maximum_size,
    an_id_factory_names_sessions,
    a_name_that_is_taken_is_never_overwritten,
    p06_rework_in_the_module_rotates_once,
    an_erased_module_is_the_same_one,
    p12_a_record_of_another_session_is_not_taken_for_this_one,
}

async fn the_verbs_do_what_they_say(store: Store) {
    let sessions = store.sessions();
    let id = sessions.create("ada", json!({"role": "admin", "n": 1})).await.unwrap();
    let data = sessions.get(&id).await.unwrap().unwrap();
    assert_eq!(data.get::<String>("role").unwrap().as_deref(), Some("admin"));
    assert_eq!(data.names().collect::<Vec<_>>(), ["n", "role"]);
    // An ID is text, wherever it comes from.
    assert!(sessions.get(id.as_str().to_owned()).await.unwrap().is_some());
    sessions.update(&id, json!({"role": "guest"})).await.unwrap();
    assert_eq!(sessions.get(&id).await.unwrap().unwrap().names().count(), 1);
    let new = sessions.rework(&id).await.unwrap();
    assert_ne!(new, id);
    sessions.update(&new, json!({})).await.unwrap();
    sessions.delete(&new).await.unwrap();
    sessions.delete(&new).await.unwrap();
    for gone in [new.as_str(), "", "nonsense", "a.b.c"] {
        assert!(sessions.get(gone).await.unwrap().is_none());
        assert_eq!(sessions.update(gone, json!({})).await.unwrap_err().kind(), ErrorKind::NotFound);
        assert_eq!(sessions.rework(gone).await.unwrap_err().kind(), ErrorKind::NotFound);
        sessions.delete(gone).await.unwrap();
    }
    for _ in 0..3 {
        sessions.create("ada", json!({})).await.unwrap();
    }
    assert_eq!(sessions.clear("ada").await.unwrap(), 3);
    assert_eq!(sessions.clear("nobody").await.unwrap(), 0);
    assert!(sessions.list("ada").await.unwrap().is_empty());
}

async fn any_serializable_object_is_data(store: Store) {
    #[derive(serde::Serialize)]
    struct Profile {
        name: &'static str,
        tags: Vec<u8>,
    }
    let sessions = store.sessions();
    let id = sessions.create("ada", Profile { name: "Ada", tags: vec![1, 2] }).await.unwrap();
    let data = sessions.get(&id).await.unwrap().unwrap();
    assert_eq!(data.get::<Vec<u8>>("tags").unwrap(), Some(vec![1, 2]));
    assert_eq!(data.get::<u64>("name").unwrap_err().kind(), ErrorKind::Data);
    // Data goes back as it came.
    sessions.update(&id, &data).await.unwrap();
    assert_eq!(sessions.get(&id).await.unwrap().unwrap().get::<String>("name").unwrap().as_deref(), Some("Ada"));
    for wrong in [json!(1), json!([1]), json!(null), json!("text")] {
        assert_eq!(sessions.create("ada", &wrong).await.unwrap_err().kind(), ErrorKind::Data);
        assert_eq!(sessions.update(&id, wrong).await.unwrap_err().kind(), ErrorKind::Data);
    }
}

async fn p12_session_keys_may_hold_any_text(store: Store) {
    let sessions = store.sessions();
    let long = "k".repeat(1024);
    let keys = [
        "ada",
        "Ada",
        "ada ",
        " ada",
        "ada:1",
        "ada:1:2",
        "{ada}",
        "}{",
        "*",
        "?",
        "[a]",
        "ada\0",
        "\0",
        "\n",
        "ad\u{e9}",
        "ade\u{301}",
        "😀",
        "\"quoted\"",
        "\\",
        "../..",
        "a.b",
        long.as_str(),
        &long[1..],
    ];
    for (i, key) in keys.iter().enumerate() {
        sessions.create(key, json!({"i": i})).await.unwrap();
        let client = Client::new(&SessionLayer::new(store.sessions()));
        let bind = client.does(|session| {
            session.bind(*key);
            Ok(())
        });
        bind.await.ok().new_id().unwrap();
        assert_eq!(client.does(|session| Ok(session.key().unwrap())).await.body, *key);
    }
    for (i, key) in keys.iter().enumerate() {
        let list = sessions.list(key).await.unwrap();
        assert_eq!(list.len(), 2, "{key:?}");
        assert!(list.iter().any(|info| info.data.get::<usize>("i").unwrap() == Some(i)));
    }
    for key in keys {
        assert_eq!(sessions.clear(key).await.unwrap(), 2, "{key:?}");
    }
    for key in ["", &"k".repeat(1025)] {
        assert_eq!(sessions.create(key, json!({})).await.unwrap_err().kind(), ErrorKind::Data);
    }
}

async fn p17_a_record_has_a_maximum_size(store: Store) {
    let sessions = store.sessions_with(Options { max_size: Some(2000), ..Options::default() });
    let id = sessions.create("ada", json!({"n": 1})).await.unwrap();
    let large = json!({"n": "x".repeat(2000)});
    assert_eq!(sessions.update(&id, &large).await.unwrap_err().kind(), ErrorKind::TooLarge);
    assert_eq!(sessions.create("ada", &large).await.unwrap_err().kind(), ErrorKind::TooLarge);
    assert_eq!(sessions.get(&id).await.unwrap().unwrap().get::<u8>("n").unwrap(), Some(1));
    assert_eq!(sessions.list("ada").await.unwrap().len(), 1);

    let client = Client::new(&SessionLayer::new(sessions.clone()));
    client.set_id(id.as_str());
    for key in ["ada", "grace"] {
        let answer = client.does(|session| {
            session.bind(key);
            session.insert("n", "x".repeat(2000))
        });
        assert_eq!(answer.await.sets_no_cookie().status, 507);
        assert_eq!(sessions.get(&id).await.unwrap().unwrap().get::<u8>("n").unwrap(), Some(1));
    }
    // Unless set it is a mebibyte.
    let sessions = store.sessions();
    let id = sessions.create("ada", json!({"n": "x".repeat(1_000_000)})).await.unwrap();
    assert!(sessions.get(&id).await.unwrap().is_some());
    let large = json!({"n": "x".repeat(1 << 20)});
    assert_eq!(sessions.update(&id, &large).await.unwrap_err().kind(), ErrorKind::TooLarge);
}

fn numbered() -> String {
    static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
    format!("my-own_name-{:020}", NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed))
}

async fn an_id_factory_names_sessions(store: Store) {
    let sessions = store.sessions_with(Options { id_factory: Some(numbered), ..Options::default() });
    let id = sessions.create("ada", json!({})).await.unwrap();
    let handle = sessions.list("ada").await.unwrap().remove(0).handle;
    assert!(handle.starts_with("my-own_name-"));
    // The secret part is not up to it.
    assert_eq!(id.as_str().rsplit_once('.').unwrap().1.len(), 43);
    assert!(sessions.revoke("ada", &handle).await.unwrap());
}

async fn a_name_that_is_taken_is_never_overwritten(store: Store) {
    let sessions =
        store.sessions_with(Options { id_factory: Some(|| "always-the-same-name--".to_owned()), ..Options::default() });
    let id = sessions.create("ada", json!({"n": 1})).await.unwrap();
    assert_eq!(sessions.create("ada", json!({"n": 2})).await.unwrap_err().kind(), ErrorKind::Config);
    assert_eq!(sessions.get(&id).await.unwrap().unwrap().get::<u8>("n").unwrap(), Some(1));
    // Another owner's is another record.
    sessions.create("grace", json!({})).await.unwrap();
    assert_eq!(sessions.list("ada").await.unwrap().len(), 1);
}

async fn p06_rework_in_the_module_rotates_once(store: Store) {
    let sessions = [store.sessions(), store.sessions()];
    let id = sessions[0].create("ada", json!({})).await.unwrap();
    let ids = futures_util::future::join_all((0..20).map(|i| sessions[i % 2].rework(&id))).await;
    let mut new: Vec<_> = ids.into_iter().map(|new| new.unwrap()).filter(|new| *new != id).collect();
    assert_eq!(new.len(), 1);
    let new = new.remove(0);
    assert!(sessions[0].get(&new).await.unwrap().is_some());
    assert!(sessions[0].get(&id).await.unwrap().is_some());
    store.pass(Duration::from_secs(10));
    assert!(sessions[0].get(&new).await.unwrap().is_some());
    assert!(sessions[0].get(&id).await.unwrap().is_none());
}

async fn an_erased_module_is_the_same_one(store: Store) {
    let sessions = store.sessions();
    let id = sessions.create("ada", json!({})).await.unwrap();
    let erased: Sessions = sessions.clone().erase();
    assert!(erased.get(&id).await.unwrap().is_some());
    erased.close().await.unwrap();
    assert_eq!(sessions.get(&id).await.unwrap_err().kind(), ErrorKind::Unavailable);
}

#[test]
fn p14_options_that_cannot_work_are_refused_in_words() {
    let refused = [
        (MemorySessions::builder().namespace(""), "namespace"),
        (MemorySessions::builder().namespace("a{b}"), "braces"),
        (MemorySessions::builder().default_ttl(Duration::ZERO), "default_ttl"),
        (MemorySessions::builder().max_lifetime(Duration::ZERO), "max_lifetime"),
        (MemorySessions::builder().anonymous_lifetime(Duration::ZERO), "anonymous_lifetime"),
        (MemorySessions::builder().request_time(Duration::ZERO), "request_time"),
        (MemorySessions::builder().max_size(0), "max_size"),
        (MemorySessions::builder().max_size(64), "max_size"),
        (MemorySessions::builder().max_size(90), "max_size"),
        (MemorySessions::builder().max_sessions(0), "max_sessions"),
        (MemorySessions::builder().max_bytes(0), "max_bytes"),
        (MemorySessions::builder().max_bytes(1), "max_bytes"),
        (MemorySessions::builder().max_bytes(200), "max_bytes"),
        (MemorySessions::builder().pepper(""), "pepper"),
        (MemorySessions::builder().pepper("short"), "pepper"),
        (MemorySessions::builder().id_factory(|| "short".to_owned()), "id_factory"),
        (MemorySessions::builder().id_factory(|| "name with spaces in it, long".to_owned()), "id_factory"),
        (MemorySessions::builder().id_factory(|| "x".repeat(44)), "id_factory"),
    ];
    for (builder, word) in refused {
        let error = builder.build().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(error.to_string().contains(word), "{error}");
    }
    assert!(MemorySessions::builder().default_ttl(None).touch_interval(Duration::ZERO).build().is_ok());
}

#[tokio::test]
async fn p14_options_of_a_file_that_cannot_work_are_refused_in_words() {
    let folder = Folder::new();
    let builder = || JsonSessions::builder(folder.file());
    let refused = [
        (builder().namespace(""), "namespace"),
        (builder().max_size(180), "max_size"),
        (builder().max_sessions(0), "max_sessions"),
        (builder().max_bytes(0), "max_bytes"),
        (builder().max_bytes(300), "max_bytes"),
    ];
    for (builder, word) in refused {
        let error = builder.open().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(error.to_string().contains(word), "{error}");
    }
    assert!(!folder.file().exists(), "a file was created for options that cannot work");
}

/// The smallest bounds that are accepted.
#[tokio::test]
async fn p14_in_bounds_that_are_accepted_a_session_fits() {
    let folder = Folder::new();
    let mut size = 0;
    let memory = loop {
        match MemorySessions::builder().max_size(size).build() {
            Ok(sessions) => break sessions.erase(),
            Err(_) => size += 1,
        }
    };
    assert!((90..110).contains(&size), "{size}");
    let one = MemorySessions::builder().max_sessions(1).build().unwrap().erase();
    let mut bytes = 0;
    let small = loop {
        match MemorySessions::builder().max_bytes(bytes).build() {
            Ok(sessions) => break sessions.erase(),
            Err(_) => bytes += 1,
        }
    };
    let patient = |name| JsonSessions::builder(folder.path(name)).request_time(PATIENCE);
    let (mut text, mut cost) = (180, 300);
    let file = loop {
        match patient("size.json").max_size(text).open().await {
            Ok(sessions) => break sessions.erase(),
            Err(_) => text += 1,
        }
    };
    let short = loop {
        match patient("bytes.json").max_bytes(cost).open().await {
            Ok(sessions) => break sessions.erase(),
            Err(_) => cost += 1,
        }
    };
    for sessions in [memory, one, small, file, short] {
        let client = Client::new(&SessionLayer::new(sessions));
        client.does(|session| session.insert("", 0)).await.ok();
        assert_eq!(client.does(|session| Ok(session.get::<u8>("")?.unwrap().to_string())).await.ok().body, "0");
    }
}

struct MessagePack;

impl Serializer for MessagePack {
    fn write(&self, data: &Data) -> Result<Vec<u8>, BoxError> {
        Ok(rmp_serde::to_vec(data)?)
    }

    fn read(&self, bytes: &[u8]) -> Result<Data, BoxError> {
        Ok(rmp_serde::from_slice(bytes)?)
    }
}

/// Fails to write when the data asks for it, and to read from when that is set.
#[derive(Clone, Default)]
struct Fails(Arc<AtomicBool>);

impl Serializer for Fails {
    fn write(&self, data: &Data) -> Result<Vec<u8>, BoxError> {
        match data.get::<String>("secret")? {
            Some(secret) => Err(format!("cannot write {secret}").into()),
            None => MessagePack.write(data),
        }
    }

    fn read(&self, bytes: &[u8]) -> Result<Data, BoxError> {
        match self.0.load(Relaxed) {
            true => Err("cannot read hunter2".into()),
            false => MessagePack.read(bytes),
        }
    }
}

#[tokio::test]
async fn a_serializer_of_ones_own_is_used_for_all_data() {
    let sessions = MemorySessions::builder().serializer(MessagePack).build().unwrap();
    let data = json!({"n": -1, "f": 1.5, "s": "text", "deep": {"list": [1, null, true]}, "big": u64::MAX});
    let id = sessions.create("ada", &data).await.unwrap();
    let read = sessions.get(&id).await.unwrap().unwrap();
    assert_eq!(serde_json::to_value(&read).unwrap(), data);

    let client = Client::new(&SessionLayer::new(sessions.clone()));
    client.set_id(id.as_str());
    client.does(|session| session.modify("n", |n: Option<i64>| n.unwrap() + 2)).await.ok();
    assert_eq!(client.does(|session| Ok(session.get::<i64>("n")?.unwrap().to_string())).await.body, "1");

    let record = id.as_str().rsplit_once('.').unwrap().0.parse().unwrap();
    let payload = sessions.backend().load(record).await.unwrap().unwrap().payload;
    let text = String::from_utf8_lossy(&payload);
    assert!(!text.contains("\"text\"") && text.contains("text"));
}

#[tokio::test]
async fn a_serializer_that_fails_loses_nothing_and_tells_nothing() {
    let fails = Fails::default();
    let sessions = MemorySessions::builder().serializer(fails.clone()).build().unwrap();
    let error = sessions.create("ada", json!({"secret": "hunter2"})).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Data);
    assert!(!format!("{error} {error:?}").contains("hunter2"));
    let id = sessions.create("ada", json!({})).await.unwrap();
    fails.0.store(true, Relaxed);
    let error = sessions.get(&id).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unreadable);
    assert!(!format!("{error} {error:?}").contains("hunter2"));
    // What it would not read again is not written.
    let error = sessions.create("ada", json!({})).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Data);
    assert!(!format!("{error} {error:?}").contains("hunter2"));
    fails.0.store(false, Relaxed);
    assert!(sessions.get(&id).await.unwrap().is_some());
    assert_eq!(sessions.list("ada").await.unwrap().len(), 1);
}

#[tokio::test]
async fn p11_a_record_of_another_serializer_is_unreadable() {
    // Accepting the other format would be a way around a serializer that encrypts or signs.
    let store = Store::memory().await;
    let plain = store.sessions();
    let own = Sessions::over(store.watched()).clock(store.clock.clone()).serializer(MessagePack);
    let own = own.build().unwrap();
    let id = plain.create("ada", json!({})).await.unwrap();
    assert_eq!(own.get(&id).await.unwrap_err().kind(), ErrorKind::Unreadable);
    let id = own.create("ada", json!({})).await.unwrap();
    assert_eq!(plain.get(&id).await.unwrap_err().kind(), ErrorKind::Unreadable);
}

#[tokio::test]
async fn p17_a_session_of_the_largest_size_can_be_ended_and_rotated() {
    let size = {
        let sessions = MemorySessions::new();
        let id = sessions.create("ada", json!({})).await.unwrap();
        sessions.backend().load(record_id(id.as_str())).await.unwrap().unwrap().payload.len()
    };
    let sessions = MemorySessions::builder().max_size(size).build().unwrap();
    let id = sessions.create("ada", json!({})).await.unwrap();
    let rotated = sessions.rework(&id).await.map(drop).map_err(|error| error.kind());
    let deleted = sessions.delete(&id).await.map_err(|error| error.kind());
    assert_eq!((rotated, deleted), (Ok(()), Ok(())));
}

/// Records are looked up by name, and a store that mixes names up must not mix users up.
async fn p12_a_record_of_another_session_is_not_taken_for_this_one(store: Store) {
    let sessions = store.sessions();
    let (ada, grace) = (
        sessions.create("ada", json!({"n": 1})).await.unwrap(),
        sessions.create("grace", json!({"n": 7})).await.unwrap(),
    );
    let foreign = store.backend().load(record_id(grace.as_str())).await.unwrap().unwrap();

    let listed = foreign.clone();
    store.faults.next(
        Verb::List,
        Fault::change(move |_, _| {
            let listed = listed.clone();
            async move { Ok(Answer::List(vec![listed])) }
        }),
    );
    assert_eq!(sessions.list("ada").await.unwrap().len(), 0, "grace's session was listed as ada's");

    store.faults.next(
        Verb::Update,
        Fault::change(move |_, _| {
            let foreign = foreign.clone();
            async move { Ok(Answer::Update(Outcome::Conflict(foreign))) }
        }),
    );
    let error = sessions.update(&ada, json!({"n": 2})).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unreadable);
    assert_eq!(sessions.get(&grace).await.unwrap().unwrap().get("n").unwrap(), Some(7));
}
