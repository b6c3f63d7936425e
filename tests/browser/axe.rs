//! Accessibility checks of a page by axe-core, which `tests/run` downloads.

use std::{env, fs};

use crate::browser::Browser;

/// The version that `tests/run` fetches, and checks against its hash.
const VERSION: &str = "4.14.1";

/// Its source; `None` where it was not fetched, which in CI fails.
pub fn source() -> Option<String> {
    let tests = env::current_exe().unwrap();
    let path = tests.ancestors().nth(3).unwrap().join(format!("axe-core-{VERSION}/package/axe.min.js"));
    let source = fs::read_to_string(&path).ok();
    if source.is_none() {
        assert!(env::var_os("CI").is_none(), "{} is missing: tests/run fetches it", path.display());
        eprintln!("skipped: {} is missing: tests/run fetches it", path.display());
    }
    source
}

/// That a page has none of the faults that a machine can find, on a wide and on a narrow screen, in light and in dark.
#[track_caller]
pub fn check_accessibility(browser: &Browser, axe: &str) {
    browser.run(&format!("{axe}; return null"));
    for (width, dark) in [(1280, false), (1280, true), (360, false), (320, true)] {
        browser.resize(width, 800);
        browser.dark(dark);
        let found = browser.run_and_wait(
            "const done = arguments[arguments.length - 1]; \
             axe.run({resultTypes: ['violations', 'incomplete']}).then(({violations, incomplete, passes}) => \
               done([...violations, ...incomplete].flatMap(rule => rule.nodes.map(node => `${rule.id}: ${node.html}: \
               ${node.failureSummary}`)).concat(passes.length > 10 ? [] : ['hardly anything was checked'])), \
               error => done([String(error)]))",
        );
        let found: Vec<&str> = found.as_array().unwrap().iter().map(|fault| fault.as_str().unwrap()).collect();
        assert!(found.is_empty(), "{} at {width} px, dark: {dark}:\n{}", browser.path(), found.join("\n"));
        let overflow = browser.run("return document.documentElement.scrollWidth - innerWidth");
        assert!(overflow.as_i64().unwrap() <= 0, "{} is wider than {width} px by {overflow}", browser.path());
    }
    browser.resize(1280, 900);
    browser.dark(false);
}
