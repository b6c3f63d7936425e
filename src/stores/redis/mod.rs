//! Sessions in Redis or Valkey: one server, Sentinel or a Cluster, with atomic writes and bounded waiting.
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
//! Requires Redis 6.2 or later, or Valkey. [`builder`](RedisSessions::builder) has the options:
//! [`sentinel`](crate::Builder::sentinel), [`cluster`](crate::Builder::cluster), a
//! [`connection`](crate::Builder::connection) that the application already has, [`lazy`](crate::Builder::lazy) and
//! [`deadline`](crate::Builder::deadline).
//!
//! # Keys
//!
//! | Redis key | type | holds |
//! |---|---|---|
//! | `sessions:{<owner>}` | hash | all records of a user, each in the field `<sid>`; a payload above 1 KiB in `<sid>:`; the last clears in the field `""` |
//! | `sessions:{<sid>}:a` | string | one anonymous record |
//!
//! `sessions` is the [`namespace`](crate::Builder::namespace). Every key has a time to live. All of a user is in one key, so
//! `clear` is atomic, a listing is one command, and nothing can diverge.
//!
//! A value begins with a head of 34 bytes: the format, where the payload is, how many older versions follow, when the session
//! ends (13 digits, in milliseconds, by the server's clock), the version (8 bytes), and when it was last used (10 digits, in
//! seconds). The last seven versions before that one and the first one follow, eight bytes each, and then the payload.
//!
//! **The value says when the session ends.** The Redis key may live longer than the session. A load compares that end with the
//! server's time. If the server has told its time within the last second, the load uses an estimate; otherwise it asks for the
//! time as well. A session that seems to have ended is read again together with the server's time, because a clock may have been
//! set.
//!
//! A record that was ended stays for ten seconds without its payload. A duplicate of the request that created it is recognised
//! by it, and does not revive the session. A caller that repeats its `create` is told that the record was there, and is not told
//! that it is.
//!
//! The clears begin with the time of the last one, by the server's clock, in microseconds. A `create` compares it with the age
//! of its request, and is refused if the user was cleared since the request arrived. If the server's clock is set back, a clear
//! seems to lie ahead: the first `create` that meets it is refused, and from then on it counts as having just happened. The
//! names and counts of the last eight clears follow, so that a repeated one is recognised. For five seconds after a clear a
//! `create` has to name it, which costs the first one a second trip: so a duplicate from before the clear is refused, whatever
//! the clocks say. If Redis evicts the key, a login that was under way is not refused.
//!
//! **A login begins with a [`mark`](crate::Backend::mark)**, which holds the name of the last clear and the server's time. The
//! `create` that follows names that clear from its first try, so it needs no second trip. It is refused if the user's last clear
//! has another name by then, or if the mark is older than fifteen minutes. No clock decides which came first. Another process may
//! use the mark, and it outlives a failover. If Redis has lost the clear that a mark names (eviction, a failover, an older
//! backup), the login is refused. If no clear was known when the mark was taken, and one that happened since was lost, the login
//! is not refused. A clear is remembered for at least thirty minutes.
//!
//! # Limits
//!
//! The script of a `create` counts the fields of the user's hash. Only if there may be more records than the
//! [limit](crate::Terms::limit) allows, it reads them, and ends those that were written or touched longest ago. Last use is
//! counted in whole seconds; of several in the same second, the one that expires first ends. A login of a user who has 100
//! sessions, with a limit of 100, takes Redis about 0.3 ms; below the limit it costs nothing. When memory is used up, a login is
//! refused before it has ended anything.
//!
//! # Scans
//!
//! [`scan`](crate::Backend::scan) and [`count`](crate::Backend::count) go through all Redis keys of the database, also those of
//! other applications: if these have many, give the sessions a server of their own. Each step looks at about a hundred Redis keys
//! and keeps the server busy for well under a millisecond. `count` reads as much as `scan` does, except that it reads only the
//! head of a visitor's record. With a million sessions it takes seconds, so call it for a gauge, and not for each request.
//!
//! A key that exists throughout a scan is in it at least once. While Redis shrinks its table of keys, a record may be listed or
//! counted twice. If the server restarts or another one takes over, the cursor is worth nothing, and the page says
//! [`moved`](crate::backend::Page::moved). So it does if another process goes on with the cursor, because that cannot know. In a
//! Cluster the masters are scanned one after the other, and `moved` says that a slot has changed its server. It does not tell of a
//! slot that is still being moved, nor of a node of a Cluster, or a server behind a [`connection`](crate::Builder::connection) of
//! the application, that has only restarted.
//!
//! # Commands
//!
//! | verb | sends | round trips |
//! |---|---|---|
//! | `load` | `HMGET`, or `GET` if anonymous; a script if the server's time was not heard for a second | 1 |
//! | `create`, `update`, `touch`, `delete`, `clear` | one script | 1 |
//! | updates that are ready at the same moment, not in a Cluster | one script for up to 32 of them | 1 |
//! | such an `update` that conflicts | the script again, for it alone | 2 |
//! | `create` within five seconds of a `clear` | the script again | 2 |
//! | `update` that conflicts with a record above 32 KiB | one script, then a `load` | 2 |
//! | `mark` | `HGET`; a script if the server's time was not heard for a second | 1 |
//! | `list` | `HSCAN`; of more than a few hundred sessions `HKEYS`, then `HMGET` for each thousand fields | 1; more |
//! | `scan`, `count` | for each hundred Redis keys `SCAN`, then `TIME` and one `HSCAN` or `GETRANGE` for each of ours; in a Cluster scripts | 2; more |
//!
//! A script is called by its hash. A server that does not know the hash, for example after a failover or `SCRIPT FLUSH`, is
//! sent the script's text. In a Cluster each script has one key. On one server and behind Sentinel two have more: a login ends
//! the visitor's record in the same step, and several updates go together. The common path of an `update` is `TIME`, `HGET` and
//! `HSET`; updates that go together share the `TIME`.
//!
//! # Access rights
//!
//! An ACL user needs, with the [`namespace`](crate::Builder::namespace) in place of `sessions`:
//!
//! * always: `~sessions:* +evalsha +eval +get +scan +set +setrange +getrange +strlen +exists +hget +hset +hdel +hlen +hkeys +hmget +hscan +hrandfield +hstrlen +type +pttl +pexpire +unlink +time`
//! * for a database other than 0: `+select`
//! * behind Sentinel: `+role`; and on the sentinels, if these have users: `+sentinel|get-master-addr-by-name +subscribe &+switch-master`
//! * in a Cluster: `+cluster|slots +cluster|myid +asking`
//! * for all that [`doctor`](RedisSessions::doctor) can tell: `+info +config|get +script|load`
//!
//! [`connect`](crate::Builder::connect) tries every operation and names the right that is missing.
//!
//! # Failures
//!
//! Every operation answers within its [`deadline`](crate::Builder::deadline). If it fails, the caller gets
//! [`Unavailable`](crate::ErrorKind::Unavailable). An error is never reported as "no session".
//!
//! * A lost connection is replaced once for all callers that wait for it, and the operation is sent again. Scripts are
//!   idempotent: they recognize a write that was already applied, also when it is the caller that tries again after an error.
//!   If eight or more other writes came in between, an update cannot tell and fails. So does a `create` whose record has ended in
//!   between.
//!   This does not cover a connection that retries by itself without saying so, as a Cluster's does. There, such an update is a
//!   conflict, and a caller that repeats its change may apply it twice.
//! * A server that does not answer three times in a row gets a new connection. With Sentinel, failovers are followed; in a
//!   Cluster, the topology is read again.
//! * Every write carries an expiry time by the server's clock, and the server refuses it after the deadline.
//! * `READONLY`, `MASTERDOWN` and `NOREPLICAS` are retried once on a new connection. `LOADING`, `CLUSTERDOWN`, `OOM` and any
//!   other error fails the operation at once. Sessions can still end when memory is used up.
//! * Redis acknowledges a write before its replicas and its disk have it. A failover or a crash may therefore undo the last
//!   writes, logouts included; the settings below limit how many.
//!
//! # Troubleshooting
//!
//! What no retry mends fails [`connect`](crate::Builder::connect) with [`Config`](crate::ErrorKind::Config). What may pass is
//! [`Unavailable`](crate::ErrorKind::Unavailable); this text is then the error's source.
//!
//! | you see | it means | what to do |
//! |---|---|---|
//! | the server is a sentinel | the URI is that of a sentinel | [`sentinel`](crate::Builder::sentinel) takes it; the URI is for the master |
//! | … that was given to `.sentinel(…)` is not a sentinel | the reverse | give the sentinels' ports, 26379 by default |
//! | the Redis server is a node of a Cluster | the server knows only a part of the slots | [`cluster`](crate::Builder::cluster) |
//! | the Redis server is not a node of a Cluster | the reverse | leave out `cluster` |
//! | no sentinel knows a master of that name | the name is wrong, or the sentinels forgot it | `SENTINEL MASTERS` shows the names |
//! | Redis does not accept the credentials | user or password are wrong, or missing | correct the URI: `redis://user:password@host` |
//! | the ACL of the Redis user lacks +… | a right is missing | `ACL SETUSER <user> +…`, see [access rights](#access-rights) |
//! | the ACL … does not cover the keys of this namespace | the user may not use these Redis keys | `ACL SETUSER <user> ~<namespace>:*` |
//! | no database with the number in the URI | the server has fewer databases | another number, or raise `databases` |
//! | the TLS certificate … is not trusted | its authority is not one of the system's | install it, or set `SSL_CERT_FILE` |
//! | the TLS certificate … is for another host | the URI has a name that is not in the certificate | use a name that is, or a certificate for this name |
//! | the Redis server speaks TLS on this port | the URI is `redis://` | `rediss://` |
//! | the Redis server does not speak TLS on this port | the URI is `rediss://` | `redis://`, or the server's `tls-port` |
//! | … does not know a command that sessions need | the server is older than 6.2, or compatible only in part | use Redis or Valkey |
//! | Redis refused the connection | nothing listens there | start the server, or correct host and port |
//! | Redis did not answer in time | the server or the network is overloaded, or a firewall drops packets | `doctor` shows the latency; look for slow commands |
//! | the connection to Redis was lost | the server restarted, or closed the connection | see its log; the next operation connects again |
//! | … Redis answered LOADING | the server has just started and reads its data | wait |
//! | … Redis answered OOM | `maxmemory` is used up | raise it, or set `maxmemory-policy volatile-ttl` |
//! | … Redis answered MISCONF | the server cannot save its snapshots, and refuses writes | see its log and its disk |
//! | … Redis answered READONLY | the server is a replica | use the master, or [`sentinel`](crate::Builder::sentinel) |
//! | … Redis answered MASTERDOWN | the server is a replica that has lost its master | start the master, or use it |
//! | … Redis answered NOREPLICAS | fewer replicas follow than `min-replicas-to-write` | start the replicas |
//! | … Redis answered CLUSTERDOWN | some slots have no master | start the nodes; `cluster-require-full-coverage no` keeps the rest working |
//! | … Redis answered WRONGTYPE, or a warning that a key was replaced | another application writes keys of this namespace | another [`namespace`](crate::Builder::namespace) |
//!
//! # Memory
//!
//! A session of a user takes about 350 bytes beside its payload, and about 170 if the user has several; an anonymous one about
//! 150. A session with little data has a payload of 300 to 500 bytes, because the payload also holds times and hashes.
//!
//! **Under memory pressure visitors go first**, with `maxmemory-policy volatile-ttl`, which evicts the keys that end first. A
//! user's key lives longer than the longest session in it, by as long as a visitor's key can still have to live (the shorter of
//! [`default_ttl`](crate::Builder::default_ttl) and [`anonymous_lifetime`](crate::Builder::anonymous_lifetime)), and a little. A
//! visitor's session with a longer [`set_ttl`](crate::Session::set_ttl) competes with users. Without a [limit](#limits), one
//! user with very many sessions can push out others.
//!
//! # Server settings
//!
//! | setting | reason |
//! |---|---|
//! | `maxmemory` and `maxmemory-policy volatile-ttl`, or `noeviction` | evicts [visitors first](#memory). Other policies evict users' keys as well, and with one all sessions of that user |
//! | `appendonly yes`, `appendfsync everysec` | a crash loses one second of writes instead of everything since the last snapshot |
//! | `min-replicas-to-write 1`, `min-replicas-max-lag 2` with Sentinel or in a Cluster | a master that was cut off stops accepting logins and logouts that a failover would lose |
//! | `cluster-require-full-coverage no` | while one shard is down, the sessions on the others work |
//!
//! Reads never go to replicas and the client caches nothing, so a session that has ended has ended everywhere.

mod backend;
mod batch;
mod builder;
mod connection;
mod create;
mod doctor;
mod failure;
mod keys;
mod list;
mod operation;
mod scan;
mod scripts;
mod selftest;
mod silences;
mod slots;
mod source;
mod time;
mod transport;
mod value;

pub use self::{
    backend::{RedisBackend, RedisSessions},
    builder::RedisServer,
    doctor::{Finding, Level},
};
