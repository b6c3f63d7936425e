//! The search through all orders of the moves, each run from the start, or through some random orders from a seed.

use super::{
    store::Touches,
    world::{Case, Move, World},
};
use crate::random::Random;

/// A place in the search: the moves up to here are those of the places before it.
struct Place {
    chosen: (Move, Touches),
    /// What is still to be tried here.
    left: Vec<(Move, Touches)>,
    /// What was tried here before, or need not be: it comes to the same as in another order.
    asleep: Vec<(Move, Touches)>,
}

#[derive(Default)]
pub struct Found {
    pub runs: u64,
    /// The shortest run for each kind of wrong.
    pub wrongs: Vec<(String, Vec<Move>)>,
}

/// Runs every order of the moves, but for those that only swap steps whose order nobody can tell.
pub fn all_orders(case: &Case) -> Found {
    let mut found = Found::default();
    let mut path: Vec<Place> = Vec::new();
    loop {
        let mut world = World::new(case, false);
        path.iter().for_each(|place| world.step(place.chosen.0));
        let mut asleep = path.last().map(awake_after).unwrap_or_default();
        let mut is_pruned = false;
        loop {
            let moves = world.moves();
            if moves.is_empty() {
                break;
            }
            let mut left: Vec<_> =
                moves.into_iter().filter(|next| !asleep.iter().any(|there| there.0 == next.0)).collect();
            if left.is_empty() {
                is_pruned = true;
                break;
            }
            left.reverse();
            let chosen = left.pop().unwrap();
            world.step(chosen.0);
            path.push(Place { chosen, left, asleep });
            asleep = awake_after(path.last().unwrap());
        }
        if !is_pruned {
            found.runs += 1;
            world.check_the_end();
        }
        for wrong in world.wrongs {
            let moves: Vec<_> = path.iter().map(|place| place.chosen.0).collect();
            match found.wrongs.iter_mut().find(|there| there.0 == wrong) {
                Some(there) if there.1.len() <= moves.len() => {}
                Some(there) => there.1 = moves,
                None => found.wrongs.push((wrong, moves)),
            }
        }
        // The last place at which there is something left to try.
        loop {
            let Some(mut last) = path.pop() else { return found };
            if let Some(next) = last.left.pop() {
                last.asleep.push(last.chosen);
                last.chosen = next;
                path.push(last);
                break;
            }
        }
    }
}

/// What is still asleep after the move that was chosen at this place.
fn awake_after(place: &Place) -> Vec<(Move, Touches)> {
    let commutes = |other: &&(Move, Touches)| other.1.commutes(place.chosen.1);
    place.asleep.iter().filter(commutes).copied().collect()
}

/// Runs one order, by chance. Clients may go away.
pub fn one_order(case: &Case, rng: &mut Random, drops: bool) -> Found {
    let mut world = World::new(case, false);
    let (mut path, mut may_drop) = (Vec::new(), drops);
    loop {
        let moves = world.moves();
        let Some((next, _)) = rng.one(&moves).copied() else { break };
        let next = match next {
            Move::Pass(request) if may_drop && rng.one_in(4) => {
                may_drop = false;
                Move::Drop(request)
            }
            next => next,
        };
        path.push(next);
        world.step(next);
        if rng.one_in(3) {
            path.push(Move::Background);
            world.step(Move::Background);
        }
    }
    path.push(Move::Background);
    world.step(Move::Background);
    world.check_the_end();
    Found { runs: 1, wrongs: world.wrongs.into_iter().map(|wrong| (wrong, path.clone())).collect() }
}

/// What happened in a run, for a person.
pub fn story(case: &Case, moves: &[Move]) -> String {
    let mut world = World::new(case, true);
    moves.iter().for_each(|next| world.step(*next));
    let mut text = format!("{}: {:?}\n", case.start.name, case.requests);
    let story = world.shared.state().story.clone().unwrap();
    for (number, line) in story.iter().enumerate() {
        text.push_str(&format!("  {:2}. {line}\n", number + 1));
    }
    world.renamed(text)
}
