//! `uncouple merge`.

use super::{DtypeArg, output};
use crate::model::checkpoint::{self, SaveDtype};
use anyhow::{Result, ensure};
use clap::Args;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Debug, Args)]
pub struct MergeArgs {
    /// Folder of a LoRA adapter as PEFT keeps it, such as a checkpoint of a run that trained one
    #[arg(long, value_name = "DIR")]
    pub model: PathBuf,
    /// New folder for the model: an ordinary Hugging Face directory
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// What the weights are stored in
    #[arg(long, value_enum, default_value = "f32")]
    pub dtype: DtypeArg,
}

pub fn run(args: MergeArgs) -> Result<ExitCode> {
    let (dir, out) = (&args.model, &args.out);
    ensure!(!out.exists(), "--out {}: exists already: choose another folder, or remove it", out.display());
    let (model, tokenizer) = checkpoint::load_with_tokenizer(dir)?;
    ensure!(model.adapter.is_some(), "--model {} holds no adapter (adapter_config.json): it is merged", dir.display());
    let ids = checkpoint::token_ids(dir)?;
    let dtype = match args.dtype {
        DtypeArg::F32 => SaveDtype::F32,
        DtypeArg::Bf16 => SaveDtype::Bf16,
    };
    checkpoint::save(out, &model.merged(), &ids, tokenizer.files(), dtype)?;
    output::print(&format!("merged into {}", out.display()))?;
    Ok(ExitCode::SUCCESS)
}
