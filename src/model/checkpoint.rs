//! Hugging Face model directories: config.json and safetensors (single or sharded; bf16, f16 or f32), in and out.
