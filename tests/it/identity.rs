//! Which requests get a session: visitors, first writes, and foreign IDs.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use http::Request;
use jam_session::{
    BoxError, Data, ErrorKind, MemorySessions, SameSite, Serializer, Session,
    conformance::{Fault, Verb},
};
use serde_json::json;

use crate::{
    client::{Client, bind_ada, delete, increment},
    events::Events,
    on_every_store,
    store::Store,
};

on_every_store! {
    p01_without_a_cookie_and_a_write_there_is_no_call_and_no_cookie,
    p01_nor_is_there_in_an_outage,
    p02_reading_creates_nothing,
    p02_writes_that_end_where_they_began_write_nothing,
    p02_what_is_taken_is_shown_once,
    p02_the_first_kept_write_is_one_record_and_one_cookie,
    p02_a_cross_site_post_makes_no_anonymous_session,
    p02_with_same_site_none_a_post_from_the_embedding_site_is_stored,
    p02_with_lax_a_form_of_another_site_makes_no_session_and_a_link_does,
    p02_with_strict_a_link_from_another_site_makes_no_session,
    p02_a_session_that_came_along_is_written_to_from_anywhere,
    p03_an_id_that_was_not_issued_is_never_adopted,
    p03_malformed_ids_never_reach_the_backend,
    p03_a_known_handle_is_of_no_use,
}

async fn p01_without_a_cookie_and_a_write_there_is_no_call_and_no_cookie(store: Store) {
    let client = Client::new(&store.layer());
    let unused = client.request(Request::default(), async |_| "hello").await.ok().sets_no_cookie();
    assert!(!unused.headers.contains_key("vary"));
    client.does(|session| Ok(session.get::<u8>("n")?.is_none().to_string())).await.ok().sets_no_cookie();
    assert!(store.faults.calls().is_empty());
}

async fn p01_nor_is_there_in_an_outage(store: Store) {
    let client = Client::new(&store.layer());
    store.faults.next(None, Fault::Before);
    client.does(|session| Ok(session.key().is_none().to_string())).await.ok();
    assert!(store.faults.calls().is_empty());
}

async fn p02_reading_creates_nothing(store: Store) {
    let client = Client::new(&store.layer());
    client
        .does(|session| {
            assert_eq!(session.get::<u64>("n")?, None);
            assert!(session.data()?.is_empty());
            assert_eq!((session.key(), session.handle()), (None, None));
            session.remove("n");
            session.rework();
            session.delete();
            session.clear();
            session.set_ttl(Duration::from_secs(9));
            Ok(())
        })
        .await
        .ok()
        .sets_no_cookie();
    assert!(store.faults.calls().is_empty());
}

async fn p02_writes_that_end_where_they_began_write_nothing(store: Store) {
    let client = Client::new(&store.layer());
    let back_and_forth = |session: &Session| {
        session.insert("draft", "x")?;
        session.remove("draft");
        session.modify("n", |n: Option<u64>| n.unwrap_or(0) + 1)?;
        session.modify("n", |n: Option<u64>| n.unwrap_or(0) - 1)?;
        session.insert("n", 0)
    };
    client
        .does(|session| {
            session.insert("draft", "x")?;
            session.remove("draft");
            Ok(())
        })
        .await
        .ok()
        .sets_no_cookie();
    assert!(store.faults.calls().is_empty());

    client.does(|session| session.insert("n", 0)).await.ok();
    store.faults.calls();
    client.does(back_and_forth).await.ok().sets_no_cookie();
    client.does(|session| session.update(json!({"n": 0}))).await.ok().sets_no_cookie();
    assert_eq!(store.faults.calls(), [Verb::Load, Verb::Load]);
}

async fn p02_what_is_taken_is_shown_once(store: Store) {
    let client = Client::new(&store.layer());
    let show = |session: &Session| Ok(session.take::<String>("notice")?.unwrap_or_else(|| "nothing".to_owned()));
    assert_eq!(client.does(show).await.ok().body, "nothing");
    client.does(|session| session.insert("notice", "saved")).await.ok();

    let refused = client.does(|session| session.take::<u64>("notice").map(drop)).await;
    assert_eq!(refused.status, 500, "it is no number");
    let failed = client.does(|session| {
        assert_eq!(show(session)?, "saved");
        Ok(http::StatusCode::BAD_GATEWAY)
    });
    assert_eq!(failed.await.status, 502, "nobody saw it");
    assert_eq!(client.does(show).await.ok().sets_no_cookie().body, "saved");
    store.faults.calls();
    assert_eq!(client.does(show).await.ok().body, "nothing");
    assert_eq!(store.faults.calls(), [Verb::Load]);

    // In one request, too; also what was never stored.
    let answer = client.does(|session| {
        session.insert("notice", "again")?;
        Ok(format!("{}, {}", show(session)?, show(session)?))
    });
    assert_eq!(answer.await.ok().body, "again, nothing");
    // A login takes it along.
    let signing_in = client.does(|session| {
        session.insert("notice", "welcome")?;
        session.bind("ada");
        Ok(())
    });
    signing_in.await.ok();
    assert_eq!(client.does(show).await.body, "welcome");
}

async fn p02_the_first_kept_write_is_one_record_and_one_cookie(store: Store) {
    let client = Client::new(&store.layer());
    let answer = client
        .does(|session| {
            session.insert("a", 1)?;
            session.insert("b", 2)
        })
        .await
        .ok();
    assert!(answer.new_id().is_some());
    assert_eq!(store.faults.calls(), [Verb::Create]);

    let answer = client.does(|session| Ok(session.get::<u8>("b")?.unwrap().to_string())).await.ok().sets_no_cookie();
    assert_eq!(answer.body, "2");
    client.does(|session| session.insert("c", 3)).await.ok().sets_no_cookie();
    assert_eq!(store.faults.calls(), [Verb::Load, Verb::Load, Verb::Update]);
}

async fn p02_a_cross_site_post_makes_no_anonymous_session(store: Store) {
    let client = Client::new(&store.layer());
    let post = || sent("POST", &[("sec-fetch-site", "cross-site")]);
    let insert = async |session: Session| session.insert("n", 1);
    let (events, guard) = Events::collect();
    let unsaved = client.request(post(), insert).await;
    drop(guard);
    assert!(!unsaved.ok().sets_no_cookie().headers.contains_key("cache-control"));
    let said = events.text();
    let told: Vec<_> = said.lines().filter(|line| line.contains("cross-site request")).collect();
    assert!(matches!(told[..], [line] if line.starts_with("DEBUG")), "{said}");

    let saved = client.request(post(), async |session: Session| {
        session.insert("n", 1)?;
        let error = session.save().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::CrossSite);
        // It is dropped, and told once.
        assert_eq!(session.get::<u8>("n")?, None);
        session.save().await?;
        Err::<(), _>(error)
    });
    assert_eq!(saved.await.sets_no_cookie().status, 403);
    assert!(store.faults.calls().is_empty());

    // A login is the application's to allow.
    let login = async |session: Session| session.bind("ada");
    assert!(client.request(post(), login).await.ok().new_id().is_some());
    // And a session that is there may be written to.
    client.request(post(), insert).await.ok();
    assert_eq!(client.does(|session| Ok(session.get::<u8>("n")?.unwrap().to_string())).await.body, "1");
}

async fn p02_with_same_site_none_a_post_from_the_embedding_site_is_stored(store: Store) {
    let layer = store.layer().same_site(SameSite::None);
    for headers in [
        [("sec-fetch-site", "cross-site"), ("origin", "https://embedding.example")],
        [("host", "example.com"), ("origin", "https://embedding.example")],
        [("host", "example.com"), ("origin", "null")],
    ] {
        for saves in [false, true] {
            let client = Client::new(&layer);
            let add = async |session: Session| {
                session.load().await?;
                increment(&session)?;
                if saves { session.save().await } else { Ok(()) }
            };
            assert!(client.request(sent("POST", &headers), add).await.ok().new_id().is_some(), "{headers:?}");
            client.request(sent("POST", &headers), add).await.ok().sets_no_cookie();
            assert_eq!(client.n().await, "Some(2)", "{headers:?}");
        }
    }
}

async fn p02_with_lax_a_form_of_another_site_makes_no_session_and_a_link_does(store: Store) {
    let layer = store.layer();
    let insert = async |session: Session| session.insert("n", 1);
    let host = ("host", "example.com:3000");
    let other = ("origin", "https://elsewhere.example");
    for headers in [
        &[("sec-fetch-site", "cross-site"), host, other][..],
        // Over plain HTTP browsers do not say it, and there are old ones.
        &[host, other],
        &[host, ("origin", "null")],
        &[host, ("origin", "http://shop.example.com:3000")],
        &[("x-forwarded-host", "www.example.com, example.com"), ("host", "10.0.0.7"), other],
    ] {
        let client = Client::new(&layer);
        client.request(sent("POST", headers), insert).await.ok().sets_no_cookie();
        assert!(store.faults.calls().is_empty(), "{headers:?}");
        let link = client.request(sent("GET", headers), insert).await.ok();
        assert!(link.new_id().is_some(), "{headers:?}");
        assert_eq!(store.faults.calls(), [Verb::Create]);
    }
    for headers in [
        &[("sec-fetch-site", "same-origin"), ("host", "10.0.0.7"), ("origin", "http://example.com:3000")][..],
        &[("sec-fetch-site", "same-site"), host, ("origin", "http://shop.example.com:3000")],
        &[host, ("origin", "http://example.com:3000")],
        // Behind a proxy.
        &[
            ("host", "10.0.0.7"),
            ("x-forwarded-host", "www.example.com, example.com"),
            ("origin", "https://example.com"),
        ],
        &[("host", "10.0.0.7"), ("forwarded", "for=_a;host=\"example.com:443\""), ("origin", "https://example.com")],
        // What is no browser has no origin.
        &[host],
        &[],
    ] {
        let client = Client::new(&layer);
        let posted = client.request(sent("POST", headers), insert).await.ok();
        assert!(posted.new_id().is_some(), "{headers:?}");
    }
    // HTTP/2 has the host in its URI; and all below the cookie's domain is one site.
    let at = |origin| sent("POST", &[("uri", "https://www.example.com/"), ("origin", origin)]);
    let (own, sibling) = ("https://www.example.com", "https://shop.example.com");
    assert!(Client::new(&layer).request(at(own), insert).await.ok().new_id().is_some());
    Client::new(&layer).request(at(sibling), insert).await.ok().sets_no_cookie();
    let all = Client::new(&layer.domain("example.com"));
    assert!(all.request(at(sibling), insert).await.ok().new_id().is_some());
}

async fn p02_with_strict_a_link_from_another_site_makes_no_session(store: Store) {
    let layer = store.layer().same_site(SameSite::Strict);
    let insert = async |session: Session| session.insert("n", 1);
    let ada = Client::new(&layer);
    ada.does(bind_ada).await.ok();
    store.faults.calls();

    let link = ("sec-fetch-site", "cross-site");
    let origin = [("host", "example.com"), ("origin", "https://elsewhere.example")];
    for (method, headers) in [("GET", &[link][..]), ("POST", &[link]), ("GET", &origin), ("POST", &origin)] {
        // The browser keeps the cookie back.
        let followed = Client::new(&layer);
        followed.request(sent(method, headers), insert).await.ok().sets_no_cookie();
        let saved = followed.request(sent(method, headers), async |session: Session| {
            session.insert("n", 1)?;
            session.save().await
        });
        assert_eq!(saved.await.sets_no_cookie().status, 403);
    }
    assert!(store.faults.calls().is_empty());
    let key = ada.does(|session| Ok(format!("{:?}", session.key()))).await.body;
    assert_eq!(key, "Some(\"ada\")", "a link signed her out");

    for site in ["same-origin", "same-site", "none"] {
        let client = Client::new(&layer);
        let answer = client.request(sent("GET", &[("sec-fetch-site", site)]), insert).await.ok();
        assert!(answer.new_id().is_some(), "{site}");
    }
    // Over plain HTTP nothing tells a link of another site from an address that was typed.
    let typed = Client::new(&layer).request(sent("GET", &[("host", "example.com")]), insert).await.ok();
    assert!(typed.new_id().is_some());
}

async fn p02_a_session_that_came_along_is_written_to_from_anywhere(store: Store) {
    // As after a redirect by another site, which counts for `Sec-Fetch-Site` and not for the cookie.
    let client = Client::new(&store.layer().same_site(SameSite::Strict));
    let link = || sent("GET", &[("sec-fetch-site", "cross-site")]);
    let id = client.does(increment).await.ok().new_id();
    client.request(link(), async |session: Session| increment(&session)).await.ok().sets_no_cookie();
    assert_eq!(client.n().await, "Some(2)");
    let again = client.request(link(), async |session: Session| {
        session.delete();
        session.insert("n", 7)?;
        session.save().await
    });
    let new = again.await.ok().new_id();
    assert!(new.is_some() && new != id);
    assert_eq!(client.n().await, "Some(7)");

    // An ID that leads nowhere is no session.
    client.does(delete).await.ok();
    client.set_id(&new.unwrap());
    let dead = client.request(link(), async |session: Session| {
        session.insert("n", 8)?;
        session.save().await
    });
    assert_eq!(dead.await.sets_no_cookie().status, 403);
}

/// A request with these headers, and perhaps a `uri`.
fn sent(method: &str, headers: &[(&str, &str)]) -> Request<axum::body::Body> {
    let mut request = Request::builder().method(method);
    for (name, value) in headers {
        request = match *name {
            "uri" => request.uri(*value),
            name => request.header(name, *value),
        };
    }
    request.body(axum::body::Body::empty()).unwrap()
}

async fn p03_an_id_that_was_not_issued_is_never_adopted(store: Store) {
    let client = Client::new(&store.layer());
    let forged = format!("{}.{}", "A".repeat(22), "A".repeat(43));
    client.set_id(&forged);
    let id = client.does(|session| session.insert("n", 1)).await.ok().new_id().unwrap();
    assert!(!id.contains(&"A".repeat(22)));

    let thief = Client::new(&store.layer());
    thief.set_id(&forged);
    assert_eq!(thief.does(|session| Ok(session.get::<u8>("n")?.is_none().to_string())).await.body, "true");
}

async fn p03_malformed_ids_never_reach_the_backend(store: Store) {
    let client = Client::new(&store.layer());
    let (sid, secret) = ("s".repeat(22), "A".repeat(43));
    for value in [
        String::new(),
        ".".to_owned(),
        "a".to_owned(),
        sid.clone(),
        format!("{sid}."),
        format!(".{secret}"),
        format!("{sid}.{}", "A".repeat(42)),
        format!("{sid}.{}B", "A".repeat(42)),
        format!("{sid}.{secret}="),
        format!("{}.{secret}", "s".repeat(44)),
        format!("{}.{secret}", "s".repeat(21)),
        format!("../../{sid}.{secret}"),
        format!("short.{sid}.{secret}"),
        format!("{sid}.{sid}.{sid}.{secret}"),
        format!("{sid}:{{x}}.{secret}"),
        format!("\"{sid}.{secret}\""),
        "x".repeat(60_000),
    ] {
        client.set_id(&value);
        let answer = client.does(|session| Ok(session.get::<u8>("n")?.is_none().to_string())).await.ok();
        assert_eq!(answer.sets_no_cookie().body, "true");
    }
    let binary = Request::builder().header("cookie", &b"__Host-id=\xff\xfe\x80; \xff"[..]);
    client
        .request(binary.body(axum::body::Body::empty()).unwrap(), async |session: Session| session.load().await)
        .await
        .ok();
    assert!(store.faults.calls().is_empty());
}

async fn p03_a_known_handle_is_of_no_use(store: Store) {
    let (layer, sessions) = (store.layer(), store.sessions());
    let client = Client::new(&layer);
    client.does(|session| session.create("ada", json!({"n": 1}))).await.ok();
    let id = client.id().unwrap();
    let handle = &sessions.list("ada").await.unwrap()[0].handle;
    let (owner, _) = id.split_once('.').unwrap();

    let thief = Client::new(&layer);
    // To nothing; and to a live session that it does not open.
    for (forged, status) in
        [(format!("{handle}.{}", "A".repeat(43)), 200), (format!("{owner}.{handle}.{}", "A".repeat(43)), 401)]
    {
        thief.set_id(&forged);
        let answer = thief
            .does(|session| {
                assert_eq!(session.key(), None);
                session.clear();
                session.delete();
                Ok(())
            })
            .await;
        assert_eq!(answer.sets_no_cookie().status, status);
    }
    // The real secret under another owner's name is no more than that.
    let (_, secret) = id.rsplit_once('.').unwrap();
    thief.set_id(&format!("{handle}.{secret}"));
    assert_eq!(thief.does(|session| Ok(session.key().is_none().to_string())).await.body, "true");
    assert_eq!(client.does(|session| Ok(session.key().unwrap())).await.body, "ada");
}

#[derive(Clone)]
struct Counting(Arc<AtomicUsize>);

impl Serializer for Counting {
    fn write(&self, data: &Data) -> Result<Vec<u8>, BoxError> {
        Ok(serde_json::to_vec(data)?)
    }
    fn read(&self, bytes: &[u8]) -> Result<Data, BoxError> {
        self.0.fetch_add(1, SeqCst);
        Ok(serde_json::from_slice(bytes)?)
    }
}

#[tokio::test]
async fn p03_a_wrong_secret_is_refused_before_any_data_is_read() {
    let reads = Arc::new(AtomicUsize::new(0));
    let sessions = MemorySessions::builder().serializer(Counting(reads.clone())).build().unwrap();
    let id = sessions.create("ada", json!({"n": 1})).await.unwrap();
    let wrong = format!("{}.{}", id.as_str().rsplit_once('.').unwrap().0, "A".repeat(43));
    // What was written has been read back.
    reads.store(0, SeqCst);
    assert!(sessions.get(&wrong).await.unwrap().is_none());
    assert_eq!(reads.load(SeqCst), 0, "a stranger's request reads the data of a session");
}

#[tokio::test]
async fn p03_a_wrong_secret_is_unknown_even_if_the_data_is_unreadable() {
    /// Reads one time: when what was written is read back.
    struct Breaks(AtomicUsize);
    impl Serializer for Breaks {
        fn write(&self, data: &Data) -> Result<Vec<u8>, BoxError> {
            self.0.store(1, SeqCst);
            Ok(serde_json::to_vec(data)?)
        }
        fn read(&self, bytes: &[u8]) -> Result<Data, BoxError> {
            match self.0.swap(0, SeqCst) {
                0 => Err("broken".into()),
                _ => Ok(serde_json::from_slice(bytes)?),
            }
        }
    }
    let sessions = MemorySessions::builder().serializer(Breaks(AtomicUsize::new(0))).build().unwrap();
    let id = sessions.create("ada", json!({"n": 1})).await.unwrap();
    assert_eq!(sessions.get(&id).await.unwrap_err().kind(), ErrorKind::Unreadable);
    let wrong = format!("{}.{}", id.as_str().rsplit_once('.').unwrap().0, "A".repeat(43));
    let got = sessions.get(&wrong).await.map(|data| data.is_some()).map_err(|error| error.kind());
    assert_eq!(got, Ok(false));
}
