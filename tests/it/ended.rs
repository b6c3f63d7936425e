//! Streams and sockets that end together with their session, over real connections.

use std::{
    convert::Infallible,
    iter,
    pin::Pin,
    task::{Context, Poll, Waker},
    time::Duration,
};

use axum::{
    Router,
    extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade},
    response::sse::{Event, Sse},
    routing::get,
};
use futures_util::{FutureExt, Stream, StreamExt};
use http::HeaderMap;
use jam_session::{
    Ended, Ending, ErrorKind, Limit, Session, SessionLayer, Sessions,
    conformance::{Fault, Gate, Verb},
};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
};
use tokio_tungstenite::{WebSocketStream, tungstenite};

use crate::{
    client::{Client, bind_ada, clear_others, delete, rework},
    on_every_store,
    store::{BRIEF, Options, PATIENCE, Store, Watched, eventually, in_time},
};

on_every_store! {
    p21_a_sign_out_ends_the_streams_of_its_session_at_once,
    p21_what_another_process_ends_is_found_at_the_next_look,
    p21_a_sign_out_everywhere_ends_every_stream_of_the_user,
    p21_a_revoked_session_ends_its_streams_and_no_others,
    p21_a_login_above_the_limit_ends_the_streams_of_the_session_that_goes,
    p21_clear_others_ends_a_copy_of_the_cookie_and_the_other_devices,
    p21_a_login_replaces_the_streams_from_before_it,
    p21_a_rotation_ends_no_stream,
    p21_an_idle_session_ends_its_streams_whoever_looks_at_it,
    p21_a_deadline_ends_streams,
    p21_closing_ends_every_stream_first,
    p21_a_stream_belongs_to_the_login_that_was_committed_with_it,
    p21_a_session_that_is_gone_ends_a_stream_at_once,
    p21_a_visitor_without_a_session_waits_for_ever,
    p21_a_new_future_for_each_message_still_reaches_the_store,
    p21_another_stream_takes_over_from_one_that_goes,
    p21_a_stream_that_is_not_polled_keeps_no_other_from_hearing,
    p21_touch_counts_as_use_and_is_throttled,
    p21_touch_says_that_the_session_has_ended,
}

const LOOK: Duration = Duration::from_secs(5);
const HOUR: Duration = Duration::from_secs(3600);

/// A server of one process, with a page that streams and a socket. Both begin to wait for the ending, then greet, and say in the
/// end how the session ended.
struct Site {
    layer: SessionLayer,
    address: std::net::SocketAddr,
    server: tokio::task::JoinHandle<()>,
}

/// The other end of a connection.
enum Live {
    Events(TcpStream),
    Socket(Box<WebSocketStream<TcpStream>>),
}

/// Events that wait for the ending of a session, from before the first one.
struct Greeting {
    ended: Option<Ended>,
    greeted: bool,
}

impl Stream for Greeting {
    type Item = Result<Event, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Some(ended) = &mut self.ended else { return Poll::Ready(None) };
        let ending = ended.poll_unpin(cx);
        match ending {
            Poll::Ready(ending) => {
                self.ended = None;
                Poll::Ready(Some(Ok(Event::default().data(format!("{ending:?}")))))
            }
            Poll::Pending if !std::mem::replace(&mut self.greeted, true) => {
                Poll::Ready(Some(Ok(Event::default().data("hello"))))
            }
            Poll::Pending => Poll::Pending,
        }
    }
}

fn events(session: &Session) -> Sse<Greeting> {
    Sse::new(Greeting { ended: Some(session.ended()), greeted: false })
}

async fn socket(mut socket: WebSocket, session: Session) {
    let mut ended = session.ended();
    let mut greeting = Some(());
    loop {
        tokio::select! {
            biased;
            ending = &mut ended => {
                let reason = format!("{ending:?}").into();
                let _ = socket.send(Message::Close(Some(CloseFrame { code: 1000, reason }))).await;
                return;
            }
            () = std::future::ready(()), if greeting.is_some() => {
                greeting = None;
                let _ = socket.send("hello".into()).await;
            }
            message = socket.recv() => if message.is_none() { return },
        }
    }
}

impl Site {
    async fn new(sessions: Sessions<Watched>) -> Self {
        let layer = SessionLayer::new(sessions);
        let upgrade =
            async |session: Session, upgrade: WebSocketUpgrade| upgrade.on_upgrade(|open| socket(open, session));
        let login = async |session: Session| {
            session.bind("ada");
            events(&session)
        };
        let app = Router::new()
            .route("/events", get(async |session: Session| events(&session)))
            .route("/login", get(login))
            .route("/socket", get(upgrade))
            .layer(layer.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self { layer, address, server }
    }

    fn client(&self) -> Client {
        Client::new(&self.layer)
    }

    async fn signed_in(&self) -> Client {
        let client = self.client();
        client.does(|session| session.create("ada", json!({}))).await.ok();
        client
    }

    /// A stream and a socket of that browser, both of which wait for their session to end.
    async fn open(&self, client: &Client) -> [Live; 2] {
        let (events, _) = self.events(client, "/events").await;
        let mut headers = HeaderMap::new();
        client.add_cookies(&mut headers);
        let mut request =
            tungstenite::client::IntoClientRequest::into_client_request(format!("ws://{}/socket", self.address))
                .unwrap();
        request.headers_mut().extend(headers);
        let connection = TcpStream::connect(self.address).await.unwrap();
        let (mut socket, _) = tokio_tungstenite::client_async(request, connection).await.unwrap();
        assert_eq!(socket.next().await.unwrap().unwrap().into_text().unwrap(), "hello");
        [events, Live::Socket(Box::new(socket))]
    }

    /// The stream at that path, and the head of the response.
    async fn events(&self, client: &Client, path: &str) -> (Live, String) {
        let mut headers = HeaderMap::new();
        client.add_cookies(&mut headers);
        let mut connection = TcpStream::connect(self.address).await.unwrap();
        let mut head = format!("GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n", self.address);
        if let Some(cookie) = headers.get("cookie") {
            head.push_str(&format!("Cookie: {}\r\n", cookie.to_str().unwrap()));
        }
        connection.write_all(format!("{head}\r\n").as_bytes()).await.unwrap();
        let mut answer = String::new();
        while !answer.contains("data: hello") {
            let mut byte = [0];
            let read = connection.read(&mut byte).await.unwrap();
            assert_eq!(read, 1, "{answer}");
            answer.push(byte[0].into());
        }
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        (Live::Events(connection), answer)
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Live {
    /// What it says when it ends.
    async fn ending(&mut self) -> String {
        let read = async {
            match self {
                Self::Events(connection) => {
                    let mut rest = String::new();
                    connection.read_to_string(&mut rest).await.unwrap();
                    let (_, ending) = rest.rsplit_once("data: ").unwrap_or_else(|| panic!("it ends with {rest:?}"));
                    ending.split('\n').next().unwrap().to_owned()
                }
                Self::Socket(socket) => match socket.next().await.unwrap().unwrap() {
                    tungstenite::Message::Close(Some(frame)) => frame.reason.to_string(),
                    other => panic!("it is {other:?}"),
                },
            }
        };
        tokio::time::timeout(PATIENCE, read).await.expect("it never ends")
    }
}

/// That all of them end in this way.
async fn all_end(streams: impl IntoIterator<Item = &mut Live>, expected: Ending) {
    for stream in streams {
        assert_eq!(stream.ending().await, format!("{expected:?}"));
    }
}

/// How long a test waits for a look before it lets another interval pass. That is needed if a look was still under way when the
/// clock was advanced, because the next one is then due an interval later. The waits are long, so that the intervals cannot add
/// up to the idle timeout of a session on a slow machine.
fn pauses() -> impl Iterator<Item = Duration> {
    iter::once(BRIEF).chain(iter::repeat(Duration::from_secs(1)))
}

/// Lets that time pass, after which all of them end in this way.
async fn all_end_after(store: &Store, time: Duration, streams: impl IntoIterator<Item = &mut Live>, expected: Ending) {
    store.pass(time);
    let looks = async {
        for pause in pauses() {
            tokio::time::sleep(pause).await;
            store.pass(LOOK);
        }
    };
    tokio::select! {
        () = all_end(streams, expected) => {}
        () = looks => {}
    }
}

/// The session of a request that has been answered, for a stream that goes on.
async fn kept(client: &Client) -> Session {
    let mut kept = None;
    let keep = &mut kept;
    let answer = client.visit(async |session: Session| {
        *keep = Some(session);
        Ok(())
    });
    answer.await.ok();
    kept.unwrap()
}

fn poll(ended: &mut Ended) -> Poll<Ending> {
    ended.poll_unpin(&mut Context::from_waker(Waker::noop()))
}

/// How often the store was asked for a record since this was last called.
fn loads(store: &Store) -> usize {
    store.faults.calls().into_iter().filter(|verb| *verb == Verb::Load).count()
}

/// Lets the time pass until the next look is due, and waits until it has been.
async fn look(store: &Store) {
    loads(store);
    let mut pauses = pauses();
    in_time(async || {
        store.pass(LOOK);
        let seen = eventually(async || loads(store) > 0);
        tokio::time::timeout(pauses.next()?, seen).await.ok()
    })
    .await;
}

async fn p21_a_sign_out_ends_the_streams_of_its_session_at_once(store: Store) {
    let sessions = store.sessions();
    let site = Site::new(sessions.clone()).await;
    for by_id in [false, true] {
        let (client, other) = (site.signed_in().await, site.signed_in().await);
        let mut streams = site.open(&client).await;
        // Another tab.
        let mut more = site.open(&client).await;
        let mut others = site.open(&other).await;
        match by_id {
            true => sessions.delete(client.id().unwrap()).await.unwrap(),
            false => drop(client.does(delete).await.ok()),
        }
        all_end(streams.iter_mut().chain(&mut more), Ending::SignedOut).await;
        // The other device is not concerned.
        other.does(delete).await.ok();
        all_end(&mut others, Ending::SignedOut).await;
    }
}

async fn p21_what_another_process_ends_is_found_at_the_next_look(store: Store) {
    let site = Site::new(store.sessions()).await;
    let elsewhere = store.sessions();
    let there = SessionLayer::new(elsewhere.clone());
    for expected in [Ending::SignedOut, Ending::Replaced] {
        let client = site.signed_in().await;
        let mut streams = site.open(&client).await;
        match expected {
            Ending::Replaced => drop(client.at(&there).does(bind_ada).await.ok()),
            _ => elsewhere.delete(client.id().unwrap()).await.unwrap(),
        }
        all_end_after(&store, LOOK, &mut streams, expected).await;
    }
}

async fn p21_a_sign_out_everywhere_ends_every_stream_of_the_user(store: Store) {
    let sessions = store.sessions();
    let site = Site::new(sessions.clone()).await;
    for by_key in [false, true] {
        let (client, other, grace) = (site.signed_in().await, site.signed_in().await, site.client());
        grace.does(|session| session.create("grace", json!({}))).await.ok();
        let mut streams = Vec::new();
        for client in [&client, &other] {
            streams.extend(site.open(client).await);
        }
        let mut hers = site.open(&grace).await;
        match by_key {
            true => assert_eq!(sessions.clear("ada").await.unwrap(), 2),
            false => {
                let cleared = client.does(|session| {
                    session.clear();
                    Ok(())
                });
                cleared.await.ok();
            }
        }
        all_end(&mut streams, Ending::SignedOut).await;
        sessions.clear("grace").await.unwrap();
        all_end(&mut hers, Ending::SignedOut).await;
    }
}

async fn p21_a_revoked_session_ends_its_streams_and_no_others(store: Store) {
    let sessions = store.sessions();
    let site = Site::new(sessions.clone()).await;
    let (client, other) = (site.signed_in().await, site.signed_in().await);
    let (mut streams, mut others) = (site.open(&client).await, site.open(&other).await);
    let handle = client.does(|session| Ok(session.handle().unwrap())).await.body;
    assert!(sessions.revoke("ada", &handle).await.unwrap());
    all_end(&mut streams, Ending::SignedOut).await;
    assert_eq!(sessions.list("ada").await.unwrap().len(), 1);
    sessions.close().await.unwrap();
    all_end(&mut others, Ending::Closed).await;
}

async fn p21_a_login_above_the_limit_ends_the_streams_of_the_session_that_goes(store: Store) {
    let limit = Options { sessions_per_key: Some(Limit::from(1)), ..Options::default() };
    let site = Site::new(store.sessions_with(limit)).await;
    let first = site.signed_in().await;
    let mut streams = site.open(&first).await;
    let second = site.signed_in().await;
    all_end(&mut streams, Ending::SignedOut).await;
    let mut streams = site.open(&second).await;
    second.does(delete).await.ok();
    all_end(&mut streams, Ending::SignedOut).await;
}

async fn p21_clear_others_ends_a_copy_of_the_cookie_and_the_other_devices(store: Store) {
    let sessions = store.sessions();
    let site = Site::new(sessions.clone()).await;
    let (client, other) = (site.signed_in().await, site.signed_in().await);
    let copy = client.thief();
    let (mut own, mut copies, mut others) = (site.open(&client).await, site.open(&copy).await, site.open(&other).await);
    let answer = client.does(clear_others);
    answer.await.ok();
    all_end(own.iter_mut().chain(&mut copies), Ending::Replaced).await;
    all_end(&mut others, Ending::SignedOut).await;
    // The browser's own come back with the new cookie, and live on.
    let mut own = site.open(&client).await;
    look(&store).await;
    sessions.clear("ada").await.unwrap();
    all_end(&mut own, Ending::SignedOut).await;
}

async fn p21_a_login_replaces_the_streams_from_before_it(store: Store) {
    let site = Site::new(store.sessions()).await;
    let client = site.client();
    client.does(|session| session.insert("n", 1)).await.ok();
    // The visitor's, then the one in place, then another user's.
    for user in ["ada", "ada", "grace"] {
        let mut streams = site.open(&client).await;
        let answer = client.does(|session| {
            session.bind(user);
            Ok(())
        });
        answer.await.ok();
        all_end(&mut streams, Ending::Replaced).await;
    }
}

async fn p21_a_rotation_ends_no_stream(store: Store) {
    let sessions = store.sessions();
    let site = Site::new(sessions.clone()).await;
    let there = store.layer();
    let client = site.signed_in().await;
    let mut streams = site.open(&client).await;
    for layer in [&site.layer, &there] {
        client.at(layer).does(rework).await.ok();
        look(&store).await;
    }
    client.does(|session| session.insert("n", 1)).await.ok();
    look(&store).await;
    client.does(delete).await.ok();
    all_end(&mut streams, Ending::SignedOut).await;
}

/// The looks do not count as use.
async fn p21_an_idle_session_ends_its_streams_whoever_looks_at_it(store: Store) {
    let site = Site::new(store.sessions()).await;
    let client = site.signed_in().await;
    let mut streams = site.open(&client).await;
    for _ in 0..5 {
        store.pass(HOUR / 6 - LOOK);
        look(&store).await;
    }
    all_end_after(&store, HOUR / 6 + store.moment, &mut streams, Ending::Expired).await;
    assert!(!store.faults.calls().contains(&Verb::Touch));
}

async fn p21_a_deadline_ends_streams(store: Store) {
    let options = Options { max_lifetime: Some(HOUR), default_ttl: Some(None), ..Options::default() };
    let site = Site::new(store.sessions_with(options)).await;
    let client = site.signed_in().await;
    let mut streams = site.open(&client).await;
    look(&store).await;
    all_end_after(&store, HOUR + store.moment, &mut streams, Ending::Expired).await;
}

async fn p21_closing_ends_every_stream_first(store: Store) {
    let sessions = store.sessions();
    let site = Site::new(sessions.clone()).await;
    let (client, visitor) = (site.signed_in().await, site.client());
    visitor.does(|session| session.insert("n", 1)).await.ok();
    let late = kept(&client).await;
    let mut streams: Vec<_> = site.open(&client).await.into_iter().chain(site.open(&visitor).await).collect();
    // A look that is under way does not hold it up.
    let gate = Gate::new();
    store.faults.always(Verb::Load, Fault::HoldReply(gate.clone()));
    look(&store).await;
    let closing = tokio::spawn(async move { sessions.close().await });
    all_end(&mut streams, Ending::Closed).await;
    gate.open().await;
    closing.await.unwrap().unwrap();
    // Nor does a stream begin that would outlast the process.
    assert_eq!(late.ended().await, Ending::Closed);
    assert_eq!(late.touch().await.unwrap_err().kind(), ErrorKind::Unavailable);
}

async fn p21_a_stream_belongs_to_the_login_that_was_committed_with_it(store: Store) {
    let sessions = store.sessions();
    let site = Site::new(sessions.clone()).await;
    for is_signed_in in [false, true] {
        let client = match is_signed_in {
            false => site.client(),
            true => site.signed_in().await,
        };
        let (mut stream, head) = site.events(&client, "/login").await;
        assert!(head.contains("set-cookie: __Host-id="), "{head}");
        look(&store).await;
        sessions.clear("ada").await.unwrap();
        assert_eq!(stream.ending().await, "SignedOut");
    }
}

async fn p21_a_session_that_is_gone_ends_a_stream_at_once(store: Store) {
    let sessions = store.sessions();
    let client = Client::new(&SessionLayer::new(sessions.clone()));
    let sign_in = async || client.does(|session| session.create("ada", json!({}))).await.ok();

    // It ended between the request and the first poll.
    sign_in().await;
    let late = kept(&client).await;
    let ended = late.ended();
    sessions.clear("ada").await.unwrap();
    assert_eq!(ended.await, Ending::SignedOut);

    // The stream itself has ended it.
    sign_in().await;
    let late = kept(&client).await;
    late.delete();
    late.save().await.unwrap();
    assert_eq!(late.ended().now_or_never(), Some(Ending::SignedOut));

    // The stream has found out, by writing to it; and then the store is lost.
    sign_in().await;
    let late = kept(&client).await;
    store.sessions().clear("ada").await.unwrap();
    late.insert("n", 1).unwrap();
    assert_eq!(late.save().await.unwrap_err().kind(), ErrorKind::NotFound);
    store.faults.always(None, Fault::Hang);
    let mut ended = late.ended();
    assert_eq!((&mut ended).now_or_never(), Some(Ending::SignedOut));
    // It stays ready.
    assert_eq!(ended.now_or_never(), Some(Ending::SignedOut));
    store.faults.heal();
}

async fn p21_a_visitor_without_a_session_waits_for_ever(store: Store) {
    let sessions = store.sessions();
    let client = Client::new(&SessionLayer::new(sessions.clone()));
    let without = kept(&client).await;
    // Nor does one whose cookie leads nowhere have a session.
    client.does(|session| session.create("ada", json!({}))).await.ok();
    sessions.clear("ada").await.unwrap();
    let dead = kept(&client).await;
    store.faults.calls();
    for session in [without, dead] {
        let mut ended = session.ended();
        for _ in 0..10 {
            assert!(poll(&mut ended).is_pending());
            store.pass(LOOK);
        }
        assert_eq!(session.touch().await.unwrap_err().kind(), ErrorKind::NotFound);
        sessions.clear("ada").await.unwrap();
        assert!(poll(&mut ended).is_pending());
    }
    assert_eq!(loads(&store), 0);
}

async fn p21_a_new_future_for_each_message_still_reaches_the_store(store: Store) {
    let client = Client::new(&store.layer());
    client.does(|session| session.create("ada", json!({}))).await.ok();
    let session = kept(&client).await;
    loads(&store);
    for _ in 0..100 {
        assert!(poll(&mut session.ended()).is_pending());
    }
    assert_eq!(loads(&store), 0);
    store.sessions().clear("ada").await.unwrap();
    store.pass(LOOK);
    let mut ending = Poll::Pending;
    eventually(async || {
        ending = poll(&mut session.ended());
        ending.is_ready()
    })
    .await;
    assert_eq!(ending, Poll::Ready(Ending::SignedOut));
    assert_eq!(loads(&store), 1);
}

async fn p21_another_stream_takes_over_from_one_that_goes(store: Store) {
    let client = Client::new(&store.layer());
    client.does(|session| session.create("ada", json!({}))).await.ok();
    let (first, second) = (kept(&client).await, kept(&client).await);
    let mut driver = first.ended();
    assert!(poll(&mut driver).is_pending());
    let (polled, mut is_polled) = mpsc::unbounded_channel();
    let mut other = second.ended();
    let other = tokio::spawn(std::future::poll_fn(move |cx| {
        let ending = other.poll_unpin(cx);
        polled.send(()).unwrap();
        ending
    }));
    is_polled.recv().await.unwrap();
    // The first one is in the middle of a look.
    let gate = Gate::new();
    store.faults.next(Verb::Load, Fault::HoldRequest(gate.clone()));
    store.pass(LOOK);
    let _ = poll(&mut driver);
    store.sessions().clear("ada").await.unwrap();
    drop((driver, first));
    gate.open().await;
    assert_eq!(tokio::time::timeout(PATIENCE, other).await.unwrap().unwrap(), Ending::SignedOut);
}

/// As one whose task is busy with a message.
async fn p21_a_stream_that_is_not_polled_keeps_no_other_from_hearing(store: Store) {
    let client = Client::new(&store.layer());
    client.does(|session| session.create("ada", json!({}))).await.ok();
    let (first, second) = (kept(&client).await, kept(&client).await);
    let (mut driver, mut other) = (first.ended(), second.ended());
    assert!(poll(&mut driver).is_pending() && poll(&mut other).is_pending());
    store.sessions().clear("ada").await.unwrap();
    store.faults.next(Verb::Load, Fault::first(|_| tokio::task::yield_now()));
    store.pass(LOOK);
    // It begins a look, and does not go on with it.
    let _ = poll(&mut driver);
    let other = tokio::spawn(other);
    store.pass(LOOK);
    store.pass(LOOK);
    assert_eq!(tokio::time::timeout(PATIENCE, other).await.unwrap().unwrap(), Ending::SignedOut);
}

async fn p21_touch_counts_as_use_and_is_throttled(store: Store) {
    let sessions = store.sessions();
    let client = Client::new(&SessionLayer::new(sessions.clone()));
    client.does(|session| session.create("ada", json!({}))).await.ok();
    let session = kept(&client).await;
    let mut ended = session.ended();
    for _ in 0..6 {
        store.pass(HOUR / 2);
        store.faults.calls();
        for _ in 0..100 {
            session.touch().await.unwrap();
            assert!(poll(&mut ended).is_pending());
        }
        let touches = store.faults.calls().into_iter().filter(|verb| *verb == Verb::Touch).count();
        assert_eq!(touches, 1, "the store hears of it once");
    }
    // And without it the session ends.
    store.pass(HOUR + store.moment);
    assert_eq!(session.touch().await.unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(ended.await, Ending::Expired);
}

async fn p21_touch_says_that_the_session_has_ended(store: Store) {
    let sessions = store.sessions();
    let client = Client::new(&SessionLayer::new(sessions.clone()));
    for is_here in [true, false] {
        client.does(|session| session.create("ada", json!({}))).await.ok();
        let session = kept(&client).await;
        session.touch().await.unwrap();
        match is_here {
            true => drop(sessions.clear("ada").await.unwrap()),
            false => {
                store.sessions().clear("ada").await.unwrap();
                store.pass(LOOK);
            }
        }
        assert_eq!(session.touch().await.unwrap_err().kind(), ErrorKind::NotFound);
    }
    // A login ends it for those who were there before.
    client.does(|session| session.create("ada", json!({}))).await.ok();
    let before = kept(&client).await;
    before.touch().await.unwrap();
    client.does(bind_ada).await.ok();
    assert_eq!(before.touch().await.unwrap_err().kind(), ErrorKind::NotFound);
    kept(&client).await.touch().await.unwrap();
    // What cannot be asked is not known.
    let session = kept(&client).await;
    session.touch().await.unwrap();
    store.pass(LOOK);
    store.faults.next(Verb::Load, Fault::Before);
    assert_eq!(session.touch().await.unwrap_err().kind(), ErrorKind::Unavailable);
    session.touch().await.unwrap();
}
