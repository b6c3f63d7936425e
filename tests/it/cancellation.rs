//! Cancellation: a request, or a call on `Sessions`, is dropped at each of its await points.
//!
//! Afterwards, the store is either in the state before the call or in the state after it, never in between. If a sign-out was
//! recorded, it takes effect. No lock, task, file or unwanted session is left behind.

use std::{
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use jam_session::{
    Backend, Data, Error, ErrorKind, RecordId, Session, SessionLayer, Sessions,
    conformance::{Fault, Faulty, Verb},
};
use serde_json::json;
use tokio::{runtime::Handle, task::yield_now, time::timeout};

use crate::{
    client::Client,
    histories::cut,
    on_every_store,
    store::{PATIENCE, Store, Watched, eventually},
};

on_every_store! {
    p16_a_request_dropped_anywhere_has_happened_or_has_not,
    p16_a_call_of_the_module_dropped_anywhere_has_happened_or_has_not,
    p16_a_request_dropped_anywhere_lets_the_next_one_have_its_turn,
    p16_a_request_dropped_while_it_waits_for_its_turn_keeps_nobody,
}

/// A store that waits once before and once after each verb: each is a point to be dropped at.
type Steps = Faulty<Watched>;

/// The steps over a store, and the records that are made through them.
fn steps(store: &Store) -> (Steps, Arc<Mutex<Vec<RecordId>>>) {
    let (steps, made) = (Faulty::new(store.watched()), Arc::<Mutex<Vec<RecordId>>>::default());
    let noted = Arc::clone(&made);
    steps.faults().when(move |call| {
        noted.lock().unwrap().extend(call.id.filter(|_| call.verb == Verb::Create));
        None
    });
    steps.faults().always(None, Fault::first(|_| yield_now()));
    steps.faults().always(
        None,
        Fault::change(|_, answer| async {
            yield_now().await;
            answer
        }),
    );
    (steps, made)
}

/// Who sends the request.
#[derive(Clone, Copy, Debug)]
enum Who {
    Stranger,
    Anonymous,
    /// Signed in, here and in another browser.
    Ada,
}

/// What its handler does.
#[derive(Clone, Copy, Debug)]
enum Do {
    Insert(&'static str, u8),
    Increment,
    Remove,
    Update,
    Remember,
    Rework,
    Bind(&'static str),
    Create(&'static str),
    Delete,
    Clear,
    ClearOthers,
    Save,
}

/// Who does what; and what else may come of it, as if only that had been done.
type Case = (Who, &'static [Do], &'static [&'static [Do]]);

const CASES: &[Case] = {
    use Do::*;
    use Who::*;
    &[
        (Stranger, &[Insert("n", 2)], &[]),
        (Stranger, &[Insert("n", 2), Save, Insert("m", 2)], &[&[Insert("n", 2)]]),
        (Stranger, &[Create("ada")], &[]),
        (Stranger, &[Bind("ada"), Insert("n", 2)], &[]),
        (Anonymous, &[Increment], &[]),
        (Anonymous, &[Rework, Increment], &[]),
        (Anonymous, &[Bind("ada"), Insert("m", 2)], &[]),
        (Anonymous, &[Create("ada")], &[]),
        (Anonymous, &[Delete], &[]),
        (Anonymous, &[Clear], &[]),
        (Ada, &[Insert("n", 2), Insert("m", 2)], &[]),
        (Ada, &[Increment, Remove], &[]),
        (Ada, &[Update], &[]),
        (Ada, &[Remember], &[]),
        (Ada, &[Rework, Increment, Remember], &[]),
        (Ada, &[Insert("n", 2), Save, Insert("m", 2)], &[&[Insert("n", 2)]]),
        (Ada, &[Bind("ada"), Insert("m", 2)], &[]),
        (Ada, &[Bind("ada"), Save, Insert("m", 2)], &[&[Bind("ada")]]),
        (Ada, &[Bind("grace"), Insert("m", 2)], &[]),
        (Ada, &[Create("ada")], &[]),
        (Ada, &[Create("grace"), Insert("m", 2)], &[]),
        (Ada, &[Insert("n", 2), Delete], &[]),
        (Ada, &[Delete, Insert("m", 2)], &[&[Delete]]),
        (Ada, &[Delete, Save, Insert("m", 2)], &[&[Delete]]),
        (Ada, &[Bind("grace"), Delete], &[]),
        (Ada, &[Delete, Create("grace")], &[&[Delete]]),
        (Ada, &[Insert("n", 2), Clear], &[]),
        // Without a response nobody would get the new ID: it is a sign-out everywhere.
        (Ada, &[Insert("n", 2), ClearOthers], &[&[Clear]]),
        (Ada, &[ClearOthers, Bind("ada")], &[&[Clear]]),
        (Ada, &[Clear, Create("ada")], &[&[Clear]]),
        (Ada, &[Clear, Save, Insert("m", 2)], &[&[Clear]]),
    ]
};

impl Do {
    async fn run(self, session: &Session) -> Result<(), Error> {
        match self {
            Self::Insert(name, value) => session.insert(name, value)?,
            Self::Increment => session.modify("n", |n: Option<u8>| n.unwrap_or(0) + 1)?,
            Self::Remove => session.remove("o"),
            Self::Update => session.update(json!({"all": "new"}))?,
            Self::Remember => session.set_ttl(Duration::from_secs(86_400)),
            Self::Rework => session.rework(),
            Self::Bind(key) => session.bind(key),
            Self::Create(key) => session.create(key, json!({"c": 3}))?,
            Self::Delete => session.delete(),
            Self::Clear => session.clear(),
            Self::ClearOthers => session.clear_others(),
            Self::Save => session.save().await?,
        }
        Ok(())
    }

    fn is_ending(self) -> bool {
        matches!(self, Self::Delete | Self::Clear | Self::ClearOthers)
    }
}

/// What there is to be seen of a store.
#[derive(Clone, Debug, PartialEq)]
struct State {
    /// Where the ID leads that the request came with.
    old: Option<String>,
    listed: Vec<String>,
    /// How many sessions there are that were made since.
    made: usize,
}

/// What a session holds, but for what the next request leaves.
fn text(data: Data) -> String {
    let mut data = serde_json::to_value(&data).unwrap();
    data.as_object_mut().unwrap().remove("next");
    data.to_string()
}

/// One process at a store, with a client.
struct Scene {
    store: Store,
    sessions: Sessions<Steps>,
    client: Client,
    made: Arc<Mutex<Vec<RecordId>>>,
}

impl Scene {
    async fn new(store: &Store, who: Who) -> Self {
        let (steps, made) = steps(store);
        let sessions = Sessions::over(steps).request_time(PATIENCE).clock(store.clock.clone()).build().unwrap();
        let client = Client::new(&SessionLayer::new(sessions.clone()));
        match who {
            Who::Stranger => {}
            Who::Anonymous => drop(client.does(|session| session.update(json!({"n": 1, "o": 1}))).await.ok()),
            Who::Ada => {
                client.does(|session| session.create("ada", json!({"n": 1, "o": 1}))).await.ok();
                sessions.create("ada", json!({"other": 1})).await.unwrap();
            }
        }
        made.lock().unwrap().clear();
        Self { store: store.clone(), sessions, client, made }
    }

    /// The state once everything has ended that was begun.
    async fn ends(self) -> State {
        timeout(PATIENCE, self.sessions.close()).await.expect("something goes on for ever").unwrap();
        let sessions = self.store.sessions();
        let old = match self.client.id() {
            Some(id) => sessions.get(&id).await.unwrap().map(text),
            None => None,
        };
        let mut listed = Vec::new();
        for key in ["ada", "grace"] {
            for info in sessions.list(key).await.unwrap() {
                let remembered = info.expires > self.store.clock.now() + Duration::from_secs(7200);
                listed.push(format!("{key} {} {remembered}", text(info.data)));
            }
            sessions.clear(key).await.unwrap();
        }
        listed.sort();
        let made = self.made.lock().unwrap().clone();
        let mut alive = 0;
        for id in made {
            alive += usize::from(self.store.backend().load(id).await.unwrap().is_some());
        }
        // Those that were made for a key are cleared by now.
        let made = alive + listed.len();
        sessions.close().await.unwrap();
        State { old, listed, made }
    }

    /// The request: dropped after so many polls, or not. Whether it was answered.
    async fn request(&self, client: &Client, does: &[Do], recorded: &AtomicBool, polls: Option<usize>) -> bool {
        let visit = client.visit(async |session: Session| {
            for each in does {
                each.run(&session).await?;
                recorded.fetch_or(each.is_ending(), SeqCst);
            }
            yield_now().await;
            Ok(())
        });
        cut(polls, visit).await.is_some_and(|answer| answer.status.is_success())
    }

    /// Another request of the same browser, at once.
    async fn next_request_works(&self) {
        if self.client.id().is_none() {
            return;
        }
        let next = self.client.thief();
        let next = next.visit(async |session: Session| {
            if session.handle().is_some() {
                // It is written, and comes to nothing: what is compared is what the request did.
                session.insert("next", 1)?;
                match session.save().await {
                    Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                    _ => session.remove("next"),
                }
            }
            Ok(())
        });
        timeout(PATIENCE, next).await.expect("the next request waits for ever").ok();
    }
}

async fn p16_a_request_dropped_anywhere_has_happened_or_has_not(store: Store) {
    let base = tasks(&store).await + store.listeners();
    for (who, does, also) in CASES {
        let mut outcomes = vec![Scene::new(&store, *who).await.ends().await];
        for does in [does].into_iter().chain(also.iter()) {
            let scene = Scene::new(&store, *who).await;
            assert!(scene.request(&scene.client.thief(), does, &AtomicBool::default(), None).await);
            outcomes.push(scene.ends().await);
        }
        // How often it came out like that although it was dropped. A store that answers from another thread needs now one poll
        // more and now one less: what all polls of one walk have missed, another will see.
        let mut seen = vec![0; outcomes.len()];
        for _ in 0..100 {
            for polls in 0.. {
                let (scene, recorded) = (Scene::new(&store, *who).await, AtomicBool::default());
                let answered = scene.request(&scene.client.thief(), does, &recorded, Some(polls)).await;
                scene.next_request_works().await;
                let state = scene.ends().await;
                let Some(outcome) = outcomes.iter().position(|outcome| *outcome == state) else {
                    panic!("{who:?} {does:?} dropped at poll {polls} left {state:?}, which is none of {outcomes:?}");
                };
                if recorded.into_inner() {
                    assert!(outcome > 0, "{who:?} {does:?} dropped at poll {polls} has lost its sign-out");
                }
                if answered {
                    assert_eq!(outcome, 1, "{who:?} {does:?} was answered, and left {state:?}");
                    break;
                }
                seen[outcome] += 1;
            }
            if seen[1] > 0 {
                break;
            }
        }
        assert!(seen[0] > 0 && seen[1] > 0, "{who:?} {does:?} has come out {seen:?}");
    }
    eventually(async || tasks(&store).await <= base).await;
    store.is_tidy().await;
}

async fn p16_a_call_of_the_module_dropped_anywhere_has_happened_or_has_not(store: Store) {
    type Work<'a> = Pin<Box<dyn Future<Output = ()> + Send + 'a>>;
    type Call = (&'static str, for<'a> fn(&'a Sessions<Steps>, &'a str) -> Work<'a>);
    let calls: &[Call] = &[
        ("create", |on, _| Box::pin(async { drop(on.create("grace", json!({"c": 3})).await.unwrap()) })),
        ("get", |on, id| Box::pin(async move { drop(on.get(id).await.unwrap()) })),
        ("update", |on, id| Box::pin(async move { on.update(id, json!({"n": 2})).await.unwrap() })),
        ("rework", |on, id| Box::pin(async move { drop(on.rework(id).await.unwrap()) })),
        ("delete", |on, id| Box::pin(async move { on.delete(id).await.unwrap() })),
        ("clear", |on, _| Box::pin(async move { on.clear("ada").await.map(|_| ()).unwrap() })),
        ("clear others", |on, id| Box::pin(async move { on.clear_others(id).await.map(|_| ()).unwrap() })),
        ("list", |on, _| Box::pin(async move { drop(on.list("ada").await.unwrap()) })),
        ("revoke", |on, id| {
            let handle = id.split('.').nth(1).unwrap();
            Box::pin(async move { on.revoke("ada", handle).await.map(|_| ()).unwrap() })
        }),
    ];
    let base = tasks(&store).await + store.listeners();
    for (name, call) in calls {
        let before = Scene::new(&store, Who::Ada).await.ends().await;
        let scene = Scene::new(&store, Who::Ada).await;
        call(&scene.sessions, &scene.client.id().unwrap()).await;
        let after = scene.ends().await;
        for polls in 0.. {
            let scene = Scene::new(&store, Who::Ada).await;
            let answered = cut(Some(polls), call(&scene.sessions, &scene.client.id().unwrap())).await.is_some();
            scene.next_request_works().await;
            let state = scene.ends().await;
            if answered {
                assert_eq!(state, after, "{name}");
                break;
            }
            // A session that nobody got the ID of is removed.
            let may_be_after = *name != "create" && state == after;
            assert!(state == before || may_be_after, "{name} dropped at poll {polls} left {state:?}");
        }
    }
    eventually(async || tasks(&store).await <= base).await;
    store.is_tidy().await;
}

async fn p16_a_request_dropped_anywhere_lets_the_next_one_have_its_turn(store: Store) {
    two_requests(store, true).await;
}

async fn p16_a_request_dropped_while_it_waits_for_its_turn_keeps_nobody(store: Store) {
    two_requests(store, false).await;
}

/// Two requests of one session: the second begins while the first one is under way, and one of them is dropped.
async fn two_requests(store: Store, first_is_dropped: bool) {
    let base = tasks(&store).await + store.listeners();
    for does in [&[Do::Insert("n", 2)][..], &[Do::Rework, Do::Insert("n", 2)], &[Do::Delete]] {
        for polls in 0.. {
            let (scene, recorded) = (Scene::new(&store, Who::Ada).await, AtomicBool::default());
            let (one, two) = (scene.client.thief(), scene.client.thief());
            let mut first = Box::pin(scene.request(&one, does, &recorded, None));
            let mut second = Box::pin(scene.request(&two, &[Do::Insert("m", 2)], &recorded, None));
            let answered = if first_is_dropped {
                let answered = cut(Some(polls), &mut first).await.is_some();
                let other = stuck(ON_ITS_WAY, &mut second).await;
                drop(first);
                assert!(finish(other, second).await);
                answered
            } else {
                let other = cut(Some(ON_ITS_WAY), &mut first).await;
                let answered = stuck(polls, &mut second).await.is_some();
                drop(second);
                assert!(finish(other, first).await);
                answered
            };
            let state = scene.ends().await;
            let ada = |n: u8, m: &str| format!("ada {{{m}\"n\":{n},\"o\":1}} false");
            let (without, with) = (ada(2, ""), ada(2, "\"m\":2,"));
            let expected = match (first_is_dropped, does) {
                (false, [Do::Delete]) => vec![None],
                (true, [Do::Delete]) if recorded.into_inner() => vec![None],
                // What the second one did is there, and what the first one did is or is not.
                (true, _) => vec![Some(with), Some(ada(1, "\"m\":2,"))],
                (false, _) if answered => vec![Some(with)],
                (false, _) => vec![Some(without), Some(with)],
            };
            let found = state.listed.iter().find(|listed| !listed.contains("other")).cloned();
            assert!(expected.contains(&found), "{does:?} dropped at poll {polls} left {state:?}");
            if answered || !first_is_dropped && polls == 2 * ON_ITS_WAY {
                break;
            }
        }
    }
    eventually(async || tasks(&store).await <= base).await;
    store.is_tidy().await;
}

/// Polls it so many times, or fewer: as long as the other one has the turn and is not polled, nothing wakes it.
async fn stuck<T>(polls: usize, work: impl Future<Output = T>) -> Option<T> {
    timeout(Duration::from_millis(50), cut(Some(polls), work)).await.ok().flatten()
}

/// Waits for a request that may be answered already.
async fn finish(answered: Option<bool>, request: impl Future<Output = bool>) -> bool {
    match answered {
        Some(success) => success,
        None => timeout(PATIENCE, request).await.expect("the other request waits for ever"),
    }
}

/// How many tasks there are when nothing is asked.
async fn tasks(store: &Store) -> usize {
    let sessions = store.sessions();
    // Each node of a Cluster has a connection, with a task, once it was asked. Together these lists ask all of them.
    for n in 0..64 {
        sessions.list(format!("nobody {n}")).await.unwrap();
    }
    Handle::current().metrics().num_alive_tasks()
}

/// So often a request is polled until it writes, where each verb waits twice.
const ON_ITS_WAY: usize = 6;
