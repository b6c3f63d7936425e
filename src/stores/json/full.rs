//! The store at its bounds, and on a simulated disk that is full.

use std::{collections::BTreeMap, time::Duration};

use super::{
    batch::FileBounds,
    queue::OpReply,
    sim::{Random, World},
    table::read,
    tests::{Ask, Rig},
};
use crate::{
    clock::Clock,
    error::{Error, ErrorKind},
    record::id::{Owner, RecordId, Sid},
};

/// What an ask came to, and who was there last.
struct There {
    expires: u64,
    used: u64,
}

fn id(owner: Option<u8>, n: u64) -> RecordId {
    RecordId::new(owner.map(|owner| Owner::from([owner; 16])), Sid::parse(&format!("{n:022}")).unwrap())
}

fn create(id: RecordId, ttl: u64) -> Ask {
    Ask::Create(id, 1, ttl, format!(r#"{{"pad":"{}"}}"#, "x".repeat(200)).into())
}

fn ask(rig: &mut Rig, ask: Ask) -> Result<OpReply, Error> {
    let answer = rig.batch(&[ask]).remove(0);
    rig.begin_upkeep();
    answer
}

/// A disk of that size, on which the file system allocates ahead.
fn disk(capacity: usize) -> World {
    let mut world = World::new(capacity as u64);
    world.capacity = Some(capacity);
    world
}

#[test]
fn p19_at_a_bound_visitors_give_way_in_the_order_of_their_last_use_and_users_never() {
    const MAX: usize = 6;
    for seed in 0..60 {
        let mut random = Random(seed);
        let clock = Clock::manual();
        let (_, rig) = Rig::open(World::new(seed), &clock);
        let mut rig = rig.unwrap();
        rig.writer.bounds = FileBounds { max_sessions: MAX, ..FileBounds::default() };
        let mut model: BTreeMap<RecordId, There> = BTreeMap::new();
        for step in 0..200_u64 {
            clock.advance(Duration::from_millis(random.below(30)));
            let now = clock.now_ms();
            model.retain(|_, there| there.expires > now);
            let owner = [None, None, Some(1), Some(2)][random.below(4) as usize];
            let id = id(owner, random.below(6));
            let context = format!("seed {seed}, step {step}");
            match random.below(8) {
                0..4 => {
                    let ttl = [40, 400, 100_000][random.below(3) as usize];
                    let stays = model.keys().filter(|id| id.owner().is_some()).count();
                    let answer = ask(&mut rig, create(id, ttl));
                    if model.contains_key(&id) {
                        // It is this very record, so it is done.
                        assert_eq!(answer.unwrap().count(), 1, "{context}");
                    } else if stays == MAX {
                        assert_eq!(answer.unwrap_err().kind(), ErrorKind::Unavailable, "{context}");
                    } else {
                        assert_eq!(answer.unwrap().count(), 1, "{context}");
                        if model.len() == MAX {
                            let visitors = model.iter().filter(|(id, _)| id.owner().is_none());
                            let oldest = *visitors.min_by_key(|(_, there)| there.used).unwrap().0;
                            model.remove(&oldest);
                        }
                        model.insert(id, There { expires: now + ttl, used: step });
                    }
                }
                4..7 => {
                    let found = read(&rig.writer.storage.table).load(id);
                    let is_there = matches!(found, super::table::Lookup::Live(_));
                    assert_eq!(is_there, model.contains_key(&id), "{context}");
                    model.entry(id).and_modify(|there| there.used = step);
                }
                _ => {
                    assert_eq!(ask(&mut rig, Ask::Delete(id)).unwrap().count(), u64::from(model.remove(&id).is_some()));
                }
            }
            let there: Vec<RecordId> = rig.contents().into_keys().collect();
            assert!(there.iter().eq(model.keys()), "{context}: {there:?}");
            let usage = read(&rig.writer.storage.table).usage();
            assert!(usage.records() <= MAX, "{context}: {usage:?}");
        }
    }
}

#[test]
fn p19_what_can_never_fit_is_refused_and_nobody_gives_way_for_it() {
    let (_, rig) = Rig::open(World::new(1), &Clock::manual());
    let mut rig = rig.unwrap();
    rig.writer.bounds = FileBounds { max_bytes: 4_000, ..FileBounds::default() };
    for n in 0..5 {
        assert!(ask(&mut rig, create(id(None, n), 1_000)).is_ok());
    }
    let before = rig.contents();
    let large = Ask::Create(id(Some(1), 1), 1, 1_000, vec![0; 5_000].into());
    assert_eq!(ask(&mut rig, large).unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!(rig.contents(), before);
    // Of one batch, what fits is done.
    let asks = [create(id(Some(1), 1), 1_000), Ask::Create(id(Some(1), 2), 1, 1_000, vec![0; 5_000].into())];
    let answers = rig.batch(&asks);
    assert!(answers[0].is_ok() && answers[1].is_err());
}

#[test]
fn p19_on_a_full_disk_visitors_give_way_for_users_and_every_sign_out_works() {
    let clock = Clock::manual();
    let (disk, rig) = Rig::open(disk(1 << 20), &clock);
    let mut rig = rig.unwrap();
    // More than fits, by far.
    for n in 0..4_000 {
        let answer = ask(&mut rig, create(id(None, n), 100_000));
        assert_eq!(answer.map(|answer| answer.count()).ok(), Some(1), "visitor {n}");
    }
    // Users sign in until they fill it themselves.
    let mut users = Vec::new();
    let refused = loop {
        let user = id(Some(1), users.len() as u64);
        match ask(&mut rig, create(user, 200_000)) {
            Ok(_) => users.push(user),
            Err(error) => break error,
        }
        assert!(users.len() < 4_000);
    };
    assert_eq!(refused.kind(), ErrorKind::Unavailable);
    assert!(users.len() > 300, "{}", users.len());
    assert!(users.iter().all(|user| rig.contents().contains_key(user)));
    // Another program takes what is left, to the last byte.
    let rest = disk.world().fill();
    assert!(ask(&mut rig, create(id(Some(2), 1), 100_000)).is_err());
    for user in &users {
        assert_eq!(ask(&mut rig, Ask::Delete(*user)).map(|answer| answer.count()).ok(), Some(1));
    }
    // It is as it was answered, also after the power was cut.
    let (_, again) = Rig::open(disk.after_power_cut(), &clock);
    assert!(again.unwrap().contents().into_keys().all(|id| !users.contains(&id)));
    // And there is room again.
    disk.world().capacity = Some(rest);
    assert!(ask(&mut rig, create(id(Some(2), 1), 100_000)).is_ok());
}

#[test]
fn p19_however_many_users_sign_out_on_a_full_disk_each_sign_out_works() {
    let (disk, rig) = Rig::open(disk(64 << 20), &Clock::manual());
    let mut rig = rig.unwrap();
    let users: Vec<RecordId> = (0..20_000).map(|n| id(Some(1), n)).collect();
    for some in users.chunks(1_000) {
        let creates: Vec<Ask> = some.iter().map(|user| create(*user, 100_000)).collect();
        assert!(rig.batch(&creates).iter().all(Result::is_ok));
        rig.begin_upkeep();
    }
    disk.world().fill();
    let large = |n: usize| Ask::Create(id(Some(2), n as u64), 1, 1_000, vec![0; 32 << 20].into());
    for (n, user) in users.iter().enumerate() {
        // Now and then together with a change for which there is no room.
        let mut asks = vec![Ask::Delete(*user)];
        asks.extend((n % 5_000 == 0).then(|| large(n)));
        let answers = rig.batch(&asks);
        assert_eq!(answers[0].as_ref().map(OpReply::count).ok(), Some(1), "user {n}: {:?}", answers[0]);
        rig.begin_upkeep();
    }
    assert!(rig.contents().is_empty());
}

#[test]
fn p19_a_disk_that_was_full_takes_logins_again_once_the_sessions_have_expired() {
    for restart in [false, true] {
        let clock = Clock::manual();
        let (disk, rig) = Rig::open(disk(1 << 20), &clock);
        let mut rig = rig.unwrap();
        let mut users = 0;
        while ask(&mut rig, create(id(Some(1), users), 1_000)).is_ok() {
            users += 1;
        }
        disk.world().fill();
        clock.advance(Duration::from_secs(1));
        let mut rig = if restart {
            let (_, again) = Rig::open(disk.world().clone(), &clock);
            again.unwrap()
        } else {
            rig
        };
        for n in 0..20 {
            assert!(ask(&mut rig, create(id(Some(2), n), 1_000)).is_ok(), "restart {restart}, login {n}");
        }
        assert_eq!(rig.contents().len(), 20);
    }
}

#[test]
fn p19_expired_sessions_take_no_room_although_nothing_was_written_about_each() {
    let clock = Clock::manual();
    let (_, rig) = Rig::open(World::new(1), &clock);
    let mut rig = rig.unwrap();
    rig.writer.bounds = FileBounds { max_sessions: 1_000, ..FileBounds::default() };
    for n in 0..1_000 {
        assert!(rig.batch(&[create(id(Some(1), n), 1_000)])[0].is_ok());
    }
    assert!(rig.batch(&[create(id(Some(2), 0), 1_000)])[0].is_err());
    clock.advance(Duration::from_secs(1));
    let before = rig.bytes().len();
    assert!(rig.batch(&[create(id(Some(2), 0), 1_000)])[0].is_ok());
    assert!(rig.bytes().len() < before + 1_000);
    assert_eq!(read(&rig.writer.storage.table).usage().records(), 1);
}

#[test]
fn p19_a_file_with_no_live_session_starts_over() {
    let clock = Clock::manual();
    let (disk, rig) = Rig::open(World::new(1), &clock);
    let mut rig = rig.unwrap();
    rig.writer.storage.thresholds.dead = u64::MAX;
    for n in 0..2_000 {
        assert!(rig.batch(&[create(id(None, n), 1_000)])[0].is_ok());
    }
    clock.advance(Duration::from_secs(1));
    let (_, again) = Rig::open(disk.world().clone(), &clock);
    let mut again = again.unwrap();
    assert!(again.bytes().len() < 200, "{}", again.bytes().len());
    assert!(again.batch(&[create(id(None, 0), 1_000)])[0].is_ok());
    // On a disk that has no room for another file too.
    let mut world = disk.world().clone();
    world.capacity = Some(1 << 30);
    world.fill();
    let (_, again) = Rig::open(world, &clock);
    let mut again = again.unwrap();
    assert!(again.bytes().len() < 200, "{}", again.bytes().len());
    assert!(again.batch(&[create(id(None, 0), 1_000)])[0].is_ok());
    let (_, again) = Rig::open(again.disk.world().clone(), &clock);
    assert_eq!(again.unwrap().contents().len(), 1);
}

#[test]
fn p18_what_expired_before_the_clock_was_set_back_does_not_come_back_after_a_crash() {
    let clock = Clock::manual();
    let earlier = Clock::manual_at(clock.now() - Duration::from_secs(3_600));
    let (disk, rig) = Rig::open(World::new(1), &clock);
    let mut rig = rig.unwrap();
    let (ended, lives) = (id(Some(1), 1), id(Some(1), 2));
    assert!(rig.batch(&[create(ended, 60_000), create(lives, 600_000)]).iter().all(Result::is_ok));
    clock.advance(Duration::from_secs(60));
    // A reader that finds it expired has the file say so before it answers.
    assert!(matches!(read(&rig.writer.storage.table).load(ended), super::table::Lookup::Expired));
    assert!(rig.batch(&[Ask::Expire])[0].is_ok());
    assert!(matches!(read(&rig.writer.storage.table).load(ended), super::table::Lookup::Nothing));
    let (_, again) = Rig::open(disk.after_power_cut(), &earlier);
    let mut again = again.unwrap();
    assert_eq!(again.contents().into_keys().collect::<Vec<_>>(), [lives]);
    // The other one lives as long as it was to live, in use, whatever the wall clock says.
    earlier.advance(Duration::from_secs(539));
    assert_eq!(again.contents().len(), 1);
    earlier.advance(Duration::from_secs(1));
    assert!(again.batch(&[Ask::Delete(lives)])[0].as_ref().unwrap().count() == 0 && again.contents().is_empty());
}

/// What is answered as gone is seen as ended, whichever the verb.
#[test]
fn p18_no_verb_says_gone_of_what_a_clock_that_is_set_back_could_bring_back() {
    let id = id(Some(1), 1);
    let update = Ask::Update(1, id, 2, 1_000, "{}".into());
    for verb in [update, Ask::Touch(id, 1, 1_000), Ask::Delete(id), Ask::Clear(id, None)] {
        let clock = Clock::manual();
        let earlier = Clock::manual_at(clock.now() - Duration::from_secs(3_600));
        let (disk, rig) = Rig::open(World::new(1), &clock);
        let mut rig = rig.unwrap();
        assert!(rig.batch(&[create(id, 60_000)])[0].is_ok());
        clock.advance(Duration::from_secs(60));
        assert_eq!(rig.batch(std::slice::from_ref(&verb))[0].as_ref().unwrap().count(), 0);
        let (_, again) = Rig::open(disk.after_power_cut(), &earlier);
        assert!(again.unwrap().contents().is_empty(), "{verb:?}");
    }
}

/// Opening tells readers too that something has expired.
#[test]
fn p18_what_was_found_expired_on_opening_does_not_come_back_either() {
    let clock = Clock::manual();
    let earlier = Clock::manual_at(clock.now() - Duration::from_secs(3_600));
    let (disk, rig) = Rig::open(World::new(1), &clock);
    let mut rig = rig.unwrap();
    assert!(rig.batch(&[create(id(Some(1), 1), 60_000), create(id(Some(1), 2), 600_000)]).iter().all(Result::is_ok));
    clock.advance(Duration::from_secs(60));
    let (disk, again) = Rig::open(disk.world().clone(), &clock);
    assert_eq!(again.unwrap().contents().len(), 1);
    let (_, again) = Rig::open(disk.after_power_cut(), &earlier);
    assert_eq!(again.unwrap().contents().len(), 1);
}
