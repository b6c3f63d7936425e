//! The cookie: its exact text, its removal, hostile ones, and options that contradict each other.

use std::time::Duration;

use base64::prelude::{BASE64_URL_SAFE_NO_PAD as BASE64, Engine};
use http::Request;
use jam_session::{Clock, Keyring, MemorySessions, SameSite, Session, SessionLayer, conformance::Verb};
use serde_json::json;

use crate::{
    client::Client,
    events::Events,
    on_every_store,
    store::{Options, Store},
};

on_every_store! {
    p15_names_match_byte_for_byte,
    p15_of_several_cookies_the_live_one_is_found,
    p15_two_live_ones_of_different_owners_are_none,
    p15_at_most_three_are_tried,
    p15_of_two_of_one_owner_the_first_counts,
    p15_cookies_of_others_are_kept_and_ours_is_set_once,
    p10_an_unchanged_cookie_is_not_sent_again,
}

/// Over sessions for which time stands still.
fn layer() -> SessionLayer {
    SessionLayer::new(MemorySessions::builder().clock(Clock::manual()).build().unwrap())
}

/// The text with which a layer sets its cookie, after its value, and removes it.
async fn texts(layer: SessionLayer) -> (String, String, String) {
    let client = Client::new(&layer);
    let answer = client.does(|session| session.create("ada", json!({}))).await.ok();
    let set = answer.set_cookies()[0].to_owned();
    let (name, rest) = set.split_once('=').unwrap();
    let (value, attributes) = rest.split_once("; ").unwrap();
    assert!(answer.headers["set-cookie"].is_sensitive());
    assert!(value.len() == 22 + 1 + 22 + 1 + 43, "{value}");
    client.set_id(value);
    let cookie = format!("{name}={value}");
    let request = Request::builder().header("cookie", cookie).body(axum::body::Body::empty()).unwrap();
    let answer = client.request(request, async |session: Session| session.delete()).await.ok();
    (name.to_owned(), attributes.to_owned(), answer.set_cookies()[0].to_owned())
}

#[tokio::test]
async fn p15_the_text_of_the_cookie_is_exact() {
    const GONE: &str = "Max-Age=0; Expires=Thu, 01 Jan 1970 00:00:00 GMT";
    const MONTH: &str = "Max-Age=2592000";
    for (layer, name, attributes) in [
        (layer(), "__Host-id", "HttpOnly; SameSite=Lax; Secure; Path=/; {age}"),
        (layer().path("/app"), "__Secure-id", "HttpOnly; SameSite=Lax; Secure; Path=/app; {age}"),
        (
            layer().domain("example.com"),
            "__Secure-id",
            "HttpOnly; SameSite=Lax; Secure; Path=/; Domain=example.com; {age}",
        ),
        (layer().secure(false), "id", "HttpOnly; SameSite=Lax; Path=/; {age}"),
        (layer().same_site(SameSite::Strict), "__Host-id", "HttpOnly; SameSite=Strict; Secure; Path=/; {age}"),
        (
            layer().same_site(SameSite::None).partitioned(true),
            "__Host-id",
            "HttpOnly; SameSite=None; Partitioned; Secure; Path=/; {age}",
        ),
        (layer().http_only(false), "__Host-id", "SameSite=Lax; Secure; Path=/; {age}"),
        (layer().cookie_name("sid"), "sid", "HttpOnly; SameSite=Lax; Secure; Path=/; {age}"),
    ] {
        let (got_name, set, removed) = texts(layer).await;
        assert_eq!(got_name, name);
        assert_eq!(set, attributes.replace("{age}", MONTH));
        assert_eq!(removed, format!("{name}=; {}", attributes.replace("{age}", GONE)));
    }
    let (name, set, removed) = texts(layer().persistent(false)).await;
    assert_eq!((name.as_str(), set.as_str()), ("__Host-id", "HttpOnly; SameSite=Lax; Secure; Path=/"));
    assert_eq!(removed, format!("__Host-id=; HttpOnly; SameSite=Lax; Secure; Path=/; {GONE}"));
}

#[tokio::test]
async fn p10_a_rotation_in_the_last_second_does_not_remove_the_cookie() {
    let clock = Clock::manual();
    let sessions =
        MemorySessions::builder().clock(clock.clone()).max_lifetime(Duration::from_secs(60)).build().unwrap();
    let client = Client::new(&SessionLayer::new(sessions));
    client.does(|session| session.create("ada", json!({}))).await.ok();
    clock.advance(Duration::from_millis(59_500));
    let answer = client
        .does(|session| {
            session.rework();
            Ok(())
        })
        .await
        .ok();
    assert!(answer.set_cookies()[0].ends_with("; Max-Age=1"), "{:?}", answer.set_cookies());
    assert_eq!(client.does(|session| Ok(session.key().unwrap_or_default())).await.body, "ada");
}

/// A request may come with hundreds of thousands of bytes of cookies, and a stream may hold its session for hours.
#[tokio::test]
async fn p17_of_very_many_cookies_few_are_kept_and_none_after_the_load() {
    let store = Store::memory().await;
    let layer = store.layer();
    let held = async |cookies: usize, loads: bool| {
        let cookie = vec![format!("__Host-id={}", "A".repeat(88)); cookies].join("; ");
        let request = Request::builder().header("cookie", cookie).body(axum::body::Body::empty()).unwrap();
        let kept = std::sync::Mutex::new(None);
        let mut bytes = 0;
        let client = Client::new(&layer);
        let visit = client.request(request, async |session: Session| {
            if loads {
                session.load().await.unwrap();
            }
            *kept.lock().unwrap() = Some(session);
        });
        visit.await.ok();
        let session = kept.into_inner().unwrap().unwrap();
        bytes -= allocation_counter::measure(|| drop(session)).bytes_current;
        bytes
    };
    let (one, thousands) = (held(1, false).await, held(5000, false).await);
    assert!(one > 88 && thousands <= one + 16 * 89, "{one} and {thousands} bytes");
    // That there were too many is remembered.
    let (one, thousands) = (held(1, true).await, held(5000, true).await);
    assert!(thousands <= one + 96, "{one} and {thousands} bytes after the load");
}

fn keyring(byte: u8) -> Options {
    Options { keyring: Some(Keyring::new(BASE64.encode([byte; 32])).unwrap()), ..Options::default() }
}

/// The user of the session that these cookies lead to, and what is logged meanwhile.
async fn found_and_logged(layer: &SessionLayer, cookies: &[&str]) -> (String, String) {
    let (events, _guard) = Events::collect();
    let cookies: Vec<_> = cookies.iter().map(|id| format!("__Host-id={id}")).collect();
    let request = Request::builder().header("cookie", cookies.join("; ")).body(axum::body::Body::empty());
    let stranger = Client::new(layer);
    let answer = stranger.request(request.unwrap(), async |session: Session| {
        session.load().await.unwrap();
        session.key().unwrap_or_default()
    });
    (answer.await.ok().body, events.text())
}

/// The same ID, with one character changed: it looks like one of ours, and does not decrypt.
fn altered(id: &str) -> String {
    let at = id.len() / 2;
    let other = if id.as_bytes()[at] == b'A' { 'B' } else { 'A' };
    format!("{}{other}{}", &id[..at], &id[at + 1..])
}

/// IDs that another key has encrypted: each is decrypted, and fails only then.
#[tokio::test]
async fn p15_of_encrypted_cookies_sixteen_at_most_are_decrypted() {
    let store = Store::memory().await;
    let (layer, elsewhere) = (store.layer_with(keyring(1)), store.layer_with(keyring(2)));
    let id = async |layer: &SessionLayer| {
        let client = Client::new(layer);
        client.does(|session| session.create("ada", json!({}))).await.ok();
        client.id().unwrap()
    };
    let ours = id(&layer).await;
    let mut foreign = Vec::new();
    for _ in 0..17 {
        foreign.push(id(&elsewhere).await);
    }
    let foreign: Vec<&str> = foreign.iter().map(String::as_str).collect();
    // They are real ones, where their key is.
    assert_eq!(found_and_logged(&elsewhere, &foreign[..1]).await.0, "ada");
    for (before, behind, found) in
        [(15, 0, "ada"), (0, 15, "ada"), (7, 8, "ada"), (16, 0, ""), (0, 16, ""), (17, 0, "")]
    {
        let cookies = [&foreign[..before], &[&*ours], &foreign[17 - behind..]].concat();
        store.faults.calls();
        let (user, log) = found_and_logged(&layer, &cookies).await;
        assert_eq!(user, found, "{before} before it and {behind} behind it: {log}");
        // None but ours is looked for, and none behind sixteen.
        assert_eq!(store.faults.calls().len(), usize::from(before < 16), "{before} before it and {behind} behind it");
        let lines = log.lines().filter(|line| !line.starts_with("TRACE")).count();
        assert!(lines <= 1, "{log}");
    }
    // The same for IDs that a stranger makes up.
    let made_up = altered(&ours);
    for (count, found) in [(15, "ada"), (16, "")] {
        let cookies = [vec![&*made_up; count], vec![&*ours]].concat();
        assert_eq!(found_and_logged(&layer, &cookies).await.0, found, "{count} before it");
    }
}

/// A stranger can send any number of them.
#[tokio::test]
async fn p13_a_request_with_many_bad_cookies_is_one_line_in_the_log() {
    let store = Store::memory().await;
    let layer = store.layer_with(keyring(1));
    let client = Client::new(&layer);
    client.does(|session| session.create("ada", json!({}))).await.ok();
    let ours = client.id().unwrap();
    // As long as an ID of ours: one that does not decrypt, of which nothing is said, and one that is not even base64.
    let well_formed = altered(&ours);
    let malformed = format!("{}!", &ours[1..]);
    for (bad, lines) in [(well_formed, 0), (malformed, 1)] {
        for count in [3, 5_800] {
            let bad = vec![&*bad; count];
            let (user, said) = found_and_logged(&layer, &[bad.clone(), vec![&*ours], bad].concat()).await;
            // Beside a few it is found, beside thousands it is one too many.
            assert_eq!(user, if count == 3 { "ada" } else { "" });
            assert_eq!(said.lines().count(), lines, "{said}");
            assert!(said.lines().all(|line| line.starts_with("DEBUG")), "{said}");
        }
    }
}

#[tokio::test]
async fn p18_max_age_is_the_time_to_the_deadline_and_400_days_at_most() {
    for (days, seconds) in [(1, 86_400_u64), (400, 400 * 86_400), (4000, 400 * 86_400)] {
        let sessions = MemorySessions::builder().max_lifetime(Duration::from_secs(days * 86_400));
        let sessions = sessions.clock(Clock::manual()).build().unwrap();
        let (_, set, _) = texts(SessionLayer::new(sessions)).await;
        assert_eq!(set.rsplit_once("Max-Age=").unwrap().1, seconds.to_string());
    }
}

#[test]
fn p14_options_that_contradict_each_other_are_refused_by_the_last_of_them() {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    type Make = fn(SessionLayer) -> SessionLayer;
    let refused: [(Make, &str); 37] = [
        (|layer| layer.domain("https://example.com"), "host name"),
        (|layer| layer.domain("example.com:8080"), "host name"),
        (|layer| layer.domain("example.com/app"), "host name"),
        (|layer| layer.domain("example..com"), "host name"),
        (|layer| layer.domain("-example.com"), "host name"),
        (|layer| layer.domain("d".repeat(64)), "host name"),
        (|layer| layer.domain(vec!["d"; 128].join(".")), "host name"),
        (|layer| layer.cookie_name("__Http-sid").http_only(false), "http_only"),
        (|layer| layer.http_only(false).cookie_name("__host-http-sid"), "http_only"),
        (|layer| layer.cookie_name("__http-sid").secure(false), "secure"),
        (|layer| layer.cookie_name("__Host-Http-sid").domain("example.com"), "domain"),
        (|layer| layer.same_site(SameSite::None).secure(false), "SameSite=None"),
        (|layer| layer.secure(false).same_site(SameSite::None), "SameSite=None"),
        (|layer| layer.partitioned(true).secure(false), "partitioned"),
        (|layer| layer.secure(false).partitioned(true), "partitioned"),
        (|layer| layer.cookie_name("__Host-sid").domain("example.com"), "domain"),
        (|layer| layer.domain("example.com").cookie_name("__Host-sid"), "domain"),
        (|layer| layer.cookie_name("__host-sid").path("/app"), "path"),
        (|layer| layer.cookie_name("__Secure-sid").secure(false), "secure"),
        (|layer| layer.secure(false).cookie_name("__SECURE-sid"), "secure"),
        // A visitor's cookie has `-visitor` behind the name.
        (|layer| layer.cookie_name("__Host").domain("example.com"), "domain"),
        (|layer| layer.domain("example.com").cookie_name("__host"), "domain"),
        (|layer| layer.cookie_name("__Host").path("/app"), "path"),
        (|layer| layer.cookie_name("__Host").secure(false), "secure"),
        (|layer| layer.cookie_name("__Secure").secure(false), "secure"),
        (|layer| layer.secure(false).cookie_name("__http"), "secure"),
        (|layer| layer.cookie_name("__Http").http_only(false), "http_only"),
        (|layer| layer.http_only(false).cookie_name("__Host-Http"), "http_only"),
        (|layer| layer.cookie_name("__Host-Http").domain("example.com"), "domain"),
        (|layer| layer.cookie_name("__Host-Http").secure(false), "secure"),
        (|layer| layer.cookie_name(""), "name"),
        (|layer| layer.cookie_name("a b"), "token"),
        (|layer| layer.cookie_name("a=b"), "token"),
        (|layer| layer.cookie_name("sïd"), "token"),
        (|layer| layer.path("app"), "slash"),
        (|layer| layer.path("/a; Domain=evil.example"), "attribute"),
        (|layer| layer.domain("example.com\r\nX: y"), "attribute"),
    ];
    for (i, (make, word)) in refused.into_iter().enumerate() {
        let panic = catch_unwind(AssertUnwindSafe(|| make(layer()))).unwrap_err();
        let message = panic.downcast_ref::<String>().cloned();
        let message = message.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap();
        assert!(message.contains(word), "{i}: {message}");
    }
    // Defaults give way.
    let _ = layer().domain("example.com").path("/app").secure(false);
    let _ = layer().same_site(SameSite::None);
    let _ = layer().domain(".my_app.xn--bcher-kva.example").cookie_name("__Http-sid");
    let _ = layer().cookie_name("__Host-sid").path("/").secure(true);
    let _ = layer().cookie_name("__Host").path("/").secure(true);
    let _ = layer().cookie_name("__Hosts").domain("example.com").secure(false);
}

#[tokio::test]
async fn p17_a_cookie_never_exceeds_4096_bytes() {
    let sessions = MemorySessions::builder().id_factory(long_name).build().unwrap();
    let layer = SessionLayer::new(sessions)
        .cookie_name("n".repeat(256))
        .domain(["d".repeat(63), "d".repeat(63), "d".repeat(63), "d".repeat(61)].join("."))
        .path(format!("/{}", "p".repeat(1023)))
        .same_site(SameSite::None)
        .partitioned(true);
    let client = Client::new(&layer);
    let answer = client.does(|session| session.create("ada", json!({}))).await.ok();
    assert!(answer.set_cookies()[0].len() <= 4096);
    let again = Client::new(&layer);
    let cookie = answer.set_cookies()[0].split(';').next().unwrap().to_owned();
    let request = Request::builder().header("cookie", cookie).body(axum::body::Body::empty()).unwrap();
    let answer = again.request(request, async |session: Session| {
        session.load().await.unwrap();
        session.key().unwrap()
    });
    assert_eq!(answer.await.body, "ada");
}

fn long_name() -> String {
    static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
    format!("{:043}", NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed))
}

async fn p15_names_match_byte_for_byte(store: Store) {
    let layer = store.layer();
    let client = Client::new(&layer);
    client.does(|session| session.create("ada", json!({}))).await.ok();
    let id = client.id().unwrap();
    for (cookie, found) in [
        (format!("__Host-id={id}"), true),
        (format!("a=b; __Host-id={id}; c=d"), true),
        (format!("a=b;__Host-id={id};c=d"), true),
        (format!("__host-id={id}"), false),
        (format!("=__Host-id={id}"), false),
        (format!("__Host-id ={id}"), false),
        (format!("__Host%2did={id}"), false),
        (format!("x__Host-id={id}"), false),
        (format!("__Host-idx={id}"), false),
        (format!("\u{2003}__Host-id={id}"), false),
        (format!("__Host-id= {id}"), false),
        (format!("__Host-id={id} "), false),
        (format!("__Host-id=\"{id}\""), false),
    ] {
        assert_eq!(key(&layer, &[&cookie]).await.is_some(), found, "{cookie}");
    }
}

async fn p15_of_several_cookies_the_live_one_is_found(store: Store) {
    let layer = store.layer();
    let client = Client::new(&layer);
    client.does(|session| session.create("ada", json!({}))).await.ok();
    let live = format!("__Host-id={}", client.id().unwrap());
    let dead = format!("__Host-id={}.{}", "d".repeat(22), "A".repeat(43));
    for cookies in [
        vec![format!("{dead}; {live}")],
        vec![format!("{live}; {dead}")],
        vec![dead.clone(), live.clone()],
        vec![format!("__Host-id=junk; __Host-id=; __Host-id; {dead}; {live}")],
        vec![format!("{live}; {live}")],
    ] {
        let cookies: Vec<_> = cookies.iter().map(String::as_str).collect();
        assert_eq!(key(&layer, &cookies).await.as_deref(), Some("ada"), "{cookies:?}");
    }
}

async fn p15_two_live_ones_of_different_owners_are_none(store: Store) {
    let layer = store.layer();
    let (ada, grace, nobody) = (Client::new(&layer), Client::new(&layer), Client::new(&layer));
    ada.does(|session| session.create("ada", json!({}))).await.ok();
    grace.does(|session| session.create("grace", json!({}))).await.ok();
    nobody.does(|session| session.insert("n", 1)).await.ok();
    let both = |a: &Client, b: &Client| format!("__Host-id={}; __Host-id={}", a.id().unwrap(), b.id().unwrap());
    for (a, b) in [(&ada, &grace), (&grace, &ada)] {
        assert_eq!(key(&layer, &[&both(a, b)]).await, None);
    }
    // A visitor's ID under the user's name is none.
    for (a, b) in [(&ada, &nobody), (&nobody, &ada)] {
        assert_eq!(key(&layer, &[&both(a, b)]).await.as_deref(), Some("ada"));
    }
    // Whoever planted one has signed nobody out for good.
    assert_eq!(ada.does(|session| Ok(session.key().unwrap())).await.body, "ada");
}

async fn p15_at_most_three_are_tried(store: Store) {
    let layer = store.layer();
    let dead = |i| format!("__Host-id={}.{}.{}", "A".repeat(22), format!("{i}").repeat(22), "A".repeat(43));
    let many: Vec<_> = (0..9).map(dead).collect();
    store.faults.calls();
    assert_eq!(key(&layer, &[&many.join("; ")]).await, None);
    assert_eq!(store.faults.calls(), [Verb::Load, Verb::Load, Verb::Load]);
}

async fn p15_of_two_of_one_owner_the_first_counts(store: Store) {
    let layer = store.layer();
    let (phone, desk) = (Client::new(&layer), Client::new(&layer));
    phone.does(|session| session.create("ada", json!({"device": "phone"}))).await.ok();
    desk.does(|session| session.create("ada", json!({"device": "desk"}))).await.ok();
    let cookie = format!("__Host-id={}; __Host-id={}", desk.id().unwrap(), phone.id().unwrap());
    let request = Request::builder().header("cookie", cookie).body(axum::body::Body::empty()).unwrap();
    let client = Client::new(&layer);
    let answer = client.request(request, async |session: Session| {
        session.load().await.unwrap();
        session.get::<String>("device").unwrap().unwrap()
    });
    assert_eq!(answer.await.body, "desk");
}

async fn p15_cookies_of_others_are_kept_and_ours_is_set_once(store: Store) {
    let client = Client::new(&store.layer());
    let answer = client.visit(async |session: Session| {
        session.insert("n", 1)?;
        session.save().await?;
        session.rework();
        session.save().await?;
        session.bind("ada");
        Ok([("set-cookie", "theme=dark")])
    });
    let answer = answer.await.ok();
    let cookies = answer.set_cookies();
    assert_eq!(cookies.len(), 2, "{cookies:?}");
    assert_eq!(cookies[0], "theme=dark");
    assert!(cookies[1].starts_with("__Host-id="));
    client.set_id(cookies[1].strip_prefix("__Host-id=").unwrap().split(';').next().unwrap());
    assert_eq!(client.does(|session| Ok(session.key().unwrap())).await.body, "ada");
}

async fn p10_an_unchanged_cookie_is_not_sent_again(store: Store) {
    let client = Client::new(&store.layer_with(Options::default()));
    client.does(|session| session.create("ada", json!({}))).await.ok();
    for _ in 0..3 {
        store.pass(Duration::from_secs(1800));
        client.does(|session| session.modify("n", |n: Option<u8>| n.unwrap_or(0) + 1)).await.ok().sets_no_cookie();
    }
}

/// Who is signed in with those `Cookie` headers. Nothing is set or removed in any case.
async fn key(layer: &SessionLayer, cookies: &[&str]) -> Option<String> {
    let mut request = Request::builder();
    for cookie in cookies {
        request = request.header("cookie", http::HeaderValue::from_bytes(cookie.as_bytes()).unwrap());
    }
    let client = Client::new(layer);
    let answer = client.request(request.body(axum::body::Body::empty()).unwrap(), async |session: Session| {
        session.load().await.unwrap();
        session.key().unwrap_or_default()
    });
    let key = answer.await.ok().sets_no_cookie().body;
    (!key.is_empty()).then_some(key)
}
