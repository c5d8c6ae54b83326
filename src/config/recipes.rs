//! Configurations that come with the program: `--config recipe:NAME`.

use super::ConfigError;
use std::path::Path;

/// One of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recipe {
    /// The name after `recipe:`.
    pub name: &'static str,
    /// The file, which says at its head what it is for and what it needs.
    pub toml: &'static str,
}

macro_rules! recipes {
    ($($name:literal)*) => {
        [$(Recipe { name: $name, toml: include_str!(concat!("../../recipes/", $name, ".toml")) }),*]
    };
}

/// All of them; their files are in recipes/.
pub const RECIPES: [Recipe; 8] = recipes![
    "smollm2-household" "smollm2-lora" "qwen2.5-0.5b-alfworld" "qwen2.5-0.5b-lora" "qwen2.5-3b-alfworld" "qwen2.5-7b-lora"
    "scienceworld" "own-worker"
];

impl Recipe {
    /// What it is for: the first line of its head.
    pub fn purpose(&self) -> &'static str {
        self.toml.lines().next().unwrap_or_default().trim_start_matches("# ")
    }
}

/// The name in `recipe:NAME`, if a configuration is given so.
pub fn named(file: &Path) -> Option<&str> {
    file.to_str()?.strip_prefix("recipe:")
}

/// The recipe of this name.
///
/// # Errors
/// If there is no recipe of this name.
pub fn find(name: &str) -> Result<Recipe, ConfigError> {
    RECIPES.into_iter().find(|recipe| recipe.name == name).ok_or_else(|| {
        let names = RECIPES.map(|recipe| format!("`{}`", recipe.name));
        ConfigError::NoRecipe { name: name.into(), hint: format!("there are {}", names.join(", ")) }
    })
}
