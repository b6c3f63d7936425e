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
//! # Redis keys
//!
//! | Redis key | type | holds |
//! |---|---|---|
//! | `sessions:{<owner>}` | hash | all records of a user, each in the field `<sid>`; a payload above 1 KiB in `<sid>:`; the last clears in the field `""` |
//! | `sessions:{<sid>}:a` | string | one visitor's record |
//!
//! `sessions` is the [`namespace`](crate::Builder::namespace). Every Redis key has a time to live. All records of a user are in
//! one Redis key, so `clear` is atomic, a list is usually one command, and there is no index that could become inconsistent.
//!
//! A value begins with a head of 34 bytes: the format, where the payload is, how many older versions follow, when the session
//! ends (13 digits, in milliseconds of the server's clock), the version (8 bytes), and the last use (10 digits, in seconds).
//! After the head come the seven versions before the current one and the record's very first version, eight bytes each, or
//! fewer if the record has not had that many. Then comes the payload.
//!
//! **The value says when the session ends.** The Redis key may live longer than the session, so a load compares this end with
//! the server's time. That time is estimated if the server reported it within the last second; otherwise the load asks for it.
//! If a session seems to have ended, it is read again together with the server's time, in case a clock was adjusted.
//!
//! **Ended records** stay for ten seconds without their payload. So if the command that created a session arrives a second
//! time, it is recognised, and does not revive the session. A retried `create` then fails, instead of reporting that the record
//! is there.
//!
//! **Clears.** The field `""` of the user's hash begins with the time of the last clear, in microseconds of the server's clock.
//! A `create` compares it with the age of its request, and is refused if the user was cleared after the request arrived. If the
//! server's clock was set back, so that the clear lies in the future, the first `create` is refused, and from then on the clear
//! counts as having just happened. The names and counts of the last eight clears follow, so that a retry is recognised.
//!
//! For five seconds after a clear, a `create` has to give the random [name](crate::backend::Clear::name) of that clear. A
//! `create` that does not know the name learns it from the server's answer, and is sent again. This second round trip makes
//! sure that a late duplicate from before the clear is refused, whatever the clocks say.
//!
//! If Redis evicts the Redis key, it forgets the clears in it. A pending `create` that has an age instead of a mark is then not
//! refused.
//!
//! **A login begins with a [`mark`](crate::Backend::mark)**, which holds the name of the last clear and the server's time. The
//! following `create` names that clear at once, so it needs no second round trip. It is refused if the user's last clear then
//! has another name, or if the mark is older than fifteen minutes. So the order of a login and a clear does not depend on
//! clocks. Any process may use the mark. It stays valid across a failover that keeps the clear it names, unless the new
//! server's clock is more than a minute behind.
//!
//! Clears are remembered for at least thirty minutes. If Redis loses the clear that a mark names (by eviction, a failover, or
//! an older backup), the login is refused. If the mark names no clear, and a later clear is lost, the login is not refused.
//!
//! # Limits
//!
//! The script of a `create` counts the fields of the user's hash. Only if that count could exceed the
//! [limit](crate::Terms::limit) does the script read the records and end the least recently used ones. The last use has a
//! resolution of one second; within the same second, the record that expires first ends.
//!
//! With a limit of 100, the login of a user who has 100 sessions takes Redis about 0.3 ms. Below the limit there is no extra
//! cost. If Redis is out of memory, a login is refused before it has ended anything.
//!
//! # Scans
//!
//! [`scan`](crate::Backend::scan) and [`count`](crate::Backend::count) visit all Redis keys of the database, including those of
//! other applications. If there are many of those, give the sessions a separate server. Each step visits about a hundred Redis
//! keys and keeps the server busy for well under a millisecond. `count` reads as much as `scan`, except that it reads only the
//! head of a visitor's record. With a million sessions it takes seconds: use it for a metric, not in each request.
//!
//! A Redis key that exists throughout a scan is visited at least once. While Redis shrinks its hash table, a record may be
//! listed or counted twice. [`Page::moved`](crate::backend::Page::moved) reports that records may be missing:
//!
//! * On one server and behind Sentinel, if the server restarted, another one became the master, or another process continues
//!   with the cursor. The scan goes on, but may miss records.
//! * In a Cluster, whose masters are scanned one after the other, if a slot moved to another server.
//!
//! It does not report a slot that is still being moved. It does not report restarts of a Cluster node, or of a server behind the
//! application's own [`connection`](crate::Builder::connection), either.
//!
//! # Commands
//!
//! | method | sends | round trips |
//! |---|---|---|
//! | `load` | `HMGET`, or `GET` for a visitor; a script if the server has not reported its time for a second | 1 |
//! | `create`, `update`, `touch`, `delete`, `clear` | one script | 1 |
//! | several `update`s and visitors' `create`s that are ready at the same time, unless in a Cluster or over the application's own connection | one script for up to 32 of them | 1 |
//! | an `update` in such a batch that conflicts, or a `create` whose name is taken | its own script as well | 2 |
//! | `create` without a mark, within five seconds of a `clear` | the script twice | 2 |
//! | an `update` that conflicts, if the current record is above 32 KiB | one script, then a `load` | 2 |
//! | `mark` | `HGET`; a script if the server has not reported its time for a second | 1 |
//! | `list` | `HSCAN`; a script if the server has not reported its time for a second, and for each session that seems to have expired | 1 or more |
//! | `list` above a few hundred sessions | also `HKEYS`, then one `HMGET` for each thousand fields | 3 or more |
//! | `scan`, `count`, for each hundred Redis keys | `SCAN`; then one pipeline with an `HSCAN` or `GETRANGE` for each Redis key of ours, and `TIME` | 2 |
//! | the same for users with more than a few hundred sessions | for each of them also `HKEYS`, one `HMGET` for each thousand fields, and a script | at least 3 more |
//! | the same in a Cluster | one script for the `SCAN`, and one for each Redis key of ours | 2 or more, because several are sent at a time |
//!
//! Scripts are called by their hash. If the server does not know the hash, for example after a failover or `SCRIPT FLUSH`, the
//! script's text is sent. In a Cluster each script uses one Redis key. On one server and behind Sentinel, two scripts use more:
//! a login also ends the visitor's record, and a batch writes several records. Inside the script, the common path of an
//! `update` is `TIME`, `HGET` and `HSET`, and that of a visitor's `create` is `TIME` and `SET`; a batch shares the `TIME`.
//!
//! # Access rights
//!
//! An ACL user needs, with the [`namespace`](crate::Builder::namespace) in place of `sessions`:
//!
//! * always: `~sessions:* +evalsha +eval +get +scan +set +setrange +getrange +strlen +exists +hget +hset +hdel +hlen +hkeys +hmget +hscan +hrandfield +hstrlen +type +pttl +pexpire +unlink +time`
//! * for a database other than 0: `+select`
//! * behind Sentinel: `+role`; and on the sentinels, if these have users: `+sentinel|get-master-addr-by-name +subscribe &+switch-master`
//! * in a Cluster: `+cluster|slots +cluster|myid +asking`
//! * for all that [`doctor`](RedisSessions::doctor) can check: `+info +config|get +script|load`
//!
//! [`connect`](crate::Builder::connect) tries every operation and names the right that is missing.
//!
//! # Failures
//!
//! Every operation answers within the time limit that [`deadline`](crate::Builder::deadline) sets. If it fails, the caller gets
//! [`Unavailable`](crate::ErrorKind::Unavailable). An error is never reported as "no session".
//!
//! * **Lost connection.** A single reconnect serves all waiting callers, and each operation is sent again. Scripts are
//!   idempotent: they recognise a write that was already applied, even if the caller itself retries after an error. If the
//!   record was written eight or more times in between, an `update` cannot tell whether it was applied, and fails. A `create`
//!   fails if its record has ended in between.
//! * **Connections that retry silently** are those of a Cluster, and perhaps the application's own. They send an operation
//!   again without telling us, and its script is then not told that it is a retry. That makes a difference in one case: if such
//!   an `update` was applied, and the record was then written eight or more times before it arrived again, it is reported as a
//!   conflict. A caller that then applies its change again applies it twice. With fewer writes in between, the `update` is
//!   recognised.
//! * **Silent server.** After three operations in a row without an answer, the connection is replaced. With Sentinel,
//!   failovers are followed. In a Cluster, the topology is read again.
//! * **Late writes.** Every write carries its deadline by the server's clock, and the server refuses it after that.
//! * **Error replies.** `READONLY`, `MASTERDOWN` and `NOREPLICAS` are retried once on a new connection. `LOADING`,
//!   `CLUSTERDOWN`, `OOM` and any other error fail the operation at once. Sessions can still be ended while Redis is out of
//!   memory.
//! * **Lost writes.** Redis acknowledges a write before its replicas and its disk have it. A failover or a crash may therefore
//!   undo the last writes, including logouts. The settings below limit how many.
//!
//! # Troubleshooting
//!
//! If a retry cannot help, [`connect`](crate::Builder::connect) fails with [`Config`](crate::ErrorKind::Config). If it may
//! help, the error is [`Unavailable`](crate::ErrorKind::Unavailable), and the text below is its source.
//!
//! | you see | it means | what to do |
//! |---|---|---|
//! | the server is a sentinel | the URI names a sentinel | give that URI to [`sentinel`](crate::Builder::sentinel); the builder's URI is for the master |
//! | … that was given to `.sentinel(…)` is not a sentinel | one of the URIs names an ordinary server | give the sentinels' ports, 26379 by default |
//! | the Redis server is a node of a Cluster | the server has only a part of the slots | call [`cluster`](crate::Builder::cluster) |
//! | the Redis server is not a node of a Cluster | `cluster` was called for an ordinary server | leave out `cluster` |
//! | no sentinel knows a master of that name | the name is wrong, or the sentinels forgot it | `SENTINEL MASTERS` shows the names |
//! | Redis does not accept the credentials | the user or the password is wrong or missing | correct the URI: `redis://user:password@host` |
//! | the ACL of the Redis user lacks +… | a right is missing | `ACL SETUSER <user> +…`, see [access rights](#access-rights) |
//! | the ACL … does not cover the keys of this namespace | the user may not access these Redis keys | `ACL SETUSER <user> ~<namespace>:*` |
//! | no database with the number in the URI | the server has fewer databases | use another number, or raise `databases` |
//! | the TLS certificate … is not trusted | the system does not trust the authority that issued it | install the authority's certificate, or set `SSL_CERT_FILE` |
//! | the TLS certificate … is for another host | the certificate does not contain the host name in the URI | use a name that it contains, or another certificate |
//! | the Redis server speaks TLS on this port | the URI is `redis://` | use `rediss://` |
//! | the Redis server does not speak TLS on this port | the URI is `rediss://` | use `redis://`, or the server's `tls-port` |
//! | … does not know a command that sessions need | the server is older than 6.2, or only partly compatible | use Redis or Valkey |
//! | Redis refused the connection | no server is listening there | start the server, or correct host and port |
//! | Redis did not answer in time | the server or the network is overloaded, or a firewall drops packets | `doctor` shows the latency; look for slow commands |
//! | the connection to Redis was lost | the server restarted, or closed the connection | check its log; the next operation reconnects |
//! | … Redis answered LOADING | the server has just started and is loading its data | wait |
//! | … Redis answered OOM | `maxmemory` is used up | raise it, or set `maxmemory-policy volatile-ttl` |
//! | … Redis answered MISCONF | the server cannot save its snapshots, and refuses writes | check its log and its disk |
//! | … Redis answered READONLY | the server is a replica | use the master, or [`sentinel`](crate::Builder::sentinel) |
//! | … Redis answered MASTERDOWN | the server is a replica that has lost its master | start the master, or connect to it |
//! | … Redis answered NOREPLICAS | the master has fewer replicas than `min-replicas-to-write` | start the replicas |
//! | … Redis answered CLUSTERDOWN | some slots have no master | start the nodes; `cluster-require-full-coverage no` keeps the others working |
//! | … Redis answered WRONGTYPE, or a warning that foreign data was replaced | another application writes to this namespace | use another [`namespace`](crate::Builder::namespace) |
//!
//! # Memory
//!
//! A user's session takes about 350 bytes in addition to its payload, or about 170 if the user has several. A visitor's
//! session takes about 150. The payload, whose size [`max_size`](crate::Builder::max_size) limits, is the data plus about
//! 90 bytes for a visitor or 120 for a user. A [keyring](crate::keyring) adds 45 bytes, and each previous ID that is still
//! accepted adds 38; these do not count towards `max_size`.
//!
//! **Under memory pressure visitors are evicted first**, with `maxmemory-policy volatile-ttl`. That policy evicts the Redis
//! keys that expire first. Therefore a user's Redis key outlives the user's longest session by 17 minutes more than a
//! visitor's Redis key can last, which is the shorter of [`default_ttl`](crate::Builder::default_ttl) and
//! [`anonymous_lifetime`](crate::Builder::anonymous_lifetime). A visitor's session with a longer
//! [`set_ttl`](crate::Session::set_ttl) competes with users. Without a [limit](#limits), one user with very many sessions
//! can push out others.
//!
//! # Server settings
//!
//! | setting | reason |
//! |---|---|
//! | `maxmemory` and `maxmemory-policy volatile-ttl`, or `noeviction` | `volatile-ttl` evicts [visitors first](#memory), and `noeviction` evicts nothing. Other policies also evict users' Redis keys, and with each one all sessions of that user |
//! | `appendonly yes`, `appendfsync everysec` | a crash loses one second of writes instead of everything since the last snapshot |
//! | `min-replicas-to-write 1`, `min-replicas-max-lag 2` with Sentinel or in a Cluster | a master that was cut off stops accepting logins and logouts that a failover would lose |
//! | `cluster-require-full-coverage no` | while one shard is down, the sessions on the others keep working |
//!
//! Reads never go to replicas, and the client caches nothing. So when a session has ended, it has ended for every process.

mod backend;
mod batch;
mod builder;
mod connection;
mod create;
mod doctor;
mod failure;
mod keys;
mod list;
mod methods;
mod operation;
mod reconnect;
mod scan;
mod scripts;
mod selftest;
mod silences;
mod slots;
mod source;
mod time;
mod transport;
mod value;
mod write;

pub use self::{
    backend::{RedisBackend, RedisSessions},
    builder::RedisServer,
    doctor::{Finding, Level},
};
