//! The cost of a request that does not use its session: counts backend calls and allocations.

use std::{
    convert::Infallible,
    future::{Ready, ready},
    sync::Arc,
};

use allocation_counter::measure;
use http::{Request, Response};
use jam_session::{Error, Session, SessionLayer, conformance::Verb};
use serde_json::json;
use tower::{Layer, Service, service_fn};

use crate::{
    client::{Client, bind_ada, clear_others, delete, rework},
    store::Store,
};

fn clear(session: &Session) -> Result<(), Error> {
    session.clear();
    Ok(())
}

/// What a layer does that only inserts an `Arc` into the extensions.
#[derive(Clone)]
struct InsertsAnArc<S>(S);

#[derive(Clone)]
#[allow(dead_code)]
struct Inserted(Arc<[u64; 4]>);

impl<S: Service<Request<()>>> Service<Request<()>> for InsertsAnArc<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<()>) -> S::Future {
        request.extensions_mut().insert(Inserted(Arc::new([0; 4])));
        self.0.call(request)
    }
}

fn handler(request: Request<()>) -> Ready<Result<Response<()>, Infallible>> {
    drop(request);
    ready(Ok(Response::new(())))
}

/// How many allocations a request through that service makes, the request itself left out.
fn allocations<S>(service: &mut S, cookie: Option<&str>) -> u64
where
    S: Service<Request<()>, Response = Response<()>, Error = Infallible>,
{
    let request = || {
        let mut request = Request::new(());
        if let Some(cookie) = cookie {
            request.headers_mut().insert("cookie", cookie.parse().unwrap());
        }
        request
    };
    let call = |service: &mut S, request| {
        let response = futures_util::FutureExt::now_or_never(service.call(request)).unwrap().unwrap();
        assert!(response.headers().is_empty());
    };
    // Once before, for what is made only once.
    call(service, request());
    let request = request();
    measure(|| call(service, request)).count_total
}

#[tokio::test]
async fn p01_an_unused_session_allocates_one_arc_and_asks_nobody() {
    let store = Store::memory().await;
    let layer = store.layer();
    let client = Client::new(&layer);
    client.does(|session| session.create("ada", json!({}))).await.ok();
    let ours = format!("__Host-id={}", client.id().unwrap());
    let others = "theme=dark; lang=en; __Host-other=abcdefghijklmnopqrstuvwxyz";
    store.faults.calls();

    let mut floor = InsertsAnArc(service_fn(handler));
    let mut service = layer.layer(service_fn(handler));
    assert_eq!(allocations(&mut floor, None), allocations(&mut service, None));
    assert_eq!(allocations(&mut floor, Some(others)), allocations(&mut service, Some(others)));
    let floor = allocations(&mut floor, Some(&ours));
    for cookies in [ours.clone(), format!("{others}; {ours}"), format!("{ours}; {others}")] {
        assert_eq!(allocations(&mut service, Some(&cookies)), floor + 1, "one copy of the value");
    }
    assert!(store.faults.calls().is_empty());
}

#[tokio::test]
async fn applying_the_layer_allocates_nothing() {
    let layer = SessionLayer::new(jam_session::MemorySessions::new());
    assert_eq!(measure(|| drop(layer.layer(()))).count_total, 0);
}

async fn every_kind_of_request_makes_the_calls_that_the_docs_say(store: Store) {
    let layer = store.layer();
    let client = Client::new(&layer);
    let calls = async |handler: fn(&Session) -> Result<(), Error>| {
        store.faults.calls();
        client.does(handler).await.ok();
        store.faults.calls()
    };
    let write: fn(&Session) -> Result<(), Error> = |session| session.modify("n", |n: Option<u64>| n.unwrap_or(0) + 1);
    let nothing = Vec::<Verb>::new();

    assert_eq!(calls(|_| Ok(())).await, nothing, "no cookie");
    assert_eq!(calls(write).await, [Verb::Create], "first write");
    assert_eq!(calls(|_| Ok(())).await, [Verb::Load], "read");
    assert_eq!(calls(write).await, [Verb::Load, Verb::Update], "write");
    assert_eq!(calls(|session| session.insert("n", 2)).await, [Verb::Load], "a write that changes nothing");
    let login = match store.leaves_by() {
        Verb::Create => vec![Verb::Load, Verb::Create],
        last => vec![Verb::Load, Verb::Create, last],
    };
    assert_eq!(calls(bind_ada).await, login, "login");
    assert_eq!(calls(rework).await, [Verb::Load, Verb::Update], "rotation");
    assert_eq!(calls(bind_ada).await, [Verb::Load, Verb::Update], "login of the user who is signed in");
    assert_eq!(calls(clear_others).await, [Verb::Load, Verb::Update, Verb::Clear], "logout everywhere else");
    // To a record that has ended: so that two logouts at once are told apart.
    assert_eq!(calls(delete).await, [Verb::Load, Verb::Update], "logout");
    assert_eq!(calls(bind_ada).await, [Verb::Create], "login without a session");
    let dead = client.thief();
    assert_eq!(calls(clear).await, [Verb::Load, Verb::Clear], "logout everywhere");

    // Another device is signed out everywhere, and its browser keeps the cookie until the next login.
    let calls_of_dead = async |handler: fn(&Session) -> Result<(), Error>| {
        store.faults.calls();
        dead.does(handler).await.ok();
        store.faults.calls()
    };
    assert_eq!(calls_of_dead(write).await, [Verb::Load, Verb::Create], "first write with a dead cookie");
    assert_eq!(calls_of_dead(|_| Ok(())).await, [Verb::Load, Verb::Load], "read with a dead cookie");
}

/// Such as a stream of server-sent events, of which there may be very many.
#[tokio::test]
async fn an_idle_stream_holds_its_cookie_and_what_it_loaded() {
    const STREAMS: usize = 50;
    const DATA: u64 = 500;
    assert_eq!(size_of::<Session>(), size_of::<usize>());
    let store = Store::memory().await;
    let layer = store.layer();
    let client = Client::new(&layer);
    client.does(|session| session.create("ada", json!({ "text": "x".repeat(DATA as usize - 11) }))).await.ok();
    let cookie = format!("__Host-id={}", client.id().unwrap());

    let held = |loads: bool| {
        let mut service = layer.layer(service_fn(move |request: Request<()>| async move {
            let session = request.extensions().get::<Session>().unwrap().clone();
            if loads {
                session.load().await.unwrap();
            }
            let mut response = Response::new(());
            // As a body would.
            response.extensions_mut().insert(session);
            Ok::<_, Infallible>(response)
        }));
        let mut call = || {
            let mut request = Request::new(());
            request.headers_mut().insert("cookie", cookie.parse().unwrap());
            let response = futures_util::FutureExt::now_or_never(service.call(request)).unwrap().unwrap();
            response.extensions().get::<Session>().unwrap().clone()
        };
        let mut streams = Vec::with_capacity(1 + STREAMS);
        streams.push(call());
        let bytes = measure(|| (0..STREAMS).for_each(|_| streams.push(call()))).bytes_current;
        u64::try_from(bytes).unwrap() / STREAMS as u64
    };
    let (unused, loaded) = (held(false), held(true));
    assert!((1..=256).contains(&unused), "{unused} bytes");
    // 32 of them are the hint of the backend.
    assert!((1..=DATA + 600).contains(&loaded), "{loaded} bytes");
}

crate::on_every_store!(every_kind_of_request_makes_the_calls_that_the_docs_say);
