//! The JSON file on real disks and file systems: full ones, paths that can never work, and clocks that are set back.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::Duration,
};

use jam_session::{
    Backend, Builder, Clock, Durability, ErrorKind, JsonSessions, Record, SessionLayer, stores::json::JsonFile,
};
use serde_json::json;

use crate::{
    client::{Client, increment},
    events::Events,
    folder::Folder,
    store::{Plain, eventually},
};

const HOUR: Duration = Duration::from_secs(3600);
const PATH: &str = "JAM_SESSION_DISK";

/// With more time than any machine needs.
fn builder(path: impl AsRef<Path>) -> Builder<JsonFile> {
    JsonSessions::builder(path).request_time(Duration::from_secs(60))
}

async fn refused(path: &Path) -> (ErrorKind, String) {
    let error = builder(path).open().await.unwrap_err();
    (error.kind(), error.to_string())
}

/// Says in the log what was run: the harness hides what a test that passes prints.
fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Runs a test of this file as root of a user namespace, after a command that may mount. `None` where that is forbidden.
fn in_a_namespace(test: &str, path: &Path, mount: &str) -> Option<Output> {
    let allowed = Command::new("unshare").args(["--user", "--map-root-user", "--mount", "true"]).output();
    if !allowed.is_ok_and(|output| output.status.success()) {
        return None;
    }
    let script = format!("{mount} && exec \"$0\" --exact disks::{test} --nocapture --test-threads=1");
    let output = Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "sh", "-c", &script])
        .arg(std::env::current_exe().unwrap())
        .env(PATH, path)
        .output()
        .unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    // A container may forbid to mount, and not the namespace.
    if said.contains("mount:") && !said.contains("running 1 test") {
        return None;
    }
    assert!(output.status.success(), "{said}");
    Some(output)
}

#[tokio::test]
async fn p19_when_a_file_is_full_visitors_give_way_least_recently_used_first() {
    let folder = Folder::new();
    let sessions = builder(folder.file()).max_sessions(4).open().await.unwrap();
    let layer = SessionLayer::new(sessions.clone());
    let ada = sessions.create("ada", json!({})).await.unwrap();
    let visitors: Vec<_> = (0..3).map(|_| Client::new(&layer)).collect();
    for visitor in &visitors {
        visitor.does(|session| session.insert("n", 1)).await.ok();
    }
    // The first one is used again, the second one written to: the third is the oldest now.
    visitors[0].does(|session| Ok(session.get::<u8>("n")?.unwrap().to_string())).await.ok();
    visitors[1].does(|session| session.insert("n", 2)).await.ok();
    let fourth = Client::new(&layer);
    fourth.does(|session| session.insert("n", 1)).await.ok().new_id().unwrap();
    let mut alive = Vec::new();
    for client in [&visitors[0], &visitors[1], &visitors[2], &fourth] {
        alive.push(client.does(|session| Ok(session.handle().is_some().to_string())).await.body == "true");
    }
    assert_eq!(alive, [true, true, false, true]);

    // Users take the place of visitors, and of no user.
    for _ in 0..3 {
        sessions.create("grace", json!({})).await.unwrap();
    }
    assert_eq!(sessions.create("ada", json!({})).await.unwrap_err().kind(), ErrorKind::Unavailable);
    assert!(sessions.get(&ada).await.unwrap().is_some());
    assert_eq!(sessions.backend().sessions(), 4);
    sessions.update(&ada, json!({"n": 1})).await.unwrap();
    sessions.delete(&ada).await.unwrap();
    sessions.create("ada", json!({})).await.unwrap();
    sessions.close().await.unwrap();
    // The bound holds after a restart as well.
    let sessions = builder(folder.file()).max_sessions(4).open().await.unwrap();
    assert!(sessions.create("ada", json!({})).await.is_err());
}

#[tokio::test]
async fn p19_the_bytes_of_a_file_are_bounded_too() {
    let folder = Folder::new();
    let sessions = builder(folder.file()).max_bytes(64 * 1024).open().await.unwrap();
    let layer = SessionLayer::new(sessions.clone());
    let filler = "x".repeat(4000);
    for _ in 0..100 {
        Client::new(&layer).does(|session| session.insert("filler", &filler)).await.ok().new_id().unwrap();
        assert!(sessions.backend().bytes() <= 64 * 1024);
    }
    let id = sessions.create("ada", json!({"filler": filler})).await.unwrap();
    let before = sessions.backend().sessions();
    let error = sessions.update(&id, json!({"filler": "x".repeat(70_000)})).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert_eq!(sessions.backend().sessions(), before);
    assert_eq!(sessions.get(&id).await.unwrap().unwrap().get::<String>("filler").unwrap(), Some(filler));
}

/// A real file system of 8 MiB, filled by visitors, then by another program to the last byte.
#[test]
fn p19_on_a_small_disk_logins_and_sign_outs_work_although_it_is_full() {
    let folder = Folder::new();
    let mount = format!("mount -t tmpfs -o size=8m none \"${PATH}\"");
    match in_a_namespace("child_on_a_small_disk", &folder.path(""), &mount) {
        Some(_) => say("ran on a tmpfs of 8 MiB"),
        None => say(
            "a tmpfs of our own is forbidden here: only the simulated disk was filled, by stores::json::full::p19_on_a_full_disk_visitors_give_way_for_users_and_every_sign_out_works",
        ),
    }
}

/// Not a test of its own: what the test above runs on its small disk.
#[test]
fn child_on_a_small_disk() {
    let Ok(path) = std::env::var(PATH) else { return };
    let path = PathBuf::from(path).join("sessions.json");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let clock = Clock::manual();
        // One of memory needs no syncs.
        let open = || builder(&path).clock(clock.clone()).durability(Durability::Flush).open();
        let sessions = open().await.unwrap();
        let layer = SessionLayer::new(sessions.clone());
        let filler = "x".repeat(2_000);
        for _ in 0..6_000 {
            Client::new(&layer).does(|session| session.insert("filler", &filler)).await.ok().new_id().unwrap();
        }
        let mut users = Vec::new();
        for _ in 0..50 {
            users.push(sessions.create("ada", json!({"filler": filler})).await.unwrap());
        }
        let rest = path.with_file_name("rest");
        fill(&rest);
        for user in &users {
            sessions.delete(user).await.unwrap();
        }
        assert!(sessions.list("ada").await.unwrap().is_empty());
        // A login takes the place of visitors.
        let user = sessions.create("bob", json!({"filler": filler})).await.unwrap();
        assert!(sessions.get(&user).await.unwrap().is_some());
        // When everything has expired there is room, and after a restart, on a disk that is still full.
        clock.advance(365 * 24 * HOUR);
        for _ in 0..100 {
            sessions.create("eve", json!({"filler": filler})).await.unwrap();
        }
        clock.advance(365 * 24 * HOUR);
        sessions.close().await.unwrap();
        fill(&path.with_file_name("more"));
        let sessions = open().await.unwrap();
        sessions.create("eve", json!({})).await.unwrap();
        sessions.clear("eve").await.unwrap();
        sessions.close().await.unwrap();
    });
}

/// Writes until there is no room for another byte.
fn fill(path: &Path) {
    let mut file = fs::File::create(path).unwrap();
    for len in [1 << 16, 1 << 12, 1] {
        while file.write_all(&vec![0; len]).is_ok() {}
    }
}

/// `docker run -v file:file`: the file cannot be replaced, and would grow for ever.
#[test]
fn p14_a_file_that_is_mounted_by_itself_is_refused() {
    for content in ["", include_str!("../golden/sessions-v1.json")] {
        let folder = Folder::new();
        fs::write(folder.path("outside.json"), content).unwrap();
        fs::write(folder.file(), "").unwrap();
        let mount = format!("mount --bind \"${PATH}/outside.json\" \"${PATH}/sessions.json\"");
        if in_a_namespace("child_with_a_mounted_file", &folder.path(""), &mount).is_none() {
            say("mounting is forbidden here: a file that is mounted by itself was not tried");
        }
    }
}

/// Not a test of its own: what the test above runs beside its mounted file.
#[test]
fn child_with_a_mounted_file() {
    let Ok(path) = std::env::var(PATH) else { return };
    let path = PathBuf::from(path).join("sessions.json");
    let before = fs::read(&path).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (kind, message) = runtime.block_on(refused(&path));
    assert_eq!(kind, ErrorKind::Config, "{message}");
    assert!(message.contains("mounted") && message.contains("mount its folder"), "{message}");
    assert_eq!(fs::read(path).unwrap(), before);
}

#[cfg(unix)]
#[tokio::test]
async fn p14_a_path_at_which_no_file_can_be_is_refused_and_nothing_is_left_beside_it() {
    let folder = Folder::new();
    fs::create_dir(folder.path("folder.json")).unwrap();
    let long = |len: usize| format!("{}.json", "x".repeat(len - 5));
    assert!(Command::new("mkfifo").arg(folder.path("pipe")).status().unwrap().success());
    let _socket = std::os::unix::net::UnixListener::bind(folder.path("socket")).unwrap();
    let names = || {
        let mut names: Vec<_> =
            fs::read_dir(folder.path("")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    let before = names();
    for (name, word) in [
        ("folder.json", "a folder"),
        ("pipe", "a device, a pipe or a socket"),
        ("socket", "a device, a pipe or a socket"),
        (&long(300), "too long"),
        // The name itself would do.
        (&long(250), "too long"),
    ] {
        let (kind, message) = refused(&folder.path(name)).await;
        assert_eq!(kind, ErrorKind::Config, "{message}");
        assert!(message.contains(word), "{message}");
        assert_eq!(names(), before, "{message}");
    }
    std::os::unix::fs::symlink("loop", folder.path("loop")).unwrap();
    let (kind, message) = refused(&folder.path("loop").join("sessions.json")).await;
    assert!(kind == ErrorKind::Config && message.contains("form a loop"), "{message}");
    let (kind, message) = refused(Path::new("/dev/null")).await;
    assert!(kind == ErrorKind::Config && message.contains("a device"), "{message}");
    assert!(!Path::new("/dev/null.lock").exists());
}

#[cfg(unix)]
#[tokio::test]
async fn p14_a_private_file_of_another_user_is_refused_even_for_root() {
    let folder = Folder::new();
    let sessions = builder(folder.file()).open().await.unwrap();
    sessions.create("ada", json!({})).await.unwrap();
    sessions.close().await.unwrap();
    // The second user of most systems.
    let other = 1;
    if std::os::unix::fs::chown(folder.file(), Some(other), None).is_err() {
        return say("only root can give a file away: the file of another user was not tried");
    }
    let before = fs::read(folder.file()).unwrap();
    // As a backup is restored: without the lock file, which would keep its owner from the file if root left one.
    fs::remove_file(folder.path("sessions.json.lock")).unwrap();
    let (kind, message) = refused(&folder.file()).await;
    assert_eq!(kind, ErrorKind::Config, "{message}");
    assert!(message.contains("belongs to user 1"), "{message}");
    assert_eq!(fs::read(folder.file()).unwrap(), before);
    assert_eq!(fs::read_dir(folder.path("")).unwrap().count(), 1);
    std::os::unix::fs::chown(folder.file(), Some(0), None).unwrap();
    assert_eq!(builder(folder.file()).open().await.unwrap().list("ada").await.unwrap().len(), 1);
}

/// The folder is removed with the file in it, as on a disk that is gone.
#[cfg(unix)]
#[tokio::test]
async fn p13_when_the_disk_fails_the_log_names_the_file_and_the_answer_does_not() {
    let folder = Folder::new();
    let sessions = builder(folder.file()).open().await.unwrap();
    let client = Client::new(&SessionLayer::new(sessions));
    client.does(increment).await.ok();
    fs::remove_dir_all(folder.path("")).unwrap();
    let (events, _guard) = Events::collect();
    let by_the_layer = client.does(increment).await;
    let by_the_handler = client.visit(async |session| {
        increment(&session)?;
        session.save().await
    });
    for answer in [by_the_layer, by_the_handler.await] {
        assert_eq!(answer.status, http::StatusCode::SERVICE_UNAVAILABLE);
        let whole = format!("{answer:?}");
        let parts = folder.file();
        let parts = parts.iter().map(|part| part.to_str().unwrap()).filter(|part| part.len() > 1);
        for part in parts.chain(["os error", "No such file"]) {
            assert!(!whole.contains(part), "{part}: {whole}");
        }
    }
    let (said, path) = (events.text(), folder.file().display().to_string());
    let warned: Vec<_> = said.lines().filter(|line| line.starts_with("WARN")).collect();
    assert!(matches!(warned[..], [line] if line.contains(&path)), "{said}");
}

#[cfg(unix)]
#[tokio::test]
async fn p04_when_the_folder_is_switched_to_a_new_release_sign_outs_still_work() {
    use std::os::unix::fs::symlink;
    let folder = Folder::new();
    for release in ["1", "2"] {
        fs::create_dir(folder.path(release)).unwrap();
    }
    let current = folder.path("current");
    symlink("1", &current).unwrap();
    let sessions = builder(current.join("sessions.json")).open().await.unwrap();
    let ids = [sessions.create("ada", json!({})).await.unwrap(), sessions.create("ada", json!({})).await.unwrap()];
    // As deployments do it.
    symlink("2", folder.path("next")).unwrap();
    fs::rename(folder.path("next"), &current).unwrap();
    sessions.delete(&ids[0]).await.unwrap();
    assert!(sessions.get(&ids[0]).await.unwrap().is_none() && sessions.get(&ids[1]).await.unwrap().is_some());
    assert_eq!(sessions.clear("ada").await.unwrap(), 1);
    sessions.create("bob", json!({})).await.unwrap();
    // The next process has a file of its own.
    let next = builder(current.join("sessions.json")).open().await.unwrap();
    assert!(next.list("bob").await.unwrap().is_empty());
    sessions.close().await.unwrap();
    let first = builder(folder.path("1").join("sessions.json")).open().await.unwrap();
    assert_eq!((first.list("ada").await.unwrap().len(), first.list("bob").await.unwrap().len()), (0, 1));
}

/// A line with the right sum, whatever it says.
fn line(rest: &str) -> String {
    format!("{{\"sum\":\"{:08x}\",{rest}\n", crc32fast::hash(rest.as_bytes()))
}

#[tokio::test]
async fn p11_a_file_with_numbers_that_no_file_of_ours_has_is_an_error_or_read_and_never_a_panic() {
    let folder = Folder::new();
    let head = line(r#""op":"file","format":1,"records":0,"after":0}"#);
    let put = |n: &str, until: u64, ttl: u64| {
        let id = "AAAAAAAAQACAAAAAAAAAAA";
        line(&format!(r#"{n}"op":"put","id":"{id}","version":1,"until":{until},"ttl":{ttl},"json":{{}}}}"#))
    };
    let max = u64::MAX;
    let unreadable = [
        line(&format!(r#""op":"file","format":1,"records":0,"after":{max}}}"#)),
        line(&format!(r#""op":"file","format":1,"records":{max},"after":0}}"#)),
        line(&format!(r#""op":"file","format":1,"records":1,"after":{max}}}"#)) + &put("", 1, 1),
        head.clone() + &line(&format!(r#""n":{max},"synced":0,"op":"synced"}}"#)),
        head.clone() + &line(&format!(r#""n":1,"synced":{max},"op":"synced"}}"#)),
    ];
    for content in unreadable {
        fs::write(folder.file(), &content).unwrap();
        assert_eq!(refused(&folder.file()).await.0, ErrorKind::Unreadable, "{content}");
        assert_eq!(fs::read_to_string(folder.file()).unwrap(), content);
    }
    for (until, ttl) in [(max, max), (max, 0), (0, max)] {
        for (at, wall) in [(max, max), (max, 0), (0, max), (0, 0)] {
            let head = line(&format!(r#""op":"file","format":1,"records":0,"after":7,"at":{at},"wall":{wall}}}"#));
            let content = head + &put(r#""n":8,"synced":7,"#, until, ttl);
            fs::write(folder.file(), &content).unwrap();
            let sessions = builder(folder.file()).open().await.unwrap();
            let id = sessions.create("ada", json!({})).await.unwrap();
            sessions.get(&id).await.unwrap();
            sessions.delete(&id).await.unwrap();
            sessions.close().await.unwrap();
        }
    }
}

#[tokio::test]
async fn p19_a_folder_in_the_place_of_the_compacted_file_does_not_stop_compaction() {
    let folder = Folder::new();
    let compacting = folder.path("sessions.json.compacting");
    fs::create_dir_all(compacting.join("precious")).unwrap();
    compacts(&folder.file()).await;
    assert!(compacting.join("precious").exists());
    let mut names: Vec<_> = fs::read_dir(folder.path("")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["sessions.json", "sessions.json.compacting", "sessions.json.lock"]);
}

/// A file can be created, used, and opened again, and is compacted.
async fn compacts(path: &Path) {
    let sessions = builder(path).durability(Durability::Flush).open().await.unwrap();
    let id = sessions.create("ada", json!({})).await.unwrap();
    let pad = "x".repeat(100_000);
    for n in 0..100 {
        sessions.update(&id, json!({"n": n, "pad": pad})).await.unwrap();
    }
    // 10 MB were written. A compaction may be late on a busy machine, and closing does not wait for it.
    eventually(async || fs::metadata(path).unwrap().len() < 5 << 20).await;
    sessions.close().await.unwrap();
    let sessions = builder(path).open().await.unwrap();
    assert_eq!(sessions.list("ada").await.unwrap().len(), 1);
    sessions.close().await.unwrap();
}

/// A mount cannot be removed, not even by root.
#[test]
fn p19_a_mount_in_the_place_of_the_compacted_file_does_not_stop_compaction() {
    let folder = Folder::new();
    for name in ["precious", "sessions.json.compacting"] {
        fs::write(folder.path(name), "precious").unwrap();
    }
    let mount = format!("mount --bind \"${PATH}/precious\" \"${PATH}/sessions.json.compacting\"");
    if in_a_namespace("child_with_a_mount_beside_its_file", &folder.path(""), &mount).is_none() {
        return say("mounting is forbidden here: a mount in the place of the compacted file was not tried");
    }
    assert_eq!(fs::read_to_string(folder.path("precious")).unwrap(), "precious");
}

/// Not a test of its own: what the test above runs beside its mount.
#[test]
fn child_with_a_mount_beside_its_file() {
    let Ok(path) = std::env::var(PATH) else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(compacts(&PathBuf::from(path).join("sessions.json")));
}

/// Copied while in use, which is what a crash leaves, and opened with a clock that shows an hour less.
async fn crashed(folder: &Folder, clock: &Clock) -> (JsonSessions, Clock) {
    let copy = folder.path("copy.json");
    fs::copy(folder.file(), &copy).unwrap();
    let earlier = Clock::manual_at(clock.now() - HOUR);
    (builder(copy).clock(earlier.clone()).open().await.unwrap(), earlier)
}

#[tokio::test]
async fn p18_a_session_that_was_seen_to_have_expired_stays_so_after_a_crash_and_a_clock_set_back() {
    let folder = Folder::new();
    let clock = Clock::manual();
    let sessions = builder(folder.file()).clock(clock.clone()).open().await.unwrap();
    let (read, listed) =
        (sessions.create("ada", json!({})).await.unwrap(), sessions.create("bob", json!({})).await.unwrap());
    clock.advance(HOUR - Duration::from_secs(1));
    let live = sessions.create("eve", json!({})).await.unwrap();
    clock.advance(Duration::from_secs(1));
    assert!(sessions.get(&read).await.unwrap().is_none());
    let (again, _) = crashed(&folder, &clock).await;
    assert!(again.get(&read).await.unwrap().is_none() && again.get(&live).await.unwrap().is_some());
    again.close().await.unwrap();
    assert!(sessions.list("bob").await.unwrap().is_empty());
    let (again, clock) = crashed(&folder, &clock).await;
    assert!(again.get(&listed).await.unwrap().is_none());
    // What lives ends when it would have.
    clock.advance(HOUR);
    assert!(again.get(&live).await.unwrap().is_none());
}

#[tokio::test]
async fn p06_an_id_that_was_replaced_stays_so_after_a_crash_and_a_clock_set_back() {
    let folder = Folder::new();
    let clock = Clock::manual();
    let sessions = builder(folder.file()).clock(clock.clone()).open().await.unwrap();
    let old = sessions.create("ada", json!({})).await.unwrap();
    let new = sessions.rework(&old).await.unwrap();
    assert!(sessions.get(&old).await.unwrap().is_some());
    clock.advance(Duration::from_secs(10));
    assert!(sessions.get(&old).await.unwrap().is_none());
    let (again, _) = crashed(&folder, &clock).await;
    assert!(again.get(&old).await.unwrap().is_none() && again.get(&new).await.unwrap().is_some());
}

#[tokio::test]
async fn p18_a_deadline_is_not_moved_by_a_clock_that_is_set_back_while_nothing_runs() {
    let folder = Folder::new();
    let clock = Clock::manual();
    let build =
        |clock: &Clock| builder(folder.file()).clock(clock.clone()).default_ttl(None).max_lifetime(2 * HOUR).open();
    let sessions = build(&clock).await.unwrap();
    let id = sessions.create("ada", json!({})).await.unwrap();
    clock.advance(HOUR);
    sessions.update(&id, json!({"n": 1})).await.unwrap();
    sessions.close().await.unwrap();
    let clock = Clock::manual_at(clock.now() - 24 * HOUR);
    let sessions = build(&clock).await.unwrap();
    clock.advance(HOUR - Duration::from_secs(11));
    assert!(sessions.get(&id).await.unwrap().is_some());
    clock.advance(Duration::from_secs(11));
    assert!(sessions.get(&id).await.unwrap().is_none());
}

#[tokio::test]
async fn p18_a_wall_clock_that_is_wrong_for_a_moment_ends_no_session_of_a_file() {
    let folder = Folder::new();
    let clock = Clock::manual();
    let record = |n: u64| Record::new(format!("{n:022}").parse().unwrap(), 1, HOUR, "{}");
    let sessions = builder(folder.file()).clock(clock.clone()).open().await.unwrap();
    assert!(sessions.backend().creates(record(1)).await.unwrap());
    sessions.close().await.unwrap();
    // Opened and used for a while by a clock that shows 1970, as a machine without a battery does.
    let wrong = Clock::manual_at(std::time::UNIX_EPOCH);
    let sessions = builder(folder.file()).clock(wrong.clone()).open().await.unwrap();
    wrong.advance(HOUR / 4);
    assert!(sessions.backend().creates(record(2)).await.unwrap());
    sessions.close().await.unwrap();
    // And put right: neither has ended, nor got more time than it had.
    let sessions = builder(folder.file()).clock(clock.clone()).open().await.unwrap();
    for n in [1, 2] {
        let left = sessions.backend().load(record(n).id).await.unwrap().map(|record| record.ttl);
        assert!(left.is_some_and(|left| left <= HOUR), "{n}: {left:?}");
    }
}
