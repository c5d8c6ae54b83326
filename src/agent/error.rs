//! What is wrong with a prompt.

use crate::model::tokenizer::TokenizerError;

/// Why prompts cannot be made.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages describe the variants")]
pub enum PromptError {
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    #[error("the tokenizer has no {0} token, which prompt.format needs; use a model whose tokenizer knows ChatML")]
    NoToken(&'static str),
    #[error("the chat template cannot frame a turn ({0}); set prompt.format = \"compact\"")]
    Single(&'static str),
    #[error(
        "the chat template cannot be continued turn by turn ({0}); set prompt.history = \"window:3\", where every turn is a \
         conversation of its own, or prompt.format = \"compact\""
    )]
    Template(&'static str),
    #[error(
        "the chat template has no place for a question about the turn before ({0}), which judgments need; set gcd.mode = \"off\", \
         or prompt.format = \"compact\""
    )]
    Judgments(&'static str),
    #[error("prompt.template = {name:?} is neither built in ({built_in}) nor a file that can be read: {source}")]
    NoTemplate { name: String, built_in: String, source: std::io::Error },
    #[error("prompt.template: {0:#}")]
    Words(#[from] minijinja::Error),
}
