//! Linearizability tests: many clients make random concurrent calls, and their history is checked against a sequential model.
//!
//! A history that no order of its calls explains is a broken promise. It is shrunk, and printed with its seed. Seeds are
//! fixed, so runs are repeatable. `SESSION_TEST_LONG=<seconds>` tries new seeds for that long, and `SESSION_TEST_SEED=<seed>`
//! runs one. In single-threaded tests (`…_in_any_order`) the seed determines everything; in the others, only the calls.

mod check;
mod module;
mod record;
mod rough;
mod verbs;

use std::time::Duration;

use jam_session::{Clock, MemorySessions, Sessions};

pub use self::record::{Seeds, cut};
use self::{
    module::Module,
    record::{Schedule, alone},
    rough::{Edges, Wrong, common, forgetful, rough},
    verbs::Verbs,
};
use crate::random::Random;
use crate::{
    on_every_store,
    store::{Options, Store},
};

on_every_store! {
    the_verbs_of_a_store_happen_at_one_moment_each,
    the_verbs_of_the_module_happen_at_one_moment_each,
}

const EXACT: Verbs = Verbs { timed: true, lags: false, lists_at_once: true, orders_all: true };

/// It tells by its clock which record it has heard of last, in seconds, and a history takes less than that.
const REMOTE: Verbs = Verbs { timed: false, lags: false, lists_at_once: false, orders_all: false };

async fn the_verbs_of_a_store_happen_at_one_moment_each(store: Store) {
    let (model, count, share) = match () {
        () if store.is_remote() => (REMOTE, 60, 40),
        // The thread that writes the file counts from when it takes a change, and others see it once it is on the disk.
        () if store.is_file() => (Verbs { lags: true, ..EXACT }, 60, 40),
        () => (EXACT, 600, 100),
    };
    for seed in Seeds::new(count, share) {
        let mut rng = Random(seed);
        let (fork, fails) = (rng.fork(), rng.one_in(2));
        // Whether a store knows its own updates again.
        let common = if rng.one_in(2) { forgetful(&store.inner()) } else { common(&store.inner()) };
        let backend = rough(&common, fork, Edges { fails, ..Edges::default() });
        let stage = verbs::Stage::new(model, backend, store.clock.clone(), &mut rng).cuts(rng.one_in(2));
        fails_not(seed, stage.play(Schedule::Threads, rng, 4, 12).await);
    }
}

#[test]
fn the_verbs_of_the_memory_happen_at_one_moment_each_in_any_order() {
    for seed in Seeds::new(1500, 100) {
        fails_not(seed, verbs_alone(EXACT, seed, None));
    }
}

fn memory() -> (Sessions, Clock) {
    let clock = Clock::manual();
    (MemorySessions::builder().clock(clock.clone()).build().unwrap().erase(), clock)
}

/// A history of the verbs of the memory, on one thread.
fn verbs_alone(model: Verbs, seed: u64, wrong: Option<Wrong>) -> Option<String> {
    alone(async {
        let mut rng = Random(seed);
        let (sessions, clock) = memory();
        let fails = rng.one_in(2);
        let store = if wrong.is_none() && rng.one_in(2) { forgetful } else { common };
        let backend = rough(&store(&sessions), rng.fork(), Edges { waits: true, fails, wrong, ignores_touches: false });
        let stage = verbs::Stage::new(model, backend, clock, &mut rng).cuts(rng.one_in(2));
        stage.play(Schedule::Seeded, rng, 4, 10).await
    })
}

async fn the_verbs_of_the_module_happen_at_one_moment_each(store: Store) {
    let (model, count, share) = match () {
        () if store.is_remote() => (Module { timed: false, lists_at_once: false, ..SHARP }, 60, 40),
        () if store.is_file() => (Module { lags: true, ..SHARP }, 60, 40),
        () => (SHARP, 300, 100),
    };
    for seed in Seeds::new(count, share) {
        let mut rng = Random(seed);
        let model = Module { touches: rng.one_in(3), ..model };
        let options = match model.timed {
            true => module::options(),
            false => Options { rework_grace: Some(Duration::from_secs(3600)), ..Options::default() },
        };
        let fails = rng.one_in(2);
        let common = common(&store.inner());
        let mut process = || {
            let rough =
                rough(&common, rng.fork(), Edges { waits: true, fails, wrong: None, ignores_touches: !model.touches });
            options.apply(Sessions::over(rough)).clock(store.clock.clone()).build().unwrap()
        };
        let stage = module::Stage::new(model, vec![process(), process()], store.clock.clone(), seed);
        fails_not(seed, stage.cuts(rng.one_in(2)).play(Schedule::Threads, rng, 4, 12).await);
    }
}

#[test]
fn the_verbs_of_the_module_happen_at_one_moment_each_in_any_order() {
    for seed in Seeds::new(1500, 300) {
        fails_not(seed, module_alone(seed, None));
    }
}

const SHARP: Module = Module { timed: true, lags: false, lists_at_once: true, touches: false };

/// A history of the module over the memory, on one thread.
fn module_alone(seed: u64, wrong: Option<Wrong>) -> Option<String> {
    alone(async {
        let mut rng = Random(seed);
        let (inner, clock) = memory();
        let model = Module { touches: rng.one_in(3) || wrong == Some(Wrong::TouchRevives), ..SHARP };
        let mut options = module::options();
        if wrong == Some(Wrong::KeepsPreviousIds) {
            options.rework_grace = Some(Duration::from_secs(3600));
        }
        let fails = rng.one_in(2);
        let common = common(&inner);
        let mut process = || {
            let rough =
                rough(&common, rng.fork(), Edges { waits: true, fails, wrong, ignores_touches: !model.touches });
            options.apply(Sessions::over(rough)).clock(clock.clone()).build().unwrap()
        };
        let stage = module::Stage::new(model, vec![process(), process()], clock.clone(), seed);
        stage.cuts(rng.one_in(2)).play(Schedule::Seeded, rng, 4, 10).await
    })
}

/// Requests and answers are lost, and connections with them: what Redis is asked again is not done again.
#[cfg(feature = "redis")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_connections_to_redis_change_no_order() {
    use crate::redis::{
        harness::{Place, Topology, connected, server},
        proxy::Proxy,
    };

    let Some(place) = Place::new(Topology::Server) else { return };
    let proxy = std::sync::Arc::new(Proxy::before(&server().address).await);
    let builder = || jam_session::RedisSessions::builder(proxy.uri()).namespace(&place.namespace);
    let (one, two) = (connected(builder).await.erase(), connected(builder).await.erase());
    let at = std::sync::Arc::clone(&proxy);
    let trouble: record::Trouble = std::sync::Arc::new(move |rng: &mut Random| match rng.one_in(2) {
        true => at.swallow_next_answer(),
        false => at.swallow_next_request(),
    });
    for seed in Seeds::new(200, 80) {
        let mut rng = Random(seed);
        let model = REMOTE;
        let backend = rough(&common(&one), rng.fork(), Edges::default());
        let stage = verbs::Stage::new(model, backend, Clock::manual(), &mut rng).cuts(rng.one_in(2));
        let stage = stage.trouble(Some(trouble.clone()));
        fails_not(seed, stage.play(Schedule::Threads, rng.fork(), 4, 12).await);

        let model = Module { timed: false, lists_at_once: false, ..SHARP };
        let options = Options { rework_grace: Some(Duration::from_secs(3600)), ..Options::default() };
        let process = |on: &Sessions| {
            let rough = rough(&forgetful(on), Random(seed), Edges::default());
            options.apply(Sessions::over(rough)).build().unwrap()
        };
        let stage = module::Stage::new(model, vec![process(&one), process(&two)], Clock::manual(), seed);
        let stage = stage.cuts(rng.one_in(2)).trouble(Some(trouble.clone()));
        fails_not(seed, stage.play(Schedule::Threads, rng, 4, 12).await);
    }
    assert!(proxy.connections() > 20, "{} connections", proxy.connections());
}

#[track_caller]
fn fails_not(seed: u64, complaint: Option<String>) {
    if let Some(complaint) = complaint {
        panic!("seed {seed}: {complaint}");
    }
}

#[test]
fn a_store_that_is_wrong_is_found_out() {
    let wrongs = [
        Wrong::Upserts,
        Wrong::IgnoresVersions,
        Wrong::ForgetsOne,
        Wrong::ClearsOneByOne,
        Wrong::LoadsStale,
        Wrong::ListsTooFew,
        Wrong::DeletesLater,
        Wrong::TouchRevives,
        Wrong::CreatesOver,
        Wrong::ExpiresLate,
        Wrong::CreatesLate,
        Wrong::CreatesAgain,
        Wrong::DeniesWhatItWrote,
        Wrong::ClearsAgain,
        Wrong::ClearsByAnything,
        Wrong::IgnoresMarks,
        Wrong::IgnoresLimits,
        Wrong::EndsOneTooFew,
        Wrong::EndsTheLatest,
        Wrong::ScansTooFew,
    ];
    for wrong in wrongs {
        is_found_out(wrong, |seed, wrong| verbs_alone(EXACT, seed, wrong));
    }
}

#[test]
fn a_store_that_is_wrong_is_found_out_where_its_clock_is_coarse() {
    let wrongs = [
        Wrong::CreatesOver,
        Wrong::ClearsOneByOne,
        Wrong::IgnoresMarks,
        Wrong::IgnoresLimits,
        Wrong::EndsOneTooFew,
        Wrong::ScansTooFew,
    ];
    for wrong in wrongs {
        is_found_out(wrong, |seed, wrong| verbs_alone(REMOTE, seed, wrong));
    }
}

#[test]
fn a_store_that_is_wrong_is_found_out_through_the_module() {
    let wrongs = [
        Wrong::Upserts,
        Wrong::IgnoresVersions,
        Wrong::ForgetsOne,
        Wrong::ClearsOneByOne,
        Wrong::LoadsStale,
        Wrong::ListsTooFew,
        Wrong::TouchRevives,
        Wrong::ExpiresLate,
        Wrong::KeepsPreviousIds,
        Wrong::IgnoresMarks,
        Wrong::ScansTooFew,
    ];
    for wrong in wrongs {
        is_found_out(wrong, module_alone);
    }
}

fn is_found_out(wrong: Wrong, history: impl Fn(u64, Option<Wrong>) -> Option<String>) {
    let found = (1..=10_000).find_map(|seed| Some((seed, history(seed, Some(wrong))?)));
    let (seed, complaint) = found.unwrap_or_else(|| panic!("{wrong:?} was not found out"));
    println!("{wrong:?}, seed {seed}: {complaint}");
}
