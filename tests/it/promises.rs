//! The promises of the guide, compared with the tests that prove them and with the commands in the README.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

/// A function named `p07_…` proves promise 7: each promise has one, and none proves a promise that is not made.
#[test]
fn each_promise_has_a_test_and_each_test_a_promise() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let promises = promises(&read("src/guide/promises.md"));
    assert!(promises.iter().copied().eq(1..=promises.len()), "the promises are numbered {promises:?}");
    let mut tests = BTreeMap::new();
    for folder in ["src", "tests/it", "examples"] {
        collect(&root.join(folder), &mut tests);
    }
    for number in &promises {
        assert!(tests.contains_key(number), "promise {number} has no test: name one `p{number:02}_…`");
    }
    for (number, names) in &tests {
        assert!(promises.contains(number), "there is no promise {number}, which {names:?} name");
    }
}

#[test]
fn each_promise_is_run_by_one_command_of_the_readme() {
    let promises = promises(&read("src/guide/promises.md"));
    let mut run = filters(&read("README.md"));
    run.sort_unstable();
    assert_eq!(run, promises);
}

/// A file of the package.
fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The numbers of the list of promises.
fn promises(text: &str) -> Vec<usize> {
    text.lines().filter_map(|line| line.split_once(". **")?.0.parse().ok()).collect()
}

/// The numbers of the promises whose tests the commands in the text run: `p07 p08` as 7 and 8.
fn filters(text: &str) -> Vec<usize> {
    let commands = text.lines().filter_map(|line| line.split_once("cargo test --all-features -- "));
    let words = commands.flat_map(|(_, filters)| filters.split_whitespace());
    words.filter_map(|word| word.strip_prefix('p')?.trim_end_matches('`').parse().ok()).collect()
}

/// Adds the tests of all Rust files in that folder.
fn collect(folder: &Path, tests: &mut BTreeMap<usize, BTreeSet<String>>) {
    for entry in fs::read_dir(folder).expect("the folder is there") {
        let path = entry.expect("its entries can be read").path();
        if path.is_dir() {
            collect(&path, tests);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).expect("it is a text");
            for name in tested(&text) {
                if let Some(number) = number(&name) {
                    tests.entry(number).or_default().insert(name);
                }
            }
        }
    }
}

/// The functions of a file that are tests: by their attribute, or by a list of those that run on every store.
fn tested(text: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let (mut is_list, mut is_test) = (false, false);
    for line in text.lines().map(str::trim) {
        is_list = line.starts_with("on_every_")
            || line.starts_with("crate::on_every_")
            || (is_list && !line.starts_with(['}', ')']));
        is_test |= line.starts_with("#[test]") || line.starts_with("#[tokio::test");
        if is_list {
            names.extend(line.strip_suffix(',').map(str::to_owned));
        } else if let Some((_, signature)) = line.split_once("fn ") {
            let name = signature.split('(').next().unwrap_or_default();
            names.extend(std::mem::take(&mut is_test).then(|| name.to_owned()));
        }
    }
    names
}

/// `p07_a_login_ends_the_id_before_it` as 7.
fn number(name: &str) -> Option<usize> {
    let (digits, _) = name.strip_prefix('p')?.split_once('_')?;
    (digits.len() == 2).then(|| digits.parse().ok())?
}

#[test]
fn a_test_is_what_has_the_attribute_or_is_listed() {
    let text = "
        on_every_store! {
            one,
            two,
        }
        async fn one(store: Store) {}
        fn no_test() {}
        #[tokio::test(start_paused = true)]
        async fn three() {}
        crate::on_every_redis!(
            four,
        );
        fn another() {}
        #[test]
        fn five() {}
    ";
    let names: Vec<_> = tested(text).into_iter().collect();
    assert_eq!(names, ["five", "four", "one", "three", "two"]);
    assert_eq!(["p07_a_login", "p7_a_login", "page_7", "p007_a"].map(number), [Some(7), None, None, None]);
    assert_eq!(promises("First.\n\n1. **A.** b\n   2. c\n2. **D.** e\n\n# More\n\n* **F.** g"), [1, 2]);
    assert_eq!(filters("p01\n`cargo test --all-features -- p02 p13`\ncargo test --all-features p03"), [2, 13]);
}
