//! Promise 5 for values: an accepted value is read back equal, and any other value is refused by the call that writes it.
//!
//! tests/values runs these tests again, with the unusual features of serde_json.

use std::{cell::Cell, collections::BTreeMap, convert::Infallible, sync::Mutex, time::Duration};

use http::{Request, Response, header};
use jam_session::{
    BoxError, Data, Durability, Error, ErrorKind, JsonSessions, MemorySessions, Serializer, Session, SessionLayer,
    Sessions,
};
use serde::{Serialize, ser::SerializeMap};
use serde_json::{Value, json, value::RawValue};
use tower::{Layer, ServiceExt, service_fn};

use crate::{
    folder::Folder,
    model::{Back, Model},
    random::Random,
};

/// The one of the documentation.
pub(crate) struct MessagePack;

impl Serializer for MessagePack {
    fn write(&self, data: &Data) -> Result<Vec<u8>, BoxError> {
        Ok(rmp_serde::to_vec(data)?)
    }

    fn read(&self, bytes: &[u8]) -> Result<Data, BoxError> {
        Ok(rmp_serde::from_slice(bytes)?)
    }
}

/// Sessions in each form that a record has, and whether that is serde_json's.
struct Forms {
    sessions: [(bool, Sessions); 4],
    _folder: Folder,
}

impl Forms {
    async fn new() -> Self {
        let folder = Folder::new();
        // With more time than any machine needs.
        let file = |name| {
            JsonSessions::builder(folder.path(name)).durability(Durability::Flush).request_time(Duration::from_secs(60))
        };
        let sessions = [
            (true, MemorySessions::new().erase()),
            (true, file("json.json").open().await.unwrap().erase()),
            (false, MemorySessions::builder().serializer(MessagePack).build().unwrap().erase()),
            (false, file("own.json").serializer(MessagePack).open().await.unwrap().erase()),
        ];
        Self { sessions, _folder: folder }
    }

    fn browsers(&self) -> impl Iterator<Item = (bool, Browser)> {
        self.sessions.iter().map(|(is_json, sessions)| (*is_json, Browser::new(sessions.clone())))
    }
}

/// It keeps one cookie, and its requests do what a closure says.
struct Browser {
    layer: SessionLayer,
    cookie: Mutex<String>,
}

impl Browser {
    fn new(sessions: Sessions) -> Self {
        Self { layer: SessionLayer::new(sessions), cookie: Mutex::default() }
    }

    async fn visit<T>(&self, handler: impl FnOnce(&Session) -> T) -> T {
        let mut request = Request::new(());
        let cookie = self.cookie.lock().unwrap().clone();
        if !cookie.is_empty() {
            request.headers_mut().insert(header::COOKIE, cookie.parse().unwrap());
        }
        let handler = Cell::new(Some(handler));
        let done = Cell::new(None);
        let service = service_fn(async |request: Request<()>| {
            let session = request.extensions().get::<Session>().unwrap();
            session.load().await.unwrap();
            done.set(Some(handler.take().unwrap()(session)));
            Ok::<_, Infallible>(Response::new(()))
        });
        let response = self.layer.layer(service).oneshot(request).await.unwrap();
        assert_eq!(response.status(), 200);
        if let Some(cookie) = response.headers().get(header::SET_COOKIE) {
            *self.cookie.lock().unwrap() = cookie.to_str().unwrap().split(';').next().unwrap().to_owned();
        }
        done.take().unwrap()
    }
}

fn is_refused(done: Result<(), Error>) -> bool {
    match done {
        Ok(()) => false,
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::Data);
            true
        }
    }
}

/// Any value of serde's data model, in every form of a record. A request writes many, and the next one reads them.
#[tokio::test]
async fn p05_any_value_is_read_back_equal_or_refused_by_the_call_that_writes_it() {
    let forms = Forms::new().await;
    for (is_json, browser) in forms.browsers() {
        let mut random = Random(7);
        let mut refused = 0;
        for _ in 0..40 {
            let values: Vec<Model> = (0..50).map(|_| Model::random(&mut random, 5)).collect();
            let written = browser
                .visit(|session| {
                    let names = (0..values.len()).map(|at| format!("v{at}"));
                    names
                        .zip(&values)
                        .map(|(name, value)| {
                            session.remove(&name);
                            !is_refused(session.insert(&name, value))
                        })
                        .collect::<Vec<_>>()
                })
                .await;
            let read = browser
                .visit(|session| {
                    let read = |(at, value): (usize, &Model)| value.read(|| session.get::<Back>(&format!("v{at}")));
                    values.iter().enumerate().map(read).collect::<Vec<_>>()
                })
                .await;
            for ((value, is_written), read) in values.iter().zip(written).zip(read) {
                assert_eq!(is_written, value.is_held(is_json), "{value:?}");
                refused += usize::from(!is_written);
                let expected = is_written.then(|| value.as_read());
                assert_eq!(read.unwrap().map(|Back(read)| read), expected, "{value:?}");
            }
        }
        assert!(refused > 20, "hardly anything was refused: {refused}");
    }
}

#[tokio::test]
async fn p05_a_number_that_is_not_finite_is_refused_by_the_call_that_writes_it() {
    let forms = Forms::new().await;
    for (_, browser) in forms.browsers() {
        browser.visit(|session| session.insert("balance", 1.5)).await.unwrap();
        for number in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            let refused = browser
                .visit(|session| {
                    [
                        session.insert("balance", number),
                        session.insert("balance", number as f32),
                        session.insert("balance", Some(vec![("deep", [0.0, number])])),
                        session.insert("balance", BTreeMap::from([("deep", number)])),
                        session.modify("balance", move |balance: Option<f64>| balance.unwrap() + number),
                        session.update(BTreeMap::from([("balance", number)])),
                        session.create("ada", BTreeMap::from([("balance", number)])),
                    ]
                    .map(is_refused)
                })
                .await;
            assert_eq!(refused, [true; 7], "{number}");
        }
        // Pages that read it still work.
        let balance = browser.visit(|session| session.get::<f64>("balance")).await.unwrap();
        assert_eq!(balance, Some(1.5));
    }
    for (_, sessions) in &forms.sessions {
        let id = sessions.create("ada", json!({"balance": 1.5})).await.unwrap();
        let infinite = BTreeMap::from([("balance", f64::INFINITY)]);
        assert!(is_refused(sessions.create("ada", &infinite).await.map(drop)));
        assert!(is_refused(sessions.update(&id, &infinite).await));
        let data = sessions.get(&id).await.unwrap().unwrap();
        assert_eq!(data.get::<f64>("balance").unwrap(), Some(1.5));
    }
}

#[tokio::test]
async fn p05_a_float_is_read_back_to_the_last_bit() {
    let mut floats = vec![0.09144338512092887, 0.1, -0.0, 5e-324, f64::MAX, f64::MIN_POSITIVE, 1e21, 1e16, 123456789.0];
    let mut random = Random(3);
    floats.extend((0..2_000).map(|_| f64::from_bits(random.next())).filter(|float| float.is_finite()));
    let singles: Vec<f32> =
        (0..2_000).map(|_| f32::from_bits(random.next() as u32)).filter(|float| float.is_finite()).collect();
    for (_, browser) in Forms::new().await.browsers() {
        browser
            .visit(|session| session.insert("floats", &floats).and(session.insert("singles", &singles)))
            .await
            .unwrap();
        let (read, read_singles) =
            browser.visit(|session| (session.get::<Vec<f64>>("floats"), session.get::<Vec<f32>>("singles"))).await;
        assert!(
            read.unwrap().unwrap().iter().map(|float| float.to_bits()).eq(floats.iter().map(|float| float.to_bits()))
        );
        let bits = |singles: &[f32]| singles.iter().map(|single| single.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&read_singles.unwrap().unwrap()), bits(&singles));
    }
}

#[tokio::test]
async fn p05_an_integer_of_128_bits_is_read_back_or_refused() {
    for (is_json, browser) in Forms::new().await.browsers() {
        let large = [u128::from(u64::MAX) + 1, u128::MAX];
        let refused = browser
            .visit(|session| {
                session.insert("small", u128::from(u64::MAX)).unwrap();
                session.insert("negative", i128::from(i64::MIN)).unwrap();
                [
                    session.insert("large", large),
                    session.insert("low", i128::MIN),
                    session.modify("modified", |_: Option<u128>| u128::MAX),
                ]
                .map(is_refused)
            })
            .await;
        assert_eq!(refused, [!is_json; 3]);
        browser
            .visit(|session| {
                assert_eq!(session.get::<u128>("small").unwrap(), Some(u64::MAX.into()));
                assert_eq!(session.get::<i128>("negative").unwrap(), Some(i64::MIN.into()));
                assert_eq!(session.get::<[u128; 2]>("large").unwrap(), is_json.then_some(large));
                assert_eq!(session.get::<i128>("low").unwrap(), is_json.then_some(i128::MIN));
                assert_eq!(session.get::<u128>("modified").unwrap(), is_json.then_some(u128::MAX));
            })
            .await;
    }
}

#[tokio::test]
async fn p05_a_number_is_a_number_to_a_serializer_of_the_application() {
    let sessions = MemorySessions::builder().serializer(MessagePack).build().unwrap();
    let id = sessions.create("ada", json!({"visits": 1})).await.unwrap();
    let data = sessions.get(&id).await.unwrap().unwrap();
    let packed = rmp_serde::to_vec(&data).unwrap();
    assert_eq!(
        rmp_serde::from_slice::<BTreeMap<String, u64>>(&packed).unwrap(),
        BTreeMap::from([("visits".into(), 1)])
    );
    let there = serde_json::from_str::<Data>(r#"{"visits":1,"ratio":1.5,"deep":[{"n":-2}]}"#).unwrap();
    assert_eq!(there.get::<i64>("visits").unwrap(), Some(1));
    assert_eq!(serde_json::to_string(&there).unwrap(), r#"{"visits":1,"ratio":1.5,"deep":[{"n":-2}]}"#);
}

#[tokio::test]
async fn p05_a_value_that_is_nested_too_deep_to_be_read_is_refused() {
    for (_, browser) in Forms::new().await.browsers() {
        for (levels, is_held) in [(1, true), (126, true), (127, true), (128, false), (129, false), (2_000, false)] {
            let value = Model::nested(levels);
            let is_refused = browser.visit(|session| is_refused(session.insert("deep", &value))).await;
            assert_eq!(is_refused, !is_held, "{levels}");
            if is_held {
                let read = browser.visit(|session| value.read(|| session.get::<Back>("deep"))).await;
                assert!(read.unwrap().is_some_and(|Back(read)| read == value), "{levels}");
            }
        }
    }
}

/// JSON that somebody else has written is taken as it is, so its levels are counted.
#[tokio::test]
async fn p05_a_raw_value_that_is_nested_too_deep_to_be_read_is_refused() {
    let raw = |text: String| RawValue::from_string(text).unwrap();
    let nested = |open: &str, levels: usize, close: &str| raw(open.repeat(levels) + "0" + &close.repeat(levels));
    for (_, browser) in Forms::new().await.browsers() {
        for (levels, is_held) in [(1, true), (127, true), (128, false), (255, false), (256, false), (257, false)]
            .into_iter()
            .chain([(512, false), (2_000, false), (100_000, false)])
        {
            for value in [nested("[", levels, "]"), nested(r#"{"a":"#, levels, "}")] {
                let is_written = browser.visit(|session| !is_refused(session.insert("raw", &value))).await;
                assert_eq!(is_written, is_held, "{levels}");
                let around = browser.visit(|session| !is_refused(session.insert("around", [&value]))).await;
                assert_eq!(around, levels < 127, "{levels}");
                if is_held {
                    let read = browser.visit(|session| session.get::<Value>("raw")).await;
                    assert_eq!(read.unwrap().unwrap().to_string(), value.get(), "{levels}");
                }
            }
        }
        // In a string they are no levels.
        let text = format!(r#"["{}", "\"{}", []]"#, "[".repeat(200), "{".repeat(200));
        browser.visit(|session| session.insert("text", raw(text.clone()))).await.unwrap();
        let read = browser.visit(|session| session.get::<Value>("text")).await;
        assert_eq!(read.unwrap().unwrap(), serde_json::from_str::<Value>(&text).unwrap());
    }
}

/// It does not write texts that begin with a `w`, and does not read those with an `r`.
struct Picky;

impl Serializer for Picky {
    fn write(&self, data: &Data) -> Result<Vec<u8>, BoxError> {
        let bytes = serde_json::to_vec(data)?;
        if bytes.windows(3).any(|bytes| bytes == b":\"w") { Err("no".into()) } else { Ok(bytes) }
    }

    fn read(&self, bytes: &[u8]) -> Result<Data, BoxError> {
        if bytes.windows(3).any(|bytes| bytes == b":\"r") {
            Err("no".into())
        } else {
            Ok(serde_json::from_slice(bytes)?)
        }
    }
}

#[tokio::test]
async fn p05_what_a_serializer_does_not_write_or_read_back_is_refused_by_the_call_that_writes_it() {
    let sessions = MemorySessions::builder().serializer(Picky).build().unwrap();
    let id = sessions.create("ada", json!({"kept": "yes"})).await.unwrap();
    let browser = Browser::new(sessions.clone().erase());
    browser.visit(|session| session.insert("kept", "yes")).await.unwrap();
    for text in ["written", "read"] {
        let refused = browser
            .visit(|session| {
                [
                    session.insert("kept", text),
                    session.update(json!({"kept": text})),
                    session.create("ada", json!({"kept": text})),
                    session.modify("kept", move |_: Option<String>| text.to_owned()),
                ]
                .map(is_refused)
            })
            .await;
        assert_eq!(refused, [true; 4], "{text}");
        assert_eq!(browser.visit(|session| session.get::<String>("kept")).await.unwrap().as_deref(), Some("yes"));
        assert!(is_refused(sessions.create("ada", json!({"kept": text})).await.map(drop)));
        assert!(is_refused(sessions.update(&id, json!({"kept": text})).await));
    }
    let data = sessions.get(&id).await.unwrap().unwrap();
    assert_eq!(data.get::<String>("kept").unwrap().as_deref(), Some("yes"));
    assert_eq!(sessions.list("ada").await.unwrap().len(), 1);
}

/// The data around a value is one more level, of the 127 that serde_json reads.
#[tokio::test]
async fn p05_what_is_too_deep_for_a_serializer_with_the_data_around_it_is_refused() {
    let browser = Browser::new(MemorySessions::builder().serializer(Picky).build().unwrap().erase());
    for (levels, is_held) in [(125, true), (126, true), (127, false), (128, false)] {
        let value = Model::nested(levels);
        let is_refused = browser.visit(|session| is_refused(session.insert("deep", &value))).await;
        assert_eq!(is_refused, !is_held, "{levels}");
        let read = browser.visit(|session| value.read(|| session.get::<Back>("deep"))).await;
        assert!(!is_held || read.unwrap().is_some_and(|Back(read)| read == value), "{levels}");
    }
}

/// Text of users may be a name in a map. serde_json would read these as a number, or as JSON.
#[tokio::test]
async fn p05_a_map_with_a_name_that_serde_json_keeps_for_itself_is_refused() {
    let forms = Forms::new().await;
    for name in ["$serde_json::private::RawValue", "$serde_json::private::Number"] {
        let map = BTreeMap::from([(name, "1")]);
        let later = BTreeMap::from([("", "0"), (name, "1")]);
        for (_, browser) in forms.browsers() {
            let refused = browser
                .visit(|session| {
                    [
                        session.insert("map", &map),
                        session.insert("map", &later),
                        session.insert("map", Some([BTreeMap::from([("deep", &map)])])),
                        session.insert("map", BTreeMap::from([(Shown(name), 1)])),
                        session.update(BTreeMap::from([("map", &map)])),
                    ]
                    .map(is_refused)
                })
                .await;
            assert_eq!(refused, [true; 5], "{name}");
            // A value may say it.
            browser.visit(|session| session.insert("text", name)).await.unwrap();
            assert_eq!(browser.visit(|session| session.get::<String>("text")).await.unwrap().as_deref(), Some(name));
        }
    }
}

/// A name that is formatted.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Shown(&'static str);

impl Serialize for Shown {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self.0)
    }
}

/// `#[serde(flatten)]` does so, of a map over a field.
#[tokio::test]
async fn p05_of_a_name_that_a_value_writes_twice_the_last_counts() {
    for (_, browser) in Forms::new().await.browsers() {
        browser.visit(|session| session.insert("twice", Twice(2))).await.unwrap();
        let read = browser.visit(|session| (session.get("twice"), session.get::<Value>("twice"))).await;
        assert_eq!(read.0.unwrap(), Some(BTreeMap::from([("n0".to_owned(), 1)])));
        assert_eq!(read.1.unwrap(), Some(json!({"n0": 1})));
    }
}

/// What writes a name twice.
struct Twice(usize);

impl Serialize for Twice {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for at in 0..self.0 {
            map.serialize_entry(&format!("n{}", at % self.0.div_ceil(2)), &at)?;
        }
        map.end()
    }
}

#[tokio::test]
async fn p05_a_name_that_was_written_twice_is_listed_once() {
    for (_, sessions) in &Forms::new().await.sessions {
        for fields in [2, 3, 16, 17, 40, 1_000] {
            let id = sessions.create("ada", Twice(fields)).await.unwrap();
            let data = sessions.get(&id).await.unwrap().unwrap();
            let names: Vec<&str> = data.names().collect();
            let mut once = names.clone();
            once.sort_unstable();
            once.dedup();
            assert_eq!((names.len(), once.len()), (fields.div_ceil(2), fields.div_ceil(2)));
            // The last counts.
            let n0 = data.get::<usize>("n0").unwrap().unwrap();
            assert_eq!(n0, fields.div_ceil(2));
            let all = serde_json::to_value(&data).unwrap();
            assert_eq!(all.as_object().unwrap().len(), names.len());
        }
    }
}

#[tokio::test]
async fn p05_an_option_in_an_option_is_read_back_as_by_serde_json() {
    for (_, browser) in Forms::new().await.browsers() {
        browser
            .visit(|session| session.insert("inner", Some(None::<u8>)).and(session.insert("full", Some(Some(1)))))
            .await
            .unwrap();
        browser
            .visit(|session| {
                assert_eq!(session.get::<Option<Option<u8>>>("inner").unwrap(), Some(None));
                assert_eq!(session.get::<Option<Option<u8>>>("full").unwrap(), Some(Some(Some(1))));
            })
            .await;
    }
}
