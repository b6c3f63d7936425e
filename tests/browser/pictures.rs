//! Screenshots: checks that nothing is cut off, however long it is, and takes the pictures for the README.
//!
//! `SESSION_TEST_PICTURES=examples/pictures tests/run --test browser pictures` takes the README's pictures again. With
//! `SESSION_TEST_ALL_PICTURES=1` it takes all pictures, for review.

use std::{env, fs, path::Path};

use base64::prelude::{BASE64_STANDARD as BASE64, Engine};

use crate::{
    browser::Browser,
    scene::{Scene, Store},
    stored::{self, Past, minutes},
};

/// A user name of 60 characters, without a place to break it.
const LONG: &str = "donaudampfschifffahrtselektrizitaetenhauptbetriebswerkbauunt";

const DEVICES: [&str; 4] = ["Chrome on Windows", "Safari on iPad", "Firefox on Linux", "Samsung Internet on Android"];

#[test]
fn pages_look_right_with_little_and_with_much_on_them() {
    let Some(mut scene) = Scene::on(Store::Json) else { return };
    let mut all = vec![
        past("ada", "Chrome on macOS", 3, 0, true),
        past("ada", "Safari on iPhone", 60 * 24 * 9, 42, true),
        past("ada", "Firefox on Windows", 55, 18, false),
    ];
    for (i, device) in (0..30).zip(DEVICES.iter().cycle()) {
        all.push(past(LONG, device, 60 * 13 * i + 8, 60 * 11 * i, true));
    }
    let ids = stored::store(&scene.place, &all);
    let (ada, long) = (&ids[0], &ids[3]);
    scene.start();

    let browser = scene.browser();
    browser.expect(401);
    for (look, dark) in [("light", false), ("dark", true)] {
        // In the dark things are where they are.
        if dark && env::var_os("SESSION_TEST_PICTURES").is_none() {
            break;
        }
        browser.dark(dark);
        for (size, width, height) in [("wide", 1280, 800), ("small", 760, 720), ("narrow", 360, 740)] {
            browser.resize(width, height);
            let take = |name: &str, for_readme: bool| {
                assert_fits(&browser, width);
                if for_readme || env::var_os("SESSION_TEST_ALL_PICTURES").is_some() {
                    picture(&browser, &format!("{name}-{size}-{look}"));
                }
            };
            browser.devtools("Network.clearBrowserCookies", serde_json::json!({}));
            browser.open(&scene.at("/"));
            take("visitor", false);
            browser.open(&scene.at("/login"));
            take("sign-in", size == "small");
            browser.fill("#username", LONG);
            browser.fill("#password", "difference engine");
            browser.press("Sign in");
            take("error", false);
            for (name, id) in [("", ada), ("long-", long)] {
                browser.set_id(id);
                for (path, page) in
                    [("/", "home"), ("/sessions", "sessions"), ("/password", "password"), ("/recovery", "recovery")]
                {
                    browser.open(&scene.at(path));
                    take(&format!("{name}{page}"), name.is_empty() && page == "sessions" && size == "small");
                }
            }
            assert_eq!(browser.text_of(".user"), LONG);
            browser.open(&scene.at("/sessions"));
            assert_eq!(browser.count(".sessions li"), 30);
        }
    }
    scene.end();
}

fn past(user: &'static str, device: &'static str, signed_in: u64, seen: u64, remembered: bool) -> Past {
    Past { user, device, signed_in: minutes(signed_in), seen: minutes(seen), remembered }
}

/// That nothing is wider than the page, or than what it is in.
#[track_caller]
fn assert_fits(browser: &Browser, width: u32) {
    let script = "return [...document.querySelectorAll('main *, header, nav')].filter(element => { \
                    const {left, right} = element.getBoundingClientRect(); \
                    return left < 0 || right > innerWidth || element.scrollWidth > element.clientWidth + 1 \
                      && getComputedStyle(element).display != 'inline' && element.tagName != 'INPUT'; \
                  }).map(element => element.outerHTML.slice(0, 200))";
    let found = browser.run(script);
    assert_eq!(found, serde_json::json!([]), "{} at {width} px", browser.path());
}

fn picture(browser: &Browser, name: &str) {
    let Some(folder) = env::var_os("SESSION_TEST_PICTURES") else { return };
    let bytes = BASE64.decode(browser.picture()).unwrap();
    // Cargo runs tests in the folder of their package.
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(folder);
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join(name).with_extension("webp"), bytes).unwrap();
}
