//! Hugging Face model directories, in and out: `config.json` and weights, or an adapter that names the directory of its base.

use super::params::{Layout, TensorEntry};
use super::peft::{self, AdapterConfig};
use super::recipe::WeightRecipe;
use super::tokenizer::Tokenizer;
use super::weights::{
    CHUNK, INDEX, MAX_RECIPE, RECIPE, SINGLE, Shard, all_finite, check_shape, from_shards, open_shards, read_json,
};
use super::{Adapter, Architecture, Model, Params, TokenIds};
use crate::config::Lora;
use crate::files::{self, FileError};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use super::weights::{CheckpointError, SaveDtype, load_codes, load_params, save_codes, save_params};

/// Loads the model in `dir`: `config.json` with `model.safetensors`, shards with an index, or a `recipe.json`; or an adapter
/// (`adapter_config.json`) beside the weights of the model that it names.
///
/// ```
/// use std::path::Path;
/// use uncouple::model::checkpoint;
///
/// let model = checkpoint::load(Path::new("tests/fixtures/golden/models/tiny-tied"))?;
/// assert_eq!((model.config.num_hidden_layers, model.config.hidden_size), (2, 64));
/// # Ok::<(), checkpoint::CheckpointError>(())
/// ```
///
/// # Errors
/// If files are missing, damaged or of an unknown family, do not fit `config.json`, or hold a weight that is not
/// finite.
pub fn load(dir: &Path) -> Result<Model, CheckpointError> {
    if !dir.is_dir() {
        return Err(CheckpointError::NoFolder(dir.into()));
    }
    if let Some(adapter) = AdapterConfig::read(dir)? {
        return load_adapter(dir, &adapter.base(dir)?);
    }
    let config = Architecture::read(dir)?;
    let layout = Arc::new(Layout::new(&config));
    let [single, index, recipe] = [SINGLE, INDEX, RECIPE].map(|name| dir.join(name));
    let params = if single.exists() {
        let shard = Shard::open(single.clone())?;
        from_shards(layout, &single, &[shard])?
    } else if index.exists() {
        let shards = open_shards(dir, &index)?;
        from_shards(layout, &index, &shards)?
    } else if recipe.exists() {
        from_recipe(layout, &recipe)?
    } else {
        let pickles = ["pytorch_model.bin", "pytorch_model.bin.index.json"].map(|name| dir.join(name));
        return Err(match pickles.into_iter().find(|file| file.exists()) {
            Some(file) => CheckpointError::Pickle { file },
            None => CheckpointError::NoWeights { dir: dir.into() },
        });
    };
    all_finite(dir, &params)?;
    Ok(Model::new(config, params))
}

/// Loads the adapter in `dir` beside the model in `base`.
///
/// # Errors
/// As [`load`], and if the adapter is one that is not supported, or does not fit the model.
pub fn load_adapter(dir: &Path, base: &Path) -> Result<Model, CheckpointError> {
    let model = load(base)?;
    if model.adapter.is_some() {
        let reason = format!("names {}, which is an adapter itself: merge that first (uncouple merge)", base.display());
        return Err(CheckpointError::Adapter { file: dir.join(peft::CONFIG), field: peft::BASE, reason });
    }
    let adapter = adapter(dir, &model.config)?;
    Ok(model.with_adapter(adapter))
}

/// The adapter in `dir`, which stands beside a model of this shape.
///
/// # Errors
/// If a file is missing or damaged, does not fit the model, or is of an adapter of a kind that is not supported.
pub fn adapter(dir: &Path, shape: &Architecture) -> Result<Adapter, CheckpointError> {
    let adapter = peft::load(dir, shape)?;
    all_finite(dir, &adapter.params)?;
    Ok(adapter)
}

/// The folder of the weights of the model in `dir`: `dir` itself, or, of an adapter, its base's.
///
/// # Errors
/// If `dir` holds an adapter whose base is not to be found.
pub fn base(dir: &Path) -> Result<PathBuf, CheckpointError> {
    AdapterConfig::read(dir)?.map_or(Ok(dir.into()), |adapter| adapter.base(dir))
}

/// The folder that has `file` of the model in `dir`: `dir` itself, or, of an adapter that came without it, its base's.
///
/// # Errors
/// If `dir` holds an adapter whose base is not to be found.
pub fn folder_of(dir: &Path, file: &str) -> Result<PathBuf, CheckpointError> {
    match AdapterConfig::read(dir)? {
        Some(adapter) if !dir.join(file).exists() => adapter.base(dir),
        _ => Ok(dir.into()),
    }
}

/// The shape of the model in `dir`.
///
/// # Errors
/// If its `config.json` is refused, or it is an adapter whose base is not to be found.
pub fn architecture(dir: &Path) -> Result<Architecture, CheckpointError> {
    Ok(Architecture::read(&folder_of(dir, "config.json")?)?)
}

/// The tokens with a role of the model in `dir`.
///
/// # Errors
/// As [`architecture`], and if no token ends a turn.
pub fn token_ids(dir: &Path) -> Result<TokenIds, CheckpointError> {
    Ok(TokenIds::read(&folder_of(dir, "config.json")?)?)
}

/// The tokenizer of the model in `dir`.
///
/// # Errors
/// As [`Tokenizer::load`], and if `dir` is an adapter whose base is not to be found.
pub fn tokenizer(dir: &Path) -> Result<Tokenizer, CheckpointError> {
    Ok(Tokenizer::load(&folder_of(dir, "tokenizer.json")?)?)
}

/// Loads the model in `dir` and the tokenizer beside it, all of whose ids the model's embedding must have.
///
/// # Errors
/// As [`load`] and [`Tokenizer::load`], and if the embedding lacks the row of some id.
pub fn load_with_tokenizer(dir: &Path) -> Result<(Model, Tokenizer), CheckpointError> {
    let (model, tokenizer) = (load(dir)?, tokenizer(dir)?);
    tokenizer.check_fits(&model.config)?;
    Ok((model, tokenizer))
}

/// Builds the weights by rule and checks their digest.
fn from_recipe(layout: Arc<Layout>, file: &Path) -> Result<Params, CheckpointError> {
    let recipe: WeightRecipe = read_json(file)?;
    let mut by_name: BTreeMap<_, _> = recipe.tensors.iter().map(|t| (t.name.as_str(), t)).collect();
    let mut tensors = Vec::with_capacity(layout.entries.len());
    for entry in &layout.entries {
        let tensor = by_name
            .remove(entry.name.as_str())
            .ok_or_else(|| CheckpointError::Missing { file: file.into(), tensor: entry.name.clone() })?;
        check_shape(file, entry, &tensor.shape)?;
        tensors.push(tensor);
    }
    if let Some(tensor) = by_name.keys().next() {
        return Err(CheckpointError::Unexpected { file: file.into(), tensor: tensor.to_string() });
    }
    let values = layout.entries.iter().map(|e| e.range.len()).sum();
    if values > MAX_RECIPE {
        return Err(CheckpointError::LargeRecipe { file: file.into(), values });
    }
    let mut params = Params::zeros(layout.clone());
    for (entry, tensor) in layout.entries.iter().zip(tensors) {
        tensor.fill(recipe.seed, &mut params.flat[entry.range.clone()]);
    }
    let found = sha256_f32(&params);
    if found != recipe.sha256_f32 {
        return Err(CheckpointError::Digest { file: file.into(), expected: recipe.sha256_f32, found });
    }
    Ok(params)
}

/// Digest of all values as little-endian f32, tensors in byte order of their names.
fn sha256_f32(params: &Params) -> String {
    let mut entries: Vec<&TensorEntry> = params.layout.entries.iter().collect();
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    let mut digest = Sha256::new();
    for entry in entries {
        for chunk in params.flat[entry.range.clone()].chunks(CHUNK) {
            digest.update(chunk.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>());
        }
    }
    digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Saves a model directory that transformers 4 and 5 load as it is, replacing what `dir` held only once all is on disk.
///
/// `tokenizer` are its files ([`super::Tokenizer::files`]), written as they are. Of a model with an adapter its own weights are saved.
///
/// # Errors
/// If the folder cannot be written; what `dir` held stays.
pub fn save(
    dir: &Path,
    model: &Model,
    ids: &TokenIds,
    tokenizer: &[(String, Vec<u8>)],
    dtype: SaveDtype,
) -> Result<(), CheckpointError> {
    let beside = BesideWeights { config: &model.config, ids, tokenizer };
    files::write_folder(dir, |partial| fill(partial, &model.params, &beside, dtype))
}

/// Writes the files of [`save`] into the folder `dir`, which is not yet where anybody looks for a model.
///
/// # Errors
/// If a file cannot be written.
pub fn fill(dir: &Path, params: &Params, beside: &BesideWeights<'_>, dtype: SaveDtype) -> Result<(), CheckpointError> {
    beside.write(dir, dtype)?;
    save_params(&dir.join(SINGLE), params, dtype)
}

/// What a model directory holds beside the weights.
pub struct BesideWeights<'a> {
    /// The model's shape.
    pub config: &'a Architecture,
    /// The tokens with a role.
    pub ids: &'a TokenIds,
    /// Its files ([`super::Tokenizer::files`]), written as they are.
    pub tokenizer: &'a [(String, Vec<u8>)],
}

impl BesideWeights<'_> {
    fn write(&self, dir: &Path, dtype: SaveDtype) -> Result<(), CheckpointError> {
        let torch_dtype = match dtype {
            SaveDtype::F32 => "float32",
            SaveDtype::Bf16 => "bfloat16",
        };
        let config = format!("{:#}\n", self.config.to_json(self.ids, torch_dtype)).into_bytes();
        let generation = format!("{:#}\n", self.ids.to_generation_config()).into_bytes();
        let own = [("config.json".to_string(), config), ("generation_config.json".to_string(), generation)];
        for (name, content) in own.iter().chain(self.tokenizer) {
            let path = dir.join(name);
            std::fs::write(&path, content).map_err(|e| FileError::new("write", path, e))?;
        }
        Ok(())
    }
}

/// Writes the folder of an adapter as PEFT does, and what its model has beside the weights, so that both come back from here. `base` is
/// where the model itself is.
///
/// # Errors
/// If a file cannot be written.
pub fn fill_adapter(
    dir: &Path,
    lora: &Lora,
    params: &Params,
    base: &str,
    beside: &BesideWeights<'_>,
) -> Result<(), CheckpointError> {
    beside.write(dir, SaveDtype::F32)?;
    peft::save(dir, lora, params, base)
}
