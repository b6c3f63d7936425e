//! The cost of encryption: makes a number of requests in one process, with or without a keyring, to be run under callgrind.
//!
//! ```sh
//! cargo build --release --manifest-path benches/Cargo.toml --bin encryption
//! for keyring in plain sealed; do for does in read write; do for requests in 1000 2000; do
//!     valgrind --tool=callgrind --callgrind-out-file=/dev/null benches/target/release/encryption $keyring $does $requests 2>&1 | grep Collected
//! done; done; done
//! ```
//!
//! Subtract the count of 1000 requests from that of 2000, to get the cost of 1000 requests without the startup.

// A benchmark may panic if something goes wrong.
#![allow(clippy::unwrap_used)]

use std::convert::Infallible;

use axum::http::{Request, Response, header};
use jam_session::{Keyring, MemorySessions, Session, SessionLayer};
use serde_json::json;
use tower::{Layer, ServiceExt, service_fn};

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).collect();
    let arg = |at: usize, unless: &'static str| args.get(at).map_or(unless, String::as_str);
    let mut builder = MemorySessions::builder();
    if arg(0, "sealed") == "sealed" {
        builder = builder.encrypt(Keyring::generate().unwrap());
    }
    let sessions = builder.build().unwrap();
    let writes = arg(1, "read") == "write";
    let id = sessions.create("ada", json!({"n": 0, "theme": "dark", "cart": [1, 2, 3]})).await.unwrap();
    let cookie = format!("__Host-id={}", id.as_str());
    let layer = SessionLayer::new(sessions);
    let service = layer.layer(service_fn(async |request: Request<()>| {
        let session = request.extensions().get::<Session>().unwrap();
        session.load().await.unwrap();
        match writes {
            true => session.modify("n", |n: Option<u64>| n.unwrap_or(0) + 1).unwrap(),
            false => assert!(session.get::<u64>("n").unwrap().is_some()),
        }
        Ok::<_, Infallible>(Response::new(()))
    }));
    for _ in 0..arg(2, "1000").parse().unwrap() {
        let request = Request::builder().header(header::COOKIE, &cookie).body(()).unwrap();
        assert!(service.clone().oneshot(request).await.unwrap().status().is_success());
    }
}
