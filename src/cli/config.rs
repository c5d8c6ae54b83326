//! `uncouple config`.

use super::{ConfigArgs, ConfigCommand, output};
use crate::config::{keys, recipes};
use anyhow::Result;
use comfy_table::{Table, presets};
use std::process::ExitCode;

pub fn run(args: ConfigArgs) -> Result<ExitCode> {
    match args.command {
        Some(ConfigCommand::Explain { key, json }) => {
            let found = keys::find(&key)?;
            if json { output::print_json(&found)? } else { output::print(keys::as_text(&found).trim_end())? }
        }
        Some(ConfigCommand::Recipes) => {
            let mut table = Table::new();
            table.load_style(presets::NOTHING);
            for recipe in recipes::RECIPES {
                table.add_row([recipe.name, recipe.purpose()]);
            }
            let lines: Vec<String> = table.lines().map(|line| line.trim().to_string()).collect();
            output::print(&lines.join("\n"))?;
        }
        None if args.json => output::print_json(&keys::sections())?,
        None => {
            let text = match (&args.recipe, args.markdown) {
                (Some(name), _) => recipes::find(name)?.toml.to_string(),
                (None, true) => keys::as_markdown(),
                (None, false) => keys::as_toml(),
            };
            output::print(text.trim_end())?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
