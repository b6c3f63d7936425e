//! The login example in a real browser, on each store, and requests from other sites.

#![cfg(unix)]

mod axe;
mod browser;
mod cross_site;
mod driver;
#[path = "../it/example.rs"]
mod example;
#[path = "../it/folder.rs"]
mod folder;
mod pictures;
#[path = "../it/ports.rs"]
mod ports;
mod proxy;
mod scene;
mod service;
mod site;
mod stored;

use crate::{
    axe::check_accessibility,
    browser::Browser,
    proxy::Proxy,
    scene::{ADA, Scene, Store},
};

on_every_store! {
    a_visitor_signs_in_and_the_count_goes_on,
    the_cookie_is_out_of_reach,
    a_wrong_password_is_told_in_words,
    one_browser_ends_the_session_of_the_other,
    an_open_page_says_that_its_session_has_ended,
    signing_out_everywhere_else_keeps_this_browser,
    a_session_that_has_ended_signs_nobody_else_out,
    a_login_form_that_is_sent_while_all_sessions_end_is_never_lost,
    a_new_password_signs_out_everywhere_else,
    a_rotation_while_another_tab_loads_signs_nobody_out,
    after_signing_out_the_back_button_shows_nothing_private,
    a_restart_of_the_server_is_noticed_by_nobody,
    whoever_wants_to_be_remembered_is,
    something_sensitive_asks_for_the_password_again,
    it_all_works_by_keyboard,
    it_all_works_without_scripts,
}

fn a_visitor_signs_in_and_the_count_goes_on(scene: &Scene) {
    let browser = scene.browser();
    browser.open(&scene.at("/"));
    browser.shows("This browser has been here once.");
    let visitor = browser.id();
    browser.reload();
    browser.shows("This browser has been here 2 times.");
    assert_eq!(browser.id(), visitor);

    browser.press("Sign in");
    scene.sign_in(&browser, ADA);
    assert_eq!(browser.path(), "/");
    browser.shows("Hello, ada");
    browser.shows("This browser has been here 3 times.");
    assert_ne!(browser.id(), visitor, "a login gives a new ID");

    browser.press("Sign out");
    browser.shows("This browser has been here once.");
    nobody_is_signed_in(&browser);
}

fn the_cookie_is_out_of_reach(scene: &Scene) {
    let browser = scene.browser();
    for signed_in in [false, true] {
        browser.open(&scene.at(if signed_in { "/login" } else { "/" }));
        if signed_in {
            scene.sign_in(&browser, ADA);
        }
        let [cookie] = &browser.cookies()[..] else { panic!("{:?}", browser.cookies()) };
        assert_eq!(cookie["name"], if signed_in { "__Host-id" } else { "__Host-id-visitor" });
        assert_eq!(cookie["secure"], true);
        assert_eq!(cookie["httpOnly"], true);
        assert_eq!(cookie["sameSite"], "Lax");
        assert_eq!(cookie["path"], "/");
        assert_eq!(cookie["domain"], "127.0.0.1", "this host alone: no dot in front");
        assert!(cookie["expiry"].as_u64().is_some());
        assert_eq!(browser.run("return document.cookie"), "");
    }
    browser.press("Sign out");
    browser.open(&scene.at("/style.css"));
    // The page after it counts visits again.
    assert_eq!(browser.cookies().len(), 1);
    assert_eq!(browser.run("return localStorage.length + sessionStorage.length"), 0);
}

fn a_wrong_password_is_told_in_words(scene: &Scene) {
    let browser = scene.browser();
    browser.expect(401);
    browser.open(&scene.at("/login"));
    scene.sign_in(&browser, "difference engine");
    assert!(browser.title().starts_with("Error: "), "{}", browser.title());
    assert_eq!(browser.text_of("[role=alert]"), "That user name and that password do not go together.");
    assert_eq!(browser.run("return document.getElementById('username').value"), "ada", "it need not be typed again");
    assert_eq!(browser.run("return document.getElementById('password').value"), "");
    browser.comes_to_focus("password");
    for field in ["username", "password"] {
        let script = format!(
            "const field = document.getElementById('{field}'); \
             return [field.ariaInvalid, document.getElementById(field.getAttribute('aria-describedby')).role]"
        );
        assert_eq!(browser.run(&script), serde_json::json!(["true", "alert"]));
    }
    // The name of nobody, and as long as names may be.
    let long = "donaudampfschifffahrtselektrizitaetenhauptbetriebswerkbauunt";
    assert_eq!(long.len(), 60);
    browser.fill("#username", long);
    browser.fill("#password", ADA);
    browser.press("Sign in");
    assert_eq!(browser.text_of("[role=alert]"), "That user name and that password do not go together.");
    assert!(browser.cookies().is_empty());

    browser.fill("#username", "ada");
    browser.fill("#password", ADA);
    browser.press("Sign in");
    browser.shows("Hello, ada");
}

fn one_browser_ends_the_session_of_the_other(scene: &Scene) {
    let laptop = scene.ada();
    let phone = scene.browser();
    phone.expect(401);
    phone.says_it_is(
        "Mozilla/5.0 (iPhone; CPU iPhone OS 18_6 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) \
         Version/26.0 Mobile/15E148 Safari/604.1",
    );
    phone.open(&scene.at("/sessions"));
    phone.shows("Please sign in first.");
    scene.sign_in(&phone, ADA);
    assert_eq!(phone.path(), "/sessions", "the page that was asked for");
    assert_eq!(phone.count(".sessions li"), 2);

    laptop.press("Sessions");
    laptop.shows("You have 2 sessions.");
    assert!(laptop.text_of(".sessions li.this").starts_with("Chrome on Linux\nThis device"));
    let other = laptop.text_of(".sessions li:not(.this)");
    assert!(other.starts_with("Safari on iPhone") && other.contains("Signed in just now"), "{other}");
    laptop.follow(".sessions li:not(.this) button");
    assert_eq!(laptop.text_of("[role=status]"), "That session is signed out.");
    laptop.shows("You are signed in on this device, and nowhere else.");
    assert_eq!(laptop.count(".sessions li"), 1);
    laptop.reload();
    laptop.hides("That session is signed out.");

    phone.reload();
    phone.shows("Please sign in first.");
    phone.hides("Your sessions");
    // One's own is a session like any other.
    laptop.follow(".sessions li.this button");
    assert_eq!(laptop.path(), "/");
    nobody_is_signed_in(&laptop);
}

/// The page is still loading all the while, and has no script.
fn an_open_page_says_that_its_session_has_ended(scene: &Scene) {
    let (laptop, phone) = (scene.ada(), scene.ada());
    let watched = phone.new_tab();
    phone.open(&scene.at("/sessions"));
    let sessions = phone.tab();
    let watch = |browser: &Browser| {
        browser.scripts(false);
        browser.begin_to_open(&scene.at("/sessions/live"));
        browser.comes_to_show("Leave this page open");
    };

    // A new ID ends nothing.
    phone.switch_to(&watched);
    watch(&phone);
    phone.switch_to(&sessions);
    phone.click("summary");
    phone.press("New session ID");
    phone.switch_to(&watched);
    phone.hides("This session");
    laptop.open(&scene.at("/sessions"));
    laptop.follow(".sessions li:not(.this) button");
    phone.comes_to_show("This session was signed out.");
    phone.expect(401);
    phone.press("Look again");
    phone.shows("Please sign in first.");

    // A browser that signs out everywhere else is told too, and stays signed in.
    scene.ada();
    let other = laptop.new_tab();
    watch(&laptop);
    let live = laptop.tab();
    laptop.switch_to(&other);
    laptop.open(&scene.at("/sessions"));
    laptop.press("Sign out everywhere else");
    laptop.switch_to(&live);
    laptop.comes_to_show("You have signed in again, or signed out everywhere else.");
    laptop.press("Look again");
    laptop.shows("You are signed in on this device, and nowhere else.");
}

fn signing_out_everywhere_else_keeps_this_browser(scene: &Scene) {
    let (laptop, phone) = (scene.ada(), scene.ada());
    phone.expect(401);
    // Somebody has copied this browser's cookie.
    let (id, thief) = (laptop.id(), scene.browser());
    thief.expect(401);
    thief.open(&scene.at("/login"));
    thief.set_id(&id);
    thief.open(&scene.at("/"));
    thief.shows("Hello, ada");
    laptop.open(&scene.at("/sessions"));
    laptop.press("Sign out everywhere else");
    assert_eq!(laptop.text_of("[role=status]"), "You are signed out everywhere else.");
    assert_eq!(laptop.count(".sessions li"), 1);
    assert_ne!(laptop.id(), id, "a copy of the cookie is out as well");
    thief.open(&scene.at("/sessions"));
    thief.shows("Please sign in first.");
    phone.open(&scene.at("/sessions"));
    phone.shows("Please sign in first.");

    scene.sign_in(&phone, ADA);
    phone.press("Sign out everywhere");
    nobody_is_signed_in(&phone);
    laptop.expect(401);
    laptop.reload();
    laptop.shows("Please sign in first.");
}

/// A page from before still has the button. It says that this session has ended, and ends no other.
fn a_session_that_has_ended_signs_nobody_else_out(scene: &Scene) {
    let (laptop, phone) = (scene.ada(), scene.ada());
    phone.open(&scene.at("/sessions"));
    laptop.open(&scene.at("/sessions"));
    laptop.follow(".sessions li:not(.this) button");
    assert_eq!(laptop.text_of("[role=status]"), "That session is signed out.");
    phone.expect(401);
    phone.press("Sign out everywhere");
    phone.shows("Please sign in first.");
    laptop.reload();
    assert_eq!(laptop.count(".sessions li"), 1);
    // The form, sent by a browser with a dead cookie just after all sessions ended, signs in: never a redirect that did nothing.
    laptop.press("Sign out everywhere");
    nobody_is_signed_in(&laptop);
    scene.sign_in(&phone, ADA);
    phone.open(&scene.at("/"));
    phone.shows("Hello, ada");
}

/// The page to sign in is still open in a tab, and its form is sent by a user who is signed in.
fn a_login_form_that_is_sent_while_all_sessions_end_is_never_lost(scene: &Scene) {
    let proxy = Proxy::before(scene.address(), "POST /login ");
    let laptop = scene.browser();
    laptop.expect(401);
    laptop.open(&proxy.at("/login"));
    let form = laptop.new_tab();
    laptop.open(&scene.at("/login"));
    scene.sign_in(&laptop, ADA);
    let signed_in = laptop.tab();

    laptop.switch_to(&form);
    laptop.fill("#username", "ada");
    laptop.fill("#password", ADA);
    laptop.click("form button");
    // It is on its way, with the cookie of a session that ends meanwhile.
    proxy.wait_until_it_holds();
    let phone = scene.ada();
    phone.open(&scene.at("/sessions"));
    assert_eq!(phone.count(".sessions li"), 2);
    phone.press("Sign out everywhere");
    laptop.switch_to(&signed_in);
    laptop.open(&scene.at("/sessions"));
    laptop.shows("Please sign in first.");

    proxy.let_go();
    laptop.switch_to(&form);
    laptop.comes_to_show("Hello, ada");
    laptop.switch_to(&signed_in);
    laptop.reload();
    assert_eq!(laptop.count(".sessions li.this"), 1);
}

fn a_new_password_signs_out_everywhere_else(scene: &Scene) {
    let (laptop, phone) = (scene.ada(), scene.ada());
    let change = |current: &str, new: &str, again: &str| {
        laptop.fill("#current", current);
        laptop.fill("#new", new);
        laptop.fill("#again", again);
        laptop.press("Change password");
    };
    let new = "jacquard loom of 1804";
    laptop.expect(422);
    laptop.expect(401);
    laptop.press("Password");
    for (current, new, again, problem) in [
        (ADA, "short", "short", "Use at least 15 characters."),
        (ADA, new, "something else entirely", "The two new passwords are not the same."),
        (ADA, ADA, ADA, "That is the password you have."),
        (ADA, "my name is Ada, hello", "my name is Ada, hello", "That one is easy to guess."),
        ("difference engine", new, new, "That is not your password."),
    ] {
        change(current, new, again);
        assert!(laptop.text_of("[role=alert]").starts_with(problem), "{}", laptop.text());
    }
    let id = laptop.id();
    change(ADA, new, new);
    assert_eq!(laptop.text_of("[role=status]"), "Your password is changed, and you are signed out everywhere else.");
    assert_eq!(laptop.count(".sessions li"), 1);
    assert_ne!(laptop.id(), id, "whoever has the old ID is out as well");
    laptop.press("Home");
    laptop.shows("Hello, ada");

    phone.expect(401);
    phone.open(&scene.at("/sessions"));
    scene.sign_in(&phone, ADA);
    phone.shows("That user name and that password do not go together.");
    scene.sign_in(&phone, new);
    assert_eq!(phone.count(".sessions li"), 2);
}

fn a_rotation_while_another_tab_loads_signs_nobody_out(scene: &Scene) {
    let proxy = Proxy::before(scene.address(), "GET /password ");
    let browser = scene.browser();
    browser.open(&proxy.at("/login"));
    scene.sign_in(&browser, ADA);
    let id = browser.id();

    let first = browser.new_tab();
    let second = browser.tab();
    browser.open(&proxy.at("/sessions"));
    browser.begin_to_open(&proxy.at("/password"));
    // It is on its way, with the ID of before.
    proxy.wait_until_it_holds();
    browser.switch_to(&first);
    browser.open(&proxy.at("/sessions"));
    browser.click("summary");
    browser.press("New session ID");
    browser.shows("This session has a new ID.");
    let new = browser.id();
    assert_ne!(new, id);

    proxy.let_go();
    browser.switch_to(&second);
    browser.comes_to_show("Change your password");
    assert_eq!(browser.id(), new, "the slow page does not take it back");
    for tab in [&first, &second] {
        browser.switch_to(tab);
        browser.open(&proxy.at("/sessions"));
        assert_eq!(browser.count(".sessions li.this"), 1);
    }
}

fn after_signing_out_the_back_button_shows_nothing_private(scene: &Scene) {
    let browser = scene.ada();
    browser.expect(401);
    for path in ["/sessions", "/password", "/recovery", "/"] {
        browser.open(&scene.at(path));
    }
    browser.press("Sign out");
    for _ in 0..4 {
        browser.back();
        nobody_is_signed_in(&browser);
        browser.hides("7QKM");
        assert_eq!(browser.count(".sessions"), 0);
    }
    browser.forward();
    nobody_is_signed_in(&browser);
    // Nor is it there for somebody else's eyes after everything was ended from another device.
    let phone = scene.ada();
    browser.open(&scene.at("/login"));
    scene.sign_in(&browser, ADA);
    browser.open(&scene.at("/sessions"));
    phone.open(&scene.at("/sessions"));
    phone.press("Sign out everywhere");
    browser.press("Password");
    browser.shows("Please sign in first.");
    browser.back();
    browser.shows("Please sign in first.");
    assert_eq!(browser.count(".sessions"), 0);
}

fn a_restart_of_the_server_is_noticed_by_nobody(scene: &Scene) {
    let browser = scene.ada();
    browser.expect(401);
    let id = browser.id();
    scene.restart();
    browser.open(&scene.at("/sessions"));
    // What is in memory ends with the process.
    if scene.store == Store::Memory {
        browser.shows("Please sign in first.");
        return;
    }
    assert_eq!(browser.count(".sessions li.this"), 1);
    assert_eq!(browser.id(), id);
    browser.press("Sign out");
    scene.restart();
    browser.open(&scene.at("/sessions"));
    browser.shows("Please sign in first.");
}

fn whoever_wants_to_be_remembered_is(scene: &Scene) {
    let browser = scene.browser();
    for (remember, ends) in [(false, "in 1 hour"), (true, "in 30 days")] {
        browser.open(&scene.at("/login"));
        if remember {
            browser.click("[name=remember]");
        }
        scene.sign_in(&browser, ADA);
        browser.press("Sessions");
        let this = browser.text_of(".sessions li.this");
        assert!(this.contains(&format!("Ends {ends}")), "{this}");
        browser.press("Sign out");
    }
}

fn something_sensitive_asks_for_the_password_again(scene: &Scene) {
    // What is in memory cannot have been there before.
    let earlier = (scene.store != Store::Memory).then(|| {
        scene.stop();
        let id = stored::ten_minutes_ago(&scene.place, "ada");
        scene.restart();
        id
    });
    let browser = scene.ada();
    browser.press("Recovery");
    browser.shows("7QKM-2XHD");

    let Some(id) = earlier else { return };
    browser.set_id(&id);
    browser.expect(401);
    browser.open(&scene.at("/recovery"));
    browser.shows("Is it still you?");
    browser.hides("7QKM-2XHD");
    browser.fill("#password", "difference engine");
    browser.press("Continue");
    assert_eq!(browser.text_of("[role=alert]"), "That is not your password.");
    browser.hides("7QKM-2XHD");
    browser.fill("#password", ADA);
    browser.press("Continue");
    assert_eq!(browser.path(), "/recovery");
    browser.shows("7QKM-2XHD");
    assert_ne!(browser.id(), id, "a login gives a new ID");
    browser.press("Sessions");
    let this = browser.text_of(".sessions li.this");
    assert!(this.starts_with("Old Faithful") && this.contains("Ends in 30 days"), "what it had is kept: {this}");
    assert_eq!(browser.count(".sessions li"), 2, "and it is one session still");
}

fn it_all_works_by_keyboard(scene: &Scene) {
    let browser = scene.browser();
    let focused = || browser.run("return document.activeElement.id || document.activeElement.textContent");
    browser.open(&scene.at("/"));
    browser.keys(TAB);
    assert_eq!(focused(), "Skip to the content");
    browser.keys(ENTER);
    browser.keys(TAB);
    assert_eq!(focused(), "Sign in");
    browser.leaves_by(|| browser.keys(ENTER));
    browser.comes_to_focus("username");
    browser.keys(&format!("ada{TAB}{ADA}{TAB} "));
    assert_eq!(browser.run("return document.activeElement.checked"), true);
    browser.leaves_by(|| browser.keys(ENTER));
    browser.shows("Hello, ada");

    // Each place where the focus comes to can be seen, and there is a way through all of them.
    let other = scene.ada();
    browser.open(&scene.at("/sessions"));
    for place in [
        "Skip to the content",
        "jam-session",
        "Sign out",
        "Home",
        "Sessions",
        "Password",
        "Recovery",
        "End",
        "End",
        "Sign out everywhere else",
        "Sign out everywhere",
        "Behind this page",
    ] {
        browser.keys(TAB);
        assert_eq!(focused(), place);
        let ring =
            "const style = getComputedStyle(document.activeElement); return style.outlineStyle + style.outlineWidth";
        assert_eq!(browser.run(ring), "solid3px", "{place}");
    }
    browser.reload();
    browser.keys(&TAB.repeat(9));
    assert_eq!(focused(), "End");
    browser.leaves_by(|| browser.keys(ENTER));
    browser.shows("That session is signed out.");
    other.expect(401);
    other.open(&scene.at("/sessions"));
    other.shows("Please sign in first.");
}

fn it_all_works_without_scripts(scene: &Scene) {
    let browser = scene.browser();
    browser.scripts(false);
    browser.open(&scene.at("/login"));
    scene.sign_in(&browser, ADA);
    browser.shows("Hello, ada");
    browser.press("Sessions");
    browser.click("summary");
    browser.press("New session ID");
    browser.shows("This session has a new ID.");
    browser.press("Sign out");
    nobody_is_signed_in(&browser);
    browser.scripts(true);
    // There are none, and nothing comes from elsewhere.
    assert_eq!(browser.count("script"), 0);
    let loaded = browser.run("return performance.getEntriesByType('resource').map(entry => entry.name)");
    assert_eq!(loaded, serde_json::json!([scene.at("/style.css")]));
}

/// Where sessions are kept does not show.
#[test]
fn the_pages_are_accessible() {
    let (Some(mut scene), Some(axe)) = (Scene::on(Store::Json), axe::source()) else { return };
    let earlier = stored::ten_minutes_ago(&scene.place, "grace");
    scene.start();
    let (visitor, user) = (scene.browser(), scene.ada());
    visitor.expect(401);
    visitor.expect(404);
    user.expect(422);
    for (browser, paths) in [
        (&visitor, &["/", "/login", "/sessions", "/nowhere"][..]),
        (&user, &["/", "/sessions", "/password", "/recovery"]),
    ] {
        for path in paths {
            browser.open(&scene.at(path));
            check_accessibility(browser, &axe);
        }
    }
    visitor.open(&scene.at("/login"));
    scene.sign_in(&visitor, "difference engine");
    check_accessibility(&visitor, &axe);
    visitor.set_id(&earlier);
    visitor.open(&scene.at("/recovery"));
    visitor.shows("Is it still you?");
    check_accessibility(&visitor, &axe);
    user.open(&scene.at("/password"));
    for field in ["#current", "#new", "#again"] {
        user.fill(field, "short");
    }
    user.press("Change password");
    check_accessibility(&user, &axe);
    user.open(&scene.at("/sessions"));
    user.click("summary");
    user.press("New session ID");
    user.click("summary");
    check_accessibility(&user, &axe);
    drop((visitor, user));
    scene.end();
}

/// Nobody's name is in the corner.
#[track_caller]
fn nobody_is_signed_in(browser: &Browser) {
    assert_eq!(browser.count(".user"), 0, "{}", browser.text());
    assert_eq!(browser.count("header button"), 0);
}

const TAB: &str = "\u{e004}";
const ENTER: &str = "\u{e007}";
