//! One household episode, with a scripted player that knows only what it has seen.

use std::sync::Arc;

use super::generate::Generated;
use super::world::ObjectKind;
use crate::env::textgame::{Game, Planner, TextGame};
use crate::env::{EnvError, Environment, Observation};

/// A household episode.
pub struct HouseholdGame {
    inner: TextGame,
    about: Arc<Generated>,
    /// By place (as listed at the start): its contents have been seen.
    seen: Vec<bool>,
    planner: Planner,
}

impl HouseholdGame {
    /// The game of this name with a player who knows how it was generated.
    pub fn new(name: &str, game: Arc<Game>, about: Arc<Generated>) -> Self {
        let seen = vec![false; about.places.len()];
        Self { inner: TextGame::new(name, game), about, seen, planner: Planner::default() }
    }

    fn holds(&self, predicate: &str, args: &[&str]) -> bool {
        self.inner.game().holds(self.inner.state(), predicate, args)
    }

    fn visible(&self, place: &str) -> bool {
        !self.holds("openable", &[place]) || self.holds("open", &[place])
    }

    /// Where the player stands, as an index into the places.
    fn here(&self) -> Option<usize> {
        self.about.places.iter().position(|p| self.holds("at", &[p]))
    }

    fn remember(&mut self) {
        if let Some(here) = self.here()
            && self.visible(&self.about.places[here])
        {
            self.seen[here] = true;
        }
    }

    /// The next step of a player who searches: where the shortest plan is known from what was seen, a step of it;
    /// else it takes what the task needs, carries the first of two to its place, and looks where it has not looked.
    fn search(&mut self) -> Option<String> {
        let game = self.inner.game();
        let unseen: Vec<&String> =
            self.about.places.iter().zip(&self.seen).filter(|(_, s)| !**s).map(|(p, _)| p).collect();
        let hidden = |predicate: &str, args: &[&str]| {
            predicate == "in" && args.get(1).is_some_and(|p| unseen.iter().any(|u| u == p))
        };
        let believed = game.without(self.inner.state(), hidden);
        if let Some(action) = self.planner.next(game, &believed) {
            return game.command(action, self.inner.state()).ok();
        }
        let here = self.here().map(|i| self.about.places[i].as_str());
        let at_target = |place: &str| self.about.target.is_some_and(|t| place.split(' ').next() == Some(t));
        // The first of the wanted kinds that is not yet where it goes; a second of the same kind needs a second thing there.
        let things = |kind: &str| (1..=9).map(move |n| format!("{kind} {n}")).collect::<Vec<_>>();
        let placed = |kind: &str| {
            let in_place =
                |thing: &String| self.about.places.iter().any(|p| at_target(p) && self.holds("in", &[thing, p]));
            things(kind).iter().filter(|t| in_place(t)).count()
        };
        let wanted = &self.about.wanted;
        let before = |i: usize| wanted[..i].iter().filter(|k| k.name == wanted[i].name).count();
        let missing: Vec<&ObjectKind> =
            (0..wanted.len()).filter(|i| placed(wanted[*i].name) <= before(*i)).map(|i| wanted[i]).collect();
        let of_kind: Vec<String> = missing.iter().flat_map(|kind| things(kind.name)).collect();
        let held = of_kind.iter().find(|t| self.holds("holding", &[t]));
        if let (Some(thing), Some(target)) = (held, self.about.places.iter().find(|p| at_target(p))) {
            return Some(match here {
                Some(here) if at_target(here) && self.visible(here) => format!("put {thing}"),
                Some(here) if at_target(here) => format!("open {here}"),
                _ => format!("go {target}"),
            });
        }
        if let Some(here) = here {
            if !self.visible(here) {
                return Some(format!("open {here}"));
            }
            let free = !self.holds("busy", &[]) && !at_target(here);
            if let Some(thing) = of_kind.iter().find(|t| free && self.holds("in", &[t, here])) {
                return Some(format!("take {thing}"));
            }
        }
        // Places where such things are kept come first.
        let homes = missing.first().map_or(&[][..], |kind| kind.homes);
        let rank = |place: &&&String| {
            let sort = place.split(' ').next().unwrap_or("");
            homes.iter().position(|h| *h == sort).unwrap_or(if sort == "stove" { homes.len() + 1 } else { homes.len() })
        };
        unseen.iter().min_by_key(rank).map(|place| format!("go {place}"))
    }
}

impl Environment for HouseholdGame {
    fn reset(&mut self) -> Result<Observation, EnvError> {
        self.seen.fill(false);
        self.inner.reset()
    }

    fn step(&mut self, command: &str) -> Result<Observation, EnvError> {
        let observation = self.inner.step(command)?;
        self.remember();
        Ok(observation)
    }

    fn distance(&mut self) -> Option<u32> {
        self.inner.distance()
    }

    fn expert(&mut self) -> Option<String> {
        self.inner.expert()
    }

    fn demonstrate(&mut self) -> Option<String> {
        self.search()
    }
}
