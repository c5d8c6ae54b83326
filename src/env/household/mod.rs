//! Household games made from a seed: small rooms in few words, always solvable, in six task types.
//!
//! Training sees the types `place`, `inspect`, `clean-and-place` and `heat-and-place` in scenes 0 to 39. L0 holds fresh
//! seeds of the same, L1 the same types in scenes 40 to 59, L2 the types `cool-and-place` and `place-two` in scenes 0 to 39.
//! L2 recombines what training shows: things are cooled to be held (`inspect`), washed and heated to be put away, and in a
//! quarter of `place` two things of different kinds are put away; never is a cool thing, nor a second of a kind.

mod explore;
mod generate;
mod world;

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use sha2::{Digest, Sha256};

pub use explore::HouseholdGame;
use generate::room_of;
pub use generate::{Generated, TaskType, generate};
pub(crate) use world::Random;

use super::textgame::{Game, Shared};
use super::{EnvError, Environment, Split, Suite, Task};

/// Scenes below this number may be trained on.
pub const TRAIN_SCENES: u64 = 40;
/// All scenes.
pub const SCENES: u64 = 60;
/// Seeds from here on are for evaluation only.
pub const FIRST_EVALUATION_SEED: u64 = 1_000_000_000;
/// Games in each evaluation split.
pub const PANEL: u64 = 128;
/// Shortest and longest shortest plan of a game.
pub const PLAN_LENGTHS: std::ops::RangeInclusive<u32> = 3..=9;
/// The searching player finishes every game within this many steps.
pub const SEARCH_LIMIT: usize = 20;

/// `clean-and-place/scene-17/seed-123`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TaskId {
    /// The task type.
    pub kind: TaskType,
    /// The scene: which rooms and furniture there are.
    pub scene: u64,
    /// What the objects and their places are drawn by.
    pub seed: u64,
}

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/scene-{}/seed-{}", self.kind.name(), self.scene, self.seed)
    }
}

impl FromStr for TaskId {
    type Err = EnvError;

    fn from_str(text: &str) -> Result<Self, EnvError> {
        let read = || {
            let mut parts = text.split('/');
            let kind = parts.next()?;
            let kind = TaskType::ALL.into_iter().find(|t| t.name() == kind)?;
            let scene = parts.next()?.strip_prefix("scene-")?.parse().ok().filter(|s| *s < SCENES)?;
            let seed = parts.next()?.strip_prefix("seed-")?.parse().ok()?;
            let id = Self { kind, scene, seed };
            (parts.next().is_none() && kind.fits(room_of(scene))).then_some(id)
        };
        read().ok_or_else(|| EnvError::BadGame {
            file: text.into(),
            reason: format!(
                "is not a household task: expected TYPE/scene-N/seed-N with a TYPE of {} that the scene's room allows and N below {SCENES}",
                TaskType::ALL.map(TaskType::name).join(", ")
            ),
        })
    }
}

/// The suite of household games.
///
/// ```
/// use uncouple::env::{Split, Suite, household::Household};
///
/// let suite = Household::new(0);
/// let mut game = suite.open_for_training(&suite.task(Split::Train, 0)?)?;
/// let mut seen = game.reset()?;
/// while let (false, Some(command)) = (seen.done, game.expert()) {
///     seen = game.step(&command)?;
/// }
/// assert!(seen.won);
/// // What is held out is never trained on.
/// assert!(suite.open_for_training(&suite.task(Split::L2, 0)?).is_err());
/// # Ok::<(), uncouple::env::EnvError>(())
/// ```
#[derive(Debug, Clone)]
pub struct Household {
    /// Chooses the training games; the evaluation panels are the same for every seed.
    pub seed: u64,
}

impl Household {
    /// The suite; `seed` orders the training tasks.
    pub fn new(seed: u64) -> Self {
        Self { seed }
    }

    /// SHA-256, in hex, of the rules and of samples of every split: two builds with equal hashes play the same games.
    ///
    /// # Errors
    /// If a game cannot be generated.
    pub fn content_hash(&self) -> Result<String, EnvError> {
        let mut hash = Sha256::new();
        hash.update(generate::DOMAIN);
        for split in [Split::Train, Split::L0, Split::L1, Split::L2] {
            for index in 0..8 {
                let id: TaskId = self.task(split, index)?.id.parse()?;
                let (_, about) = build(&id)?;
                hash.update(id.to_string());
                hash.update(&about.file.grammar);
                hash.update(&about.file.pddl_problem);
            }
        }
        Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
    }
}

/// Why a task may not be trained on, if so.
fn held_out(id: &TaskId) -> Option<String> {
    if matches!(id.kind, TaskType::CoolAndPlace | TaskType::PlaceTwo) {
        return Some(format!(
            "task type {} is held out for L2; train on place, inspect, clean-and-place or heat-and-place",
            id.kind.name()
        ));
    }
    if id.scene >= TRAIN_SCENES {
        return Some(format!("scene {} is held out for L1; train on scenes 0 to {}", id.scene, TRAIN_SCENES - 1));
    }
    (id.seed >= FIRST_EVALUATION_SEED)
        .then(|| format!("seed {} is an evaluation seed; train on seeds below {FIRST_EVALUATION_SEED}", id.seed))
}

/// The game of an id: the first try that is neither trivial nor too long.
fn build(id: &TaskId) -> Result<(Game, Generated), EnvError> {
    let bad = |reason: String| EnvError::BadGame { file: id.to_string(), reason };
    for attempt in 0..200 {
        let Some(about) = generate(id, attempt) else { continue };
        let game = about.file.compile(&mut Shared::default()).map_err(|e| bad(e.to_string()))?;
        let (game, shared) = (Arc::new(game), Arc::new(about));
        let mut player = HouseholdGame::new(&id.to_string(), game.clone(), shared.clone());
        player.reset()?;
        if !player.distance().is_some_and(|d| PLAN_LENGTHS.contains(&d)) {
            continue;
        }
        for _ in 0..SEARCH_LIMIT {
            let Some(command) = player.demonstrate() else { break };
            if player.step(&command)?.won {
                drop(player);
                let game = Arc::try_unwrap(game).map_err(|_| bad("is still being played".into()))?;
                return Ok((game, Arc::unwrap_or_clone(shared)));
            }
        }
    }
    Err(bad("no playable game was found for this id; choose another seed".into()))
}

impl Suite for Household {
    fn name(&self) -> &str {
        "household"
    }

    fn task(&self, split: Split, index: u64) -> Result<Task, EnvError> {
        use TaskType::{CleanAndPlace, CoolAndPlace, HeatAndPlace, Inspect, Place, PlaceTwo};
        if let Some(len) = self.len(split).filter(|len| index >= *len) {
            let reason = format!("split {split} has {len} games; ask for index 0 to {}", len - 1);
            return Err(EnvError::BadGame { file: format!("household {split} {index}"), reason });
        }
        let kinds: &[TaskType] = match split {
            Split::L2 => &[CoolAndPlace, PlaceTwo],
            _ => &[Place, Inspect, CleanAndPlace, HeatAndPlace],
        };
        let kind = kinds[(index % kinds.len() as u64) as usize];
        let scenes = if split == Split::L1 { TRAIN_SCENES..SCENES } else { 0..TRAIN_SCENES };
        let scenes: Vec<u64> = scenes.filter(|s| kind.fits(room_of(*s))).collect();
        let (seed, salt) = match split {
            Split::Train => (Random::new(&[3, self.seed, index]).next() % FIRST_EVALUATION_SEED, self.seed),
            other => (FIRST_EVALUATION_SEED + other as u64 * PANEL + index, 0),
        };
        let mut random = Random::new(&[4, salt, split as u64, index]);
        // Only kitchens can ask for a state, so two thirds of `inspect` are played there.
        let kitchen = random.below(3) < 2;
        let cools = |s: &u64| room_of(*s).fixtures.contains(&"fridge");
        let scenes: Vec<u64> = scenes.into_iter().filter(|s| kind != Inspect || cools(s) == kitchen).collect();
        let scene = scenes[random.below(scenes.len())];
        let id = TaskId { kind, scene, seed };
        Ok(Task { id: id.to_string(), kind: kind.name().into(), split })
    }

    fn len(&self, split: Split) -> Option<u64> {
        (split != Split::Train).then_some(PANEL)
    }

    fn open_for_training(&self, task: &Task) -> Result<Box<dyn Environment>, EnvError> {
        let id: TaskId = task.id.parse()?;
        if let Some(reason) = held_out(&id) {
            return Err(EnvError::HeldOut { id: task.id.clone(), reason });
        }
        self.open(task)
    }

    fn open(&self, task: &Task) -> Result<Box<dyn Environment>, EnvError> {
        let id: TaskId = task.id.parse()?;
        let (game, about) = build(&id)?;
        Ok(Box::new(HouseholdGame::new(&task.id, Arc::new(game), Arc::new(about))))
    }
}
