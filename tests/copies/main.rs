//! Promise 5 for a process that is copied: the updates of both copies are all applied.

use std::{
    convert::Infallible,
    env,
    fs::{self, File},
    io::{self, PipeReader, PipeWriter, Read, Seek, Write},
    path::PathBuf,
    process::{self, exit},
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use futures_util::FutureExt;
use http::{Request, Response, StatusCode, header};
use jam_session::{
    Backend, Clear, Cleared, Created, Cursor, Mark, Owner, Page, Record, RecordId, Session, SessionLayer, Sessions,
    Terms,
    backend::{Outcome, Result},
};
use tower::{Layer, ServiceExt, service_fn};

const UPDATES: u64 = 5;

fn main() {
    p05_a_forked_process_loses_no_update();
    // As the harness would: tests/run adds them up.
    println!("test p05_a_forked_process_loses_no_update ... ok\n\ntest result: ok. 1 passed; 0 failed; 0 ignored");
}

/// Parent and child each update one session five times. Both have always loaded it before either writes, so that one meets the
/// other's version.
fn p05_a_forked_process_loses_no_update() {
    let store = Store::new();
    let sessions = Sessions::over(Arc::clone(&store)).request_time(Duration::from_secs(60)).build().unwrap();
    let layer = SessionLayer::new(sessions);
    // No runtime yet: it would not survive the fork. The store answers at once.
    let (status, cookie) = request(&layer, None).now_or_never().unwrap();
    assert_eq!(status, StatusCode::OK);
    let cookie = cookie.unwrap();

    let [(from_parent, to_child), (from_child, to_parent)] = [io::pipe().unwrap(), io::pipe().unwrap()];
    // SAFETY: this process has one thread, so that the child begins with all that it needs.
    let child = unsafe { libc::fork() };
    assert!(child >= 0, "{}", io::Error::last_os_error());
    if child == 0 {
        drop((from_child, to_child));
        store.meet(Other { is_first: false, waits: false, from: from_parent, to: to_parent });
        update(&layer, &cookie);
        exit(0);
    }
    drop((from_parent, to_parent));
    store.meet(Other { is_first: true, waits: false, from: from_child, to: to_child });
    update(&layer, &cookie);
    let mut status = 0;
    // SAFETY: the status is an integer of ours.
    assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
    assert_eq!(status, 0, "the child failed");

    store.part();
    let visits = visits(&layer, &cookie);
    store.remove();
    assert_eq!(visits, 1 + 2 * UPDATES, "updates that were answered with 200 are lost");
}

fn update(layer: &SessionLayer, cookie: &str) {
    for _ in 0..UPDATES {
        let (status, _) = block_on(request(layer, Some(cookie)));
        assert_eq!(status, StatusCode::OK);
    }
}

fn visits(layer: &SessionLayer, cookie: &str) -> u64 {
    let request = Request::builder().header(header::COOKIE, cookie).body(()).unwrap();
    let service = layer.layer(service_fn(async |request: Request<()>| {
        let session = request.extensions().get::<Session>().unwrap();
        session.load().await.unwrap();
        Ok::<_, Infallible>(Response::new(session.get::<u64>("visits").unwrap().unwrap()))
    }));
    block_on(service.oneshot(request)).unwrap().into_body()
}

/// A request to a handler that counts it in the session.
async fn request(layer: &SessionLayer, cookie: Option<&str>) -> (StatusCode, Option<String>) {
    let mut request = Request::new(());
    if let Some(cookie) = cookie {
        request.headers_mut().insert(header::COOKIE, cookie.parse().unwrap());
    }
    let service = layer.layer(service_fn(async |request: Request<()>| {
        let session = request.extensions().get::<Session>().unwrap();
        session.load().await.unwrap();
        session.modify("visits", |visits: Option<u64>| visits.unwrap_or(0) + 1).unwrap();
        Ok::<_, Infallible>(Response::new(()))
    }));
    let response = service.oneshot(request).await.unwrap();
    let cookie = response.headers().get(header::SET_COOKIE).map(|cookie| cookie.to_str().unwrap());
    (response.status(), cookie.map(|cookie| cookie.split(';').next().unwrap().to_owned()))
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(future)
}

/// One record in a file. It is opened for each call: a file that is opened before the fork has one lock for both processes.
struct Store {
    path: PathBuf,
    other: Mutex<Option<Other>>,
}

/// The other process. It hears when this one has loaded the session, and when it has written it.
struct Other {
    /// Whether this process writes before the other.
    is_first: bool,
    /// Whether the other has yet to write what this process has loaded too.
    waits: bool,
    from: PipeReader,
    to: PipeWriter,
}

impl Other {
    fn tell(&mut self) {
        self.to.write_all(&[1]).unwrap();
    }

    fn hear(&mut self) {
        self.from.read_exact(&mut [0]).unwrap();
    }
}

impl Store {
    fn new() -> Arc<Self> {
        let path = env::temp_dir().join(format!("jam-session-copies-{}", process::id()));
        File::create_new(&path).unwrap();
        Arc::new(Self { path, other: Mutex::default() })
    }

    fn meet(&self, other: Other) {
        *self.other.lock().unwrap() = Some(other);
    }

    fn part(&self) {
        *self.other.lock().unwrap() = None;
    }

    fn remove(&self) {
        fs::remove_file(&self.path).unwrap();
    }

    /// Runs a closure on the record, alone.
    fn with<T>(&self, work: impl FnOnce(&mut Option<Record>) -> T) -> T {
        let mut file = File::options().read(true).write(true).open(&self.path).unwrap();
        file.lock().unwrap();
        let mut record = read(&mut file);
        let done = work(&mut record);
        write(&mut file, record);
        done
    }
}

/// `<id> <version> `, and the payload.
fn read(file: &mut File) -> Option<Record> {
    let mut bytes = Vec::new();
    file.rewind().unwrap();
    file.read_to_end(&mut bytes).unwrap();
    let mut parts = bytes.splitn(3, |byte| *byte == b' ');
    let mut text = || str::from_utf8(parts.next().unwrap()).unwrap().to_owned();
    let id = text();
    let id = id.parse().ok()?;
    let version = text().parse().unwrap();
    Some(Record::new(id, version, TTL, Bytes::copy_from_slice(parts.next().unwrap())))
}

fn write(file: &mut File, record: Option<Record>) {
    file.rewind().unwrap();
    file.set_len(0).unwrap();
    if let Some(record) = record {
        write!(file, "{} {} ", record.id, record.version).unwrap();
        file.write_all(&record.payload).unwrap();
    }
}

impl Backend for Store {
    async fn load(&self, id: RecordId) -> Result<Option<Record>> {
        let record = self.with(|there| there.clone().filter(|there| there.id == id));
        if let Some(other) = &mut *self.other.lock().unwrap() {
            other.tell();
            other.hear();
            other.waits = !other.is_first;
        }
        Ok(record)
    }

    async fn create(&self, record: Record, _: Terms) -> Result<Created> {
        Ok(match self.with(|there| there.replace(record)) {
            None => Created::done(),
            Some(_) => Created::Taken,
        })
    }

    async fn update(&self, expected: i64, record: Record, _: bool) -> Result<Outcome> {
        let mut other = self.other.lock().unwrap();
        if let Some(other) = other.as_mut().filter(|other| other.waits) {
            other.hear();
            other.waits = false;
        }
        let outcome = self.with(|there| match there {
            Some(there) if there.version == expected => {
                *there = record;
                Outcome::Done
            }
            Some(there) => Outcome::Conflict(there.clone()),
            None => Outcome::Gone,
        });
        if let (Some(other), Outcome::Done) = (other.as_mut().filter(|other| other.is_first), &outcome) {
            other.tell();
        }
        Ok(outcome)
    }

    async fn touch(&self, _: RecordId, _: i64, _: Duration) -> Result<()> {
        Ok(())
    }

    async fn delete(&self, _: RecordId) -> Result<bool> {
        Ok(self.with(Option::take).is_some())
    }

    async fn list(&self, _: Owner) -> Result<Vec<Record>> {
        Ok(Vec::new())
    }

    async fn clear(&self, _: Owner, _: Clear) -> Result<Cleared> {
        Ok(Cleared::Done(0))
    }

    async fn mark(&self, _: Owner) -> Result<Mark> {
        Ok(Mark::new(None, 0))
    }

    async fn scan(&self, _: Option<Cursor>, _: usize) -> Result<Page> {
        Ok(Page::default())
    }
}

const TTL: Duration = Duration::from_secs(3600);
