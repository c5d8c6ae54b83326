//! The tokenizer and chat template of a model directory.
