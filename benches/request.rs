//! The cost of a session per request, in process with memory stores, compared with bare axum, a layer that does nothing, and
//! tower-sessions. All stacks take turns in the same run.
//!
//! ```sh
//! cargo run --release --manifest-path benches/Cargo.toml --bin request
//! ```
//!
//! It prints nanoseconds and allocations, and instructions if callgrind is installed. `--guard` counts only the instructions of
//! jam-session, and fails if they exceed the count in `benches/instructions.txt` by 15 %. `--write` rewrites that file.

use std::{
    env,
    hint::black_box,
    process::{Command, ExitCode},
    time::{Duration, Instant},
};

use axum::{Router, extract::Request};

use crate::{
    guard::Guard,
    stacks::{BARE, COUNTED, Client, FLOOR, OURS, SCENARIOS, THEIRS, call},
};

mod guard;
mod stacks;

/// The number of stacks.
const STACKS: usize = THEIRS + 1;
/// Requests per round, and the number of rounds.
const REQUESTS: usize = 2_000;
const ROUNDS: usize = 25;
fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let _entered = runtime.enter();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => compare(),
        ["--count", stack, scenario] => {
            count(stack.parse().expect("a number"), scenario.parse().expect("a number"));
            ExitCode::SUCCESS
        }
        ["--guard"] => guard().check(),
        ["--write"] => guard().write(),
        _ => {
            eprintln!("usage: request [--guard | --write]");
            ExitCode::FAILURE
        }
    }
}

fn compare() -> ExitCode {
    let callgrind = Command::new("valgrind").arg("--version").output().is_ok();
    println!(
        "added to the floor, a layer that inserts an Arc (nanoseconds, allocations{}):\n",
        if callgrind { ", instructions" } else { "" }
    );
    println!("| | jam-session | tower-sessions | ratio of the times |\n|---|---|---|---|");
    for (scenario, (name, ..)) in SCENARIOS.iter().enumerate() {
        let times = times(scenario);
        let added = |stack: usize| times[stack] - times[FLOOR];
        let allocations = |stack| allocations(stack, scenario) - allocations(FLOOR, scenario);
        let instructions =
            |stack| callgrind.then(|| format!(", {}", instructions(stack, scenario) - instructions(FLOOR, scenario)));
        let cell = |stack| {
            format!("{:.0} ns, {}{}", added(stack), allocations(stack), instructions(stack).unwrap_or_default())
        };
        println!("| {name} | {} | {} | {:.2} |", cell(OURS), cell(THEIRS), added(OURS) / added(THEIRS));
    }
    let times = times(0);
    println!(
        "\nbare axum: {:.0} ns, {} allocations; the floor above it: {:.0} ns, {} allocations",
        times[BARE],
        allocations(BARE, 0),
        times[FLOOR] - times[BARE],
        allocations(FLOOR, 0) - allocations(BARE, 0)
    );
    ExitCode::SUCCESS
}

/// The guard for the instructions of our six scenarios, above the layer that does nothing.
fn guard() -> Guard<'static> {
    let names = SCENARIOS.iter().map(|(name, ..)| *name).collect();
    let count = &|scenario| instructions(OURS, scenario) - instructions(FLOOR, scenario);
    Guard { file: "instructions.txt", head: HEAD, names, count }
}

const HEAD: &str = "\
# Instructions per request of jam-session on memory, in addition to a layer that inserts an Arc. `.ci/run` fails if a count
# rises by 15 %; a part of that margin is for other versions of Rust and of the dependencies. If a cost has risen for a good
# reason, or has fallen and should not rise again, run
#
#   cargo run --release --manifest-path benches/Cargo.toml --bin request -- --write
#
# and give the reason in the commit.
";

/// Nanoseconds per request of each stack: the fastest of many rounds, in which the stacks take turns.
fn times(scenario: usize) -> [f64; STACKS] {
    let mut best = [Duration::MAX; STACKS];
    let mut clients: Vec<Client> = (0..STACKS).map(|stack| Client::new(stack, scenario)).collect();
    for _ in 0..ROUNDS {
        for (client, best) in clients.iter_mut().zip(&mut best) {
            let requests: Vec<Request> = (0..REQUESTS).map(|_| client.request()).collect();
            let began = Instant::now();
            for request in requests {
                measured(&mut client.router, request);
            }
            *best = (*best).min(began.elapsed());
        }
    }
    best.map(|best| best.as_nanos() as f64 / REQUESTS as f64)
}

/// Allocations per request. A separate program counts them, because counting costs instructions.
fn allocations(stack: usize, scenario: usize) -> i64 {
    let program = env::current_exe().expect("this program").with_file_name("allocations");
    let output = Command::new(program).args([stack.to_string(), scenario.to_string()]).output();
    let output = output.expect("`cargo build --release --bins` built it").stdout;
    String::from_utf8_lossy(&output).trim().parse().expect("a number")
}

/// Instructions per request.
fn instructions(stack: usize, scenario: usize) -> i64 {
    guard::instructions(&["--count", &stack.to_string(), &scenario.to_string()]) / COUNTED as i64
}

fn count(stack: usize, scenario: usize) {
    let mut client = Client::new(stack, scenario);
    for _ in 0..COUNTED {
        let request = client.request();
        call(&mut client.router, request);
    }
    for _ in 0..COUNTED {
        let request = client.request();
        measured(&mut client.router, request);
    }
}

/// Callgrind finds the code to count by the name of this function.
#[inline(never)]
fn measured(router: &mut Router, request: Request) {
    black_box(call(router, request));
}
