//! A proxy between the browser and the server that holds back one request until it is told to release it.

use std::{
    io::{self, Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    sync::{Arc, Condvar, Mutex},
    thread,
};

pub struct Proxy {
    address: String,
    gate: Arc<(Mutex<State>, Condvar)>,
}

#[derive(Default)]
struct State {
    holds: bool,
    is_open: bool,
}

impl Proxy {
    /// Holds requests that begin like that.
    pub fn before(server: &str, held: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let proxy = Self { address: listener.local_addr().unwrap().to_string(), gate: Arc::default() };
        let (server, gate) = (server.to_owned(), Arc::clone(&proxy.gate));
        thread::spawn(move || {
            for browser in listener.incoming().flatten() {
                let (server, gate) = (TcpStream::connect(&server), Arc::clone(&gate));
                thread::spawn(move || {
                    // A browser that goes, or a server, ends both ways.
                    if let Ok(server) = server {
                        let (to_browser, from_server) = (browser.try_clone(), server.try_clone());
                        thread::spawn(move || Some(io::copy(&mut from_server.ok()?, &mut to_browser.ok()?)));
                        let _ = pass(browser, server, held, &gate);
                    }
                });
            }
        });
        proxy
    }

    pub fn at(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub fn wait_until_it_holds(&self) {
        let state = self.gate.0.lock().unwrap();
        drop(self.gate.1.wait_while(state, |state| !state.holds).unwrap());
    }

    pub fn let_go(&self) {
        self.gate.0.lock().unwrap().is_open = true;
        self.gate.1.notify_all();
    }
}

/// Passes requests on. A browser sends each of those here in one piece.
fn pass(mut browser: TcpStream, mut server: TcpStream, held: &str, gate: &(Mutex<State>, Condvar)) -> io::Result<()> {
    let mut bytes = [0; 16 * 1024];
    loop {
        let count = browser.read(&mut bytes)?;
        if count == 0 {
            return server.shutdown(Shutdown::Both);
        }
        if bytes.starts_with(held.as_bytes()) {
            let mut state = gate.0.lock().unwrap();
            state.holds = true;
            gate.1.notify_all();
            drop(gate.1.wait_while(state, |state| !state.is_open).unwrap());
        }
        server.write_all(&bytes[..count])?;
    }
}
