//! The layer in a stack: headers, extractors, rejections, nesting, plain tower.

use std::sync::Arc;

use axum::{
    Router,
    body::Body,
    middleware::from_extractor,
    response::AppendHeaders,
    routing::{get, post},
};
use http::{Request, Response, StatusCode};
use jam_session::{
    Backend, Error, ErrorKind, MemorySessions, Session, SessionKey, SessionLayer,
    conformance::{Fault, Verb},
};
use serde_json::json;
use tokio::sync::Notify;
use tower::{Layer, ServiceExt, service_fn};

use crate::{
    client::{Answer, Client},
    events::Events,
    on_every_store,
    store::{Store, record_id},
};

on_every_store! {
    vary_is_told_when_the_session_was_looked_at,
    p13_what_carries_a_cookie_is_not_stored,
    p13_no_cache_is_told_to_keep_what_carries_a_cookie,
    the_extractors_reject_in_the_right_way,
    p09_an_optional_session_is_no_excuse,
    layers_with_different_names_work_together,
    the_same_layer_twice_is_one,
    two_layers_with_one_name_are_refused,
    loading_up_front_is_one_load,
    every_status_below_500_commits,
    p05_a_grpc_call_that_failed_discards_its_writes,
    p05_an_application_decides_which_responses_discard_their_writes,
    what_went_wrong_is_in_the_log_and_not_in_the_body,
    plain_tower_services_load_themselves,
}

/// A gRPC server answers 200, with the status of the call in another header.
async fn p05_a_grpc_call_that_failed_discards_its_writes(store: Store) {
    let client = Client::new(&store.layer());
    let calls = async |status: &'static str, n: u64| {
        let call = client.does(|session| {
            session.insert("n", n)?;
            Ok([("grpc-status", status)])
        });
        assert_eq!(call.await.status, StatusCode::OK);
        client.n().await
    };
    assert_eq!(calls("0", 1).await, "Some(1)");
    for (failed, n) in [("13", 2), ("5", 3), ("00", 4)] {
        assert_eq!(calls(failed, n).await, "Some(1)", "grpc-status {failed}");
    }
    // A sign-out counts all the same.
    let call = client.does(|session| {
        session.delete();
        Ok([("grpc-status", "13")])
    });
    call.await;
    assert_eq!(client.n().await, "None");
}

async fn p05_an_application_decides_which_responses_discard_their_writes(store: Store) {
    let layer = store.layer().failed_if(|response| response.status == 422 || response.headers.contains_key("x-undo"));
    let client = Client::new(&layer);
    let answers = async |status: u16, header: &'static str, n: u64| {
        let call = client.does(|session| {
            session.insert("n", n)?;
            Ok((StatusCode::from_u16(status).unwrap(), [(header, "1")]))
        });
        call.await;
        client.n().await
    };
    assert_eq!(answers(200, "x-any", 1).await, "Some(1)");
    assert_eq!(answers(422, "x-any", 2).await, "Some(1)");
    assert_eq!(answers(200, "x-undo", 3).await, "Some(1)");
    // It is asked instead of the default.
    assert_eq!(answers(500, "x-any", 4).await, "Some(4)");
    assert_eq!(answers(200, "grpc-status", 5).await, "Some(5)");
}

#[derive(Debug)]
struct Outage;

impl std::fmt::Display for Outage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("OOM command not allowed, at /var/lib/secret-place")
    }
}

impl std::error::Error for Outage {}

async fn what_went_wrong_is_in_the_log_and_not_in_the_body(store: Store) {
    let outage = || Fault::change(async |_, _| Err(Outage.into()));
    let client = Client::new(&store.layer());
    client.does(|session| session.insert("n", 1)).await.ok();
    // That the store fails is said once.
    for (verb, level) in [(Verb::Load, "WARN"), (Verb::Update, "DEBUG")] {
        let (events, _guard) = Events::collect();
        store.faults.next(verb, outage());
        let answer = client.does(|session| session.insert("n", 2)).await;
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
        assert!(!answer.body.contains("OOM") && !answer.body.contains("/var/lib"), "{}", answer.body);
        let said = events.text();
        let line = said.lines().find(|line| line.contains("OOM command not allowed"));
        assert!(line.is_some_and(|line| line.starts_with(level)), "{said}");
    }
    // What a client causes at will is nothing for the operator.
    let (events, _guard) = Events::collect();
    let refused = client.visit(async |_| Err::<(), _>(Error::new(ErrorKind::Unauthorized, "not signed in")));
    assert_eq!(refused.await.status, StatusCode::UNAUTHORIZED);
    assert!(
        events.text().lines().all(|line| line.starts_with("DEBUG") || line.starts_with("TRACE")),
        "{}",
        events.text()
    );
}

/// Whoever can send requests could fill the log otherwise.
#[tokio::test]
async fn p13_what_a_client_causes_at_will_is_in_no_line_above_debug() {
    let store = Store::memory().await;
    let sessions = store.sessions();
    let layer = SessionLayer::new(sessions.clone());
    let client = Client::new(&layer);
    client.does(|session| session.create("ada", json!({}))).await.ok();
    let id = client.id().unwrap();
    let (events, _guard) = Events::collect();
    let with_cookies = |text: String| Request::builder().header("cookie", text).body(Body::empty()).unwrap();
    // More cookies than are looked at, and a handler that writes.
    let junk = vec![format!("__Host-id={}", "A".repeat(80)); 17].join("; ");
    let stranger = Client::new(&layer);
    let answer = stranger.request(with_cookies(junk), async |session: Session| session.insert("n", 1));
    assert_eq!(answer.await.status, StatusCode::OK);
    // A sign-out that will be refused, whose client goes away while it is under way.
    let (reached, goes_on) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (here, there) = (Arc::clone(&reached), Arc::clone(&goes_on));
    let waits = Fault::first(move |_| {
        let (here, there) = (Arc::clone(&here), Arc::clone(&there));
        async move {
            here.notify_one();
            there.notified().await;
        }
    });
    store.faults.next(Verb::Clear, waits);
    let service = layer.layer(service_fn(async |request: Request<Body>| {
        request.extensions().get::<Session>().unwrap().clear();
        Ok::<_, Error>(Response::new(Body::empty()))
    }));
    tokio::select! {
        _ = service.oneshot(with_cookies(format!("__Host-id={id}"))) => panic!("its clear is held"),
        () = reached.notified() => {}
    }
    assert!(store.backend().delete(record_id(&id)).await.unwrap());
    goes_on.notify_one();
    sessions.close().await.unwrap();
    let said = events.text();
    assert!(said.contains("Unauthorized") || said.contains("has ended"), "it was refused: {said}");
    assert!(said.lines().all(|line| line.starts_with("DEBUG") || line.starts_with("TRACE")), "{said}");
}

async fn vary_is_told_when_the_session_was_looked_at(store: Store) {
    let client = Client::new(&store.layer());
    let vary = |answer: Answer| {
        let values: Vec<_> = answer.headers.get_all("vary").iter().map(|v| v.to_str().unwrap().to_owned()).collect();
        values.join("|")
    };
    let unused = client.request(Request::default(), async |_| "x").await;
    assert_eq!(vary(unused), "");
    assert_eq!(vary(client.does(|session| Ok(session.key().is_none().to_string())).await), "Cookie");
    assert_eq!(vary(client.does(|session| session.insert("n", 1)).await), "Cookie");
    let others = client.does(|session| {
        session.get::<u8>("n")?;
        Ok([("vary", "Accept-Encoding")])
    });
    assert_eq!(vary(others.await), "Accept-Encoding|Cookie");
    for known in ["accept, COOKIE", "*"] {
        let answer = client.does(|session| {
            session.get::<u8>("n")?;
            Ok([("vary", known)])
        });
        assert_eq!(vary(answer.await), known);
    }
}

/// Headers for one kind of cache win over `Cache-Control` there: RFC 9213.
async fn p13_no_cache_is_told_to_keep_what_carries_a_cookie(store: Store) {
    const TOLD: [(&str, &str); 9] = [
        ("cache-control", "public, max-age=600"),
        ("cdn-cache-control", "max-age=600"),
        ("cloudflare-cdn-cache-control", "max-age=600"),
        ("x-litespeed-cache-control", "public, max-age=600"),
        ("surrogate-control", "max-age=600"),
        ("edge-control", "cache-maxage=600"),
        ("x-accel-expires", "600"),
        ("x-app", "max-age=600"),
        ("x-cache-control-policy", "max-age=600"),
    ];
    type Act = fn(&Session) -> Result<(), Error>;
    let client = Client::new(&store.layer());
    let acts: [Act; 5] = [
        |session| session.insert("n", 1),
        |session| {
            session.rework();
            Ok(())
        },
        |session| {
            session.bind("ada");
            Ok(())
        },
        |session| {
            session.rework();
            Ok(())
        },
        |session| {
            session.delete();
            Ok(())
        },
    ];
    for (i, act) in acts.into_iter().enumerate() {
        // Each of them twice.
        let told = client.does(|session| act(session).map(|()| AppendHeaders([TOLD, TOLD].concat()))).await.ok();
        assert!(!told.set_cookies().is_empty(), "{i}");
        for (name, value) in TOLD {
            let got: Vec<&str> = told.headers.get_all(name).iter().map(|value| value.to_str().unwrap()).collect();
            match name {
                "x-app" | "x-cache-control-policy" => assert_eq!(got, [value, value]),
                "x-accel-expires" => assert_eq!(got, ["0"], "{i}"),
                _ => assert_eq!(got, ["no-store"], "{i}: {name}"),
            }
        }
        // Without a cookie the application decides.
        let read = client.does(|session| session.get::<u8>("n").map(|_| TOLD)).await.ok().sets_no_cookie();
        assert!(TOLD.iter().all(|(name, value)| read.headers[*name] == value), "{i}: {:?}", read.headers);
    }
}

async fn p13_what_carries_a_cookie_is_not_stored(store: Store) {
    let client = Client::new(&store.layer());
    let control = |answer: Answer| answer.headers.get("cache-control").map(|v| v.to_str().unwrap().to_owned());
    let read = client.does(|session| {
        session.get::<u8>("n")?;
        Ok([("cache-control", "public, max-age=60")])
    });
    assert_eq!(control(read.await).as_deref(), Some("public, max-age=60"));
    let create = client.does(|session| {
        session.insert("n", 1)?;
        Ok([("cache-control", "public, max-age=60")])
    });
    assert_eq!(control(create.await).as_deref(), Some("no-store"));
    let stricter = client.does(|session| {
        session.rework();
        Ok([("cache-control", "private, No-Store")])
    });
    assert_eq!(control(stricter.await).as_deref(), Some("private, No-Store"));
    for (told, is_kept) in [
        (r#"private="set-cookie, x", no-store"#, true),
        (r#"x="\\", no-store"#, true),
        (r#"public, x="a, no-store, b""#, false),
        (r#"public, x="\", no-store, ""#, false),
        (r#"public, x="a, no-store"#, false),
        (r#"public, "no-store""#, false),
    ] {
        let client = Client::new(&store.layer());
        let quoted = client.does(|session| session.insert("n", 1).map(|()| [("cache-control", told)]));
        assert_eq!(control(quoted.await).as_deref(), Some(if is_kept { told } else { "no-store" }));
    }
    let delete = client.does(|session| {
        session.delete();
        Ok(())
    });
    assert_eq!(control(delete.await).as_deref(), Some("no-store"));
}

async fn get_path(app: &Router, client: &Client, path: &str) -> (StatusCode, http::HeaderMap, String) {
    let mut request = Request::builder().uri(path).body(Body::empty()).unwrap();
    client.add_cookies(request.headers_mut());
    let (parts, body) = app.clone().oneshot(request).await.unwrap().into_parts();
    client.take_cookies(&parts.headers);
    let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
    (parts.status, parts.headers, String::from_utf8(body.to_vec()).unwrap())
}

fn app() -> Router {
    Router::new()
        .route("/unused", get(async || "unused"))
        .route("/session", get(async |session: Session| session.key().unwrap_or_default()))
        .route("/option", get(async |session: Option<Session>| session.is_some().to_string()))
        .route("/key", get(async |SessionKey(key): SessionKey| key))
        .route("/optional-key", get(async |key: Option<SessionKey>| key.is_some().to_string()))
        .route("/login", get(async |session: Session| session.bind("ada")))
}

async fn the_extractors_reject_in_the_right_way(store: Store) {
    let layer = store.layer();
    let (app, client) = (app().layer(layer.clone()), Client::new(&layer));
    let (status, headers, _) = get_path(&app, &client, "/key").await;
    assert_eq!((status, headers["vary"].to_str().unwrap()), (StatusCode::UNAUTHORIZED, "Cookie"));
    assert_eq!(get_path(&app, &client, "/optional-key").await.2, "false");
    get_path(&app, &client, "/login").await;
    for (path, body) in [("/session", "ada"), ("/option", "true"), ("/key", "ada"), ("/optional-key", "true")] {
        let (status, headers, got) = get_path(&app, &client, path).await;
        assert_eq!((status, got.as_str()), (StatusCode::OK, body));
        assert!(!headers.contains_key("set-cookie"));
    }

    // Without the layer.
    let bare = self::app();
    for path in ["/session", "/key", "/optional-key"] {
        let (status, _, body) = get_path(&bare, &client, path).await;
        assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR);
        assert!(body.contains("SessionLayer"), "{body}");
    }
    assert_eq!(get_path(&bare, &client, "/option").await.2, "false");
}

async fn p09_an_optional_session_is_no_excuse(store: Store) {
    let layer = store.layer();
    let (app, client) = (app().layer(layer.clone()), Client::new(&layer));
    get_path(&app, &client, "/login").await;
    for path in ["/session", "/option", "/key", "/optional-key"] {
        store.faults.next(Verb::Load, Fault::Before);
        let (status, headers, _) = get_path(&app, &client, path).await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{path}");
        assert_eq!(headers["retry-after"], "1");
        assert!(!headers.contains_key("set-cookie"));
    }
    store.faults.next(Verb::Load, Fault::Before);
    assert_eq!(get_path(&app, &client, "/unused").await.0, StatusCode::OK);
}

async fn layers_with_different_names_work_together(store: Store) {
    let (outer, inner) = (store.layer().cookie_name("__Host-outer"), store.layer().cookie_name("__Host-inner"));
    let app = Router::new()
        .route("/both", get(async |session: Session| session.insert("where", "inner")))
        .route("/in", get(async |session: Session| session.get::<String>("where").unwrap().unwrap()))
        .layer(inner)
        .layer(axum::middleware::from_fn(async |request: Request<Body>, next: axum::middleware::Next| {
            let session = request.extensions().get::<Session>().unwrap().clone();
            session.load().await.unwrap();
            session.modify("passed", |n: Option<u8>| n.unwrap_or(0) + 1).unwrap();
            next.run(request).await
        }))
        .layer(outer.clone());
    let client = Client::new(&outer);
    let (_, headers, _) = get_path(&app, &client, "/both").await;
    let names: Vec<_> = headers.get_all("set-cookie").iter().map(|v| v.to_str().unwrap().split('=').next()).collect();
    assert_eq!(names, [Some("__Host-inner-visitor"), Some("__Host-outer-visitor")]);
    store.faults.calls();
    assert_eq!(get_path(&app, &client, "/in").await.2, "inner");
    assert_eq!(store.faults.calls(), [Verb::Load, Verb::Load, Verb::Update]);
}

async fn the_same_layer_twice_is_one(store: Store) {
    let layer = store.layer();
    let app = Router::new()
        .route("/", get(async |session: Session| session.modify("n", |n: Option<u8>| n.unwrap_or(0) + 1)))
        .layer(layer.clone())
        .layer(layer.clone());
    let client = Client::new(&layer);
    let (_, headers, _) = get_path(&app, &client, "/").await;
    assert_eq!(headers.get_all("set-cookie").iter().count(), 1);
    get_path(&app, &client, "/").await;
    assert_eq!(store.faults.calls(), [Verb::Create, Verb::Load, Verb::Update]);
}

async fn two_layers_with_one_name_are_refused(store: Store) {
    for between in [false, true] {
        let mut app = Router::new().route("/", get(async || "never")).layer(store.layer());
        if between {
            app = app.layer(store.layer().cookie_name("other"));
        }
        let outer = store.layer();
        let response = app.layer(outer).oneshot(Request::new(Body::empty())).await.unwrap();
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
        let error = response.extensions().get::<Error>().unwrap();
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(error.to_string().contains("cookie_name"), "{error}");
    }
}

async fn loading_up_front_is_one_load(store: Store) {
    let layer = store.layer();
    let app = Router::new()
        .route(
            "/",
            get(async |session: Session, _: Session, SessionKey(key): SessionKey| {
                assert_eq!(session.key().as_ref(), Some(&key));
                key
            }),
        )
        .route("/login", get(async |session: Session| session.bind("ada")))
        .layer(from_extractor::<Session>())
        .layer(layer.clone());
    let client = Client::new(&layer);
    get_path(&app, &client, "/login").await;
    store.faults.calls();
    assert_eq!(get_path(&app, &client, "/").await.2, "ada");
    assert_eq!(store.faults.calls(), [Verb::Load]);
}

async fn every_status_below_500_commits(store: Store) {
    for status in [200, 204, 302, 304, 400, 404, 422] {
        let client = Client::new(&store.layer());
        let answer = client.does(|session| {
            session.insert("n", status)?;
            Ok(StatusCode::from_u16(status).unwrap())
        });
        assert!(answer.await.new_id().is_some(), "{status}");
    }
}

async fn plain_tower_services_load_themselves(store: Store) {
    let service = store.layer().layer(service_fn(async |request: Request<()>| {
        let session = request.extensions().get::<Session>().unwrap();
        assert_eq!(session.get::<u8>("n").unwrap_err().kind(), ErrorKind::NotLoaded);
        // Written before it is loaded, and read afterwards.
        session.modify("n", |n: Option<u8>| n.unwrap_or(40) + 1)?;
        session.insert("m", 1)?;
        session.load().await?;
        session.modify("n", |n: Option<u8>| n.unwrap_or(0) + 1)?;
        Ok::<_, Error>(Response::new(session.get::<u8>("n")?.unwrap().to_string()))
    }));
    let response = service.oneshot(Request::new(())).await.unwrap();
    assert_eq!(response.body(), "42");
    assert!(response.headers().contains_key("set-cookie"));
}

#[tokio::test]
async fn the_routes_of_the_readme_of_axum_compile() {
    // `Error` is a response, and handlers may return it.
    async fn home(session: Session) -> Result<String, Error> {
        session.insert("n", 1)?;
        session.save().await?;
        Ok(session.get::<u64>("n")?.unwrap().to_string())
    }
    let layer = SessionLayer::new(MemorySessions::new());
    let app: Router = Router::new().route("/", post(home).get(home)).layer(layer.clone());
    let (status, _, body) = get_path(&app, &Client::new(&layer), "/").await;
    assert_eq!((status, body.as_str()), (StatusCode::OK, "1"));
    let wrong = Router::new()
        .route(
            "/",
            get(async |session: Session| {
                session.insert("n", "text")?;
                session.get::<u64>("n").map(drop)
            }),
        )
        .layer(layer.clone());
    let (status, headers, body) = get_path(&wrong, &Client::new(&layer), "/").await;
    assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR);
    assert!(body.contains("session") && !body.contains("text") && !body.contains("u64"), "{body}");
    assert!(!headers.contains_key("set-cookie"));
}

#[tokio::test]
async fn the_innermost_layers_session_is_the_one_that_handlers_get() {
    let (a, b) = (Store::memory().await, Store::memory().await);
    let (a, b) = (a.layer().cookie_name("__Host-a"), b.layer().cookie_name("__Host-b"));
    let app = axum::Router::new()
        .route("/", axum::routing::get(async |session: Session| session.insert("n", 1)))
        .layer(a.clone())
        .layer(b)
        .layer(a);
    let request = http::Request::new(axum::body::Body::empty());
    let response = tower::ServiceExt::oneshot(app, request).await.unwrap();
    let cookie = response.headers()["set-cookie"].to_str().unwrap();
    assert!(cookie.starts_with("__Host-a-visitor="), "{cookie}");
}
