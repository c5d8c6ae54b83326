//! What is fuzzed: where each input comes from and what reads it.

use crate::lift;
use crate::mutate::{self, GAME, JINJA, Random, WORDS};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use uncouple::agent::Prompter;
use uncouple::config::{Config, Format, JudgeConfig, Override};
use uncouple::coupling::Probe;
use uncouple::env::household::{Household, TaskId, generate};
use uncouple::env::openenv::{Games, MessageLayout, Session};
use uncouple::env::textgame::{GameFile, Shared, TextGame};
use uncouple::env::{Environment, Observation, Split, Suite};
use uncouple::model::checkpoint;
use uncouple::model::{Message, Tokenizer};
use uncouple::ops::philox::Stream;
use uncouple::report::metrics;
use uncouple::report::trajectories::{Trajectories, TrajectoryReader};
use uncouple::rollout::{Actor, RolloutSettings, RolloutTasks};
use uncouple::train::{checkpoints, memory, state};

/// One format: a file's bytes are made, and then read as the product does.
pub struct Target {
    pub name: &'static str,
    /// Inputs of 100,000 in all.
    pub inputs: u64,
    pub make: fn(&mut Random, &Bases) -> Vec<u8>,
    pub read: fn(&[u8], &Bases),
}

pub const TARGETS: [Target; 24] = [
    target(
        "safetensors",
        1000,
        |r, b| mutate::tensors(r, &b.tied("model.safetensors")),
        |i, b| act(&b.model_with("tiny-tied", "model.safetensors", i), Format::Compact),
    ),
    target(
        "index",
        1000,
        |r, b| mutate::json(r, &b.model("tiny-untied-gqa", INDEX), WORDS),
        |i, b| act(&b.model_with("tiny-untied-gqa", INDEX, i), Format::Compact),
    ),
    target(
        "shard",
        800,
        |r, b| mutate::tensors(r, &b.model("tiny-untied-gqa", SHARD)),
        |i, b| act(&b.model_with("tiny-untied-gqa", SHARD, i), Format::Compact),
    ),
    target(
        "config",
        1500,
        |r, b| mutate::json(r, &b.tied("config.json"), WORDS),
        |i, b| act(&b.model_with("tiny-tied", "config.json", i), Format::Compact),
    ),
    target(
        "generation config",
        1000,
        |r, b| mutate::json(r, &b.tied("generation_config.json"), WORDS),
        |i, b| act(&b.model_with("tiny-tied", "generation_config.json", i), Format::Compact),
    ),
    target(
        "recipe",
        300,
        |r, b| mutate::json(r, &b.model("mini-hd64", "recipe.json"), WORDS),
        |i, b| act(&b.model_with("mini-hd64", "recipe.json", i), Format::Compact),
    ),
    target(
        "config of a recipe",
        400,
        |r, b| mutate::json(r, &b.model("mini-hd64", "config.json"), WORDS),
        |i, b| act(&b.model_with("mini-hd64", "config.json", i), Format::Compact),
    ),
    target(
        "tokenizer",
        1000,
        |r, b| mutate::json(r, &b.tied("tokenizer.json"), WORDS),
        |i, b| act(&b.model_with("tiny-tied", "tokenizer.json", i), Format::Compact),
    ),
    target(
        "tokenizer config",
        1500,
        |r, b| mutate::json(r, &b.tied("tokenizer_config.json"), JINJA),
        |i, b| act(&b.model_with("tiny-tied", "tokenizer_config.json", i), Format::Chat),
    ),
    target("chat template", 6000, |r, b| mutate::text_or_bytes(r, &b.chat, JINJA), chat_template),
    target("prompt template", 6000, template_text, prompt_template),
    target("game", 12000, game_texts, game),
    target("configuration", 10000, configuration_text, configuration),
    target("override", 12000, override_text, an_override),
    target(
        "training state",
        3000,
        |r, b| mutate::json(r, &b.checkpoint("state.json"), WORDS),
        |i, b| of_a_checkpoint("state.json", i, b),
    ),
    target(
        "moments",
        2000,
        |r, b| mutate::tensors(r, &b.checkpoint("adamw_m.safetensors")),
        |i, b| of_a_checkpoint("adamw_m.safetensors", i, b),
    ),
    target("manifest", 3000, |r, b| mutate::json(r, &b.checkpoint("manifest.json"), WORDS), manifest),
    target(
        "metrics",
        6000,
        |r, b| mutate::bytes(r, &b.of_run("metrics.jsonl"), WORDS),
        |i, b| _ = metrics::read(&b.put("run", "metrics.jsonl", i)),
    ),
    target("trajectories", 1500, |r, b| mutate::bytes(r, &b.of_run("trajectories.sqlite"), WORDS), trajectories),
    target(
        "probe",
        6000,
        |r, _| mutate::json(r, PROBE, WORDS),
        |i, b| _ = Probe::read(b.put("run", "probe.json", i).join("probe.json")),
    ),
    target("session", 6000, message_text, session),
    target("schema", 17940, |r, _| mutate::json(r, SCHEMA, WORDS), schema),
    target("golden", 50, |r, b| mutate::json(r, &b.golden("golden.json"), WORDS), |i, b| golden("golden.json", i, b)),
    target(
        "golden tensors",
        10,
        |r, b| mutate::tensors(r, &b.golden("golden.safetensors")),
        |i, b| golden("golden.safetensors", i, b),
    ),
];

const fn target(
    name: &'static str,
    inputs: u64,
    make: fn(&mut Random, &Bases) -> Vec<u8>,
    read: fn(&[u8], &Bases),
) -> Target {
    Target { name, inputs, make, read }
}

const INDEX: &str = "model.safetensors.index.json";
const SHARD: &str = "model-00001-of-00002.safetensors";
const MESSAGES: [&str; 3] = [
    r#"{"type":"reset","data":{"seed":7,"split":"L1","index":3,"task":"place/scene-1/seed-5","episode_id":"e"}}"#,
    r#"{"type":"step","data":{"command":"look","metadata":{}}}"#,
    r#"{"type":"state"}"#,
];
const SCHEMA: &[u8] = br#"{"action":{"properties":{"command":{"type":"string"},"x":{"anyOf":[{"type":"string"}]}},"required":["command"]},
"observation":{"properties":{"text":{"type":"string"},"won":{"type":"boolean"}}}}"#;

const PROBE: &[u8] = br#"{"iteration":3,"samples":[
{"tokens":[5,6,7,8,9],"action":3,"command":{"text":"open door","tokens":{"start":3,"end":4}},"advantage":0.5,"label":1,"count":2},
{"tokens":[5,6,7,10,9],"action":3,"command":{"text":"look","tokens":{"start":3,"end":4}},"advantage":-0.5,"label":-1,"count":1},
{"tokens":[5,6,8,9],"action":2,"advantage":0.25,"label":0},{"tokens":[5,6,7,8,9],"action":3,"advantage":-1.5,"label":0}]}"#;

/// The real inputs, and a folder to put changed ones into.
pub struct Bases {
    fixtures: PathBuf,
    /// A finished run with one checkpoint.
    run: PathBuf,
    pub scratch: PathBuf,
    pub toml: String,
    chat: String,
    words: Vec<String>,
    games: Vec<Value>,
}

impl Bases {
    pub fn new(run: PathBuf, scratch: PathBuf) -> Bases {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let fixtures = root.join("tests/fixtures");
        let text = |path: PathBuf| fs::read_to_string(path).unwrap();
        let chat = text(fixtures.join("golden/models/tiny-untied-gqa/chat_template.jinja"));
        let words = ["default", "alfworld", "scienceworld"];
        let words = words.map(|name| text(root.join("src/agent/templates").join(format!("{name}.jinja")))).to_vec();
        let suite = Household::new(0);
        let mut games: Vec<Value> =
            vec![json!({ "pddl_domain": lift::DOMAIN, "grammar": lift::GRAMMAR, "pddl_problem": lift::PROBLEM })];
        for index in 0..3 {
            let id: TaskId = suite.task(Split::L0, index).unwrap().id.parse().unwrap();
            let made = (0..200).find_map(|attempt| generate(&id, attempt)).unwrap();
            games.push(serde_json::to_value(&made.file).unwrap());
        }
        // As they stand in ALFWorld, where a file of them is named.
        for file in std::env::var("UNCOUPLE_FUZZ_GAMES").unwrap_or_default().split(':').filter(|file| !file.is_empty())
        {
            games.push(serde_json::to_value(GameFile::read(Path::new(file)).unwrap()).unwrap());
        }
        Bases { fixtures, run, scratch, toml: Config::default().to_toml(), chat, words, games }
    }

    pub fn model(&self, name: &str, file: &str) -> Vec<u8> {
        fs::read(self.fixtures.join("golden/models").join(name).join(file)).unwrap()
    }

    pub fn tied(&self, file: &str) -> Vec<u8> {
        self.model("tiny-tied", file)
    }

    pub fn golden(&self, file: &str) -> Vec<u8> {
        fs::read(self.fixtures.join("golden/golden/tiny-tied").join(file)).unwrap()
    }

    fn of_run(&self, file: &str) -> Vec<u8> {
        fs::read(self.run.join(file)).unwrap()
    }

    fn checkpoint(&self, file: &str) -> Vec<u8> {
        fs::read(only(&self.run.join("checkpoints")).join(file)).unwrap()
    }

    /// Puts a file into a folder of the scratch folder, and gives that.
    fn put(&self, folder: &str, file: &str, content: &[u8]) -> PathBuf {
        let folder = self.scratch.join(folder);
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join(file), content).unwrap();
        folder
    }

    /// A copy of a folder, made once, in which one file is another.
    fn copy_with(&self, folder: &Path, file: &str, content: &[u8]) -> PathBuf {
        let name = format!("{}-{file}", folder.file_name().unwrap().display());
        if !self.scratch.join(&name).exists() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                self.put(&name, path.file_name().unwrap().to_str().unwrap(), &fs::read(&path).unwrap());
            }
        }
        self.put(&name, file, content)
    }

    fn model_with(&self, model: &str, file: &str, content: &[u8]) -> PathBuf {
        self.copy_with(&self.fixtures.join("golden/models").join(model), file, content)
    }
}

/// The only entry of a folder.
fn only(folder: &Path) -> PathBuf {
    let mut entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let first = entries.next().unwrap();
    assert!(entries.next().is_none(), "{} holds one entry", folder.display());
    first
}

/// Other words in the texts of a game.
fn game_texts(random: &mut Random, bases: &Bases) -> Vec<u8> {
    let mut game = random.of(&bases.games).clone();
    for _ in 0..1 + random.below(2) {
        let part = *random.of(&["pddl_domain", "grammar", "pddl_problem"]);
        let text = game[part].as_str().unwrap_or_default().to_string();
        game[part] = if random.one_in(4) {
            json!(String::from_utf8_lossy(&mutate::bytes(random, text.as_bytes(), GAME)))
        } else {
            json!(mutate::text(random, &text, GAME))
        };
    }
    let file = game.to_string().into_bytes();
    if random.one_in(20) { mutate::json(random, &file, GAME) } else { file }
}

/// Values that a configuration may be given.
const VALUES: &[&str] = &[
    "0",
    "1",
    "-1",
    "4294967295",
    "4294967296",
    "9223372036854775807",
    "nan",
    "inf",
    "-inf",
    "-1.0",
    "0.0",
    "1e38",
    "1e39",
    "1e-46",
    "true",
    "\"\"",
    "\"x\"",
    "[]",
    "[\"judge\"]",
    "{}",
    "2",
    "3",
    "1979-05-27",
    "\"window:99999999999\"",
    "\"off\"",
    "\"value-head\"",
    "\"judge\"",
    "16777216",
    "1000000000000",
];

/// A configuration with other values, without some lines.
fn configuration_text(random: &mut Random, bases: &Bases) -> Vec<u8> {
    let mut lines: Vec<String> = bases.toml.lines().map(String::from).collect();
    for _ in 0..1 + random.below(3) {
        let at = random.below(lines.len());
        match lines[at].split_once(" = ") {
            Some((key, _)) => lines[at] = format!("{key} = {}", random.of(VALUES)),
            None if random.one_in(2) => _ = lines.remove(at),
            None => {}
        }
    }
    let text = lines.join("\n").into_bytes();
    if random.one_in(4) { mutate::bytes(random, &text, WORDS) } else { text }
}

fn template_text(random: &mut Random, bases: &Bases) -> Vec<u8> {
    let text = random.of(&bases.words);
    mutate::text_or_bytes(random, text, JINJA)
}

fn message_text(random: &mut Random, _: &Bases) -> Vec<u8> {
    let message = *random.of(&MESSAGES);
    mutate::json(random, message.as_bytes(), WORDS)
}

/// A key of some section with some value, and bytes of it changed.
fn override_text(random: &mut Random, bases: &Bases) -> Vec<u8> {
    let lines: Vec<&str> = bases.toml.lines().collect();
    let keys: Vec<&str> = lines.iter().filter_map(|line| Some(line.split_once(" = ")?.0)).collect();
    let sections: Vec<&str> = lines.iter().filter_map(|line| line.strip_prefix('[')?.strip_suffix(']')).collect();
    let text = format!("{}.{}={}", random.of(&sections), random.of(&keys), random.of(WORDS));
    mutate::bytes(random, text.as_bytes(), WORDS)
}

/// Loads a model folder and acts with it for a few tokens.
fn act(folder: &Path, format: Format) {
    let Ok((model, tokenizer)) = checkpoint::load_with_tokenizer(folder) else { return };
    let sets = ["env.max_steps=2", "rollout.max_turn_tokens=3"].map(|set| Override::parse(set).unwrap());
    let mut config = Config::load(None, &sets).unwrap();
    config.prompt.format = format;
    let Ok(prompter) = Prompter::new(tokenizer, &config.prompt) else { return };
    let suite = Household::new(0);
    let task = suite.task(Split::L0, 0).unwrap();
    let settings = RolloutSettings::evaluation(&config, Stream::Evaluation);
    let games = RolloutTasks { open: &|task| suite.open(task), tasks: &[task], group_size: 1 };
    _ = Actor::new(&model, &prompter, settings, &|| false).rollout(&games);
}

fn chat_template(input: &[u8], bases: &Bases) {
    let folder = bases.model_with("tiny-untied-gqa", "chat_template.jinja", input);
    let Ok(tokenizer) = Tokenizer::load(&folder) else { return };
    let said = [("system", "s"), ("user", "hello"), ("assistant", "x")];
    _ = tokenizer.render(&said.map(|(role, content)| Message::new(role, content)), true);
    let mut config = Config::default();
    config.prompt.format = Format::Chat;
    _ = Prompter::new(tokenizer, &config.prompt);
}

fn prompt_template(input: &[u8], bases: &Bases) {
    let mut config = Config::default();
    config.prompt.template = bases.put("words", "words.jinja", input).join("words.jinja").display().to_string();
    let tokenizer = Tokenizer::load(&bases.fixtures.join("golden/models/tiny-tied")).unwrap();
    let Ok(prompter) = Prompter::new(tokenizer, &config.prompt) else { return };
    let (text, admissible) = ("You are {{ here }} {% x %}".into(), vec!["a".into(), "b".into()]);
    _ = prompter.first(&Observation { text, admissible, ..Default::default() });
}

/// Compiles a game and plays a little, by the shortest plan where there is one.
fn game(input: &[u8], bases: &Bases) {
    let file = bases.put("game", "game.tw-pddl", input).join("game.tw-pddl");
    let Ok(texts) = GameFile::read(&file) else { return };
    let Ok(game) = texts.compile(&mut Shared::default()) else { return };
    let mut game = TextGame::new("game", Arc::new(game));
    let Ok(mut seen) = game.reset() else { return };
    for step in 0..4 {
        _ = game.distance();
        let next = game.expert().or_else(|| seen.admissible.get(step).cloned()).unwrap_or("look".into());
        match game.step(&next) {
            Ok(after) => seen = after,
            Err(_) => return,
        }
    }
}

/// What loads is written as it is, loads again, has a memory plan and a judge.
fn configuration(input: &[u8], bases: &Bases) {
    let file = bases.put("toml", "c.toml", input).join("c.toml");
    let Ok(config) = Config::load(Some(&file), &[]) else { return };
    fs::write(&file, config.to_toml()).unwrap();
    assert_eq!(Config::load(Some(&file), &[]).unwrap(), config, "what is written loads as it was");
    if let Ok(shape) = memory::model_shape(&config) {
        _ = memory::fit(&memory::plan(&config, &shape, memory::Placement::Gpu), Some(1 << 30));
    }
    _ = uncouple::gcd::Judge::open(&JudgeConfig { cache: ":memory:".into(), key_env: String::new(), ..config.judge });
}

fn an_override(input: &[u8], _: &Bases) {
    let Ok(set) = Override::parse(&String::from_utf8_lossy(input)) else { return };
    _ = Config::load(None, &[set]).map(|config| config.to_toml());
}

/// Goes on from a checkpoint.
fn of_a_checkpoint(file: &str, input: &[u8], bases: &Bases) {
    let folder = bases.copy_with(&only(&bases.run.join("checkpoints")), file, input);
    _ = state::load(&folder, &Config::default());
    _ = state::suggestions(&folder);
}

fn manifest(input: &[u8], bases: &Bases) {
    let whole = only(&bases.run.join("checkpoints"));
    let name = whole.file_name().unwrap();
    let folder = bases.scratch.join("manifest/checkpoints");
    if !folder.exists() {
        fs::create_dir_all(&folder).unwrap();
        fs::rename(bases.copy_with(&whole, "manifest.json", input), folder.join(name)).unwrap();
    }
    fs::write(folder.join(name).join("manifest.json"), input).unwrap();
    _ = checkpoints::last_model(&bases.scratch.join("manifest"));
}

fn trajectories(input: &[u8], bases: &Bases) {
    _ = fs::remove_dir_all(bases.scratch.join("sqlite"));
    let run = bases.put("sqlite", "trajectories.sqlite", input);
    let Ok(kept) = Trajectories::open(&run, &[("eval", 2), ("grpo", 2)]) else { return };
    drop(kept);
    let Ok(Some(kept)) = TrajectoryReader::open(&run) else { return };
    _ = (
        kept.index("grpo", 0.5),
        kept.group("grpo", 1, 0),
        kept.suggestions(),
        kept.confusion(),
        kept.evaluated(),
        kept.volume(),
    );
}

fn schema(input: &[u8], _: &Bases) {
    _ = serde_json::from_slice::<Value>(input).map(|schema| MessageLayout::read(&schema, ""));
}

/// Between messages as they should be.
fn session(input: &[u8], _: &Bases) {
    let mut session = Session::new(Arc::new(Games::new(Box::new(Household::new(0)))));
    let odd = String::from_utf8_lossy(input);
    let step = r#"{"type":"step","data":{"command":"look"}}"#;
    for message in [r#"{"type":"reset","data":{"seed":1}}"#, &odd, step, r#"{"type":"state"}"#] {
        _ = session.answer(message);
    }
}

/// A set of one model, whose figures or tensors are others.
fn golden(file: &str, input: &[u8], bases: &Bases) {
    let (set, from) = (bases.scratch.join("set"), bases.fixtures.join("golden"));
    if !set.exists() {
        for folder in ["models/tiny-tied", "golden/tiny-tied"] {
            fs::create_dir_all(set.join(folder)).unwrap();
            for entry in fs::read_dir(from.join(folder)).unwrap() {
                let path = entry.unwrap().path();
                fs::write(set.join(folder).join(path.file_name().unwrap()), fs::read(&path).unwrap()).unwrap();
            }
        }
        fs::write(set.join("tokenizer_golden.json"), fs::read(from.join("tokenizer_golden.json")).unwrap()).unwrap();
    }
    for own in ["golden.json", "golden.safetensors"] {
        let content = if own == file { input.to_vec() } else { bases.golden(own) };
        fs::write(set.join("golden/tiny-tied").join(own), content).unwrap();
    }
    match file {
        "golden.json" => _ = uncouple::reference::replay(&set, "tiny-tied", &bases.scratch.join("out"), None),
        _ => _ = uncouple::reference::check(&set),
    }
}
