//! The tokenizer and chat template of a model directory.

use minijinja::{Environment, ErrorKind, Value, context};
use serde::Serialize;
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use tokenizers::decoders::byte_level::ByteLevel;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::normalizers::unicode::NFC;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::tokenizer::SplitDelimiterBehavior;
use tokenizers::{AddedToken, TokenizerImpl};

const TOKENIZER: &str = "tokenizer.json";
const CONFIG: &str = "tokenizer_config.json";
const TEMPLATE: &str = "chat_template.jinja";

/// Every file of a directory that belongs to its tokenizer, as transformers 4 and 5 name them.
const FILES: [&str; 7] =
    [TOKENIZER, CONFIG, TEMPLATE, "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt"];

/// Ends a document; also the pad token.
pub const END_OF_TEXT: &str = "<|endoftext|>";
/// Opens a turn of ChatML.
pub const TURN_START: &str = "<|im_start|>";
/// Closes a turn of ChatML: the end-of-sequence token of a chat model.
pub const TURN_END: &str = "<|im_end|>";

/// Qwen2's word boundaries: contractions, letters with at most one leading mark, single digits, punctuation, white space.
const WORDS: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);

const CHATML: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] \
                      + '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

/// Why a tokenizer could not be read, used or trained.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    #[error("cannot read {file}: {source}")]
    Read { file: PathBuf, source: std::io::Error },
    #[error("{file} is empty; copy it again from the model it belongs to")]
    Empty { file: PathBuf },
    #[error("{file} is not a usable tokenizer file: {reason}")]
    Corrupt { file: PathBuf, reason: String },
    #[error("{0} has no chat template: neither {TEMPLATE} nor `chat_template` in {CONFIG}")]
    NoTemplate(PathBuf),
    #[error("the chat template of {dir} refused the conversation: {reason}")]
    Template { dir: PathBuf, reason: String },
    #[error("cannot {what}: {reason}")]
    Text { what: &'static str, reason: String },
    #[error("cannot train a tokenizer of {vocab_size} tokens: {reason}")]
    Train { vocab_size: usize, reason: String },
}

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, serde::Deserialize)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    pub content: String,
}

impl Message {
    pub fn new(role: &str, content: impl Into<String>) -> Message {
        Message { role: role.into(), content: content.into() }
    }
}

/// A byte-level BPE with its chat template.
#[derive(Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    template: Option<String>,
    bos: Option<String>,
    eos: Option<String>,
    dir: PathBuf,
    files: Vec<(String, Vec<u8>)>,
}

impl Tokenizer {
    /// Loads `dir/tokenizer.json`, and the chat template from `chat_template.jinja` or `tokenizer_config.json`.
    pub fn load(dir: &Path) -> Result<Tokenizer, TokenizerError> {
        let mut files = Vec::new();
        for name in FILES {
            let file = dir.join(name);
            match std::fs::read(&file) {
                Ok(content) => files.push((name.to_string(), content)),
                Err(e) if e.kind() == std::io::ErrorKind::NotFound && name != TOKENIZER => {}
                Err(source) => return Err(TokenizerError::Read { file, source }),
            }
        }
        Tokenizer::from_files(dir, files)
    }

    /// The tokenizer in `files`; `dir` is where they came from, for errors.
    fn from_files(dir: &Path, files: Vec<(String, Vec<u8>)>) -> Result<Tokenizer, TokenizerError> {
        let content = |name: &str| files.iter().find(|(n, _)| n == name).map(|(_, c)| c.as_slice());
        let corrupt = |name: &str| {
            let file = dir.join(name);
            move |reason: String| TokenizerError::Corrupt { file, reason }
        };

        let json = content(TOKENIZER).unwrap_or_default();
        if json.trim_ascii().is_empty() {
            return Err(TokenizerError::Empty { file: dir.join(TOKENIZER) });
        }
        let mut inner = tokenizers::Tokenizer::from_bytes(json).map_err(|e| corrupt(TOKENIZER)(e.to_string()))?;
        if inner.get_vocab_size(true) == 0 {
            return Err(corrupt(TOKENIZER)("its vocabulary is empty".into()));
        }
        // A trainer's sequences are neither cut nor padded behind its back.
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|e| corrupt(TOKENIZER)(e.to_string()))?;

        let config: serde_json::Value = match content(CONFIG) {
            None => serde_json::Value::Null,
            Some(bytes) => serde_json::from_slice(bytes).map_err(|e| corrupt(CONFIG)(e.to_string()))?,
        };
        let template = match content(TEMPLATE) {
            Some(text) => Some(String::from_utf8(text.to_vec()).map_err(|e| corrupt(TEMPLATE)(e.to_string()))?),
            None => template_in(&config),
        };
        let special = |field: &str| {
            let value = &config[field];
            value.as_str().or_else(|| value["content"].as_str()).map(String::from)
        };
        let (bos, eos) = (special("bos_token"), special("eos_token"));
        Ok(Tokenizer { inner, template, bos, eos, dir: dir.into(), files })
    }

    /// Trains a byte-level BPE on `texts`, with the three special tokens of ChatML as its last ids and a ChatML template.
    /// The same texts give the same tokenizer; few texts may give fewer tokens than asked.
    pub fn train<S: AsRef<str> + Sync>(texts: &[S], vocab_size: usize) -> Result<Tokenizer, TokenizerError> {
        let fail = |reason: String| TokenizerError::Train { vocab_size, reason };
        let specials = [END_OF_TEXT, TURN_START, TURN_END].map(|text| AddedToken::from(text, true).normalized(false));
        let least = 256 + specials.len();
        if vocab_size < least {
            return Err(fail(format!("the bytes and the special tokens alone are {least}")));
        }

        let bytes = ByteLevel::new(false, false, false);
        let words = Split::new(SplitPattern::Regex(WORDS.into()), SplitDelimiterBehavior::Isolated, false)
            .map_err(|e| fail(e.to_string()))?;
        let mut bpe = TokenizerImpl::<BPE, NFC, PreTokenizerWrapper, ByteLevel, ByteLevel>::new(BPE::default());
        bpe.with_normalizer(Some(NFC))
            .with_pre_tokenizer(Some(Sequence::new(vec![words.into(), bytes.into()])))
            .with_post_processor(Some(bytes))
            .with_decoder(Some(bytes));
        let mut trainer = BpeTrainer::builder()
            .vocab_size(vocab_size - specials.len())
            .initial_alphabet(ByteLevel::alphabet().into_iter().collect::<HashSet<char>>())
            .show_progress(false)
            .build();
        bpe.train(&mut trainer, texts.iter().map(S::as_ref)).map_err(|e| fail(e.to_string()))?;
        bpe.add_special_tokens(&specials);

        let json = bpe.to_string(true).map_err(|e| fail(e.to_string()))?;
        let config = serde_json::json!({
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": null,
            "eos_token": TURN_END,
            "pad_token": END_OF_TEXT,
            "unk_token": null,
            "clean_up_tokenization_spaces": false,
            "chat_template": CHATML,
        });
        let files = vec![
            (TOKENIZER.to_string(), json.into_bytes()),
            (CONFIG.to_string(), format!("{config:#}\n").into_bytes()),
        ];
        Tokenizer::from_files(Path::new("the trained tokenizer"), files)
    }

    /// Name and content of each file, to be written beside the weights.
    pub fn files(&self) -> &[(String, Vec<u8>)] {
        &self.files
    }

    /// Ids of `text`. No special token is added; those written out in the text are recognised.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let fail = |e: tokenizers::Error| TokenizerError::Text { what: "encode a text", reason: e.to_string() };
        Ok(self.inner.encode_fast(text, false).map_err(fail)?.get_ids().to_vec())
    }

    /// Text of `ids`; bytes that are no UTF-8 become U+FFFD, ids outside the vocabulary nothing.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String, TokenizerError> {
        let fail = |e: tokenizers::Error| TokenizerError::Text { what: "decode ids", reason: e.to_string() };
        self.inner.decode(ids, skip_special).map_err(fail)
    }

    /// The id of a token given by its exact text.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// Text and id of each special token, by id.
    pub fn special_tokens(&self) -> Vec<(String, u32)> {
        let added = self.inner.get_added_tokens_decoder();
        let mut specials: Vec<_> =
            added.into_iter().filter(|(_, t)| t.special).map(|(id, t)| (t.content, id)).collect();
        specials.sort_by_key(|(_, id)| *id);
        specials
    }

    /// Number of ids, special tokens included. A model's vocabulary may be larger.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// The chat template's source, when the model has one.
    pub fn template(&self) -> Option<&str> {
        self.template.as_deref()
    }

    /// The conversation as the model was taught to read it; with `add_generation_prompt` the assistant's turn is opened.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String, TokenizerError> {
        let template = self.template.as_deref().ok_or_else(|| TokenizerError::NoTemplate(self.dir.clone()))?;
        let mut jinja = Environment::new();
        jinja.set_trim_blocks(true);
        jinja.set_lstrip_blocks(true);
        jinja.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        jinja.add_function("raise_exception", |reason: String| -> Result<Value, minijinja::Error> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, reason))
        });
        jinja.add_filter("tojson", to_python_json);
        jinja
            .render_str(
                template,
                context! { messages, add_generation_prompt, bos_token => self.bos, eos_token => self.eos },
            )
            .map_err(|e| TokenizerError::Template { dir: self.dir.clone(), reason: e.to_string() })
    }
}

/// The template in `tokenizer_config.json`: a string, or a list of named ones of which `default` counts.
fn template_in(config: &serde_json::Value) -> Option<String> {
    let field = &config["chat_template"];
    let named = || field.as_array()?.iter().find(|t| t["name"] == "default")?["template"].as_str();
    field.as_str().or_else(named).map(String::from)
}

/// JSON as Python's `json.dumps` spaces it, which is what templates were written for; nothing is escaped for HTML.
fn to_python_json(value: Value) -> Result<String, minijinja::Error> {
    struct Spaced;
    impl serde_json::ser::Formatter for Spaced {
        fn begin_array_value<W: ?Sized + std::io::Write>(&mut self, w: &mut W, first: bool) -> std::io::Result<()> {
            if first { Ok(()) } else { w.write_all(b", ") }
        }
        fn begin_object_key<W: ?Sized + std::io::Write>(&mut self, w: &mut W, first: bool) -> std::io::Result<()> {
            if first { Ok(()) } else { w.write_all(b", ") }
        }
        fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, w: &mut W) -> std::io::Result<()> {
            w.write_all(b": ")
        }
    }
    let fail = |e: String| minijinja::Error::new(ErrorKind::BadSerialization, e);
    let mut out = Vec::new();
    value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, Spaced)).map_err(|e| fail(e.to_string()))?;
    String::from_utf8(out).map_err(|e| fail(e.to_string()))
}
