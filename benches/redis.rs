//! The stacks on Redis, and the load that they put on the server.

use std::sync::Arc;

use axum::Router;
use jam_session::{RedisSessions, SessionLayer};
use tower_sessions_0_14::{Session, SessionManagerLayer};
use tower_sessions_redis_store::{
    RedisStore,
    fred::prelude::{ClientLike, Config, Pool},
};

pub use crate::redis_server::Server;
use crate::{cpu, redis_server::number, stacks};

const SESSIONS: usize = 30_000;

theirs!(theirs_on_redis, tower_sessions_0_14);

pub async fn ours(uri: &str) -> Router {
    let sessions = RedisSessions::connect(uri).await.expect("connected");
    stacks::ours().layer(SessionLayer::new(sessions.erase()))
}

pub async fn theirs(uri: &str) -> Router {
    theirs_on_redis().layer(SessionManagerLayer::new(their_store(uri).await))
}

/// Six connections, as in its documentation.
async fn their_store(uri: &str) -> RedisStore<Pool> {
    let pool = Pool::new(Config::from_url(uri).expect("a URI"), None, None, None, 6).expect("a pool");
    pool.connect();
    pool.wait_for_connect().await.expect("connected");
    RedisStore::new(pool)
}

/// How many bytes the server needs per session.
pub async fn memory(server: &Server) {
    server.command("FLUSHALL");
    let empty = server.info("memory", "used_memory");
    let sessions = RedisSessions::connect(server.uri()).await.expect("connected");
    for i in 0..SESSIONS {
        sessions.create(format!("user-{}", i / 3), stacks::fields()).await.expect("created");
    }
    let ours = (server.info("memory", "used_memory") - empty) / SESSIONS as f64;
    sessions.close().await.expect("closed");

    server.command("FLUSHALL");
    let empty = server.info("memory", "used_memory");
    let store = Arc::new(their_store(&server.uri()).await);
    for _ in 0..SESSIONS {
        let session = Session::new(None, Arc::clone(&store), None);
        for (name, value) in stacks::fields().as_object().expect("an object") {
            session.insert(name, value).await.expect("a value");
        }
        session.save().await.expect("saved");
    }
    let theirs = (server.info("memory", "used_memory") - empty) / SESSIONS as f64;
    println!(
        "\nRedis: {SESSIONS} sessions of 500 bytes, three a user, take {ours:.0} bytes each; those of tower-sessions, which know \
         of no user, {theirs:.0}."
    );
}

impl Server {
    /// Totals so far: seconds of CPU time, commands (including those in scripts), bytes in, bytes out.
    pub fn spent(&self) -> [f64; 4] {
        let stats = self.command("INFO stats");
        let total = |name| number(&stats, name);
        [
            cpu(self.id()),
            total("total_commands_processed"),
            total("total_net_input_bytes"),
            total("total_net_output_bytes"),
        ]
    }
}
