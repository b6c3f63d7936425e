//! The setup of a test: the login example on a store, and browsers that visit it.

use std::{cell::RefCell, rc::Rc};

use crate::{browser::Browser, driver, example::App, folder::Folder, service::redis};

#[derive(Clone, Copy, PartialEq)]
pub enum Store {
    Memory,
    Json,
    Redis,
}

pub struct Scene {
    pub store: Store,
    /// As `SESSION_STORE` names it.
    pub place: String,
    app: RefCell<Option<App>>,
    /// Where it listens, also if it is started again.
    address: String,
    browsers: RefCell<Vec<Rc<Browser>>>,
    folder: Folder,
}

impl Scene {
    /// `None` where there is nothing to test with.
    pub fn on(store: Store) -> Option<Self> {
        if !driver::is_there() {
            return None;
        }
        let folder = Folder::new();
        let place = match store {
            Store::Memory => "memory".to_owned(),
            Store::Json => format!("json:{}", folder.file().display()),
            Store::Redis => redis()?,
        };
        Some(Self {
            store,
            place,
            app: RefCell::default(),
            address: String::new(),
            browsers: RefCell::default(),
            folder,
        })
    }

    pub fn start(&mut self) {
        let app = App::start_on(&self.place);
        self.address.clone_from(&app.address);
        *self.app.borrow_mut() = Some(app);
    }

    /// Kills the server.
    pub fn stop(&self) {
        // It gets no chance to say goodbye.
        drop(self.app.take());
    }

    /// Starts it anew where it was.
    pub fn restart(&self) {
        self.stop();
        *self.app.borrow_mut() = Some(App::start_at(&self.address, &self.place));
    }

    /// A new browser, with nothing from before.
    pub fn browser(&self) -> Rc<Browser> {
        let browser = Rc::new(Browser::new());
        self.browsers.borrow_mut().push(Rc::clone(&browser));
        browser
    }

    /// One that is signed in as `ada`.
    pub fn ada(&self) -> Rc<Browser> {
        let browser = self.browser();
        browser.open(&self.at("/login"));
        self.sign_in(&browser, ADA);
        browser
    }

    /// Fills in the form that is there.
    pub fn sign_in(&self, browser: &Browser, password: &str) {
        browser.fill("#username", "ada");
        browser.fill("#password", password);
        browser.press("Sign in");
    }

    pub fn at(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub fn address(&self) -> &str {
        &self.address
    }

    /// The last thing that a test does: what the browsers had to complain about.
    pub fn end(self) {
        for browser in self.browsers.borrow().iter() {
            browser.check_console();
        }
        drop(self.folder);
    }
}

pub const ADA: &str = "analytical engine";

/// Runs each of these tests on every store.
#[macro_export]
macro_rules! on_every_store {
    ($($test:ident),* $(,)?) => {
        $crate::on_every_store!(@ memory Memory: $($test),*);
        $crate::on_every_store!(@ json Json: $($test),*);
        $crate::on_every_store!(@ redis Redis: $($test),*);
    };
    (@ $module:ident $store:ident: $($test:ident),*) => {
        mod $module {
            $(#[test]
            fn $test() {
                let Some(mut scene) = $crate::scene::Scene::on($crate::scene::Store::$store) else { return };
                scene.start();
                super::$test(&scene);
                scene.end();
            })*
        }
    };
}
