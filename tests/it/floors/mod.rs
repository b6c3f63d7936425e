//! The architecture: which part of the crate may use which other part.
//!
//! A request enters at the top, and dependencies point down:
//!
//! ```text
//! http  →  session  →  sessions  →  backend  →  record  →  error, clock, random, timeout, …
//!                      ↑            ↑
//!                      stores       conformance
//! ```
//!
//! The test reads the sources, and follows every path that begins with `crate`, `self`, `super` or the name of a child module,
//! and the calls `self.method()` and `Self::method` of methods that another file defines for the same type. It fails on a
//! dependency that is not listed here, on a cycle between files, and on a path that reaches an item through another module than
//! the one that defines it, because such a path hides the dependency.
//!
//! Two more rules keep it readable: a type name stands for one thing, and no file is long.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fs,
    path::Path,
};

use self::paths::{Module, Parsed, module, tokens_of};

mod methods;
mod paths;

/// What each folder may use besides itself and the [`GROUND`].
const FLOORS: [(&str, &[&str]); 11] = [
    // Requests, responses and cookies.
    ("http", &["session", "sessions", "backend", "record"]),
    // What a handler holds.
    ("session", &["sessions", "backend", "record"]),
    // Sessions without HTTP.
    ("sessions", &["backend", "record"]),
    // The contract of a store.
    ("backend", &["record"]),
    // What is stored.
    ("record", &[]),
    // The stores stand beside each other; those in this process remember clears and endings in the same way.
    ("stores/recent", &["backend", "record"]),
    ("stores/cursor", &["backend", "record"]),
    ("stores/memory", &["stores/recent", "stores/cursor", "sessions", "backend", "record"]),
    ("stores/json", &["stores/recent", "stores/cursor", "sessions", "backend", "record"]),
    ("stores/redis", &["sessions", "backend", "record"]),
    // The contract as tests.
    ("conformance", &["backend", "record"]),
];

/// The files that every floor may use.
const GROUND: [&str; 7] = ["error", "events", "log", "clock", "random", "timeout", "detached"];

/// The files that only declare modules and publish items.
const INDEXES: [&str; 3] = ["lib", "stores", "guide"];

/// The arrows that go elsewhere all the same, as a file and the module that it uses.
const EXCEPTIONS: [(&str, &str); 2] = [
    // `ErrorKind::status()`: the one place outside `http` that knows the crate `http`.
    ("error.rs", "::http"),
    // `Subject::of(Sessions)`.
    ("conformance/subject.rs", "sessions"),
];

/// The circles that are allowed: a product and its builder.
const PAIRS: [(&str, &str); 1] = [("sessions/mod.rs", "sessions/builder.rs")];

/// The most lines in a file of the crate, with its docs and without its tests.
const MAX_LINES: usize = 450;

#[test]
fn a_type_name_stands_for_one_thing_and_no_file_is_long() {
    let (mut defined, mut faults) = (BTreeMap::new(), Vec::new());
    let sources = crate_sources();
    for (file, source) in &sources {
        let code = if is_of_tests(file, &sources) { "" } else { without_tests(source) };
        let lines = code.lines().count();
        if lines > MAX_LINES {
            faults.push(format!("{file} has {lines} lines"));
        }
        for name in types(code) {
            if let Some(other) = defined.insert(name.to_owned(), file.clone()) {
                faults.push(format!("{name} is defined in {other} and in {file}"));
            }
        }
    }
    assert!(defined.len() > 200, "only {} types were found", defined.len());
    assert!(faults.is_empty(), "\n{}\n", faults.join("\n"));
}

#[test]
fn types_are_found_however_they_are_written() {
    let names = ["struct A;", "pub struct B<T>(T);", "pub(in crate::http) enum C {", "trait D: E {", "type F = G;"];
    assert!(names.iter().map(|line| type_name(line)).eq(["A", "B", "C", "D", "F"].map(Some)));
    assert!(
        ["    type Error = E;", "impl A {", "// struct A;", "fn structure() {"]
            .iter()
            .all(|line| type_name(line).is_none())
    );
    assert!(types("pin_project! {\n    enum A {\n    }\n}\nfn f() {\n    struct B;\n}\nstruct C;\n").eq(["A", "C"]));
    let code = "struct A;\n\n// A.\n#[cfg(test)]\nfn sample() {}\n#[cfg(test)]\nmod tests {\n}\n";
    assert_eq!(without_tests(code).lines().count(), 5);
    let file = |file: &str, source: &str| (file.to_owned(), source.to_owned());
    let files =
        [file("a/mod.rs", "mod b;\n#[cfg(test)]\nmod tests;\n"), file("lib.rs", "mod a;\n#[cfg(test)]\nmod c;\n")];
    assert!(["a/tests.rs", "c.rs", "c/mod.rs"].iter().all(|file| is_of_tests(file, &files)));
    assert!(["a/b.rs", "a/mod.rs", "lib.rs"].iter().all(|file| !is_of_tests(file, &files)));
}

/// Returns whether a file is declared for tests only.
fn is_of_tests(file: &str, sources: &[(String, String)]) -> bool {
    let name = file.strip_suffix("/mod.rs").or(file.strip_suffix(".rs")).unwrap_or(file);
    let (parent, name) = match name.rsplit_once('/') {
        Some((folder, name)) => (format!("{folder}/mod.rs"), name),
        None => ("lib.rs".to_owned(), name),
    };
    let declares = format!("#[cfg(test)]\nmod {name};\n");
    sources.iter().any(|(other, source)| *other == parent && source.contains(&declares))
}

/// The lines of a file before its tests.
fn without_tests(source: &str) -> &str {
    let tests = ["#[cfg(test)]\nmod tests {", "#[cfg(test)]\npub(crate) mod tests {"];
    let at = tests.iter().find_map(|tests| source.find(tests));
    &source[..at.unwrap_or(source.len())]
}

/// The types that a file defines at its top level, or in a `pin_project!`.
fn types(code: &str) -> impl Iterator<Item = &str> {
    let mut is_pinned = false;
    code.lines().filter_map(move |line| {
        is_pinned = line == "pin_project! {" || is_pinned && line != "}";
        type_name(if is_pinned { line.strip_prefix("    ").unwrap_or(line) } else { line })
    })
}

/// The type that a line at the top level defines, if it does.
fn type_name(line: &str) -> Option<&str> {
    let line = match line.strip_prefix("pub") {
        Some(rest) if rest.starts_with('(') => rest.split_once(") ")?.1,
        Some(rest) => rest.strip_prefix(' ')?,
        None => line,
    };
    let name = ["struct ", "enum ", "trait ", "type "].iter().find_map(|keyword| line.strip_prefix(keyword))?;
    name.split(|c: char| !c.is_alphanumeric()).next()
}

fn crate_sources() -> Vec<(String, String)> {
    let mut sources = Vec::new();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    read(&root, &root, &mut sources);
    assert!(sources.len() > 40, "only {} files were found", sources.len());
    sources
}

#[test]
fn arrows_between_files_go_down_and_not_in_circles() {
    let sources = crate_sources();
    let sources: Vec<_> = sources.iter().map(|(file, source)| (&**file, &**source)).collect();
    let faults = faults(&sources);
    assert!(faults.is_empty(), "\n{}\n", faults.join("\n"));
    let calls = calls(&sources).len();
    assert!(calls > 30, "only {calls} calls of methods in other files were found");
}

/// Asserts that exactly these faults are found in these files.
#[track_caller]
fn check(sources: &[(&str, &str)], expected: &[&str]) {
    assert_eq!(faults(sources), expected);
}

#[test]
fn arrows_that_go_down_are_no_fault() {
    check(
        &[
            ("lib.rs", "mod http; mod session; pub use self::{http::layer::Layer, session::Session};"),
            ("http/mod.rs", "pub(crate) mod layer; pub(crate) mod service;"),
            ("http/layer.rs", "use crate::{http::service::Service, record::{self, Record}, session::Session};"),
            ("http/service.rs", "use http::Request; use crate::error::Error; pub(in crate::http) struct Service;"),
            ("session/mod.rs", "mod change; use self::change::Change; use crate::sessions::Sessions;"),
            ("session/change.rs", "fn f() -> crate::record::Record { super::super::error::f() }"),
            ("sessions.rs", "use crate::backend::Backend;"),
            ("backend.rs", "use crate::{error::Error, record::Record};"),
            ("record.rs", "mod tests { use super::*; use crate::random; }"),
            ("stores/mod.rs", "mod json; pub use json::JsonSessions;"),
            ("stores/json/mod.rs", "use crate::{backend::Backend, record::Record, sessions::Sessions};"),
            ("error.rs", "fn status() -> http::StatusCode { http::StatusCode::OK }"),
            ("random.rs", "use crate::error::Error;"),
        ],
        &[],
    );
}

#[test]
fn an_arrow_that_goes_up_is_found_however_it_is_written() {
    for source in [
        "use crate::session::Session;",
        "use crate::{error::Error, session::{Session}};",
        "pub(crate) use crate::{error, session::Session as Other};",
        "use crate::session::*;",
        "use super::session::Session;",
        "use {std::fmt, crate::session::Session};",
        "fn f() { let x = crate::session::Session::new(); }",
        "fn f<'a>(x: &'a crate::session::Session) {}",
        "impl From<crate::session::Session> for u8 {}",
        "mod tests { fn f() { super::super::session::Session::new(); } }",
        "mod tests { use super::super::session::Session; }",
        "macro_rules! new { () => { $crate::session::Session::new() } }",
        "fn f() { assert!(matches!(x, Some(crate::session::Session { .. }))); }",
        "#[derive(Debug)] #[cfg(test)] pub(super) use crate::session::Session;",
        "fn f() -> impl Sized + use<'a> { crate::session::Session }",
    ] {
        let found = faults(&[("record.rs", source), ("session.rs", ""), ("lib.rs", "")]);
        let [fault] = &found[..] else { panic!("{source}: {found:?}") };
        assert!(fault.starts_with("record.rs uses crate::session"), "{source}: {fault}");
        assert!(fault.ends_with(", of session.rs, which is not below it"), "{source}: {fault}");
    }
}

#[test]
fn what_is_not_code_is_no_arrow() {
    let source = r##"
        //! See [`Session`](crate::session::Session).
        /// As crate::session::Session.
        // use crate::session::Session;
        /* /* */ use crate::session::Session; */
        const TEXT: (&str, &str, char) = ("crate::session::Session", r#"use crate::session::Session;"#, '"');
    "##;
    check(&[("record.rs", source), ("session.rs", ""), ("lib.rs", "")], &[]);
}

#[test]
fn stores_do_not_use_each_other_nor_does_anybody_use_them() {
    check(
        &[
            ("conformance/mod.rs", "use crate::sessions::Sessions;"),
            ("record.rs", "use crate::utils::Any;"),
            ("session.rs", "use crate::stores::redis::RedisSessions;"),
            ("sessions.rs", ""),
            ("stores/json/mod.rs", "use super::memory::bounds::Bounds;"),
            ("stores/memory/bounds.rs", ""),
            ("stores/redis/mod.rs", "use crate::stores::Store;"),
            ("stores/mod.rs", ""),
            ("utils.rs", ""),
        ],
        &[
            "conformance/mod.rs uses crate::sessions::Sessions, of sessions.rs, which is not below it",
            "record.rs uses crate::utils::Any, of utils.rs, which is not below it",
            "session.rs uses crate::stores::redis::RedisSessions, of stores/redis/mod.rs, which is not below it",
            "stores/json/mod.rs uses crate::stores::memory::bounds::Bounds, of stores/memory/bounds.rs, which is not \
             below it",
            "stores/redis/mod.rs uses crate::stores::Store, of stores/mod.rs, which is not below it",
        ],
    );
}

#[test]
fn a_circle_is_found_unless_it_is_of_a_pair() {
    check(
        &[
            ("session/mod.rs", "mod change; mod commit; mod pending; use commit::Commit;"),
            ("session/change.rs", "use crate::session::commit::Commit;"),
            ("session/commit.rs", "use super::pending;"),
            ("session/pending.rs", "fn f() { crate::session::change::f() }"),
            ("sessions/mod.rs", "use crate::sessions::builder::Builder;"),
            ("sessions/builder.rs", "use super::{Sessions, policy::Policy};"),
            ("sessions/policy.rs", "mod tests { use crate::sessions::Sessions; }"),
        ],
        &["a circle: session/change.rs → session/commit.rs → session/pending.rs → session/change.rs"],
    );
    // Both files of a pair count as one.
    check(
        &[
            ("sessions/mod.rs", "use crate::sessions::builder::Builder;"),
            ("sessions/builder.rs", "use super::{Sessions, policy::Policy};"),
            ("sessions/policy.rs", "use super::Sessions;"),
        ],
        &["a circle: sessions/mod.rs → sessions/policy.rs → sessions/mod.rs"],
    );
}

#[test]
fn a_circle_of_methods_is_found() {
    let engine = "impl<B: Backend> Engine<B> {\n    pub(super) fn new() -> Self {\n        Self::default()\n    }\n}\n";
    let writes = "impl<B> Engine<B> {\n    async fn write(&self) {\n        self\n            .end();\n        self.new();\n    }\n}\n";
    let ends = "impl<F: Fn() -> B, B> Engine<F, B>\nwhere\n    B: Backend,\n{\n    fn end(&self) {\n        Self::write(self)\n    }\n}\n";
    check(
        &[("sessions/ends.rs", ends), ("sessions/engine.rs", engine), ("sessions/writes.rs", writes)],
        &["a circle: sessions/ends.rs → sessions/writes.rs → sessions/ends.rs"],
    );
    // Nor may it go up.
    let up = writes.replace("self\n            .end()", "values.iter().map(Self::end)");
    let found = faults(&[("record.rs", &up), ("session/ends.rs", &ends.replace("Self::write(self)", ""))]);
    assert_eq!(found, ["record.rs calls methods of session/ends.rs, which is not below it"]);
    // The methods of a trait are of that file, and so are those that only tests define or call.
    let other = "impl Debug for A {}\nimpl Backend for Engine {\n    fn end(&self) {\n        self.write()\n    }\n}\n";
    let tests = "#[cfg(test)]\nmod tests {\nimpl Engine {\n    fn end(&self) {\n        self.write()\n    }\n}\n}\n";
    for ends in [other, tests] {
        check(&[("sessions/ends.rs", ends), ("sessions/engine.rs", engine), ("sessions/writes.rs", writes)], &[]);
    }
}

#[test]
fn an_item_is_imported_from_where_it_is_defined() {
    check(
        &[
            ("lib.rs", "mod record; mod session; pub use record::{Record, id::RecordId};"),
            ("record/mod.rs", "mod id; pub use self::id::RecordId as Id; pub struct Record;"),
            ("record/id.rs", "pub struct RecordId;"),
            ("session.rs", "use crate::{RecordId, record::{Id, Record}};"),
        ],
        &[
            "session.rs uses crate::RecordId, of lib.rs, which is not below it",
            "session.rs uses crate::RecordId, which lib.rs imports from elsewhere",
            "session.rs uses crate::record::Id, which record/mod.rs imports from elsewhere",
        ],
    );
}

#[test]
fn only_http_knows_the_crate_http() {
    check(
        &[
            ("http/mod.rs", "use http::Request;"),
            ("session.rs", "use ::http::Request;"),
            ("sessions.rs", "fn f() -> http::StatusCode { todo!() }"),
        ],
        &[
            "session.rs uses http::Request, of ::http, which is not below it",
            "sessions.rs uses http::StatusCode, of ::http, which is not below it",
        ],
    );
}

#[test]
fn an_exception_that_nothing_needs_is_a_fault() {
    check(
        &[
            ("sessions/builder.rs", "use super::Sessions;"),
            ("sessions/mod.rs", "mod builder;"),
            ("conformance/subject.rs", "use crate::backend::Backend;"),
        ],
        &[
            "conformance/subject.rs needs no exception for sessions any more",
            "sessions/mod.rs and sessions/builder.rs need not be a pair any more",
        ],
    );
}

/// All Rust files below a folder, by their path from the root.
fn read(root: &Path, folder: &Path, sources: &mut Vec<(String, String)>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            read(root, &path, sources);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let name = path.strip_prefix(root).unwrap().to_str().unwrap().replace('\\', "/");
            sources.push((name, fs::read_to_string(&path).unwrap()));
        }
    }
}

/// What is wrong with these files, in sentences.
fn faults(sources: &[(&str, &str)]) -> Vec<String> {
    let files: BTreeMap<Module, &str> = sources.iter().map(|(file, _)| (module(file), *file)).collect();
    let parsed: BTreeMap<&str, Parsed> =
        sources.iter().map(|(file, source)| (*file, Parsed::of(source, &module(file)))).collect();
    let mut faults = BTreeSet::new();
    // The exceptions that are in use.
    let mut exceptions: BTreeSet<&(&str, &str)> = BTreeSet::new();
    let mut arrows: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();

    for (&from, Parsed { paths, .. }) in &parsed {
        for path in paths {
            let (to, item) = match path.resolve(&files) {
                Some((to, _)) if to == from => continue,
                // A macro that is exported is at the root, wherever it is defined.
                Some(("lib.rs", Some(item))) if !parsed["lib.rs"].imports.contains(item) => continue,
                Some(found) => found,
                None if path.is_into("http") && floor(from) != "lib" => ("::http", None),
                None => continue,
            };
            let exception = EXCEPTIONS.iter().find(|exception| **exception == (from, floor(to)));
            exceptions.extend(exception);
            if exception.is_none() && !may_use(floor(from), floor(to)) {
                faults.insert(format!("{from} uses {path}, of {to}, which is not below it"));
            }
            // What a published macro uses has to be public. A parent may publish what its child does.
            let is_public = path.is_of_a_macro || module(to).starts_with(&module(from));
            if !is_public && item.is_some_and(|item| parsed[to].imports.contains(item)) {
                faults.insert(format!("{from} uses {path}, which {to} imports from elsewhere"));
            }
            // A test beside the code may look at what is made of it.
            if !path.is_of_a_test && !INDEXES.contains(&floor(from)) {
                arrows.entry(from).or_default().insert(to);
            }
        }
    }

    for (from, to) in calls(sources) {
        if !may_use(floor(from), floor(to)) {
            faults.insert(format!("{from} calls methods of {to}, which is not below it"));
        }
        arrows.entry(from).or_default().insert(to);
    }

    for (one, other) in PAIRS.iter().filter(|pair| parsed.contains_key(pair.0)) {
        let (is_there, is_back) = (take(&mut arrows, one, other), take(&mut arrows, other, one));
        if !is_there || !is_back {
            faults.insert(format!("{one} and {other} need not be a pair any more"));
        }
        // They count as one file.
        let further = arrows.remove(other).unwrap_or_default();
        arrows.entry(one).or_default().extend(further);
        for to in arrows.values_mut() {
            if to.remove(other) {
                to.insert(one);
            }
        }
    }
    faults.extend(arrows.keys().filter_map(|from| circle(from, &arrows)));
    for exception in EXCEPTIONS.iter().filter(|exception| parsed.contains_key(exception.0)) {
        if !exceptions.contains(exception) {
            faults.insert(format!("{} needs no exception for {} any more", exception.0, exception.1));
        }
    }
    faults.into_iter().collect()
}

/// From which file to which one a type calls its own methods.
fn calls<'a>(sources: &[(&'a str, &'a str)]) -> BTreeSet<(&'a str, &'a str)> {
    methods::arrows(sources.iter().map(|(file, source)| (*file, tokens_of(source.parse().unwrap()))))
}

/// The part of a file's path that [`FLOORS`] names, or its name.
fn floor(file: &str) -> &str {
    let name = file.strip_suffix(".rs").unwrap_or(file);
    let name = name.strip_suffix("/mod").unwrap_or(name);
    let is_on = |floor: &&str| name.strip_prefix(*floor).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    FLOORS.iter().map(|(floor, _)| *floor).find(is_on).unwrap_or(name)
}

fn may_use(from: &str, to: &str) -> bool {
    let on_floor = FLOORS.iter().find(|(floor, _)| *floor == from);
    match (from, to) {
        ("http", "::http") | ("lib", _) => true,
        _ if GROUND.contains(&to) => on_floor.is_some() || GROUND.contains(&from),
        _ if INDEXES.contains(&from) => to.strip_prefix(from).is_some_and(|rest| rest.starts_with('/')),
        _ => on_floor.is_some_and(|(floor, below)| *floor == to || below.contains(&to)),
    }
}

/// Removes an arrow, and tells whether it was there.
fn take<'a>(arrows: &mut BTreeMap<&'a str, BTreeSet<&'a str>>, from: &str, to: &str) -> bool {
    arrows.get_mut(from).is_some_and(|arrows| arrows.remove(to))
}

/// The shortest way from a file back to itself, if it is the first by name of those on it.
fn circle<'a>(start: &'a str, arrows: &BTreeMap<&'a str, BTreeSet<&'a str>>) -> Option<String> {
    let mut ways = VecDeque::from([vec![start]]);
    let mut seen = BTreeSet::new();
    while let Some(way) = ways.pop_front() {
        for &next in arrows.get(way[way.len() - 1]).into_iter().flatten() {
            if next == start {
                let is_first = way.iter().all(|file| *file >= start);
                return is_first.then(|| format!("a circle: {} → {start}", way.join(" → ")));
            }
            if seen.insert(next) {
                ways.push_back(way.iter().copied().chain([next]).collect());
            }
        }
    }
    None
}
