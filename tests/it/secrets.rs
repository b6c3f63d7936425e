//! Secrets: none of them appears in `Debug`, errors, logs or the store.

use std::{cell::RefCell, fmt::Write};

use base64::prelude::{BASE64_URL_SAFE_NO_PAD as BASE64, Engine};
use jam_session::{
    Backend, Data, Keyring, Record, Session, SessionKey,
    conformance::{Fault, Verb},
};
use serde_json::json;
use tracing::{Event, Subscriber, field::Visit, span};

use crate::{
    client::Client,
    store::{Options, Plain, Store},
};

thread_local! {
    static LOG: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Writes down all events of this crate, for each thread apart: tests run side by side.
struct Log;

impl Subscriber for Log {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        metadata.target().starts_with("jam_session")
    }
    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }
    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn event(&self, event: &Event<'_>) {
        struct Fields<'a>(&'a mut String);
        impl Visit for Fields<'_> {
            fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
                let _ = write!(self.0, " {field}={value:?}");
            }
        }
        LOG.with_borrow_mut(|log| {
            let _ = write!(log, "{}", event.metadata().level());
            event.record(&mut Fields(log));
            log.push('\n');
        });
    }
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}

fn log_all() {
    // Only the first of the tests in this process that want it can set it, and that is enough.
    let _ = tracing::subscriber::set_global_default(Log);
    LOG.take();
}

#[tokio::test]
async fn p13_nothing_secret_is_logged_or_printed() {
    log_all();
    let store = Store::memory().await;
    let (layer, sessions) = (store.layer(), store.sessions());
    let client = Client::new(&layer);
    let mut ids = Vec::new();
    let mut printed = format!("{layer:?}{sessions:?}{:?}", SessionKey("ada-lovelace".to_owned()));

    client.does(|session| session.insert("card-number", "4111-1111")).await.ok();
    ids.push(client.id().unwrap());
    let answer = client.does(|session| {
        session.bind("ada-lovelace");
        Ok(format!("{session:?}{:?}", session.data()?))
    });
    printed += &answer.await.ok().body;
    ids.push(client.id().unwrap());
    // A wrong secret, an unreadable record, a lost session, a failing backend, wrong types.
    let thief = Client::new(&layer);
    thief.set_id(&format!("{}.{}", ids[1].rsplit_once('.').unwrap().0, "A".repeat(43)));
    thief.does(|session| Ok(session.key().is_none().to_string())).await.ok();
    let wrong = client.does(|session| session.get::<u64>("card-number").map(drop)).await;
    printed += &wrong.body;
    store.faults.next(Verb::Update, Fault::Before);
    let failed = client.does(|session| session.insert("card-number", "4222-2222")).await;
    printed += &format!("{:?}{}", failed.headers, failed.body);
    let info = sessions.list("ada-lovelace").await.unwrap();
    printed += &format!("{info:?}");
    let gone = client.visit(async |session: Session| {
        sessions.clear("ada-lovelace").await?;
        session.insert("card-number", "4333-3333")
    });
    gone.await.ok();
    let id = sessions.create("ada-lovelace", json!({"card-number": "4444-4444"})).await.unwrap();
    ids.push(id.as_str().to_owned());
    let record: jam_session::RecordId = id.as_str().rsplit_once('.').unwrap().0.parse().unwrap();
    let stored = store.backend().load(record).await.unwrap().unwrap();
    let spoilt = Record::new(stored.id, 1, stored.ttl, "{4444-4444");
    let _ = store.backend().updates(stored.version, spoilt).await.unwrap();
    let error = sessions.get(&id).await.unwrap_err();
    printed += &format!("{error} {error:?} {record:?} {stored:?} {:?}", record.owner());
    printed += &format!("{id:?}");

    let log = LOG.take();
    assert!(log.contains("\"created\"") && log.contains("wrong secret") && log.contains("cannot be read"), "{log}");
    for text in [&log, &printed] {
        // Each is so long that no random name in it spells one.
        for secret in ["4111-1111", "4222-2222", "4333-3333", "4444-4444", "ada-lovelace", "card-number"] {
            assert!(!text.contains(secret), "{secret} in {text}");
        }
        for id in &ids {
            let (name, secret) = id.rsplit_once('.').unwrap();
            assert!(!text.contains(secret), "{text}");
            // Handles are for logs; owners are not.
            if let Some((owner, _)) = name.split_once('.') {
                assert!(!text.contains(owner), "{text}");
            }
        }
    }
}

#[tokio::test]
async fn p13_a_keyring_adds_nothing_to_logs_and_errors() {
    log_all();
    let (store, keyring) = (Store::memory().await, Keyring::generate().unwrap());
    let key = keyring.primary_secret();
    let mut printed = format!("{keyring:?}");
    for wrong in [format!("{key}="), format!("{key}A"), key[..40].to_owned(), format!("{key},{key}")] {
        let error = Keyring::new(wrong).unwrap_err();
        printed += &format!("{error} {error:?}");
    }
    let error = keyring.clone().also_opens(&key).unwrap_err();
    printed += &format!("{error} {error:?}");

    let layer = store.layer_with(Options { keyring: Some(keyring.clone()), ..Options::default() });
    let other = Keyring::generate().unwrap().also_opens(&key).unwrap();
    let moved = store.layer_with(Options { keyring: Some(other), ..Options::default() });
    printed += &format!("{layer:?}");
    let client = Client::new(&layer);
    client.does(|session| session.create("ada-lovelace", json!({"card-number": "4111-1111"}))).await.ok();
    let mut ids = vec![client.id().unwrap()];
    // Forged, foreign, plain; then sealed anew, and spoilt.
    let thief = Client::new(&layer);
    let plain = format!("AAAAAAAAQACAAAAAAAAAAA.{}", "A".repeat(43));
    for text in [&ids[0][..100], &format!("{}A", &ids[0][..ids[0].len() - 1]), &plain] {
        thief.set_id(text);
        thief.does(|session| Ok(session.key().is_none().to_string())).await.ok();
    }
    store.faults.next(Verb::Load, Fault::Before);
    client.does(|session| Ok(session.key().is_none().to_string())).await;
    let client = client.at(&moved);
    client.does(|session| session.insert("card-number", "4222-2222")).await.ok();
    ids.push(client.id().unwrap());
    let stranger = store.sessions_with(Options { keyring: Some(Keyring::generate().unwrap()), ..Options::default() });
    printed += &format!("{:?}", stranger.list("ada-lovelace").await.unwrap());
    let plain = store.sessions().create("ada-lovelace", json!({})).await.unwrap();
    let name = plain.as_str().rsplit_once('.').unwrap().0.parse().unwrap();
    let stored = store.backend().load(name).await.unwrap().unwrap();
    let spoilt = Record::new(stored.id, 1, stored.ttl, vec![2; 100]);
    let _ = store.backend().updates(stored.version, spoilt).await.unwrap();
    let error = store.sessions().get(&plain).await.unwrap_err();
    printed += &format!("{error} {error:?}");

    let log = LOG.take();
    assert!(
        log.contains("do not contain valid IDs")
            && log.contains("left out of a list")
            && log.contains("not on the keyring"),
        "{log}"
    );
    for text in [&log, &printed] {
        for secret in ["4111-1111", "4222-2222", "lovelace", "card-number", &key[..20], &key[20..]] {
            assert!(!text.contains(secret), "{secret} in {text}");
        }
        assert!(ids.iter().all(|id| !text.contains(&id[..40]) && !text.contains(&id[id.len() - 40..])), "{text}");
    }
}

#[tokio::test]
async fn p13_a_stolen_store_signs_nobody_in() {
    let store = Store::memory().await;
    let client = Client::new(&store.layer());
    client.does(|session| session.create("ada", json!({}))).await.ok();
    let id = client.id().unwrap();
    let (name, secret) = id.rsplit_once('.').unwrap();
    let record = store.backend().load(name.parse().unwrap()).await.unwrap().unwrap();
    let dump = record.payload;
    let bytes = BASE64.decode(secret).unwrap();
    assert!(!dump.windows(43).any(|text| text == secret.as_bytes()) && !dump.windows(32).any(|raw| raw == bytes));
    // Nothing in it works as a secret, the hash that stands for it least of all.
    let thief = Client::new(&store.layer());
    for word in dump.windows(32).map(|raw| BASE64.encode(raw)) {
        thief.set_id(&format!("{name}.{word}"));
        assert_eq!(thief.does(|session| Ok(session.key().is_none().to_string())).await.body, "true");
    }
    thief.set_id(&id);
    assert_eq!(thief.does(|session| Ok(session.key().is_none().to_string())).await.body, "false");
}

#[test]
fn p13_data_does_not_print_itself() {
    let data: Data = serde_json::from_value(json!({"card-number": "4111"})).unwrap();
    assert!(!format!("{data:?}").contains("card-number"));
}
