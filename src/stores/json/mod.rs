//! Sessions in one file: they survive a restart and a power cut, and nothing has to be installed.
//!
//! ```
//! use jam_session::stores::json::JsonSessions;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let folder = std::env::temp_dir().join(format!("jam-session-doc-{}", std::process::id()));
//! # std::fs::create_dir_all(&folder)?;
//! # let path = folder.join("sessions.json");
//! let sessions = JsonSessions::open(&path).await?;
//! let id = sessions.create("ada", serde_json::json!({"role": "admin"})).await?;
//! sessions.close().await?;
//!
//! let sessions = JsonSessions::open(&path).await?;
//! assert!(sessions.get(&id).await?.is_some());
//! # sessions.close().await?;
//! # std::fs::remove_dir_all(folder)?;
//! # Ok(())
//! # }
//! ```
//!
//! # Durability
//!
//! Reads are served from memory, and show acknowledged changes only. Changes that come at the same time are written and synced
//! together (group commit). A separate thread does this, so the async runtime never waits for the disk.
//!
//! | | an acknowledged change survives |
//! |---|---|
//! | [`Durability::Sync`], the default | the end of the process and a power cut, provided that the disk keeps what it reported as synced |
//! | [`Durability::Flush`] | the end of the process. A power cut may lose all changes of the last second |
//!
//! A change that fails is [`Unavailable`](crate::ErrorKind::Unavailable). The message says whether nothing was applied, or
//! whether that is unknown. In the second case, the change has been applied completely or not at all: read the session once
//! the store accepts changes again to find out which. After a failed write, changes fail with `Unavailable` until the file
//! has been rewritten. Reads keep working.
//!
//! Opening fails, and leaves the file unchanged, if the file was not written by this crate, or if it is damaged in a part
//! that had been synced. Damage after that part is a torn write: the machine stopped during the write. With
//! `Durability::Sync`, that write had not been acknowledged. The damaged part is cut off, and this is logged at `warn`. If
//! the process was killed before it could record that its last batch was synced, then damage to that batch is also treated
//! as a torn write. Sessions that expired while no process used the file are gone.
//!
//! [`close`](crate::Sessions::close) waits for running changes and releases the file. Dropping the last clone of the
//! sessions does the same, and blocks its thread for a moment.
//!
//! # A full disk
//!
//! [`max_bytes`](crate::Builder::<JsonFile>::max_bytes) and [`max_sessions`](crate::Builder::<JsonFile>::max_sessions) limit
//! the sessions. At a limit, visitors' sessions (those without a session key) are evicted, the least recently used first.
//! Reading a session counts as use here, but the file records only writes and touches. So after a restart, the session that
//! was written or touched least recently is evicted first. Expired sessions do not count.
//!
//! On Linux the store also keeps a reserve on the disk, so that sign-outs and one compaction succeed even if other programs
//! fill the disk to the last byte. The reserve is space after the end of the file, for a few hundred sign-outs, and the file
//! `sessions.json.compacting`, for a compaction, which makes room for more. While the disk is full, visitors' sessions are
//! evicted to make room for new sessions. If none are left, changes fail with
//! [`Unavailable`](crate::ErrorKind::Unavailable), except sign-outs. Everything works again as soon as there is room.
//!
//! * **Cost:** the reserve takes at most 9/8 of the space of the live sessions, plus 1.5 MiB. All files together, with dead
//!   lines (about sessions that have changed or ended since), take at most 3¼ times the space of the live sessions, plus 3
//!   MiB.
//! * **Where it works:** on file systems that support `fallocate`, such as ext4, XFS and tmpfs. Btrfs may still need space for
//!   its own trees. ZFS, NFS before 4.2, and systems other than Linux reserve nothing: if other programs fill the disk there,
//!   sign-outs fail too, with an error.
//! * [`close`](crate::Sessions::close) removes `sessions.json.compacting`, and opening the file creates it again.
//!
//! # A limit of sessions per user
//!
//! A login above the [limit](crate::Builder::sessions_per_key) ends the user's least recently used sessions. This is one change,
//! which a crash keeps completely or not at all, and the space of the ended sessions is available for the new one.
//!
//! For this limit, a session is used when it is created, written or touched; a request that reads it touches it once per
//! [`touch_interval`](crate::Builder::touch_interval). This order survives a restart, because each of these is a line in the
//! file.
//!
//! A login is not a sign-out, even if it ends other sessions: on a full disk it is refused, and they stay.
//!
//! # Cost of listing and counting all sessions
//!
//! [`all`](crate::Sessions::all) copies at most 1,024 sessions in memory at a time, and blocks changes only for that long.
//! [`count`](crate::Sessions::count) reads two counters, and looks at the sessions that expired since the last change.
//! Neither touches the disk, unless a session has expired and the file does not record it yet, in which case one line is
//! written.
//!
//! # Time
//!
//! The file has its own clock, which starts with the time of the wall clock and never goes back. Idle timeouts keep running
//! while no process uses the file: when it is opened, the time by which the wall clock has advanced is counted. If the wall
//! clock is set back:
//!
//! * No expired session comes back once a reader has seen it as expired, and no replaced ID becomes valid again.
//! * If the wall clock is set back while the file is in use, no session lives longer. If it is set back while no process
//!   uses the file, a session may live longer, by at most that amount.
//!
//! [`Clock`](crate::Clock) explains the price of a clock that never goes back.
//!
//! # The file
//!
//! The file has one JSON object per line: first the sessions at the time when the file was written, then each change since.
//!
//! ```text
//! {"sum":"8c5a1f0e","op":"file","format":1,"records":1,"after":41,"at":…,"wall":…}
//! {"sum":"…","op":"put","id":"<owner>.<sid>","version":…,"until":…,"ttl":…,"json":{"v":1,…,"data":{"role":"admin"}}}
//! {"sum":"…","n":42,"synced":41,"op":"touch","id":"…","version":…,"until":…,"ttl":…}
//! {"sum":"…","n":43,"synced":42,"op":"end","id":"…"}
//! {"sum":"…","n":44,"synced":43,"op":"clear","owner":"…","keep":"…"}
//! {"sum":"…","n":45,"synced":44,"op":"synced","at":…,"wall":…}
//! ```
//!
//! * `sum` is the CRC-32 of everything after its comma.
//! * The first line has the `format` of the file, the number of `records` that follow it, and in `after` the `n` of the last
//!   change that these records include.
//! * `version` is the version of the record, which changes with each write. `v` is the format of the payload in `json`.
//! * `n` counts the changes. `synced` is the last change that was on the disk before this line was written: damage after it
//!   is a torn write, damage before it is an error.
//! * `until` is when the session expires, in milliseconds since 1970 by the file's clock. `ttl` is its time to live when the line
//!   was written.
//! * `at` is the time by the file's clock, and `wall` the wall clock at the same moment. A session that had expired by `at` has
//!   ended.
//! * A payload that is not JSON is written as `base64`.
//! * `ends` in a `put` names other sessions that ended together with it: those that a [limit](#a-limit-of-sessions-per-user)
//!   ended, and the visitor's session of a login.
//!
//! The clears that pending logins are checked against are not restored from the file. They are remembered only in memory,
//! for half an hour, at most 65,536 of them (7 MB). If there are more, the oldest are forgotten, and any login, of any user,
//! that began before a forgotten clear is refused. A [`Login`](crate::Login) is therefore valid only until the process ends:
//! once the file is opened again, it is refused, even if it was kept in a visitor's session.
//!
//! ## Compaction
//!
//! When more than half of the file, and more than 1 MiB, consists of dead lines (about sessions that have changed or ended
//! since), the file is compacted. The live sessions are written to `sessions.json.compacting`, which is then renamed to
//! `sessions.json`. Requests are still served meanwhile. If something that cannot be removed has that name, such as a folder,
//! the store tries `sessions.json.compacting.1` to `.3`.
//!
//! ## Where the file may be
//!
//! * **One process at a time** can use the file. While it does, it holds a lock on `sessions.json.lock`, an empty file that is
//!   not removed afterwards.
//! * **It must be a plain file in a folder where it can be replaced.** A file that is itself mounted (`docker run -v file:file`)
//!   cannot be replaced, so it is refused: mount its folder.
//! * **It must belong to the user of the process.** A file of another user is refused, even if root opens it.
//! * **Keep it outside folders that a deployment replaces.** If its folder is reached through a symbolic link such as
//!   `current`, and the link is switched, the process keeps using the file that it opened, and logs a warning. The next
//!   process uses the file in the new folder, or finds none.
//! * **The folder should belong to the application.** A user who can write to the folder can replace the file before it is
//!   opened.
//!
//! On Unix, `sessions.json`, `sessions.json.lock` and `sessions.json.compacting` can be read and written by their owner only
//! (mode 0600), and a symbolic link in place of one is refused. On other systems the folder decides who may read them, and
//! links are followed.
//!
//! If the file is removed or replaced while it is in use, changes fail with [`Unavailable`](crate::ErrorKind::Unavailable),
//! and reads keep working. This lasts until the original file is back in its place, or the process has opened the file
//! again. If another program writes to the file so that its length changes, it is rewritten from memory.
//!
//! ## Reading and copying it
//!
//! ```sh
//! cp sessions.json backup.json                                    # while nothing runs
//! jq -r 'select(.op == "put") | .json.key' sessions.json | sort | uniq -c
//! jq -c 'select(.op == "put") | .json.data' sessions.json
//! rm sessions.json                                                # while nothing runs: signs everybody out
//! ```
//!
//! A copy that is made while the file is in use is usually good, too, because an incomplete last line does no harm. But if it
//! is made just when a failed change is being undone, it may contain both that change and what was written instead. Open the
//! copy with this crate before you rely on it, and copy again if that fails. To restore a backup, stop the application first.
//!
//! Do not edit the file, because a line with a wrong checksum is not accepted. The file contains users' names and data, and
//! hashes instead of session IDs.

mod backend;
mod batch;
mod beside;
mod builder;
mod compact;
mod disk;
mod folder;
#[cfg(test)]
mod full;
mod journal;
mod line;
mod outage;
mod queue;
mod recovery;
mod reserve;
#[cfg(test)]
mod sim;
mod storage;
mod table;
#[cfg(test)]
mod terms;
#[cfg(test)]
mod tests;
mod thresholds;
mod usage;
mod writer;

pub use self::{
    backend::{JsonBackend, JsonFile},
    builder::JsonSessions,
    journal::Durability,
};
