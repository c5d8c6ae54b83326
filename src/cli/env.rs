//! `uncouple env`: play a game by hand or by program, list a data set, offer games to others.

use super::output;
use crate::config::{Config, Override};
use crate::env::Environment;
use crate::env::alfworld::{GameIndex, PARTS, Skipped, TYPES, data_folder};
use crate::env::openenv::{Bounds, Server};
use crate::env::textgame::{GameFile, Shared, TextGame};
use crate::report::progress::say;
use crate::train::{interrupt, suite_for};
use anyhow::{Context, Result};
use clap::Subcommand;
use comfy_table::{CellAlignment, Table, presets};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

#[derive(Debug, Subcommand)]
pub enum EnvCommand {
    /// Play one game: commands on stdin, one a line; one line of JSON on stdout for the beginning and for each command
    Play {
        /// An ALFWorld game, game.tw-pddl
        #[arg(long, value_name = "FILE")]
        game: PathBuf,
    },
    /// List ALFWorld's games by part and task type, with a hash of their contents
    Index {
        /// Folder that alfworld-download filled [default: $ALFWORLD_DATA]
        #[arg(long, value_name = "DIR", default_value = "", hide_default_value = true)]
        data: String,
        /// Print every game as JSON
        #[arg(long)]
        json: bool,
    },
    /// Offer the games to trainers that speak OpenEnv; the server's address is printed
    Serve {
        /// TOML file, or recipe:NAME, whose env.* says which games
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// Set one value, e.g. --set env.suite=alfworld (repeatable; wins over --config)
        #[arg(long, value_name = "KEY=VALUE")]
        set: Vec<String>,
        /// Address to listen on: others than this machine reach 0.0.0.0
        #[arg(long, default_value = "127.0.0.1")]
        host: IpAddr,
        /// Host name by which requests may name the server beside its address and localhost (repeatable)
        #[arg(long, value_name = "NAME")]
        allow_host: Vec<String>,
        /// Port to listen on (0: any free one)
        #[arg(long, default_value_t = 8000)]
        port: u16,
        /// Most sessions at once; where games are played by workers, one waits env.timeout for a free one
        #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=65536))]
        sessions: u32,
        /// Close a session that says nothing for so many seconds
        #[arg(long, value_name = "SECONDS", default_value_t = 3600, value_parser = clap::value_parser!(u64).range(1..=604800))]
        idle: u64,
    },
}

pub fn run(command: EnvCommand) -> Result<ExitCode> {
    match command {
        EnvCommand::Play { game } => play(game),
        EnvCommand::Index { data, json } => index(&data, json),
        EnvCommand::Serve { config, set, host, allow_host, port, sessions, idle } => {
            let overrides = set.iter().map(|text| Override::parse(text)).collect::<Result<Vec<_>, _>>()?;
            let config = Config::load(config.as_deref(), &overrides)?;
            let (idle, request) = (Duration::from_secs(idle), Duration::from_secs(10));
            let bounds = Bounds { sessions: sessions as usize, idle, request };
            serve(&config, SocketAddr::new(host, port), allow_host, bounds)
        }
    }
}

fn play(path: PathBuf) -> Result<ExitCode> {
    let file = GameFile::read(&path)?;
    let name = path.display().to_string();
    let game = file.compile(&mut Shared::default()).with_context(|| format!("{name} cannot be played"))?;
    let mut game = TextGame::new(&name, Arc::new(game));
    let mut seen = game.reset()?;
    let mut commands = io::stdin().lines();
    loop {
        let line = serde_json::json!({
            "feedback": seen.text,
            "admissible": seen.admissible,
            "won": seen.won,
            "score": u32::from(seen.won),
            "done": seen.done,
        });
        output::print_json_line(&line)?;
        let Some(command) = commands.next() else { return Ok(ExitCode::SUCCESS) };
        seen = game.step(&command.context("stdin is not text")?)?;
    }
}

fn serve(config: &Config, address: SocketAddr, names: Vec<String>, bounds: Bounds) -> Result<ExitCode> {
    let suite = suite_for(config, Some(Duration::from_secs_f32(config.env.timeout)))?;
    let name = suite.name().to_string();
    let server = Server::bind(suite, address, bounds)?.allow_hosts(names);
    let stop = server.stop();
    interrupt::install_with(move || {
        say("closing the sessions; press Ctrl-C again to end at once");
        stop.stop();
    })
    .context("cannot listen for Ctrl-C")?;
    say(&format!("serving {name} to at most {} sessions; Ctrl-C ends it", bounds.sessions));
    output::print(&format!("http://{}", server.address()))?;
    server.run()?;
    Ok(ExitCode::SUCCESS)
}

fn index(data: &str, json: bool) -> Result<ExitCode> {
    let index = GameIndex::read(&data_folder(data)?)?;
    if json {
        output::print_json(&serde_json::json!({
            "root": index.root, "hash": index.hash, "games": index.games, "skipped": index.skipped
        }))?;
        return Ok(report_skipped(&index));
    }
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED).set_header([&["task type"], &PARTS[..]].concat());
    let count = |part: &str, kind: Option<&str>| {
        let counted = index.games.iter().filter(|g| g.part == part && kind.is_none_or(|kind| g.kind == kind));
        counted.count().to_string()
    };
    for kind in TYPES.into_iter().map(Some).chain([None]) {
        let counts = PARTS.map(|part| count(part, kind));
        table.add_row([&[kind.unwrap_or("all").to_string()], &counts[..]].concat());
    }
    table.column_iter_mut().skip(1).for_each(|column| column.set_cell_alignment(CellAlignment::Right));
    output::print(&table.to_string())?;
    output::print(&format!("{}\nsha256 {}", index.root.display(), index.hash))?;
    Ok(report_skipped(&index))
}

/// Names the bad games; the exit code says whether there are any.
fn report_skipped(index: &GameIndex) -> ExitCode {
    for Skipped { file, reason } in &index.skipped {
        say(&format!("skipped {}: {reason}", file.display()));
    }
    match index.skipped.len() {
        0 => ExitCode::SUCCESS,
        count => {
            let of = index.games.len() + count;
            say(&format!(
                "{count} of {of} games skipped: they cannot be played, and training refuses the folder until they are mended or removed"
            ));
            ExitCode::FAILURE
        }
    }
}
