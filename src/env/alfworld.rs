//! ALFWorld's own games (Shridhar et al. 2021), from the folder that `alfworld-download` fills, played by the text-game engine.
//!
//! As in ALFWorld's loader, games about sliced or movable things and unsolvable ones are left out. L0 is `valid_seen`, L1
//! `valid_unseen`. Types 5 and 6 (cool, pick two) are held out of training for L2 (RLVMR, arXiv 2507.22844) unless
//! `env.alfworld.train_types = "all"`: then L0 and L1 hold all six types, and there is no L2.

use super::panels::Panels;
use super::textgame::{Game, GameFile, MOST_FILE, Shared, TextGame};
use super::{EnvError, Environment, Split, Suite, Task};
use crate::config::TrainTypes;
use crate::files;
use rayon::prelude::*;
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// Parts of the data set, which are also its folders.
pub const PARTS: [&str; 3] = ["train", "valid_seen", "valid_unseen"];
/// Task types in ALFWorld's order, 1 to 6.
pub const TYPES: [&str; 6] = [
    "pick_and_place_simple",
    "look_at_obj_in_light",
    "pick_clean_then_place_in_recep",
    "pick_heat_then_place_in_recep",
    "pick_cool_then_place_in_recep",
    "pick_two_obj_and_place",
];
/// The first of them are trained on when types are held out.
const SEEN_TYPES: usize = 4;

/// One game of the data set.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct IndexedGame {
    /// `PART/TYPE-OBJECT-MOVABLE-RECEPTACLE-SCENE/TRIAL`, the folder below the data's root.
    pub id: String,
    /// One of [`PARTS`].
    pub part: &'static str,
    /// One of [`TYPES`].
    pub kind: &'static str,
    /// SHA-256 of the game file, in hex.
    pub hash: String,
}

/// A game file that cannot be played, and why.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
pub struct Skipped {
    /// The game file.
    pub file: PathBuf,
    /// Why it cannot be played.
    pub reason: String,
}

/// All games of a data folder, sorted by id.
#[derive(Debug, Clone)]
pub struct GameIndex {
    /// The folder that holds [`PARTS`].
    pub root: PathBuf,
    /// The games that can be played.
    pub games: Vec<IndexedGame>,
    /// Game files that cannot be played, sorted.
    pub skipped: Vec<Skipped>,
    /// SHA-256 over all ids and game hashes, in hex.
    pub hash: String,
}

impl GameIndex {
    /// Reads and compiles every game below `data` (which holds [`PARTS`], or holds them in `json_2.1.1`). A bad one is skipped and
    /// listed; an error says that there are none, or that a folder cannot be listed.
    ///
    /// # Errors
    /// If a folder cannot be listed, or holds no game.
    pub fn read(data: &Path) -> Result<GameIndex, EnvError> {
        let below = data.join("json_2.1.1");
        let root = if below.is_dir() { below } else { data.to_path_buf() };
        let mut folders = Vec::new();
        for part in PARTS {
            // A data set may lack a part; that all are missing is found below.
            if root.join(part).is_dir() {
                for folder in entries(&root.join(part))? {
                    folders.extend(kind_of(&folder).map(|kind| (part, kind, folder)));
                }
            }
        }
        let read = |(part, kind, folder): &(&'static str, &'static str, PathBuf)| {
            // Games of a folder in a row share their rules.
            let mut shared = Shared::default();
            // What is named like a game but is no file is a bad game.
            let trials = entries(folder)?.into_iter().filter(|trial| trial.join(GAME).symlink_metadata().is_ok());
            Ok(trials.map(|trial| indexed(&root, part, kind, &trial, &mut shared)).collect())
        };
        let read: Vec<Vec<Result<Option<IndexedGame>, Skipped>>> =
            folders.par_iter().map(read).collect::<Result<_, EnvError>>()?;
        let (mut games, mut skipped) = (Vec::new(), Vec::new());
        for game in read.into_iter().flatten() {
            match game {
                Ok(game) => games.extend(game),
                Err(bad) => skipped.push(bad),
            }
        }
        games.sort_by(|a, b| a.id.cmp(&b.id));
        skipped.sort();
        if games.is_empty() && skipped.is_empty() {
            let reason = "holds no ALFWorld games (train/TYPE-…/TRIAL/game.tw-pddl): run alfworld-download and give its \
                          folder by --data, env.alfworld.data or $ALFWORLD_DATA";
            return Err(EnvError::BadGame { file: data.display().to_string(), reason: reason.into() });
        }
        let mut hash = Sha256::new();
        games.iter().for_each(|game| hash.update(format!("{} {}\n", game.id, game.hash)));
        Ok(GameIndex { root, games, skipped, hash: hex(hash) })
    }

    /// Refuses a data folder with bad games: a run on what is left would silently be another than on the whole.
    ///
    /// # Errors
    /// If a game was skipped.
    pub fn complete(self) -> Result<GameIndex, EnvError> {
        let Some(Skipped { file, reason }) = self.skipped.first() else { return Ok(self) };
        let mut reason = format!("{reason}; bring it back by alfworld-download, or remove its folder");
        if self.skipped.len() > 1 {
            reason += &format!(" (`uncouple env index` lists all {} bad games)", self.skipped.len());
        }
        Err(EnvError::BadGame { file: file.display().to_string(), reason })
    }

    fn find(&self, id: &str) -> Result<&IndexedGame, EnvError> {
        let found = self.games.binary_search_by(|game| game.id.as_str().cmp(id)).ok();
        found.map(|i| &self.games[i]).ok_or_else(|| EnvError::BadGame {
            file: id.into(),
            reason: format!("is no game below {}; `uncouple env index` lists them", self.root.display()),
        })
    }
}

/// The folder of the data: `given`, or else $ALFWORLD_DATA.
///
/// # Errors
/// If no folder is given, and `$ALFWORLD_DATA` is not set.
pub fn data_folder(given: &str) -> Result<PathBuf, EnvError> {
    let named = if given.is_empty() { std::env::var_os("ALFWORLD_DATA") } else { Some(given.into()) };
    named.map(PathBuf::from).ok_or_else(|| EnvError::BadGame {
        file: "ALFWorld".into(),
        reason: "no data folder is named: give --data DIR, set env.alfworld.data, or set $ALFWORLD_DATA".into(),
    })
}

const GAME: &str = "game.tw-pddl";

/// What a folder's name says its games are about; `None` for what ALFWorld leaves out.
fn kind_of(folder: &Path) -> Option<&'static str> {
    let name = folder.file_name()?.to_str()?;
    let left_out = name.contains("Sliced") || name.contains("movable");
    TYPES.into_iter().find(|kind| !left_out && name.split('-').next() == Some(kind))
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>, EnvError> {
    let listed = std::fs::read_dir(folder).and_then(|entries| entries.map(|e| Ok(e?.path())).collect());
    listed.map_err(|e| bad(folder, format!("cannot be listed: {e}")))
}

fn bad(path: &Path, reason: String) -> EnvError {
    EnvError::BadGame { file: path.display().to_string(), reason }
}

/// The trial's place in the index; `None` where it cannot be solved.
fn indexed(
    root: &Path,
    part: &'static str,
    kind: &'static str,
    trial: &Path,
    shared: &mut Shared,
) -> Result<Option<IndexedGame>, Skipped> {
    #[derive(serde::Deserialize)]
    struct Solvable {
        #[serde(default)]
        solvable: bool,
    }
    let file = trial.join(GAME);
    let bad = |reason: String| Skipped { file: file.clone(), reason };
    let bytes = files::read(&file, MOST_FILE).map_err(|e| bad(format!("cannot be read: {e}")))?;
    let game: Solvable = serde_json::from_slice(&bytes).map_err(|e| bad(format!("is not a game file: {e}")))?;
    if !game.solvable {
        return Ok(None);
    }
    let texts = GameFile::parse(&bytes).map_err(|e| bad(format!("is not a game file: {e}")))?;
    let compiled = texts.compile(shared).map_err(|e| bad(e.to_string()))?;
    let begun = TextGame::new(GAME, Arc::new(compiled)).reset();
    begun.map_err(|e| bad(if let EnvError::Failed { reason, .. } = e { reason } else { e.to_string() }))?;
    let id = trial.strip_prefix(root).unwrap_or(trial).to_string_lossy().into_owned();
    let hash = hex(Sha256::new_with_prefix(bytes));
    Ok(Some(IndexedGame { id, part, kind, hash }))
}

fn hex(hash: Sha256) -> String {
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The suite of a data folder's games.
#[derive(Debug)]
pub struct Alfworld {
    index: GameIndex,
    train_types: TrainTypes,
    panels: Panels,
    rules: Mutex<Shared>,
    /// Games being played, so that the members of a group share one.
    playing: Mutex<HashMap<String, Weak<Game>>>,
}

impl Alfworld {
    /// The suite of these games; `seed` orders the training games.
    pub fn new(index: GameIndex, train_types: TrainTypes, seed: u64) -> Alfworld {
        let task = |game: &IndexedGame| {
            let split = split_of(game, train_types)?;
            Some(Task { id: game.id.clone(), kind: game.kind.into(), split })
        };
        let panels = Panels::new("alfworld", seed, index.games.iter().filter_map(task));
        Alfworld { index, train_types, panels, rules: Mutex::default(), playing: Mutex::default() }
    }

    fn game(&self, id: &str) -> Result<Arc<Game>, EnvError> {
        self.index.find(id)?;
        let playing = || self.playing.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(game) = playing().get(id).and_then(Weak::upgrade) {
            return Ok(game);
        }
        let path = self.index.root.join(id).join(GAME);
        let file = GameFile::read(&path)?;
        let rules = || {
            let mut shared = self.rules.lock().unwrap_or_else(PoisonError::into_inner);
            shared.rules(&file.pddl_domain, &file.grammar)
        };
        let game = rules().and_then(|(domain, grammar)| Game::new(domain, grammar, &file.pddl_problem));
        let game = Arc::new(game.map_err(|e| bad(&path, e.to_string()))?);
        let mut playing = playing();
        playing.retain(|_, game| game.strong_count() > 0);
        playing.insert(id.into(), Arc::downgrade(&game));
        Ok(game)
    }
}

/// Where a game may be used; `None`: nowhere, its type is held out.
fn split_of(game: &IndexedGame, train_types: TrainTypes) -> Option<Split> {
    let seen = train_types == TrainTypes::All || TYPES[..SEEN_TYPES].contains(&game.kind);
    match (game.part, seen) {
        ("train", true) => Some(Split::Train),
        ("valid_seen", true) => Some(Split::L0),
        ("valid_unseen", true) => Some(Split::L1),
        ("valid_unseen", false) => Some(Split::L2),
        _ => None,
    }
}

impl Suite for Alfworld {
    fn name(&self) -> &str {
        "alfworld"
    }

    /// Evaluation games come sorted.
    fn task(&self, split: Split, index: u64) -> Result<Task, EnvError> {
        self.panels.task(split, index)
    }

    fn len(&self, split: Split) -> Option<u64> {
        self.panels.len(split)
    }

    fn content_hash(&self) -> Option<String> {
        Some(self.index.hash.clone())
    }

    fn open_for_training(&self, task: &Task) -> Result<Box<dyn Environment>, EnvError> {
        let game = self.index.find(&task.id)?;
        if split_of(game, self.train_types) == Some(Split::Train) {
            return self.open(task);
        }
        let reason = match game.part {
            "train" => format!("task type {} is held out for L2 (env.alfworld.train_types = \"seen\")", game.kind),
            part => format!("{part} is for evaluation only"),
        };
        Err(EnvError::HeldOut { id: task.id.clone(), reason })
    }

    fn open(&self, task: &Task) -> Result<Box<dyn Environment>, EnvError> {
        Ok(Box::new(TextGame::new(&task.id, self.game(&task.id)?)))
    }
}
