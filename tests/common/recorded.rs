//! The recorded games of ALFWorld.

use std::path::PathBuf;

/// The folder of recorded games, where this machine has one.
pub fn folder() -> Option<PathBuf> {
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let given = std::env::var_os("UNCOUPLE_SHARED").map(PathBuf::from);
    let places = given.into_iter().chain([here.join("../shared"), here.join("../../shared")]);
    places.map(|p| p.join("alfworld")).find(|p| p.join("transcripts.jsonl.gz").exists())
}
