//! Many streams that wait for their sessions to end: their memory, how often they poll the store, and when they give up.

use std::{
    task::{Context, Poll, Waker},
    time::Duration,
};

use allocation_counter::measure;
use axum::body::Body;
use futures_util::FutureExt;
use http::Request;
use jam_session::{
    Clock, Ended, Ending, MemorySessions, Session, SessionLayer, Sessions,
    conformance::{Fault, Verb},
};
use serde_json::json;
use tokio::task::JoinSet;
use tower::{Layer, ServiceExt, service_fn};

use crate::store::{BRIEF, Options, Store, eventually, in_time};

const SECOND: Duration = Duration::from_secs(1);
const LOOK: Duration = Duration::from_secs(5);

/// The session of a request with that ID, after the response: one that a stream would hold.
async fn session(layer: &SessionLayer, id: &str) -> Session {
    let (keep, mut kept) = tokio::sync::mpsc::unbounded_channel();
    let service = layer.layer(service_fn(move |request: Request<Body>| {
        let keep = keep.clone();
        async move {
            let session = request.extensions().get::<Session>().unwrap().clone();
            session.load().await.unwrap();
            keep.send(session).unwrap();
            Ok::<_, std::convert::Infallible>(http::Response::new(Body::empty()))
        }
    }));
    let request = Request::get("/").header("cookie", format!("__Host-id={id}")).body(Body::empty()).unwrap();
    service.oneshot(request).await.unwrap();
    kept.recv().await.unwrap()
}

/// Streams of as many sessions, each of a user of its own.
async fn streams<B: jam_session::Backend>(sessions: &Sessions<B>, count: usize) -> Vec<Ended> {
    let layer = SessionLayer::new(sessions.clone());
    let mut streams = Vec::with_capacity(count);
    for n in 0..count {
        let id = sessions.create(format!("user {n}"), json!({"n": n})).await.unwrap();
        streams.push(session(&layer, id.as_str()).await.ended());
    }
    streams
}

fn poll(ended: &mut Ended) -> Poll<Ending> {
    ended.poll_unpin(&mut Context::from_waker(Waker::noop()))
}

/// Polls all of them, and returns how many have ended since; those are taken out.
fn hear(streams: &mut Vec<Ended>, expected: Ending) -> usize {
    let before = streams.len();
    streams.retain_mut(|stream| match poll(stream) {
        Poll::Ready(ending) => {
            assert_eq!(ending, expected);
            false
        }
        Poll::Pending => true,
    });
    before - streams.len()
}

fn loads(store: &Store) -> usize {
    store.faults.calls().into_iter().filter(|verb| *verb == Verb::Load).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p21_a_thousand_streams_of_one_session_ask_the_store_once() {
    let store = Store::memory().await;
    let sessions = store.sessions();
    let layer = SessionLayer::new(sessions.clone());
    let id = sessions.create("ada", json!({})).await.unwrap();
    let mut tasks = JoinSet::new();
    let (polled, mut is_polled) = tokio::sync::mpsc::unbounded_channel();
    for _ in 0..1_000 {
        let (mut ended, polled) = (session(&layer, id.as_str()).await.ended(), polled.clone());
        tasks.spawn(async move {
            assert!(poll(&mut ended).is_pending());
            polled.send(()).unwrap();
            ended.await
        });
    }
    for _ in 0..1_000 {
        is_polled.recv().await.unwrap();
    }
    loads(&store);
    let (mut looks, mut intervals) = (0, 0);
    for _ in 0..10 {
        in_time(async || {
            // If a look is still under way, the next one has its turn an interval later.
            store.pass(LOOK);
            intervals += 1;
            let before = looks;
            let look = eventually(async || {
                looks += loads(&store);
                looks > before
            });
            tokio::time::timeout(BRIEF, look).await.ok()
        })
        .await;
    }
    assert!(looks <= intervals, "{looks} looks in {intervals} intervals");
    sessions.revoke("ada", sessions.list("ada").await.unwrap()[0].handle.as_str()).await.unwrap();
    assert!(tasks.join_all().await.into_iter().all(|ending| ending == Ending::SignedOut));
}

/// The looks are spread over the interval, although all streams began at one moment.
#[tokio::test]
async fn p21_ten_thousand_streams_ask_the_store_two_thousand_times_a_second() {
    const STREAMS: usize = 10_000;
    let store = Store::memory().await;
    let mut streams = streams(&store.sessions(), STREAMS).await;
    assert_eq!(hear(&mut streams, Ending::SignedOut), 0);
    loads(&store);
    let mut per_tenth = Vec::new();
    for _ in 0..100 {
        store.pass(SECOND / 10);
        assert_eq!(hear(&mut streams, Ending::SignedOut), 0);
        per_tenth.push(loads(&store));
    }
    assert_eq!(per_tenth.iter().sum::<usize>(), 2 * STREAMS, "two looks in ten seconds");
    // 200 on average; chance adds some, and not as many again.
    assert!(per_tenth.iter().all(|loads| (50..400).contains(loads)), "{per_tenth:?}");
}

/// By the machine's clock, with a timer each. What a stream holds beside them is its session, if its handler keeps that.
#[tokio::test]
async fn p21_a_stream_holds_little_more_than_a_timer() {
    const STREAMS: usize = 10_000;
    let sessions = MemorySessions::new();
    let layer = SessionLayer::new(sessions.clone());
    let mut ids = Vec::with_capacity(STREAMS);
    for n in 0..STREAMS {
        ids.push(sessions.create(format!("user {n}"), json!({"n": n})).await.unwrap());
    }
    let mut streams = Vec::with_capacity(STREAMS);
    let mut open = |id: &str| {
        // The session is dropped, as by a handler that only keeps the future.
        let mut ended = tokio::task::unconstrained(session(&layer, id)).now_or_never().unwrap().ended();
        assert!(poll(&mut ended).is_pending());
        streams.push(ended);
    };
    // Once before, for what is made only once.
    open(ids[0].as_str());
    let held = measure(|| ids.iter().skip(1).for_each(|id| open(id.as_str())));
    let each = held.bytes_current / (STREAMS as i64 - 1) + size_of::<Ended>() as i64;
    println!("{each} bytes for each stream, {} of them in the future itself", size_of::<Ended>());
    assert!((1..1_024).contains(&each), "{each} bytes");
}

/// Not all at one moment, and none before its time.
#[tokio::test]
async fn p21_streams_give_up_a_lost_store_one_after_the_other() {
    const STREAMS: usize = 1_000;
    let store = Store::memory().await;
    let mut streams = streams(&store.sessions(), STREAMS).await;
    hear(&mut streams, Ending::Unknown);
    store.faults.always(Verb::Load, Fault::Before);
    let mut gave_up = Vec::new();
    for _ in 0..90 {
        store.pass(SECOND);
        gave_up.push(hear(&mut streams, Ending::Unknown));
    }
    assert!(streams.is_empty());
    // The first look fails within five seconds. A minute later the first give up, and 20 seconds after that the last.
    assert!(gave_up[..60].iter().all(|count| *count == 0), "{gave_up:?}");
    assert!(gave_up[86..].iter().all(|count| *count == 0), "{gave_up:?}");
    assert!(gave_up.iter().all(|count| *count < STREAMS / 5), "{gave_up:?}");
}

#[tokio::test]
async fn p21_a_store_that_comes_back_ends_no_stream_and_is_not_overrun() {
    const STREAMS: usize = 1_000;
    let store = Store::memory().await;
    let sessions = store.sessions();
    let mut streams = streams(&sessions, STREAMS).await;
    hear(&mut streams, Ending::Unknown);
    for _ in 0..3 {
        store.faults.always(Verb::Load, Fault::Before);
        for _ in 0..55 {
            store.pass(SECOND);
            assert_eq!(hear(&mut streams, Ending::Unknown), 0);
        }
        store.faults.heal();
        loads(&store);
        for _ in 0..5 {
            store.pass(SECOND);
            assert_eq!(hear(&mut streams, Ending::Unknown), 0);
            assert!(loads(&store) < STREAMS / 3);
        }
    }
    // What has ended meanwhile is known then.
    store.sessions().clear("user 7").await.unwrap();
    store.pass(LOOK);
    assert_eq!(hear(&mut streams, Ending::SignedOut), 1);
}

#[tokio::test]
async fn p21_no_stream_waits_for_a_lost_store_for_longer_than_the_idle_time() {
    let store = Store::memory().await;
    let options = Options { default_ttl: Some(Some(12 * SECOND)), ..Options::default() };
    let mut streams = streams(&store.sessions_with(options), 10).await;
    hear(&mut streams, Ending::Unknown);
    store.faults.always(Verb::Load, Fault::Before);
    for _ in 0..21 {
        store.pass(SECOND);
        hear(&mut streams, Ending::Unknown);
    }
    assert!(streams.is_empty());
}

/// A damaged record says nothing of whether the session has ended.
#[tokio::test]
async fn p21_a_record_that_cannot_be_read_is_unknown() {
    let store = Store::memory().await;
    let mut streams = streams(&store.sessions(), 1).await;
    hear(&mut streams, Ending::Unknown);
    store.faults.always(
        Verb::Load,
        Fault::change(|_, answer| async {
            Ok(match answer? {
                jam_session::conformance::Answer::Load(Some(mut record)) => {
                    (record.payload, record.version) = ("damaged".into(), 1);
                    jam_session::conformance::Answer::Load(Some(record))
                }
                other => other,
            })
        }),
    );
    for _ in 0..60 {
        store.pass(SECOND);
        assert_eq!(hear(&mut streams, Ending::Unknown), 0);
    }
    store.pass(30 * SECOND);
    assert_eq!(hear(&mut streams, Ending::Unknown), 1);
}

/// For a test of an application, which has no clock of ours.
#[tokio::test(start_paused = true)]
async fn p21_with_the_machines_clock_looks_go_by_the_time_of_tokio() {
    let store = Store::memory().await;
    let sessions = Options::default().apply(Sessions::over(store.watched())).clock(Clock::system()).build().unwrap();
    let mut streams = streams(&sessions, 1).await;
    let began = tokio::time::Instant::now();
    let ended = tokio::spawn(streams.remove(0));
    tokio::time::sleep(100 * SECOND).await;
    let looks = loads(&store);
    assert!((20..=22).contains(&looks), "{looks}");
    store.sessions().clear("user 0").await.unwrap();
    assert_eq!(ended.await.unwrap(), Ending::SignedOut);
    assert!(began.elapsed() <= 106 * SECOND);
}

#[test]
fn options_that_contradict_each_other_are_refused() {
    let build = |options: fn(jam_session::Builder<jam_session::MemoryBackend>) -> _| {
        let builder: jam_session::Builder<_> = options(Sessions::over(jam_session::MemoryBackend::default()));
        builder.build().map(drop).map_err(|error| error.kind())
    };
    let refused = Err(jam_session::ErrorKind::Config);
    assert_eq!(build(|builder| builder.watch_interval(Duration::ZERO)), refused);
    assert_eq!(build(|builder| builder.unknown_after(Duration::ZERO)), refused);
    assert_eq!(build(|builder| builder.default_ttl(30 * SECOND).unknown_after(31 * SECOND)), refused);
    assert_eq!(build(|builder| builder.default_ttl(30 * SECOND).unknown_after(30 * SECOND)), Ok(()));
    // One that is left at its default is adjusted.
    assert_eq!(build(|builder| builder.default_ttl(10 * SECOND)), Ok(()));
    assert_eq!(build(|builder| builder.default_ttl(None).unknown_after(Duration::MAX)), Ok(()));
}
