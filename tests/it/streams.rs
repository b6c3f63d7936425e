//! Responses that continue after their head was sent: streams, server-sent events, WebSockets.

use std::{convert::Infallible, time::Duration};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::ws::{WebSocket, WebSocketUpgrade},
    response::sse::{Event, Sse},
    routing::get,
};
use http::Request;
use http_body_util::BodyExt;
use jam_session::{
    ErrorKind, Session, SessionLayer,
    conformance::{Fault, Verb},
};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::mpsc,
};
use tower::{Layer, ServiceExt, service_fn};

use crate::{
    client::{Client, increment},
    on_every_store,
    store::{Options, Store},
};

on_every_store! {
    a_stream_commits_when_it_begins_and_saves_later,
    what_would_need_a_cookie_is_an_error_once_the_response_has_left,
    p04_a_session_may_end_in_a_stream,
    p08_clear_others_once_the_response_has_left_ends_nothing,
    who_first_looks_after_the_response_finds_the_session_and_no_cookie,
    a_websocket_saves,
}

async fn a_stream_commits_when_it_begins_and_saves_later(store: Store) {
    let layer = store.layer();
    let (send, receive) = mpsc::unbounded_channel::<()>();
    let receive = std::sync::Arc::new(tokio::sync::Mutex::new(receive));
    let events = async move |session: Session| {
        session.insert("began", 1).unwrap();
        let stream = futures_util::stream::unfold((session, receive), async |(session, receive)| {
            receive.lock().await.recv().await?;
            session.modify("ticks", |n: Option<u64>| n.unwrap_or(0) + 1).unwrap();
            session.save().await.unwrap();
            Some((Ok::<_, Infallible>(Event::default().data("tick")), (session, receive)))
        });
        Sse::new(stream)
    };
    let app = Router::new().route("/", get(events)).layer(layer.clone());
    let client = Client::new(&layer);
    let response = app.oneshot(Request::new(Body::empty())).await.unwrap();
    // The head is here, the stream has not begun: what was recorded by now is written.
    client.take_cookies(response.headers());
    assert_eq!(client.does(|session| Ok(session.get::<u8>("began")?.unwrap().to_string())).await.body, "1");
    let mut body = response.into_body();
    for n in 1..=3 {
        send.send(()).unwrap();
        body.frame().await.unwrap().unwrap();
        assert_eq!(
            client.does(|session| Ok(session.get::<u8>("ticks")?.unwrap().to_string())).await.body,
            n.to_string()
        );
    }
}

async fn what_would_need_a_cookie_is_an_error_once_the_response_has_left(store: Store) {
    type Change = fn(&Session);
    let changes: [(Change, bool); 5] = [
        (|session| session.rework(), true),
        (|session| session.bind("ada"), true),
        (|session| session.create("ada", json!({})).unwrap(), true),
        (|session| session.insert("n", 2).unwrap(), false),
        (|session| session.delete(), false),
    ];
    for (change, refused) in changes {
        let client = Client::new(&store.layer());
        client.does(|session| session.insert("n", 1)).await.ok();
        let late = after_the_response(&client).await;
        change(&late);
        assert_eq!(
            late.save().await.map_err(|error| error.kind()),
            match refused {
                true => Err(ErrorKind::ResponseSent),
                false => Ok(()),
            }
        );
        // What was refused is dropped; the session is as it was.
        late.insert("m", 3).unwrap();
        let _ = late.save().await;
        if refused {
            let answer = client.does(|session| Ok(format!("{:?}{:?}", session.key(), session.get::<u8>("m")?)));
            assert_eq!(answer.await.body, "NoneSome(3)");
        }
    }
    // Without a session, the first write is one that needs a cookie.
    store.faults.calls();
    let late = after_the_response(&Client::new(&store.layer())).await;
    late.insert("n", 1).unwrap();
    assert_eq!(late.save().await.unwrap_err().kind(), ErrorKind::ResponseSent);
    assert!(store.faults.calls().is_empty());
}

/// A session that a task holds on to.
async fn after_the_response(client: &Client) -> Session {
    let mut kept = None;
    let keep = &mut kept;
    client
        .visit(async |session: Session| {
            *keep = Some(session);
            Ok(())
        })
        .await
        .ok();
    kept.unwrap()
}

/// A session that a task got hold of before anybody looked at it: the response, if there was one, and the session.
async fn unseen(client: &Client, layer: &SessionLayer, is_dropped: bool) -> (Option<http::HeaderMap>, Session) {
    let (keep, mut kept) = mpsc::unbounded_channel();
    let service = layer.layer(service_fn(move |request: Request<Body>| {
        keep.send(request.extensions().get::<Session>().unwrap().clone()).unwrap();
        async move {
            if is_dropped {
                std::future::pending::<()>().await;
            }
            Ok::<_, Infallible>(http::Response::new(Body::empty()))
        }
    }));
    let mut request = Request::new(Body::empty());
    client.add_cookies(request.headers_mut());
    let mut response = Box::pin(service.oneshot(request));
    let answer = std::future::poll_fn(|cx| std::task::Poll::Ready(response.as_mut().poll(cx))).await;
    assert_eq!(answer.is_pending(), is_dropped);
    let headers = match answer {
        std::task::Poll::Ready(response) => Some(response.unwrap().headers().clone()),
        std::task::Poll::Pending => None,
    };
    drop(response);
    (headers, kept.recv().await.unwrap())
}

async fn who_first_looks_after_the_response_finds_the_session_and_no_cookie(store: Store) {
    let layer = store.layer();
    for is_dropped in [false, true] {
        let client = Client::new(&layer);
        client.does(|session| session.insert("n", 1)).await.ok();
        store.faults.calls();
        let (headers, late) = unseen(&client, &layer, is_dropped).await;
        assert!(headers.is_none_or(|headers| headers.is_empty()));
        assert!(store.faults.calls().is_empty());

        assert_eq!(late.get::<u8>("n").unwrap_err().kind(), ErrorKind::NotLoaded);
        late.modify("n", |n: Option<u8>| n.unwrap_or(0) + 1).unwrap();
        let clone = late.clone();
        let (loaded, saved) = tokio::join!(clone.load(), late.save());
        assert!(loaded.is_ok() && saved.is_ok());
        assert_eq!(late.get::<u8>("n").unwrap(), Some(2));
        late.rework();
        assert_eq!(late.save().await.unwrap_err().kind(), ErrorKind::ResponseSent);
        late.insert("n", 3).unwrap();
        late.save().await.unwrap();
        assert_eq!(client.does(|session| Ok(session.get::<u8>("n")?.unwrap().to_string())).await.body, "3");

        let (_, late) = unseen(&Client::new(&layer), &layer, is_dropped).await;
        store.faults.calls();
        late.insert("n", 1).unwrap();
        assert_eq!(late.save().await.unwrap_err().kind(), ErrorKind::ResponseSent);
        assert!(store.faults.calls().is_empty());
    }
}

async fn p04_a_session_may_end_in_a_stream(store: Store) {
    let (layer, sessions) = (store.layer(), store.sessions());
    let client = Client::new(&layer);
    client.does(|session| session.create("ada", json!({}))).await.ok();
    let late = after_the_response(&client).await;
    late.clear();
    late.save().await.unwrap();
    assert!(sessions.list("ada").await.unwrap().is_empty());
    late.insert("n", 1).unwrap();
    assert!(late.save().await.is_err());
    assert_eq!(client.does(|session| Ok(session.key().is_none().to_string())).await.body, "true");
}

/// It would need a cookie for the new ID, so it does nothing at all.
async fn p08_clear_others_once_the_response_has_left_ends_nothing(store: Store) {
    let (layer, sessions) = (store.layer(), store.sessions());
    let (client, other) = (Client::new(&layer), Client::new(&layer));
    for client in [&client, &other] {
        client.does(|session| session.create("ada", json!({}))).await.ok();
    }
    let key = async |client: &Client| client.does(|session| Ok(session.key().unwrap_or_default())).await.body;
    type Change = fn(&Session);
    let changes: [Change; 3] = [
        |session| session.clear_others(),
        |session| {
            session.clear_others();
            session.bind("ada");
        },
        |session| {
            session.insert("lost", 1).unwrap();
            session.clear_others();
        },
    ];
    let (_, unseen) = unseen(&client, &layer, false).await;
    for late in [after_the_response(&client).await, unseen] {
        for change in changes {
            change(&late);
            store.faults.calls();
            assert_eq!(late.save().await.unwrap_err().kind(), ErrorKind::ResponseSent);
            assert!(!store.faults.calls().iter().any(|verb| matches!(verb, Verb::Update | Verb::Clear)));
            assert_eq!(sessions.list("ada").await.unwrap().len(), 2);
            assert_eq!((key(&client).await, key(&other).await), ("ada".to_owned(), "ada".to_owned()));
        }
        // What was refused is dropped, and the session goes on.
        late.modify("n", |n: Option<u8>| n.unwrap_or(0) + 1).unwrap();
        late.save().await.unwrap();
    }
    let left = client.does(|session| Ok(format!("{:?}{:?}", session.get::<u8>("n")?, session.get::<u8>("lost")?)));
    assert_eq!(left.await.body, "Some(2)None");
}

async fn a_websocket_saves(store: Store) {
    let layer = store.layer();
    async fn serve(mut socket: WebSocket, session: Session) {
        while let Some(Ok(message)) = socket.recv().await {
            session.insert("said", message.to_text().unwrap_or_default()).unwrap();
            let saved = session.save().await.map_err(|error| error.kind());
            session.rework();
            let reworked = session.save().await.map_err(|error| error.kind());
            let _ = socket.send(format!("{saved:?} {reworked:?}").into()).await;
        }
    }
    let upgrade =
        async |session: Session, upgrade: WebSocketUpgrade| upgrade.on_upgrade(|socket| serve(socket, session));
    let app = Router::new().route("/", get(upgrade)).layer(layer.clone());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(async move { axum::serve(listener, app).await });

    let client = Client::new(&layer);
    client.does(|session| session.create("ada", json!({}))).await.ok();
    let mut socket = tokio::net::TcpStream::connect(address).await.unwrap();
    let head = format!(
        "GET / HTTP/1.1\r\nHost: {address}\r\nCookie: __Host-id={}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
        client.id().unwrap()
    );
    socket.write_all(head.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(socket.read_u8().await.unwrap());
    }
    assert!(head.starts_with(b"HTTP/1.1 101"));
    // "hi", masked with zeros: RFC 6455, section 5.2.
    socket.write_all(&[0x81, 0x82, 0, 0, 0, 0, b'h', b'i']).await.unwrap();
    let (_, length) = (socket.read_u8().await.unwrap(), socket.read_u8().await.unwrap());
    let mut answer = vec![0; usize::from(length)];
    socket.read_exact(&mut answer).await.unwrap();
    assert_eq!(Bytes::from(answer), "Ok(()) Err(ResponseSent)");
    assert_eq!(client.does(|session| Ok(session.get::<String>("said")?.unwrap())).await.body, "hi");
    server.abort();
}

#[tokio::test(start_paused = true)]
async fn p09_a_stream_saves_again_once_the_store_is_back() {
    let store = Store::memory().await;
    let options = Options { request_time: Some(Duration::from_secs(1)), ..Options::default() };
    let client = Client::new(&store.layer_with(options));
    client.does(|session| session.insert("n", 0)).await.ok();
    let mut kept = None;
    let keep = &mut kept;
    let answer = client.visit(async |session: Session| {
        *keep = Some(session);
        Ok(())
    });
    answer.await.ok();
    let stream = kept.unwrap();
    increment(&stream).unwrap();
    store.faults.next(Verb::Update, Fault::Hang);
    assert_eq!(stream.save().await.unwrap_err().kind(), ErrorKind::Unavailable);
    // The backend is back, and answers when it is asked a second time, as a network does.
    store.first(Verb::Update, tokio::task::yield_now);
    let last = stream.save().await;
    assert!(last.is_ok(), "{last:?}");
}
