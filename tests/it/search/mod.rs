//! A model checker on the real code: searches for an order of requests that breaks promises 4 to 8.
//!
//! Each request goes through its own layer and its own `Sessions`, over one memory store that lets one call pass at a time. A
//! move either sends a request or lets its waiting call happen. The response is sent with the last call. "The ten seconds are
//! over" is also a move.
//!
//! Every pair of requests is run in every order of the moves. Each run starts from the beginning and makes another choice at
//! the last position that has one. Orders that only swap indistinguishable steps are skipped. `check.rs` has the checks, and
//! `acts.rs` what the requests do.
//!
//! Lost answers, failing stores, dying processes, disconnecting clients and three requests at once are tried at random: from
//! fixed seeds, or with `SESSION_TEST_LONG` from new ones, as for the histories.
//!
//! The search does not cover a clear while a login's age is on its way to the store, several clocks, damaged records, the limits
//! on cookies and secrets, and two windows of ten seconds.

mod acts;
mod check;
mod explore;
mod menu;
mod start;
mod store;
mod world;

use std::sync::LazyLock;

use jam_session::Limit;

use self::{
    acts::{Act, Who},
    explore::{Found, all_orders, one_order, story},
    menu::{menu, rare, under_a_limit},
    start::Start,
    store::{Fault, Wrong},
    world::Case,
};
use crate::{histories::Seeds, random::Random};

static SIGNED_IN: LazyLock<Start> = LazyLock::new(|| Start::new("signed in"));
static VISITOR: LazyLock<Start> = LazyLock::new(|| Start::new("visitor"));
static EMPTY: LazyLock<Start> = LazyLock::new(|| Start::new("empty"));
static TWO_OF_ONE: LazyLock<Start> = LazyLock::new(|| Start::new("two of one user"));
static TWO_USERS: LazyLock<Start> = LazyLock::new(|| Start::new("two users"));
static TWO_VISITORS: LazyLock<Start> = LazyLock::new(|| Start::new("two visitors"));
static USER_AND_VISITOR: LazyLock<Start> = LazyLock::new(|| Start::new("user and visitor"));
static ANOTHER_KEY: LazyLock<Start> = LazyLock::new(|| Start::new("another key"));

#[test]
fn every_order_of_two_requests_of_a_user_keeps_the_promises() {
    every_pair(&SIGNED_IN, |one, two| one != Who::M && two != Who::M);
}

#[test]
fn every_order_of_a_request_and_a_thiefs_keeps_the_promises() {
    every_pair(&SIGNED_IN, |one, two| one != two && (one == Who::M || two == Who::M));
}

#[test]
fn every_order_of_two_requests_of_a_visitor_keeps_the_promises() {
    every_pair(&VISITOR, |_, _| true);
    every_pair(&EMPTY, |_, _| true);
}

#[test]
fn every_order_of_two_requests_with_two_cookies_keeps_the_promises() {
    for start in [&TWO_OF_ONE, &TWO_USERS, &TWO_VISITORS, &USER_AND_VISITOR] {
        every_pair(start, |_, _| true);
    }
}

/// A was signed in by a process that has another key.
#[test]
fn every_order_of_two_requests_beside_a_cookie_of_another_key_keeps_the_promises() {
    every_pair(&ANOTHER_KEY, |_, _| true);
}

#[test]
fn every_order_of_a_login_under_a_limit_and_another_request_keeps_the_promises() {
    for start in [&SIGNED_IN, &VISITOR, &EMPTY] {
        let ([limited, others], mut runs) = (under_a_limit(start), 0);
        for limit in [Limit::from(1), Limit::from(2), Limit::refuse(1), Limit::refuse(2)] {
            for (at, one) in limited.iter().enumerate() {
                for two in limited[at..].iter().chain(&others) {
                    let case = Case { limit, ..case(start, &[*one, *two]) };
                    let found = all_orders(&case);
                    runs += found.runs;
                    breaks_nothing(&case, found, None);
                }
            }
        }
        println!("{} under a limit: {runs} orders", start.name);
    }
}

#[test]
fn lost_answers_and_lost_clients_break_no_promise() {
    for seed in Seeds::new(4000, 100) {
        let mut rng = Random(seed);
        let mut case = by_chance(&mut rng, 2);
        let drops = rng.one_in(3);
        if !drops {
            let fault = *rng.one(&[Fault::Before, Fault::After, Fault::After, Fault::Crash]).unwrap();
            case.fault = Some((rng.below(2), rng.below(5), fault));
        }
        case.tries_again = rng.one_in(2);
        breaks_nothing(&case, one_order(&case, &mut rng, drops), Some(seed));
    }
}

#[test]
fn three_requests_in_any_order_keep_the_promises() {
    for seed in Seeds::new(4000, 100) {
        let mut rng = Random(seed);
        let case = by_chance(&mut rng, 3);
        breaks_nothing(&case, one_order(&case, &mut rng, false), Some(seed));
    }
}

#[test]
fn a_store_or_a_handler_that_is_wrong_is_found_out() {
    use Act::{
        Bind, Clear, Delete, DeleteAndForget, FormBind, KeptLogin, LateLogin, Others, OthersLogin, Revoke, Write,
    };
    use Who::{A, B, E, M};
    let finds = |wrong: Wrong, requests: &[(Who, Act)], promise: &str| {
        is_found_out(&Case { wrong: Some(wrong), ..case(&SIGNED_IN, requests) }, promise);
    };
    finds(Wrong::ClearsByAnyVersion, &[(A, Others), (M, Clear)], "P8");
    finds(Wrong::ClearsByNothing, &[(M, Clear), (E, Revoke)], "P8");
    finds(Wrong::ClearKeepsNothing, &[(A, Others)], "P10");
    finds(Wrong::ClearForgetsOne, &[(A, Clear)], "P8");
    finds(Wrong::CreatesLate, &[(M, FormBind), (A, OthersLogin)], "P4");
    finds(Wrong::IgnoresVersions, &[(A, Write), (A, Write)], "P5");
    finds(Wrong::Upserts, &[(A, Delete), (M, Bind)], "P4");
    finds(Wrong::EndsNothing, &[(A, Delete)], "P8");
    finds(Wrong::IgnoresMarks, &[(M, KeptLogin), (A, OthersLogin)], "P4");
    let limited = |wrong: Wrong, limit: Limit, requests: &[(Who, Act)]| {
        is_found_out(&Case { limit, wrong: Some(wrong), ..case(&SIGNED_IN, requests) }, "P20");
    };
    limited(Wrong::LeavesOneMore, Limit::from(2), &[(M, FormBind), (E, Revoke)]);
    limited(Wrong::LeavesOneMore, Limit::refuse(2), &[(M, FormBind), (E, Revoke)]);
    limited(Wrong::LeavesOneLess, Limit::from(2), &[(M, FormBind)]);
    limited(Wrong::LeavesOneLess, Limit::refuse(3), &[(M, FormBind)]);
    limited(Wrong::EndsTheLatest, Limit::from(2), &[(A, Write), (M, FormBind)]);
    is_found_out(&case(&SIGNED_IN, &[(M, LateLogin), (B, OthersLogin)]), "P4");
    is_found_out(&case(&SIGNED_IN, &[(A, DeleteAndForget)]), "P8");
}

fn case(start: &'static Start, requests: &[(Who, Act)]) -> Case {
    let (requests, limit) = (requests.to_vec(), Limit::None);
    Case { start, requests, wrong: None, fault: None, tries_again: false, limit, jumps: 1 }
}

fn every_pair(start: &'static Start, wanted: impl Fn(Who, Who) -> bool) {
    let (menu, mut runs) = (menu(start), 0);
    for (at, one) in menu.iter().enumerate() {
        for two in menu[at..].iter().filter(|two| wanted(one.0, two.0) && (one.0, two.0) != (Who::E, Who::E)) {
            let case = case(start, &[*one, *two]);
            let found = all_orders(&case);
            runs += found.runs;
            breaks_nothing(&case, found, None);
        }
    }
    println!("{}: {runs} orders", start.name);
    assert!(runs > menu.len() as u64);
}

fn by_chance(rng: &mut Random, requests: usize) -> Case {
    let starts: [&'static Start; 9] = [
        &SIGNED_IN,
        &SIGNED_IN,
        &VISITOR,
        &EMPTY,
        &TWO_OF_ONE,
        &TWO_USERS,
        &TWO_VISITORS,
        &USER_AND_VISITOR,
        &ANOTHER_KEY,
    ];
    let start = rng.one(&starts).unwrap();
    let menu = [&*menu(start), rare(start)].concat();
    let requests: Vec<_> = (0..requests).map(|_| *rng.one(&menu).unwrap()).collect();
    let limits = [Limit::None, Limit::None, Limit::from(1), Limit::from(2), Limit::refuse(2)];
    Case { jumps: rng.below(3), limit: *rng.one(&limits).unwrap(), ..case(start, &requests) }
}

#[track_caller]
fn breaks_nothing(case: &Case, found: Found, seed: Option<u64>) {
    let shortest = found.wrongs.into_iter().min_by_key(|(_, moves)| moves.len());
    if let Some((wrong, moves)) = shortest {
        let seed = seed.map_or_else(String::new, |seed| format!("seed {seed}: "));
        panic!("{seed}{wrong}\n{}", story(case, &moves));
    }
}

#[track_caller]
fn is_found_out(case: &Case, promise: &str) {
    let found = all_orders(case);
    let shortest =
        found.wrongs.iter().filter(|(wrong, _)| wrong.starts_with(promise)).min_by_key(|found| found.1.len());
    let Some((wrong, moves)) = shortest else {
        panic!("{:?} was not found out in {} orders: {:?}", case.wrong, found.runs, found.wrongs)
    };
    println!("{:?}: {wrong}\n{}", case.wrong, story(case, moves));
}
