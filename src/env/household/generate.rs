//! From a task id to the three texts of a game.

use std::fmt::Write;

use super::TaskId;
use super::world::{KINDS, ObjectKind, ROOMS, Random, Room, keeps, kind_named, openable, stores};
use crate::env::textgame::GameFile;

/// The rules of every household game.
pub const DOMAIN: &str = include_str!("domain.pddl");
const GRAMMAR: &str = include_str!("household.grammar");

/// The six task types, in the order of ALFWorld's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TaskType {
    /// Put an object somewhere.
    Place,
    /// Look at an object under a lamp.
    Inspect,
    /// Clean an object and put it somewhere.
    CleanAndPlace,
    /// Heat an object and put it somewhere.
    HeatAndPlace,
    /// Cool an object and put it somewhere.
    CoolAndPlace,
    /// Put two objects of a kind somewhere.
    PlaceTwo,
}

impl TaskType {
    /// All task types.
    pub const ALL: [Self; 6] =
        [Self::Place, Self::Inspect, Self::CleanAndPlace, Self::HeatAndPlace, Self::CoolAndPlace, Self::PlaceTwo];

    /// The type as task ids spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Place => "place",
            Self::Inspect => "inspect",
            Self::CleanAndPlace => "clean-and-place",
            Self::HeatAndPlace => "heat-and-place",
            Self::CoolAndPlace => "cool-and-place",
            Self::PlaceTwo => "place-two",
        }
    }

    /// Whether the type can be played in a room.
    pub fn fits(self, room: &Room) -> bool {
        match self {
            Self::Place | Self::PlaceTwo => true,
            Self::Inspect => room.lamp,
            Self::CleanAndPlace => room.fixtures.contains(&"sink"),
            Self::HeatAndPlace => room.fixtures.contains(&"stove"),
            Self::CoolAndPlace => room.fixtures.contains(&"fridge"),
        }
    }
}

/// What a task may ask of a thing besides where it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ObjectState {
    Plain,
    Clean,
    Hot,
    Cool,
}

impl ObjectState {
    /// `inspect` in a kitchen needs every state, cool most often: nothing else in training does.
    fn of(kind: TaskType, room: &Room, random: &mut Random) -> Option<ObjectState> {
        match kind {
            TaskType::Place | TaskType::PlaceTwo => Some(Self::Plain),
            TaskType::CleanAndPlace => Some(Self::Clean),
            TaskType::HeatAndPlace => Some(Self::Hot),
            TaskType::CoolAndPlace => Some(Self::Cool),
            TaskType::Inspect if !room.fixtures.contains(&"fridge") => Some(Self::Plain),
            TaskType::Inspect => {
                random.pick(&[Self::Clean, Self::Hot, Self::Cool, Self::Cool, Self::Cool, Self::Cool]).copied()
            }
        }
    }

    fn fits(self, kind: &ObjectKind) -> bool {
        match self {
            Self::Plain => true,
            Self::Clean => kind.washable,
            Self::Hot => kind.heatable,
            Self::Cool => kind.coolable,
        }
    }

    /// What the task sentence says is to be done, and the condition on the thing `?t`.
    fn asked(self) -> (&'static str, &'static str) {
        match self {
            Self::Plain => ("take", ""),
            Self::Clean => ("wash", "(clean ?t)"),
            Self::Hot => ("heat", "(hot ?t)"),
            Self::Cool => ("cool", "(cool ?t)"),
        }
    }
}

/// Where the task wants its things.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Goal {
    /// In a place of this sort.
    PutIn(&'static str),
    /// In the hand, at a place of this sort.
    HoldAt(&'static str),
    /// In the hand, with a lamp lit.
    HoldByLamp,
}

/// A place or a thing: what it is and its number.
type Named = (&'static str, usize);

/// A generated game and what its scripted explorer is told by the task sentence.
#[derive(Debug, Clone)]
pub struct Generated {
    /// The three texts of the game.
    pub file: GameFile,
    /// Kinds of the things that the task is about, in the order of its sentence.
    pub wanted: Vec<&'static ObjectKind>,
    /// Sort of place they go to (`None`: the thing is to be held).
    pub target: Option<&'static str>,
    /// Display names of the places, as the first observation lists them.
    pub places: Vec<String>,
}

impl std::fmt::Debug for ObjectKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

/// The room of a scene.
pub fn room_of(scene: u64) -> &'static Room {
    &ROOMS[(scene % ROOMS.len() as u64) as usize]
}

/// The places of a scene: the same in every game that is played there.
fn layout(scene: u64) -> (Vec<Named>, Option<usize>) {
    let room = room_of(scene);
    let mut random = Random::new(&[1, scene]);
    let mut sorts: Vec<&'static str> = room.fixtures.to_vec();
    let extra = 6 - room.fixtures.len().div_ceil(2) + random.below(2);
    let limit = |sorts: &[&str], sort: &str| {
        let hidden = sorts.iter().filter(|s| openable(s)).count();
        sorts.iter().filter(|s| **s == sort).count() < 2 && (!openable(sort) || hidden < 3)
    };
    for _ in 0..extra {
        let free: Vec<&'static str> = room.others.iter().copied().filter(|s| limit(&sorts, s)).collect();
        sorts.extend(random.pick(&free));
    }
    let places: Vec<Named> =
        sorts.iter().enumerate().map(|(i, s)| (*s, sorts[..=i].iter().filter(|t| t == &s).count())).collect();
    let surfaces: Vec<usize> = (0..places.len())
        .filter(|i| stores(places[*i].0) && !openable(places[*i].0) && places[*i].0 != "bed")
        .collect();
    let lamp = if room.lamp { random.pick(&surfaces).copied() } else { None };
    (places, lamp)
}

/// What lies about: what the task needs, and other things of `here`.
fn with_others(
    wanted: &[&'static ObjectKind],
    here: &[&'static ObjectKind],
    random: &mut Random,
) -> Option<Vec<&'static ObjectKind>> {
    let (mut kinds, kind) = (wanted.to_vec(), *wanted.first()?);
    // Up to three of a kind, so that numbers must be read and not guessed.
    for _ in 0..random.below(4 - wanted.iter().filter(|k| k.name == kind.name).count()) {
        kinds.push(kind);
    }
    let total = (4 + random.below(4)).max(kinds.len() + 1);
    while kinds.len() < total {
        let other = *random.pick(here)?;
        if wanted.iter().all(|k| k.name != other.name) {
            kinds.push(other);
        }
    }
    Some(kinds)
}

/// The game of a task id; `attempt` tells apart the tries of a generator that rejects some.
pub fn generate(id: &TaskId, attempt: u64) -> Option<Generated> {
    let room = room_of(id.scene);
    let (places, lamp) = layout(id.scene);
    let mut random = Random::new(&[2, id.kind as u64, id.scene, id.seed, attempt]);
    let state = ObjectState::of(id.kind, room, &mut random)?;
    let here: Vec<&'static ObjectKind> = KINDS.iter().filter(|k| k.rooms.contains(&room.name)).collect();
    let able: Vec<&'static ObjectKind> = here.iter().copied().filter(|k| state.fits(k)).collect();
    let kind = *random.pick(&able)?;
    let wanted = match id.kind {
        TaskType::PlaceTwo => vec![kind, kind],
        TaskType::Place if random.below(4) == 0 => {
            let others: Vec<&'static ObjectKind> = here.iter().copied().filter(|k| k.name != kind.name).collect();
            vec![kind, *random.pick(&others)?]
        }
        _ => vec![kind],
    };
    let sorts = |of: fn(&str) -> bool| places.iter().map(|(s, _)| *s).filter(|s| of(s)).collect::<Vec<_>>();
    let goal = match id.kind {
        TaskType::Inspect if lamp.is_some() && (state == ObjectState::Plain || random.below(2) == 0) => {
            Goal::HoldByLamp
        }
        TaskType::Inspect => Goal::HoldAt(random.pick(&sorts(|_| true))?),
        _ => Goal::PutIn(random.pick(&sorts(keeps))?),
    };

    let kinds = with_others(&wanted, &here, &mut random)?;
    let mut things: Vec<(Named, usize)> = Vec::new();
    for (i, thing) in kinds.iter().enumerate() {
        let number = kinds[..=i].iter().filter(|k| k.name == thing.name).count();
        // What the task needs does not lie at its goal already; all else lies mostly where it belongs.
        let asked = wanted.iter().any(|k| k.name == thing.name);
        let free = |i: &usize| places[*i].0 != "stove" && !(asked && goal == Goal::PutIn(places[*i].0));
        let all: Vec<usize> = (0..places.len()).filter(free).collect();
        let homes: Vec<usize> = all.iter().copied().filter(|i| thing.homes.contains(&places[*i].0)).collect();
        let at = if random.below(4) > 0 { random.pick(&homes).or(all.first()) } else { random.pick(&all) };
        // The second of two kinds lies beside the first half of the time: putting away two things is long enough.
        let beside = i == 1 && wanted.len() == 2 && wanted[0].name != wanted[1].name && random.below(2) == 0;
        let at = if beside { things[0].1 } else { *at? };
        things.push(((thing.name, number), at));
    }
    if let Some(lamp) = lamp {
        things.push((("lamp", 1), lamp));
    }
    let file = texts(id, room, &places, &things, Wish { wanted: &wanted, goal, state });
    let target = if let Goal::PutIn(sort) = goal { Some(sort) } else { None };
    let places = places.iter().map(|(sort, number)| format!("{sort} {number}")).collect();
    Some(Generated { file, wanted, target, places })
}

/// The engine numbers a class from its last id down, so the n-th of `count` gets id `count - n`.
fn ids(all: &[Named]) -> Vec<String> {
    let id = |(class, number): &Named| {
        let count = all.iter().filter(|(c, _)| c == class).count();
        format!("{class}_bar_{}", count - number)
    };
    all.iter().map(id).collect()
}

/// What is to be done, with which things.
#[derive(Clone, Copy)]
struct Wish<'a> {
    wanted: &'a [&'a ObjectKind],
    goal: Goal,
    state: ObjectState,
}

impl Wish<'_> {
    /// As a sentence, and as a PDDL condition.
    fn in_words(&self) -> (String, String) {
        let (verb, state) = self.state.asked();
        let first = self.wanted[0].name;
        match (self.goal, self.wanted) {
            (Goal::PutIn(sort), [_, second]) => {
                let second = second.name;
                let placed =
                    |t: &str, p: &str, kind: &str| format!("(kind {t} {kind}-kind) (in {t} {p}) (sort {p} {sort})");
                let pair = format!("{} {}", placed("?t", "?p", first), placed("?u", "?q", second));
                let goal =
                    format!("(exists (?t - thing ?p - place ?u - thing ?q - place) (and {pair} (not (= ?t ?u))))");
                (format!("put a {first} and a {second} in {sort}"), goal)
            }
            (Goal::PutIn(sort), _) => {
                let goal = format!(
                    "(exists (?t - thing ?p - place) (and (kind ?t {first}-kind) {state} (in ?t ?p) (sort ?p {sort})))"
                );
                (format!("{verb} a {first} and put it in {sort}"), goal)
            }
            (Goal::HoldAt(sort), _) => {
                let goal = format!(
                    "(exists (?t - thing ?p - place) (and (kind ?t {first}-kind) {state} (holding ?t) (at ?p) (sort ?p {sort})))"
                );
                (format!("{verb} a {first} and hold it at {sort}"), goal)
            }
            (Goal::HoldByLamp, _) => {
                let goal = format!(
                    "(exists (?t - thing ?l - thing) (and (kind ?t {first}-kind) {state} (holding ?t) (lit ?l)))"
                );
                (format!("{verb} a {first} and hold it by a lit lamp"), goal)
            }
        }
    }
}

/// A PDDL problem while it is written.
#[derive(Default)]
struct Problem {
    objects: String,
    init: String,
    declared: Vec<String>,
}

impl Problem {
    fn declare(&mut self, name: &str, of: &str) {
        let line = format!("   {name} - {of}\n");
        if !self.declared.contains(&line) {
            self.objects.push_str(&line);
            self.declared.push(line);
        }
    }

    fn fact(&mut self, text: &str) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.init, "   ({text})");
    }

    fn place(&mut self, sort: &str, place: &str) {
        self.declare(place, "place");
        self.declare(sort, "sort");
        self.fact(&format!("sort {place} {sort}"));
        if openable(sort) {
            self.fact(&format!("openable {place}"));
        }
        if stores(sort) {
            self.fact(&format!("stores {place}"));
        }
    }

    fn thing(&mut self, name: &str, thing: &str, place: &str) {
        self.declare(thing, "thing");
        self.declare(&format!("{name}-kind"), "kind");
        self.fact(&format!("kind {thing} {name}-kind"));
        self.fact(&format!("in {thing} {place}"));
        match kind_named(name) {
            None => self.fact(&format!("lightable {thing}")),
            Some(kind) => {
                self.fact(&format!("portable {thing}"));
                let able = [(kind.washable, "washable"), (kind.heatable, "heatable"), (kind.coolable, "coolable")];
                able.iter().filter(|(can, _)| *can).for_each(|(_, what)| self.fact(&format!("{what} {thing}")));
            }
        }
    }
}

/// The game of a room: `things` stand at the places that their numbers name.
fn texts(id: &TaskId, room: &Room, places: &[Named], things: &[(Named, usize)], wish: Wish<'_>) -> GameFile {
    let place_ids = ids(places);
    let thing_ids = ids(&things.iter().map(|(named, _)| *named).collect::<Vec<_>>());
    let mut problem = Problem::default();
    places.iter().zip(&place_ids).for_each(|((sort, _), place)| problem.place(sort, place));
    for (((name, _), at), thing) in things.iter().zip(&thing_ids) {
        problem.thing(name, thing, &place_ids[*at]);
    }
    // The domain's actions name these, whether the room has one or not.
    ["sink", "stove", "fridge"].iter().for_each(|sort| problem.declare(sort, "sort"));
    let (sentence, goal) = wish.in_words();
    let listed: Vec<String> = places.iter().map(|(sort, number)| format!("{sort} {number}")).collect();
    let telling = format!("{}: {}.", room.name, listed.join(", "));
    let own = format!(
        "grammar :: \"\"\"\n{{\n    \"room\": [{{\"rhs\": \"{telling}\"}}],\n    \"task\": [{{\"rhs\": \"{sentence}\"}}]\n}}\n\"\"\";\n"
    );
    let Problem { objects, init, .. } = problem;
    let pddl_problem = format!(
        "(define (problem {})\n (:domain household)\n (:objects\n{objects} )\n (:init\n{init} )\n (:goal {goal}))\n",
        id.to_string().replace('/', "_")
    );
    GameFile { pddl_domain: DOMAIN.into(), grammar: format!("{GRAMMAR}\n{own}"), pddl_problem }
}
