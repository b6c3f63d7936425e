//! The promises of the README, compared with the tests that prove them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

/// A function named `p07_…` proves promise 7: each promise has one, and none proves a promise that the README does not make.
#[test]
fn each_promise_of_the_readme_has_a_test_and_each_test_a_promise() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let readme = fs::read_to_string(root.join("README.md")).expect("the README is there");
    let promises = promises(&readme);
    assert!(promises.iter().copied().eq(1..=promises.len()), "the README numbers its promises {promises:?}");
    let mut tests = BTreeMap::new();
    for folder in ["src", "tests/it", "examples"] {
        collect(&root.join(folder), &mut tests);
    }
    for number in &promises {
        assert!(tests.contains_key(number), "promise {number} of the README has no test: name one `p{number:02}_…`");
    }
    for (number, names) in &tests {
        assert!(promises.contains(number), "the README has no promise {number}, which {names:?} name");
    }
}

/// The numbers of the list of promises.
fn promises(readme: &str) -> Vec<usize> {
    let (_, list) = readme.split_once("\n## What you can rely on\n").expect("the README says what one can rely on");
    let list = list.split("\n## ").next().unwrap_or_default();
    list.lines().filter_map(|line| line.split_once(". **")?.0.parse().ok()).collect()
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
    assert_eq!(
        promises("\n## What you can rely on\n\n1. **A.** b\n   2. c\n2. **D.** e\n\n## More\n3. **F.** g"),
        [1, 2]
    );
}
