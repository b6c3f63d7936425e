//! The claims of `Cargo.toml`: the minimum Rust version, and the contents of the package.

use std::{
    collections::{BTreeSet, HashMap},
    path::Path,
    process::Command,
};

use serde_json::Value;

/// The minimum Rust version is the highest one that a dependency asks for, itself included on every platform and with every
/// feature; that of our own code is clippy's to check. Dependencies of tests and examples do not count.
#[test]
fn no_dependency_needs_a_newer_rust_than_the_manifest_says() {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--locked", "--all-features"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("cargo writes JSON");

    let packages = by_id(&metadata["packages"]);
    let nodes = by_id(&metadata["resolve"]["nodes"]);
    let root = metadata["resolve"]["root"].as_str().expect("this is a package");
    let ours = rust_version(packages[root]).expect("the manifest has a rust-version");

    let mut wanted = vec![root];
    let mut seen = wanted.clone();
    while let Some(id) = wanted.pop() {
        let package = packages[id];
        let theirs = rust_version(package);
        assert!(theirs.is_none_or(|theirs| theirs <= ours), "{id} needs Rust {}", package["rust_version"]);
        for dependency in array(&nodes[id]["deps"]) {
            let id = dependency["pkg"].as_str().expect("an ID");
            let is_normal = array(&dependency["dep_kinds"]).iter().any(|kind| kind["kind"] != "dev");
            if is_normal && !seen.contains(&id) {
                seen.push(id);
                wanted.push(id);
            }
        }
    }
    assert!(seen.len() > 10, "the walk saw only {seen:?}");
}

fn by_id(list: &Value) -> HashMap<&str, &Value> {
    array(list).iter().map(|item| (item["id"].as_str().expect("an ID"), item)).collect()
}

fn array(value: &Value) -> &Vec<Value> {
    value.as_array().expect("a list")
}

/// `1.89` and `1.89.0` as (1, 89).
fn rust_version(package: &Value) -> Option<(u32, u32)> {
    let mut numbers = package["rust_version"].as_str()?.split('.').map(|n| n.parse().expect("a number"));
    Some((numbers.next()?, numbers.next().unwrap_or(0)))
}

#[test]
fn links_and_pictures_lead_to_files_of_the_package() {
    let output = Command::new(env!("CARGO"))
        .args(["package", "--list", "--allow-dirty", "--offline"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let list = String::from_utf8(output.stdout).expect("paths are text");
    let packaged: BTreeSet<&Path> = list.lines().map(Path::new).collect();
    for page in ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "examples/README.md"].map(Path::new) {
        let text =
            std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(page)).expect("the page is there");
        for link in links(&text) {
            let target = page.parent().expect("a folder").join(link);
            // A link to a folder shows what is in it.
            assert!(packaged.iter().any(|file| file.starts_with(&target)), "{} links to {link}", page.display());
        }
    }
}

/// The targets of the links in some Markdown that are neither addresses, nor Rust items, nor parts of the same page.
fn links(text: &str) -> impl Iterator<Item = &str> {
    let targets = text.split("](").skip(1).filter_map(|rest| Some(rest.split_once(')')?.0));
    targets.filter(|target| !target.starts_with('#') && !target.contains(':'))
}

#[test]
fn only_links_to_files_are_followed() {
    let text = "[a](b/c.md) ![d](e.webp), [f](https://example.com) [g](#h) [`i`](Self::i)";
    assert_eq!(links(text).collect::<Vec<_>>(), ["b/c.md", "e.webp"]);
}
