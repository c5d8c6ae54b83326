//! Weight files: safetensors, one or several, in and out; and what can be wrong with a model directory.

use super::Params;
use super::document::ModelConfigError;
use super::input::{self, guarded};
use super::params::{Layout, TensorEntry};
use super::tokenizer::TokenizerError;
use crate::files::{self, FileError};
use crate::ops::adamw_8bit::BLOCK;
use half::{bf16, f16};
use memmap2::Mmap;
use rayon::prelude::*;
use safetensors::tensor::{Dtype, SafeTensorError, SafeTensors, TensorView, View};
use serde::Deserialize;
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The head of an untied model; a tied one has none of its own.
const HEAD: &str = "lm_head.weight";
const EMBEDDING: &str = "model.embed_tokens.weight";

pub(super) const SINGLE: &str = "model.safetensors";
pub(super) const INDEX: &str = "model.safetensors.index.json";
pub(super) const RECIPE: &str = "recipe.json";
/// Largest JSON file beside the weights, in bytes.
const MAX_JSON: u64 = 1 << 28;
/// Most values that a recipe may make: nothing but its own word stands for them.
pub(super) const MAX_RECIPE: usize = 1 << 28;

/// Why a model directory could not be read or written.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages describe the variants")]
pub enum CheckpointError {
    #[error("there is no model folder {0}; give the path of a Hugging Face model directory")]
    NoFolder(PathBuf),
    #[error("{dir} holds no weights: expected {SINGLE}, {INDEX} or {RECIPE}")]
    NoWeights { dir: PathBuf },
    #[error("{file}: `{field}` {reason}")]
    Adapter { file: PathBuf, field: &'static str, reason: String },
    #[error(
        "{file} is a pickle, which is a program and is not run; convert it with transformers in Python: \
         AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(DIR)"
    )]
    Pickle { file: PathBuf },
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    #[error(transparent)]
    Config(#[from] ModelConfigError),
    #[error("cannot read {file}: {source}")]
    Read { file: PathBuf, source: std::io::Error },
    #[error("{file} is damaged or truncated ({reason}); copy or download it again")]
    Corrupt { file: PathBuf, reason: String },
    #[error("{file} lists tensor `{tensor}` in `{shard}`, which is not a plain file name")]
    BadShard { file: PathBuf, tensor: String, shard: String },
    #[error("tensor `{tensor}` is missing from {file}; the checkpoint does not fit its config.json")]
    Missing { file: PathBuf, tensor: String },
    #[error(
        "unexpected tensor `{tensor}` in {file}, which the model of its config.json has no use for; leave it out: with transformers in Python, \
         AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(OUT)"
    )]
    Unexpected { file: PathBuf, tensor: String },
    #[error(
        "{file} has no `{HEAD}`, but config.json does not tie it to the embedding; if the model was saved tied, set \
         tie_word_embeddings to true"
    )]
    NoHead { file: PathBuf },
    #[error("the recipe {file} makes {values} values; at most {MAX_RECIPE} are made from a recipe")]
    LargeRecipe { file: PathBuf, values: usize },
    #[error("tensor `{tensor}` is in {first} and again in {second}; remove one")]
    Twice { tensor: String, first: PathBuf, second: PathBuf },
    #[error("tensor `{tensor}` in {file} has shape {found:?}, but config.json needs {expected:?}")]
    Shape { file: PathBuf, tensor: String, expected: Vec<usize>, found: Vec<usize> },
    #[error("tensor `{tensor}` in {file} is {found}; only F64, F32, F16 and BF16 can be read")]
    Dtype { file: PathBuf, tensor: String, found: String },
    #[error(
        "{file} has a `{HEAD}` that differs from `{EMBEDDING}`, but config.json ties them; set tie_word_embeddings to false"
    )]
    NotTied { file: PathBuf },
    #[error(
        "tensor `{tensor}` in {dir} holds {value} (value {index} of {len}): nothing can be computed with it; take an earlier \
         checkpoint, or copy or download the model again"
    )]
    NotFinite { dir: PathBuf, tensor: String, value: f32, index: usize, len: usize },
    #[error("the weights built from {file} have digest {found}, but the recipe says {expected}")]
    Digest { file: PathBuf, expected: String, found: String },
    #[error(transparent)]
    File(#[from] FileError),
}

/// How weights are stored on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SaveDtype {
    /// Exactly what is in memory: what training resumes from.
    #[default]
    F32,
    /// Half the size; rounds to nearest even.
    Bf16,
}

/// Reads one safetensors file that holds exactly the tensors of `layout`.
///
/// # Errors
/// If the file cannot be read, is damaged, or lacks a tensor or has one too many.
pub fn load_params(file: &Path, layout: &Arc<Layout>) -> Result<Params, CheckpointError> {
    from_shards(layout.clone(), file, &[Shard::open(file.into())?])
}

/// A memory-mapped weight file.
pub(super) struct Shard {
    file: PathBuf,
    map: Mmap,
}

impl Shard {
    pub fn open(file: PathBuf) -> Result<Shard, CheckpointError> {
        let read = |source| CheckpointError::Read { file: file.clone(), source };
        let handle = files::open(&file).map_err(read)?;
        // SAFETY: the map is only read, and only while loading. Should another process cut the file short meanwhile, the
        // process gets SIGBUS, as with every memory-mapped loader; there is no way to exclude it.
        let map = unsafe { Mmap::map(&handle) }.map_err(read)?;
        input::check_fetched(&map).map_err(read)?;
        Ok(Shard { file, map })
    }

    /// Of its tensors.
    pub fn names(&self) -> Result<Vec<String>, CheckpointError> {
        Ok(self.tensors()?.names().into_iter().map(String::from).collect())
    }

    fn tensors(&self) -> Result<SafeTensors<'_>, CheckpointError> {
        let parsed = guarded(|| SafeTensors::deserialize(&self.map).map_err(|e| e.to_string()));
        parsed
            .and_then(|tensors| tensors)
            .map_err(|reason| CheckpointError::Corrupt { file: self.file.clone(), reason })
    }
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// Opens the shards that an index names, and checks that each tensor is where the index says.
pub(super) fn open_shards(dir: &Path, file: &Path) -> Result<Vec<Shard>, CheckpointError> {
    let index: Index = read_json(file)?;
    for (tensor, shard) in &index.weight_map {
        if Path::new(shard).file_name() != Some(shard.as_ref()) {
            let (tensor, shard) = (tensor.clone(), shard.clone());
            return Err(CheckpointError::BadShard { file: file.into(), tensor, shard });
        }
    }
    let names: BTreeSet<&String> = index.weight_map.values().collect();
    let shards = names.into_iter().map(|name| Shard::open(dir.join(name))).collect::<Result<Vec<_>, _>>()?;
    for shard in &shards {
        let held: BTreeSet<String> = shard.tensors()?.names().into_iter().map(String::from).collect();
        let listed = index.weight_map.iter().filter(|(_, name)| dir.join(name) == shard.file);
        if let Some((tensor, _)) = listed.into_iter().find(|(tensor, _)| !held.contains(*tensor)) {
            return Err(CheckpointError::Missing { file: shard.file.clone(), tensor: tensor.clone() });
        }
    }
    Ok(shards)
}

/// Fills the parameters from `shards`; `whole` names the checkpoint in errors about a tensor that is in none of them.
pub(super) fn from_shards(layout: Arc<Layout>, whole: &Path, shards: &[Shard]) -> Result<Params, CheckpointError> {
    let mut found: HashMap<String, (&Path, TensorView)> = HashMap::new();
    for shard in shards {
        for (stored, view) in shard.tensors()?.tensors() {
            if is_buffer(&stored) || view.shape().contains(&0) {
                continue;
            }
            let tensor = layout_name(&layout, stored);
            if let Some((first, _)) = found.get(&tensor) {
                let (first, second) = (first.to_path_buf(), shard.file.clone());
                return Err(CheckpointError::Twice { tensor, first, second });
            }
            found.insert(tensor, (&shard.file, view));
        }
    }

    // All shapes first: a config.json with absurd sizes is refused before memory is allocated.
    for entry in &layout.entries {
        let (file, view) = found.get(&entry.name).ok_or_else(|| match &entry.name[..] {
            HEAD => CheckpointError::NoHead { file: whole.into() },
            name => CheckpointError::Missing { file: whole.into(), tensor: name.into() },
        })?;
        check_shape(file, entry, view.shape())?;
    }
    let mut params = Params::zeros(layout.clone());
    for entry in &layout.entries {
        let Some((file, view)) = found.remove(&entry.name) else { continue };
        convert(file, &entry.name, &view, &mut params.flat[entry.range.clone()])?;
    }
    // Some exporters store the head of a tied model once more.
    if let Some(embedding) = layout.entries.iter().find(|e| e.name == EMBEDDING)
        && let Some((file, view)) = found.remove(HEAD)
    {
        check_shape(file, &TensorEntry { name: HEAD.into(), ..embedding.clone() }, view.shape())?;
        let mut head = vec![0.0; embedding.range.len()];
        convert(file, HEAD, &view, &mut head)?;
        let narrow = narrowing(view.dtype());
        let same = |(head, value): (&f32, &f32)| *head == *value || *head == narrow(*value);
        if !head.iter().zip(&params.flat[embedding.range.clone()]).all(same) {
            return Err(CheckpointError::NotTied { file: file.into() });
        }
    }
    match found.into_iter().min_by(|a, b| a.0.cmp(&b.0)) {
        Some((tensor, (file, _))) => Err(CheckpointError::Unexpected { file: file.into(), tensor }),
        None => Ok(params),
    }
}

/// Tables that older exporters stored and that follow from the configuration; transformers passes them over, too.
fn is_buffer(name: &str) -> bool {
    name.ends_with(".rotary_emb.inv_freq") || name.ends_with(".masked_bias") || name.ends_with(".attn.bias")
}

/// The layout's name of a stored tensor: torch.compile puts a prefix before it, and a model saved without its head lacks one.
fn layout_name(layout: &Layout, stored: String) -> String {
    let name = stored.strip_prefix("_orig_mod.").unwrap_or(&stored);
    let known = |name: &str| name == HEAD || layout.entries.iter().any(|e| e.name == name);
    [name.to_string(), format!("model.{name}")].into_iter().find(|name| known(name)).unwrap_or(stored)
}

/// What a value becomes when it is stored in `dtype`.
fn narrowing(dtype: Dtype) -> fn(f32) -> f32 {
    match dtype {
        Dtype::BF16 => |value| bf16::from_f32(value).to_f32(),
        Dtype::F16 => |value| f16::from_f32(value).to_f32(),
        _ => |value| value,
    }
}

pub(super) fn check_shape(file: &Path, entry: &TensorEntry, found: &[usize]) -> Result<(), CheckpointError> {
    if found == entry.shape {
        return Ok(());
    }
    let (tensor, expected, found) = (entry.name.clone(), entry.shape.clone(), found.to_vec());
    Err(CheckpointError::Shape { file: file.into(), tensor, expected, found })
}

/// Elements converted by one task.
pub(super) const CHUNK: usize = 1 << 16;

/// Widens stored little-endian values to f32. The bytes of a tensor need not be aligned.
fn convert(file: &Path, tensor: &str, view: &TensorView, out: &mut [f32]) -> Result<(), CheckpointError> {
    fn widen<const N: usize>(bytes: &[u8], out: &mut [f32], value: impl Fn([u8; N]) -> f32 + Sync) {
        out.par_chunks_mut(CHUNK).zip(bytes.par_chunks(CHUNK * N)).for_each(|(out, bytes)| {
            for (out, bytes) in out.iter_mut().zip(bytes.as_chunks::<N>().0) {
                *out = value(*bytes);
            }
        });
    }
    match view.dtype() {
        Dtype::F32 => widen(view.data(), out, f32::from_le_bytes),
        Dtype::F64 => widen(view.data(), out, |b| f64::from_le_bytes(b) as f32),
        Dtype::BF16 => widen(view.data(), out, |b| bf16::from_le_bytes(b).to_f32()),
        Dtype::F16 => widen(view.data(), out, |b| f16::from_le_bytes(b).to_f32()),
        other => {
            let (tensor, found) = (tensor.into(), format!("{other:?}"));
            return Err(CheckpointError::Dtype { file: file.into(), tensor, found });
        }
    }
    Ok(())
}

/// A model with a weight that is no number answers everything with nonsense, without an error.
pub(super) fn all_finite(dir: &Path, params: &Params) -> Result<(), CheckpointError> {
    let bad = |value: &f32| !value.is_finite();
    let chunk = params.flat.par_chunks(CHUNK).position_first(|values| values.iter().any(bad));
    let first = chunk.and_then(|at| params.flat[at * CHUNK..].iter().position(bad).map(|i| at * CHUNK + i));
    let entry = first.and_then(|at| params.layout.entries.iter().find(|e| e.range.contains(&at)));
    let (Some(at), Some(entry)) = (first, entry) else { return Ok(()) };
    let (tensor, index, len) = (entry.name.clone(), at - entry.range.start, entry.range.len());
    Err(CheckpointError::NotFinite { dir: dir.into(), tensor, value: params.flat[at], index, len })
}

pub(super) fn read_json<T: serde::de::DeserializeOwned>(file: &Path) -> Result<T, CheckpointError> {
    let text = input::read(file, MAX_JSON).map_err(|source| CheckpointError::Read { file: file.into(), source })?;
    serde_json::from_slice(&text).map_err(|e| CheckpointError::Corrupt { file: file.into(), reason: e.to_string() })
}

/// One tensor on its way to a file, narrowed when it is its turn.
struct Saved<'a> {
    values: &'a [f32],
    shape: &'a [usize],
    dtype: SaveDtype,
}

impl View for Saved<'_> {
    fn dtype(&self) -> Dtype {
        match self.dtype {
            SaveDtype::F32 => Dtype::F32,
            SaveDtype::Bf16 => Dtype::BF16,
        }
    }
    fn shape(&self) -> &[usize] {
        self.shape
    }
    fn data(&self) -> Cow<'_, [u8]> {
        match self.dtype {
            SaveDtype::F32 => self.values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            SaveDtype::Bf16 => self.values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect(),
        }
    }
    fn data_len(&self) -> usize {
        self.values.len() * self.dtype().bitsize() / 8
    }
}

/// Writes every tensor of `params` to one safetensors file, under Hugging Face's names.
///
/// # Errors
/// If the file cannot be written.
pub fn save_params(file: &Path, params: &Params, dtype: SaveDtype) -> Result<(), CheckpointError> {
    let tensors = params
        .layout
        .entries
        .iter()
        .map(|e| (e.name.as_str(), Saved { values: &params.flat[e.range.clone()], shape: &e.shape, dtype }));
    let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
    safetensors::serialize_to_file(tensors, Some(metadata), file).map_err(|e| {
        let source = match e {
            SafeTensorError::IoError(source) => source,
            other => std::io::Error::other(other),
        };
        FileError::new("write", file, source).into()
    })
}

/// What the scales of a tensor's codes are called.
fn scales_of(tensor: &str) -> String {
    format!("{tensor}.absmax")
}

/// Writes a moment of 8 bits: each tensor's codes under its name, and the scales of its blocks.
///
/// # Errors
/// If the file cannot be written.
pub fn save_codes(file: &Path, layout: &Layout, codes: &[u8], absmax: &[f32]) -> Result<(), CheckpointError> {
    let (mut tensors, mut left) = (Vec::new(), absmax);
    let failed = |e: SafeTensorError| FileError::new("write", file, std::io::Error::other(e));
    for entry in &layout.entries {
        let (own, rest) = left.split_at(entry.range.len().div_ceil(BLOCK));
        left = rest;
        let view = TensorView::new(Dtype::U8, entry.shape.clone(), &codes[entry.range.clone()]);
        tensors.push((entry.name.clone(), view.map_err(failed)?));
        let view = TensorView::new(Dtype::F32, vec![own.len()], bytemuck::cast_slice(own));
        tensors.push((scales_of(&entry.name), view.map_err(failed)?));
    }
    Ok(safetensors::serialize_to_file(tensors, None, file).map_err(failed)?)
}

/// Reads them back.
///
/// # Errors
/// If the file cannot be read, is damaged, or lacks a tensor or has one of another size.
pub fn load_codes(file: &Path, layout: &Layout, codes: &mut [u8], absmax: &mut [f32]) -> Result<(), CheckpointError> {
    let (shard, mut left) = (Shard::open(file.into())?, absmax);
    let tensors = shard.tensors()?;
    for entry in &layout.entries {
        let missing = |tensor: &str| CheckpointError::Missing { file: file.into(), tensor: tensor.into() };
        let view = tensors.tensor(&entry.name).map_err(|_| missing(&entry.name))?;
        check_shape(file, entry, view.shape())?;
        if view.dtype() != Dtype::U8 {
            let (tensor, found) = (entry.name.clone(), format!("{:?}", view.dtype()));
            return Err(CheckpointError::Dtype { file: file.into(), tensor, found });
        }
        codes[entry.range.clone()].copy_from_slice(view.data());
        let (own, rest) = left.split_at_mut(entry.range.len().div_ceil(BLOCK));
        left = rest;
        let name = scales_of(&entry.name);
        let view = tensors.tensor(&name).map_err(|_| missing(&name))?;
        let scales = TensorEntry { name: name.clone(), shape: vec![own.len()], ..entry.clone() };
        check_shape(file, &scales, view.shape())?;
        convert(file, &name, &view, own)?;
    }
    Ok(())
}
