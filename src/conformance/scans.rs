//! Promises about all records: `scan` and `count`.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::{
    records::HowItEnds,
    samples::{LONG, anonymous, is_same, of, owner, record},
    subject::Subject,
};
use crate::{
    backend::{
        Backend,
        scan::{Count, Cursor},
    },
    record::{Record, id::RecordId},
};

/// A `scan` returns every live record unchanged, with or without an owner, for any page size.
pub async fn a_scan_shows_all_that_is_live<B: Backend>(subject: &Subject<B>) {
    let (ada, mut ours) = (owner(), Vec::new());
    for at in 0..20 {
        let id = match at % 4 {
            0 => of(ada),
            1 => of(owner()),
            _ => anonymous(),
        };
        ours.push(Record { ttl: LONG - Duration::from_secs(at), ..record(id) });
    }
    for record in &ours {
        subject.creates(record).await;
    }
    // Some records were written to and read since.
    for at in [0, 5, 10] {
        let new = Record { ttl: LONG / 2, ..record(ours[at].id) };
        subject.updates(ours[at].version, &new).await;
        ours[at] = new;
        subject.touch(ours[at + 1].id, ours[at + 1].version, LONG / 2).await;
        ours[at + 1].ttl = LONG / 2;
    }
    for most in [1, 7, 1000] {
        let scanned = subject.scan(most).await;
        subject.has_all(&scanned, &ours, &format!("in pages of {most}"));
    }
}

/// A `scan` returns no record that had ended before, whatever ended it.
pub async fn a_scan_shows_nothing_that_has_ended<B: Backend>(subject: &Subject<B>) {
    let mut gone = Vec::new();
    for id in [of(owner()), anonymous()] {
        for end in HowItEnds::of(id) {
            gone.push(subject.made_and_ended(if id.owner().is_some() { of(owner()) } else { anonymous() }, end).await);
        }
    }
    let lives = [record(of(owner())), record(anonymous())];
    for record in &lives {
        subject.creates(record).await;
    }
    for most in [1, 1000] {
        let scanned = subject.scan(most).await;
        for old in &gone {
            assert!(
                scanned.iter().all(|there| there.id != old.id),
                "`scan` shows a record that had ended before: a session that is over"
            );
        }
        subject.has_all(&scanned, &lives, "beside others that have ended");
    }
}

/// A record that is live from the first page of a `scan` to the last is included, whatever other records begin, end or change
/// between two pages. A record that has ended is on no later page. A changed record appears in its current state.
pub async fn what_lives_throughout_a_scan_is_in_it<B: Backend>(subject: &Subject<B>) {
    for most in [1, 3] {
        let ada = owner();
        let mut names = (0..8).flat_map(|_| [of(ada), of(owner()), anonymous(), anonymous()]);
        let lives: Vec<Record> = names.by_ref().take(20).map(record).collect();
        let ends: Vec<Record> = names.map(record).collect();
        for record in lives.iter().chain(&ends) {
            subject.creates(record).await;
        }
        let mut there: BTreeMap<RecordId, Record> = lives.iter().map(|record| (record.id, record.clone())).collect();
        let mut gone = BTreeSet::new();
        let (mut seen, mut pages) = (BTreeMap::new(), subject.pages(most).await);
        for at in 0.. {
            let Some(records) = pages.next(subject).await else { break };
            for shown in records {
                assert!(
                    !gone.contains(&shown.id),
                    "a page of a `scan` shows a record that had ended when it was asked for: a session that is over"
                );
                if let Some(current) = there.get(&shown.id) {
                    is_same(&shown, current, "a page of a `scan`");
                }
                seen.insert(shown.id, shown);
            }
            // Change something only after pages with our records, or a store with many records would never finish.
            if at >= 200 {
                continue;
            }
            match at % 4 {
                0 => {
                    // A record of a later page.
                    let old = ends.iter().find(|old| !seen.contains_key(&old.id) && !gone.contains(&old.id));
                    if let Some(old) = old {
                        subject.delete(old.id).await;
                        gone.insert(old.id);
                    }
                }
                1 => {
                    let old = &lives[at % lives.len()];
                    let new = record(old.id);
                    subject.updates(there[&old.id].version, &new).await;
                    there.insert(old.id, new);
                }
                2 => subject.creates(&record(if at % 8 == 2 { of(ada) } else { anonymous() })).await,
                _ => {
                    let touched = &there[&lives[at % lives.len()].id];
                    subject.touch(touched.id, touched.version, LONG).await;
                }
            }
        }
        if pages.moved {
            continue;
        }
        for record in &lives {
            assert!(
                seen.contains_key(&record.id),
                "`scan` misses a record that was live all the time, because others began or ended between two pages: a session \
                 that nobody sees"
            );
        }
    }
}

/// Records of one page may be ended before the next page is requested. No other record is skipped.
pub async fn what_a_scan_shows_can_be_ended_at_once<B: Backend>(subject: &Subject<B>) {
    for most in [1, 4] {
        let ada = owner();
        let mut ours: BTreeSet<RecordId> = (0..6).flat_map(|_| [of(ada), of(owner()), anonymous()]).collect();
        for id in &ours {
            subject.creates(&record(*id)).await;
        }
        let mut pages = subject.pages(most).await;
        while let Some(records) = pages.next(subject).await {
            for there in records {
                if ours.remove(&there.id) {
                    assert!(subject.delete(there.id).await, "`scan` shows a record that `delete` does not find");
                }
            }
        }
        assert!(
            ours.is_empty() || pages.moved,
            "`scan` misses {} of 18 records when those that it shows end: who ends all sessions does not end all",
            ours.len()
        );
    }
}

/// A page of a `scan` can be requested again, for example after an error. Its cursor stays valid, also in another process.
pub async fn a_page_of_a_scan_can_be_asked_for_again<B: Backend>(subject: &Subject<B>) {
    let mut ours = Vec::new();
    for id in (0..6).flat_map(|_| [of(owner()), anonymous()]) {
        ours.push(record(id));
    }
    for record in &ours {
        subject.creates(record).await;
    }
    let (mut seen, mut pages) = (Vec::new(), subject.pages(2).await);
    loop {
        // The contents of the first answers are not checked.
        for _ in 0..2 {
            subject.page(pages.after.clone(), pages.most).await;
        }
        let Some(records) = pages.next(subject).await else { break };
        seen.extend(records);
    }
    if !pages.moved {
        subject.has_all(&seen, &ours, "with each page asked for three times");
    }
}

/// A cursor that is not from this backend is an error, or starts from the beginning.
pub async fn a_cursor_of_another_is_an_error_or_begins<B: Backend>(subject: &Subject<B>) {
    let ours: Vec<Record> = (0..8).flat_map(|_| [of(owner()), anonymous()]).map(record).collect();
    for record in &ours {
        subject.creates(record).await;
    }
    for bytes in [&b""[..], b"\xff\xfe\x00", b"'; DROP TABLE sessions; --", b"m", b"~", &[0; 4096]] {
        let mut pages = subject.pages(5).await;
        pages.after = Some(Cursor::new(bytes.to_vec()));
        if subject.try_page(pages.after.clone(), pages.most).await.is_err() {
            continue;
        }
        let mut seen = Vec::new();
        while let Some(records) = pages.next(subject).await {
            seen.extend(records);
        }
        if !pages.moved {
            subject.has_all(&seen, &ours, "from a cursor that the backend never gave");
        }
    }
}

/// A page has about as many records as were asked for, and not all records at once.
pub async fn a_page_of_a_scan_is_about_as_long_as_asked<B: Backend>(subject: &Subject<B>) {
    let ours: BTreeSet<RecordId> = (0..100).flat_map(|_| [of(owner()), anonymous()]).collect();
    for id in &ours {
        subject.creates(&record(*id)).await;
    }
    let mut pages = subject.pages(5).await;
    while let Some(records) = pages.next(subject).await {
        let many = records.iter().filter(|record| ours.contains(&record.id)).count();
        assert!(
            many <= pages.most.max(ours.len() / 2),
            "a page of a `scan` that was to have about 5 records has {many}: all at once"
        );
    }
}

/// `count` is the number of live records: those with an owner, and those without.
pub async fn a_count_is_that_of_the_live_records<B: Backend>(subject: &Subject<B>) {
    let ada = owner();
    let ours: Vec<Record> = [of(ada), of(ada), of(owner()), anonymous(), anonymous()].map(record).into();
    for record in &ours {
        subject.creates(record).await;
    }
    let short = [of(ada), anonymous()].map(|id| Record { ttl: subject.short(), ..record(id) });
    for record in &short {
        subject.creates(record).await;
    }
    subject.counts_like_a_scan("with new records").await;
    subject.outlast(short[0].ttl).await;
    subject.counts_like_a_scan("after some have expired").await;
    subject.updates(ours[0].version, &record(ours[0].id)).await;
    subject.delete(ours[3].id).await;
    subject.counts_like_a_scan("after a `delete`").await;
    subject.updates(ours[2].version, &Record { ttl: Duration::ZERO, ..record(ours[2].id) }).await;
    subject.clear(ada).await;
    subject.counts_like_a_scan("after a `clear`").await;
}

/// The pages of a `scan`.
struct Pages {
    most: usize,
    after: Option<Cursor>,
    asked: usize,
    done: bool,
    moved: bool,
}

impl Pages {
    async fn next<B: Backend>(&mut self, subject: &Subject<B>) -> Option<Vec<Record>> {
        if self.done {
            return None;
        }
        self.asked += 1;
        assert!(self.asked < MOST_PAGES, "{ENDLESS}");
        let page = subject.page(self.after.take(), self.most).await;
        self.moved |= page.moved;
        self.done = page.next.is_none();
        self.after = page.next;
        Some(page.records)
    }
}

impl<B: Backend> Subject<B> {
    /// Scans all records.
    pub(super) async fn scan(&self, most: usize) -> Vec<Record> {
        loop {
            let (mut all, mut pages) = (Vec::new(), self.pages(most).await);
            while let Some(records) = pages.next(self).await {
                all.extend(records);
            }
            if !pages.moved {
                return all;
            }
        }
    }

    /// Begins a scan. In a store with many other records, its pages are longer.
    async fn pages(&self, most: usize) -> Pages {
        let Count { signed_in, visitors } = self.count().await;
        let most = most.max((signed_in + visitors) as usize / 1000);
        Pages { most, after: None, asked: 0, done: false, moved: false }
    }

    fn has_all(&self, scanned: &[Record], ours: &[Record], how: &str) {
        for record in ours {
            let Some(there) = scanned.iter().find(|there| there.id == record.id) else {
                panic!(
                    "`scan` {how} misses a live record of {}: a session that nobody sees",
                    match record.id.owner() {
                        Some(_) => "an owner",
                        None => "no owner",
                    }
                )
            };
            is_same(there, record, &format!("`scan` {how}"));
        }
    }

    /// Compares a count with a scan. Retries until no other client writes to the store in between, if possible.
    async fn counts_like_a_scan(&self, when: &str) {
        let names = async || self.scan(1000).await.into_iter().map(|record| record.id).collect::<BTreeSet<_>>();
        for _ in 0..10 {
            let before = names().await;
            let count = self.count().await;
            if before == names().await {
                let signed_in = before.iter().filter(|id| id.owner().is_some()).count() as u64;
                let there = Count::new(signed_in, before.len() as u64 - signed_in);
                assert!(
                    count == there,
                    "`count` is {count:?} {when}, and a `scan` shows {there:?}: an administrator sees ended sessions, or \
                     not all sessions"
                );
                return;
            }
        }
    }
}

const ENDLESS: &str = "`scan` goes on and on: there is always a next page";
const MOST_PAGES: usize = 100_000;
