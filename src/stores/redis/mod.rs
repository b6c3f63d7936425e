//! Sessions in Redis: one server, Sentinel or a Cluster; atomic, and calm when Redis is not.
//!
//! ```no_run
//! # async fn doc() -> Result<(), jam_session::Error> {
//! use jam_session::RedisSessions;
//!
//! let sessions = RedisSessions::connect("redis://localhost:6379/0").await?;
//! for finding in sessions.doctor().await {
//!     println!("{finding}");
//! }
//! # Ok(())
//! # }
//! ```
//!
//! Redis 6.2 or later, or Valkey. [`builder`](RedisSessions::builder) has the rest: [`sentinel`](crate::Builder::sentinel),
//! [`cluster`](crate::Builder::cluster), a [`connection`](crate::Builder::connection) that the application already has,
//! [`lazy`](crate::Builder::lazy) and [`deadline`](crate::Builder::deadline).
//!
//! # Keys
//!
//! | key | type | holds |
//! |---|---|---|
//! | `sessions:{<owner>}:s:<sid>` | string | a record of somebody |
//! | `sessions:{<owner>}:i` | sorted set | the index: each `sid` of that owner, scored by when it ends |
//! | `sessions:{<owner>}:c` | string | the last clears of that owner, for ten seconds |
//! | `sessions:{<sid>}:a` | string | an anonymous record |
//!
//! `sessions` is the [`namespace`](crate::Builder::namespace). All that belongs to an owner is in one slot of a Cluster.
//! No key is ever without a time to live.
//!
//! **The index is the authority**: a record of somebody is live only while it is a member. So `clear` is one command on one key,
//! and an index that was evicted ends sessions rather than forgetting to.
//!
//! A record is live while its key has more than ten seconds left. What expired or was ended stays for these, without its
//! payload if it was ended, for its name and versions: a create that is delivered twice then finds that it has been, and revives
//! nothing. In front of the payload are a format byte, a count, and the versions of the last eight writes and the first, eight
//! bytes each.
//!
//! # Commands
//!
//! | verb | sends | trips |
//! |---|---|---|
//! | `load` | `ZSCORE`, `GET`, `PTTL`; without `ZSCORE` if anonymous | 1 |
//! | `create`, `update`, `touch`, `delete`, `clear` | a script | 1 |
//! | `list` | `ZRANGE`; `MGET` and `PTTL` for each hundred records | 2 or more |
//!
//! A script is sent by its hash; a server that does not know it, after `SCRIPT FLUSH` or a failover, is sent the text. `clear`
//! and `list` tidy up with one more script, which nobody waits for.
//!
//! A user of Redis needs no more than this:
//! `+evalsha +eval +get +set +mget +pttl +pexpire +unlink +zadd +zrem +zscore +zrange +zrangebyscore +zcount +getrange +exists
//! +time`, on `~sessions:*`. [`doctor`](RedisSessions::doctor) sees more with `+info +config|get +script|load`.
//!
//! # What goes wrong
//!
//! An operation answers within its [`deadline`](crate::Builder::deadline), if need be with an error, which the module makes an
//! [`Unavailable`](crate::ErrorKind::Unavailable). No error is ever taken for "no session".
//!
//! * A lost connection is made anew, once for all who wait, and the operation repeated: it finds whether it was done. An update
//!   that cannot, for eight others or more came in between, is an error. Not so on a connection that repeats by itself, as a
//!   Cluster's does, and does not say so: there it is a conflict, and who then writes again may have written twice.
//! * A server that is silent three times in a row gets another connection. Sentinel is listened to, a Cluster asked anew.
//! * What a server gets to do after the deadline, it refuses: every write says until when it holds, by the server's clock.
//! * `READONLY`, `MASTERDOWN` and `NOREPLICAS` are tried once more on a new connection; `LOADING`, `CLUSTERDOWN`, `OOM` and any
//!   other answer is an error at once. When memory is used up, sessions can still end.
//! * Redis acknowledges before its replicas and its disk have it. A failover or a crash may take back the last of it, logouts
//!   included; the settings below say how much.
//!
//! # Memory
//!
//! Bytes for each session of Redis 7.0, new and after eight writes:
//!
//! | payload | anonymous | one for each owner | three for each |
//! |---|---|---|---|
//! | 100 B | 291, 359 | 504, 572 | 373, 437 |
//! | 500 B | 789, 789 | 1003, 1003 | 885, 885 |
//! | 4000 B | 4245, 4245 | 4459, 4459 | 4341, 4341 |
//!
//! With what the module writes in front of the data, a session with little in it is a payload of some 300 to 500 bytes.
//!
//! # What to set
//!
//! | | because |
//! |---|---|
//! | `maxmemory` and `maxmemory-policy volatile-ttl`, or `noeviction` | evicts what ends first. Other policies may evict an index, and with it all sessions of a user |
//! | `appendonly yes`, `appendfsync everysec` | a restart loses a second, and not what happened since a snapshot |
//! | `min-replicas-to-write 1`, `min-replicas-max-lag 2` with Sentinel or in a Cluster | a master that was cut off stops taking logins and logouts that a failover would drop |
//! | `cluster-require-full-coverage no` | while one shard is away, the sessions on the others work |
//!
//! Reads never go to replicas, and nothing is cached in the client: a session that was ended is ended everywhere.

mod backend;
mod builder;
mod connection;
mod doctor;
mod failure;
mod keys;
mod scripts;
mod source;
mod time;

pub use self::{
    backend::{RedisBackend, RedisSessions},
    builder::RedisServer,
    doctor::{Finding, Level},
};
