//! The layer in a stack: headers, extractors, rejections, nesting, plain tower.

use std::{
    collections::BTreeMap,
    future::ready,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::Body,
    middleware::from_extractor,
    response::AppendHeaders,
    routing::{get, post},
};
use http::{Request, Response, StatusCode};
use jam_session::{
    Backend, Error, ErrorKind, Limit, MemorySessions, Outcome, Record, Session, SessionKey, SessionLayer, Sessions,
    conformance::{Fault, Verb},
};
use serde_json::json;
use tokio::sync::Notify;
use tower::{Layer, ServiceExt, service_fn};

use crate::{
    client::{Answer, Client, bind_ada, increment, rework},
    events::Events,
    on_every_store,
    store::{Options, Plain, Store, record_id},
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
    p13_an_error_that_a_client_causes_is_in_no_line_above_debug,
    p13_three_cookies_of_unreadable_sessions_write_one_line_a_minute,
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

/// An error whose cause has a cause.
#[derive(Debug)]
struct Outage(&'static str, Option<Box<Outage>>);

impl std::fmt::Display for Outage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for Outage {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.1.as_deref().map(|cause| cause as _)
    }
}

async fn what_went_wrong_is_in_the_log_and_not_in_the_body(store: Store) {
    let outage = || {
        let chain = ["maxmemory is reached", "OOM command not allowed, at /var/lib/secret-place", "the script failed"];
        let outage = chain.into_iter().fold(None, |cause, message| Some(Box::new(Outage(message, cause))));
        let outage = Mutex::new(outage);
        Fault::change(move |_, _| ready(Err(outage.lock().unwrap().take().unwrap().into())))
    };
    const CHAIN: &str = ": the script failed: OOM command not allowed, at /var/lib/secret-place: maxmemory is reached";
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
        assert!(said.lines().filter(|line| line.contains("error=")).all(|line| line.contains(CHAIN)), "{said}");
    }
}

/// The lines that an operator sees who has turned DEBUG off.
fn above_debug(events: &Events) -> Vec<String> {
    let text = events.text();
    let is_above = |line: &&str| !line.starts_with("DEBUG") && !line.starts_with("TRACE");
    text.lines().filter(is_above).map(str::to_owned).collect()
}

/// Every status that is the client's fault, both from the layer and from a handler that passes the error on.
async fn p13_an_error_that_a_client_causes_is_in_no_line_above_debug(store: Store) {
    let limits = Options { sessions_per_key: Some(Limit::refuse(1)), max_size: Some(4096), ..Options::default() };
    let layer = store.layer_with(limits);
    let (ada, stranger) = (Client::new(&layer), || Client::new(&layer));
    ada.does(bind_ada).await.ok();
    let outdated = ada.thief();
    ada.does(rework).await.ok();
    let save = async |session: Session, change: fn(&Session) -> Result<(), Error>| {
        session.load().await?;
        change(&session)?;
        session.save().await
    };
    let too_large = |session: &Session| session.insert("n", "x".repeat(8192));
    let cross_site = || Request::post("/").header("sec-fetch-site", "cross-site").body(Body::empty()).unwrap();
    let (events, _guard) = Events::collect();
    let answers = [
        (StatusCode::UNAUTHORIZED, outdated.does(bind_ada).await),
        (StatusCode::UNAUTHORIZED, outdated.visit(async |session| save(session, bind_ada).await).await),
        (StatusCode::FORBIDDEN, stranger().request(cross_site(), async |session| save(session, increment).await).await),
        (StatusCode::NOT_FOUND, stranger().visit(async |session| session.touch().await).await),
        (StatusCode::CONFLICT, stranger().does(bind_ada).await),
        (StatusCode::CONFLICT, stranger().visit(async |session| save(session, bind_ada).await).await),
        (StatusCode::INSUFFICIENT_STORAGE, stranger().does(too_large).await),
        (StatusCode::INSUFFICIENT_STORAGE, stranger().visit(async |session| save(session, too_large).await).await),
    ];
    for (i, (status, answer)) in answers.iter().enumerate() {
        assert_eq!(answer.status, *status, "{i}: {answer:?}");
    }
    let said = events.text();
    assert_eq!(above_debug(&events), <[String; 0]>::default(), "{said}");
    for (message, times) in [("the layer answered a request", 3), ("a request was answered", 5)] {
        let lines = said.lines().filter(|line| line.starts_with("DEBUG") && line.contains(message));
        assert_eq!(lines.count(), times, "{message}: {said}");
    }
}

/// As after an encryption key was dropped, or while servers of two versions run: anybody who has old cookies can repeat it.
async fn p13_three_cookies_of_unreadable_sessions_write_one_line_a_minute(store: Store) {
    let sessions = store.sessions();
    let layer = SessionLayer::new(sessions.clone());
    let mut cookies = Vec::new();
    for payload in [&b"{\"v\":2}"[..], b"", b"\xff"] {
        let client = Client::new(&layer);
        client.does(bind_ada).await.ok();
        let id = client.id().unwrap();
        let good = store.backend().load(record_id(&id)).await.unwrap().unwrap();
        let spoilt = Record::new(good.id, good.version + 1, good.ttl, payload);
        assert!(matches!(store.backend().updates(good.version, spoilt).await, Ok(Outcome::Done)));
        cookies.push(format!("__Host-id={id}"));
    }
    let (events, _guard) = Events::collect();
    let repeat = async || {
        for _ in 0..20 {
            let request = Request::builder().header("cookie", cookies.join("; ")).body(Body::empty()).unwrap();
            let stranger = Client::new(&layer);
            let answer = stranger.request(request, async |session: Session| {
                session.load().await?;
                session.get::<u8>("n").map(drop)
            });
            assert_eq!(answer.await.status, StatusCode::INTERNAL_SERVER_ERROR);
        }
    };
    repeat().await;
    let lines = above_debug(&events);
    assert!(
        matches!(&lines[..], [line] if line.starts_with("WARN") && line.contains("a session cannot be read") && line.contains("repeats=0")),
        "{lines:?}"
    );
    // The rest is there for those who look for it.
    let debug =
        |what: &str| events.text().lines().filter(|line| line.starts_with("DEBUG") && line.contains(what)).count();
    assert_eq!((debug("a session cannot be read"), debug("a request was answered")), (59, 20));
    // A page with a list of devices is another line, once.
    for _ in 0..5 {
        assert!(sessions.list("ada").await.unwrap().is_empty());
    }
    let lines = above_debug(&events);
    assert!(lines.len() == 2 && lines[1].contains("left out of a list"), "{lines:?}");
    store.clock.advance(Duration::from_secs(60));
    repeat().await;
    let lines = above_debug(&events);
    assert!(lines.len() == 3 && lines[2].starts_with("WARN") && lines[2].contains("repeats=59"), "{lines:?}");
}

/// An application's mistake, which a client meets as often as it likes.
#[tokio::test]
async fn p13_a_mistake_that_a_client_can_repeat_is_one_line_a_minute() {
    let store = Store::memory().await;
    let sessions = Sessions::over(store.watched()).clock(store.clock.clone()).on_event(|_| panic!("a listener"));
    let sessions = sessions.build().unwrap();
    let layer = SessionLayer::new(sessions);
    let ((events, _guard), began) = (Events::collect(), Instant::now());
    for _ in 0..20 {
        let client = Client::new(&layer);
        client.does(increment).await.ok();
        // A login form without a name, both ways.
        let nobody = |session: &Session| {
            session.bind("");
            Ok(())
        };
        client.does(nobody).await;
        let refused = client.does(|session| session.create("", json!({})));
        assert_eq!(refused.await.status, StatusCode::INTERNAL_SERVER_ERROR);
        // A value of another type.
        let odd = client.does(|session| session.get::<Vec<u8>>("n").map(drop));
        assert_eq!(odd.await.status, StatusCode::INTERNAL_SERVER_ERROR);
        // A stream that never saves.
        let mut kept = None;
        let keep = client.visit(async |session| {
            kept = Some(session);
            Ok(())
        });
        keep.await.ok();
        kept.unwrap().insert("n", 7).unwrap();
    }
    let lines = above_debug(&events);
    let is_answer = |line: &&String| line.contains("answered");
    let own: Vec<_> = lines.iter().filter(|line| !is_answer(line)).collect();
    assert!(own.len() == 2 && own[0].contains("callback panicked") && own[1].contains("never saved"), "{own:?}");
    // Answers are counted for the whole process, by the machine's clock: another test may have been first.
    let minutes = began.elapsed().as_secs() / 60 + 1;
    let mut answers = BTreeMap::new();
    for line in lines.iter().filter(is_answer) {
        *answers.entry(line.split("error=").nth(1).unwrap()).or_insert(0) += 1;
    }
    assert!(answers.values().all(|times| *times <= minutes), "{answers:?}");
    for _ in 0..2 {
        store.clock.advance(Duration::from_secs(60));
        Client::new(&layer).does(increment).await.ok();
    }
    let panicked = above_debug(&events).iter().filter(|line| line.contains("callback panicked")).count();
    assert_eq!(panicked, 3);
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
