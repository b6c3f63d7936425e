//! The layer on Redis, as a browser sees it: two processes, lost answers and outages.

use std::{sync::Arc, time::Duration};

use http::StatusCode;
use jam_session::{Keyring, RecordId, RedisSessions, Session, SessionLayer};
use serde_json::json;
use tokio::{sync::Semaphore, task::JoinSet};

use super::{
    harness::{binaries, connected},
    process::Process,
    proxy::Proxy,
};
use crate::{
    client::Client,
    store::{eventually, in_time},
};

/// A thousand requests to two processes, 50 at a time, each of which adds one; how many were answered with success.
async fn increments(layers: &[SessionLayer; 2], client: &Client) -> u64 {
    let places = Arc::new(Semaphore::new(50));
    let mut requests = JoinSet::new();
    for i in 0..1000 {
        let (tab, places) = (client.thief().at(&layers[i % 2]), places.clone());
        requests.spawn(async move {
            let _place = places.acquire().await.unwrap();
            let answer = tab.does(|session| session.modify("n", |n: Option<u64>| n.unwrap_or(0) + 1)).await;
            assert!(matches!(answer.status, StatusCode::OK | StatusCode::SERVICE_UNAVAILABLE), "{answer:?}");
            assert!(answer.set_cookies().is_empty());
            u64::from(answer.status == StatusCode::OK)
        });
    }
    requests.join_all().await.into_iter().sum()
}

async fn count(client: &Client) -> u64 {
    client.does(|session| Ok(session.get::<u64>("n")?.unwrap().to_string())).await.ok().body.parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p05_a_thousand_increments_at_two_processes_are_a_thousand() {
    let Some(binary) = binaries().into_iter().next() else { return };
    let server = Process::start(&binary, &[]);
    let layer = async || SessionLayer::new(connected(|| RedisSessions::builder(server.uri())).await);
    let layers = [layer().await, layer().await];
    // Of a request that a machine is too slow for, it is not known whether it counts. Then a new session is counted in.
    in_time(async || {
        let client = Client::new(&layers[0]);
        client.does(|session| session.create("ada", json!({}))).await.ok();
        let (success, n) = (increments(&layers, &client).await, count(&client).await);
        assert!((success..=1000).contains(&n), "{success} were answered with success, and {n} were counted");
        (success == 1000).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p05_what_was_answered_with_success_counts_once_also_when_answers_are_lost() {
    let Some(binary) = binaries().into_iter().next() else { return };
    let server = Process::start(&binary, &[]);
    let proxy = Arc::new(Proxy::before(&server.address).await);
    let layer = async || SessionLayer::new(connected(|| RedisSessions::builder(proxy.uri())).await);
    let layers = [layer().await, layer().await];
    let client = Client::new(&layers[0]);
    client.does(|session| session.create("ada", json!({"n": 0}))).await.ok();
    proxy.swallow_next_answer();
    let losing = tokio::spawn({
        let proxy = proxy.clone();
        async move {
            loop {
                while !proxy.has_swallowed() {
                    tokio::task::yield_now().await;
                }
                proxy.swallow_next_answer();
            }
        }
    });
    let success = increments(&layers, &client).await;
    losing.abort();
    let direct = SessionLayer::new(connected(|| RedisSessions::builder(server.uri())).await);
    let n = count(&client.at(&direct)).await;
    // A 503 says that it is not known.
    assert!((success..=1000).contains(&n), "{success} were answered with success, and {n} were counted");
    assert!(proxy.connections() > 2, "no answer was lost");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p09_while_redis_is_away_only_those_are_refused_who_need_it_and_nobody_is_signed_out() {
    let Some(binary) = binaries().into_iter().next() else { return };
    let server = Process::start(&binary, &[]);
    let brief = || RedisSessions::builder(server.uri()).deadline(Duration::from_millis(200));
    let layer = SessionLayer::new(in_time(async || brief().connect().await.ok()).await);
    let patient = SessionLayer::new(connected(|| RedisSessions::builder(server.uri())).await);
    let client = Client::new(&patient);
    client.does(|session| session.create("ada", json!({"n": 1}))).await.ok();
    let client = client.at(&layer);

    for (stop, go) in [("STOP", "CONT"), ("STOP", "CONT")] {
        server.signal(stop);
        let stranger = Client::new(&layer);
        stranger.does(|session| Ok(session.key().is_none().to_string())).await.ok().sets_no_cookie();
        client.request(http::Request::default(), async |_: Session| "unused").await.ok().sets_no_cookie();
        for _ in 0..2 {
            let read = client.does(|session| Ok(session.key().unwrap())).await.sets_no_cookie();
            assert_eq!(read.status, StatusCode::SERVICE_UNAVAILABLE);
            assert!(read.headers.contains_key("retry-after"));
            let first = stranger.does(|session| session.insert("n", 1)).await.sets_no_cookie();
            assert_eq!(first.status, StatusCode::SERVICE_UNAVAILABLE);
            let login = client.does(|session| session.create("grace", json!({}))).await.sets_no_cookie();
            assert_eq!(login.status, StatusCode::SERVICE_UNAVAILABLE);
            let logout = client.request(http::Request::default(), async |session: Session| session.delete()).await;
            assert_eq!(logout.sets_no_cookie().status, StatusCode::SERVICE_UNAVAILABLE);
        }
        server.signal(go);
        // It comes back without help, and nothing of what was refused has signed anybody out.
        eventually(async || client.does(|session| Ok(session.key().unwrap_or_default())).await.body == "ada").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p04_a_slow_request_at_one_process_revives_nothing_that_another_has_ended() {
    let Some(binary) = binaries().into_iter().next() else { return };
    let server = Process::start(&binary, &[]);
    let connect = async || connected(|| RedisSessions::builder(server.uri())).await;
    let (slow, fast) = (SessionLayer::new(connect().await), connect().await);
    for ending in ["logout", "clear", "rework"] {
        let client = Client::new(&slow);
        client.does(|session| session.create("ada", json!({"n": 1}))).await.ok();
        let old = client.thief();
        let there = client.at(&SessionLayer::new(fast.clone()));
        let answer = old.visit(async |session: Session| {
            let ended = there.does(|session| {
                match ending {
                    "logout" => session.delete(),
                    "clear" => session.clear(),
                    _ => session.rework(),
                }
                Ok(())
            });
            ended.await.ok();
            session.insert("late", 1)?;
            session.rework();
            Ok(())
        });
        answer.await.ok().sets_no_cookie();
        let late = there.does(|session| Ok(format!("{:?} {:?}", session.key(), session.get::<u8>("late")?)));
        match ending {
            // The write is in, the newest ID is the other process's, and the old one dies with the grace.
            "rework" => assert_eq!(late.await.body, "Some(\"ada\") Some(1)"),
            _ => assert_eq!(late.await.body, "None None"),
        }
        fast.clear("ada").await.unwrap();
        assert_eq!(old.does(|session| Ok(session.key().is_none().to_string())).await.body, "true");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p13_a_dump_of_redis_signs_nobody_in_and_shows_nothing_that_is_sealed() {
    let Some(binary) = binaries().into_iter().next() else { return };
    for keyring in [Some(Keyring::generate().unwrap()), None] {
        let server = Process::start(&binary, &[]);
        let builder = || RedisSessions::builder(server.uri());
        let sessions = match &keyring {
            Some(keyring) => connected(|| builder().encrypt(keyring.clone())).await,
            None => connected(builder).await,
        };
        let client = Client::new(&SessionLayer::new(sessions.clone()));
        client.does(|session| session.insert("cart", "teapot")).await.ok();
        let mut ids = vec![client.id().unwrap()];
        client.does(|session| session.create("ada-lovelace", json!({"card-number": "4111-1111"}))).await.ok();
        ids.push(client.id().unwrap());
        let rework = client.does(|session| {
            session.rework();
            Ok(())
        });
        rework.await.ok();
        ids.push(client.id().unwrap());

        // All keys, and all that is in them.
        let mut dump = String::new();
        for key in server.ask(&["KEYS", "*"]).list() {
            let key = key.text();
            let value = match server.ask(&["TYPE", &key]).text().as_str() {
                "string" => server.ask(&["GET", &key]).text(),
                "hash" => server.ask(&["HGETALL", &key]).list().iter().map(|member| member.text()).collect(),
                other => panic!("{key} is a {other}"),
            };
            dump += &format!("{key} {value}\n");
        }
        assert!(dump.lines().count() >= 2, "{dump}");
        for id in &ids {
            assert!(!dump.contains(&id[id.len() - 43..]), "an ID is in it");
        }
        // Each is so long that random bytes do not spell it.
        let shown = ["lovelace", "4111-1111", "card-number"].map(|word| dump.contains(word));
        assert_eq!(shown, [keyring.is_none(); 3]);
        // No word of it is an ID, or the secret of one.
        let is_text = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_' || c == '.';
        let words: Vec<_> = dump.split(|c| !is_text(c)).filter(|word| word.len() > 20).collect();
        let names: Vec<_> = words.iter().filter(|word| word.parse::<RecordId>().is_ok()).collect();
        for word in &words {
            assert!(sessions.get(word).await.unwrap().is_none());
            for name in &names {
                assert!(sessions.get(format!("{name}.{word}")).await.unwrap().is_none());
            }
        }
        assert_eq!(client.does(|session| Ok(session.key().unwrap())).await.body, "ada-lovelace");
    }
}
