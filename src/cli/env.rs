//! `uncouple env`: play a game by hand or by program, and list a data set.

use super::output;
use crate::env::Environment;
use crate::env::alfworld::{Index, PARTS, TYPES, data_folder};
use crate::env::textgame::{GameFile, Shared, TextGame};
use anyhow::{Context, Result};
use clap::Subcommand;
use comfy_table::{CellAlignment, Table, presets};
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

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
}

pub fn run(command: EnvCommand) -> Result<ExitCode> {
    match command {
        EnvCommand::Play { game } => play(game),
        EnvCommand::Index { data, json } => index(&data, json),
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
        output::print(&line.to_string())?;
        let Some(command) = commands.next() else { return Ok(ExitCode::SUCCESS) };
        seen = game.step(&command.context("stdin is not text")?)?;
    }
}

fn index(data: &str, json: bool) -> Result<ExitCode> {
    let index = Index::read(&data_folder(data)?)?;
    if json {
        output::print_json(&serde_json::json!({
            "root": index.root, "hash": index.hash, "games": index.games
        }))?;
        return Ok(ExitCode::SUCCESS);
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
    Ok(ExitCode::SUCCESS)
}
