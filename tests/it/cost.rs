//! What a request costs that has no use for its session: backend calls and allocations, counted.

use std::{
    convert::Infallible,
    future::{Ready, ready},
    sync::Arc,
};

use allocation_counter::measure;
use http::{Request, Response};
use jam_session::{Session, SessionLayer};
use serde_json::json;
use tower::{Layer, Service, service_fn};

use crate::{client::Client, store::Store};

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
async fn an_unused_session_allocates_one_arc_and_asks_nobody() {
    let store = Store::memory().await;
    let layer = store.layer();
    let client = Client::new(&layer);
    client.does(|session| session.create("ada", json!({}))).await.ok();
    let ours = format!("__Host-id={}", client.id().unwrap());
    let others = "theme=dark; lang=en; __Host-other=abcdefghijklmnopqrstuvwxyz";
    store.calls();

    let mut floor = InsertsAnArc(service_fn(handler));
    let mut service = layer.layer(service_fn(handler));
    assert_eq!(allocations(&mut floor, None), allocations(&mut service, None));
    assert_eq!(allocations(&mut floor, Some(others)), allocations(&mut service, Some(others)));
    let floor = allocations(&mut floor, Some(&ours));
    for cookies in [ours.clone(), format!("{others}; {ours}"), format!("{ours}; {others}")] {
        assert_eq!(allocations(&mut service, Some(&cookies)), floor + 1, "one copy of the value");
    }
    assert!(store.calls().is_empty());
}

#[tokio::test]
async fn applying_the_layer_allocates_nothing() {
    let layer = SessionLayer::new(jam_session::MemorySessions::new());
    assert_eq!(measure(|| drop(layer.layer(()))).count_total, 0);
    let _: Option<Session> = None;
}
