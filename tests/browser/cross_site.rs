//! Requests from other sites, as Chromium sends them.

use jam_session::SameSite;

use crate::{browser::Browser, driver, site::Site};

/// `None` where there is nothing to test with.
fn browser_and_site(same_site: SameSite) -> Option<(Browser, Site)> {
    driver::is_there().then(|| (Browser::new(), Site::with(same_site)))
}

#[test]
fn with_strict_a_link_from_another_site_signs_nobody_out() {
    let Some((browser, site)) = browser_and_site(SameSite::Strict) else { return };
    browser.open(&site.at("/login"));
    browser.open(&site.at("/"));
    browser.shows("Visit 1 of ada.");
    let id = browser.id();
    for label in ["Link", "Form"] {
        browser.open(&site.elsewhere());
        browser.press(label);
        browser.shows("Visit 1 of a visitor.");
        assert_eq!(browser.id(), id, "{label}");
    }
    browser.open(&site.at("/"));
    browser.shows("Visit 2 of ada.");
    browser.check_console();
}

#[test]
fn with_strict_a_visitor_gets_a_session_on_the_site_itself_only() {
    let Some((browser, site)) = browser_and_site(SameSite::Strict) else { return };
    for label in ["Link", "Form", "Link"] {
        browser.open(&site.elsewhere());
        browser.press(label);
        browser.shows("Visit 1 of a visitor.");
        assert!(browser.cookies().is_empty(), "{label}");
    }
    for visit in 1..3 {
        browser.open(&site.at("/"));
        browser.shows(&format!("Visit {visit} of a visitor."));
    }
    browser.check_console();
}

#[test]
fn with_lax_a_link_comes_with_the_session_and_a_form_leaves_it_alone() {
    let Some((browser, site)) = browser_and_site(SameSite::Lax) else { return };
    for (label, text) in [
        ("Form", "Visit 1 of a visitor."),
        ("Form", "Visit 1 of a visitor."),
        ("Link", "Visit 1 of a visitor."),
        ("Link", "Visit 2 of a visitor."),
        ("Form", "Visit 1 of a visitor."),
        ("Link", "Visit 3 of a visitor."),
    ] {
        browser.open(&site.elsewhere());
        browser.press(label);
        browser.shows(text);
    }
    browser.open(&site.at("/login"));
    let id = browser.id();
    for (label, text) in [("Form", "Visit 1 of a visitor."), ("Link", "Visit 4 of ada.")] {
        browser.open(&site.elsewhere());
        browser.press(label);
        browser.shows(text);
        assert_eq!(browser.id(), id, "{label}");
    }
    browser.check_console();
}

#[test]
fn with_none_a_form_of_another_site_begins_a_session() {
    let Some((browser, site)) = browser_and_site(SameSite::None) else { return };
    for visit in 1..3 {
        browser.open(&site.elsewhere());
        browser.press("Form");
        browser.shows(&format!("Visit {visit} of a visitor."));
    }
    browser.check_console();
}

#[test]
fn with_none_a_script_of_the_embedding_site_begins_a_session() {
    let Some((browser, site)) = browser_and_site(SameSite::None) else { return };
    let post = format!(
        "const done = arguments[0]; \
         fetch('{}', {{method: 'POST', credentials: 'include'}}).then(page => page.text()).then(done, done)",
        site.at("/")
    );
    for visit in 1..3 {
        browser.open(&site.elsewhere());
        let page = browser.run_and_wait(&post);
        assert!(page.as_str().is_some_and(|page| page.contains(&format!("Visit {visit} of a visitor."))), "{page}");
    }
    browser.check_console();
}
