//! `uncouple generate`.

use super::{DeviceArg, output};
use crate::model::backend::cuda::CudaModel;
use crate::model::generate::{Continuation, generate};
use crate::model::policy::Policy;
use crate::model::{Message, checkpoint};
use crate::ops::sampling::SamplingParams;
use crate::report::progress::say;
use anyhow::{Context, Result, ensure};
use clap::Args;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Debug, Args)]
pub struct GenerateArgs {
    /// Hugging Face model directory (Qwen2, Qwen3, Llama), such as a checkpoint of a run
    #[arg(long, value_name = "DIR")]
    pub model: PathBuf,
    /// What to continue; special tokens written out in it count as such, except with --chat
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub prompt: String,
    /// Most tokens to write
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_tokens: u32,
    /// 0: always the likeliest token
    #[arg(long, value_name = "T", default_value_t = 0.0, allow_negative_numbers = true)]
    pub temperature: f32,
    #[arg(long, value_name = "S", default_value_t = 0)]
    pub seed: u64,
    /// The text is a user's message, laid out by the model's chat template; the answer is printed
    #[arg(long)]
    pub chat: bool,
    #[arg(long, value_enum, default_value_t)]
    pub device: DeviceArg,
}

pub fn run(args: GenerateArgs) -> Result<ExitCode> {
    let t = args.temperature;
    ensure!(t.is_finite() && t >= 0.0, "--temperature {t}: must be a number, 0 or above");
    let (model, tokenizer) = checkpoint::load_with_tokenizer(&args.model)?;
    let ids = checkpoint::token_ids(&args.model)?;
    let prompt = match args.chat {
        true => tokenizer.encode(&tokenizer.render(&[Message::new("user", &args.prompt[..])], true)?)?,
        false => tokenizer.encode(&args.prompt)?,
    };
    let (length, context) = (prompt.len(), model.config.max_position_embeddings);
    ensure!(length > 0, "--prompt is empty: give the model a token or more to go on from, or use --chat");
    ensure!(
        length < context,
        "--prompt has {length} tokens, which leaves no room in the model's context of {context}: shorten it"
    );
    let most = (args.max_tokens as usize).min(context - length);
    let gpu = args.device.open().context("generate --device cuda")?;
    let on_gpu = gpu.as_ref().map(|gpu| CudaModel::new(gpu, &model, 1)).transpose()?;
    let policy: &dyn Policy = on_gpu.as_ref().map_or(&model, |model| model);
    let sampling = SamplingParams { temperature: t, ..SamplingParams::default() };
    let Continuation { tokens, ended } = generate(policy, &prompt, &ids.eos, most, &sampling, args.seed)?;
    output::print(&tokenizer.decode(&tokens, false)?)?;
    if !ended {
        let limit = if most < args.max_tokens as usize { "the model's context" } else { "--max-tokens" };
        say(&format!("stopped after {most} tokens, the limit of {limit}"));
    }
    Ok(ExitCode::SUCCESS)
}
