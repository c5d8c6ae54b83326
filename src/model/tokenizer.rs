//! The tokenizer and chat template of a model directory.

use super::Architecture;
use super::chat_template::{ChatTemplate, Message};
use super::input::{self, guarded};
use super::jinja::MAX_SOURCE;
use super::special_tokens::{Declared, declared};
use serde_json::Value;
use std::collections::HashSet;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
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
const FILES: [&str; 7] = [TOKENIZER, CONFIG, TEMPLATE, MAP, ADDED, "vocab.json", "merges.txt"];
const MAP: &str = "special_tokens_map.json";
const ADDED: &str = "added_tokens.json";
/// Largest of these files, in bytes; a template has its own bound.
const MAX_FILE: u64 = 1 << 28;

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
#[expect(missing_docs, reason = "the messages describe the variants")]
pub enum TokenizerError {
    #[error("cannot read {file}: {source}")]
    Read { file: PathBuf, source: std::io::Error },
    #[error(
        "{dir} has no {TOKENIZER}; write one with transformers in Python: \
         AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)"
    )]
    Missing { dir: PathBuf },
    #[error("{file} is empty; copy it again from the model it belongs to")]
    Empty { file: PathBuf },
    #[error("{file} is not a usable tokenizer file: {reason}")]
    Corrupt { file: PathBuf, reason: String },
    #[error("{0} has no chat template: neither {TEMPLATE} nor `chat_template` in {CONFIG}")]
    NoTemplate(PathBuf),
    #[error("the chat template of {dir} refused the conversation: {reason}")]
    Template { dir: PathBuf, reason: String },
    #[error(
        "the tokenizer of {dir} gives {token:?} the id {id}, but the model's embedding has {rows} rows (ids 0 to {}); use the \
         tokenizer that belongs to the model, or enlarge the model with transformers' resize_token_embeddings",
        rows - 1
    )]
    Rows { dir: PathBuf, token: String, id: u32, rows: usize },
    #[error("cannot {what}: {reason}")]
    Text { what: &'static str, reason: String },
    #[error("cannot train a tokenizer of {vocab_size} tokens: {reason}")]
    Train { vocab_size: usize, reason: String },
}

/// A stretch of a prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Piece<'a> {
    /// Words of a template: control tokens written out in them are these tokens.
    Frame(&'a str),
    /// Words of others: text, whatever it spells.
    Text(&'a str),
}

/// A byte-level BPE with its chat template.
#[derive(Clone)]
pub struct Tokenizer {
    vocabulary: Arc<Vocabulary>,
    chat: Option<ChatTemplate>,
    dir: PathBuf,
    files: Vec<(String, Vec<u8>)>,
}

struct Vocabulary {
    inner: tokenizers::Tokenizer,
    /// The same, but for this one control tokens are text like any other.
    plain: tokenizers::Tokenizer,
    /// Ids of the control tokens: the added ones with something to see in them. Runs of white space are added tokens of some
    /// tokenizers, and harmless.
    control: HashSet<u32>,
}

impl Vocabulary {
    fn new(json: &[u8], added: &[AddedToken]) -> Result<Vocabulary, String> {
        let mut inner = tokenizers::Tokenizer::from_bytes(json).map_err(|e| e.to_string())?;
        if inner.get_vocab_size(true) == 0 {
            return Err("its vocabulary is empty".into());
        }
        // A trainer's sequences are neither cut nor padded behind its back.
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|e| e.to_string())?;
        inner.add_tokens(added);
        let known = inner.get_added_tokens_decoder();
        let visible = known.iter().filter(|(_, token)| !token.content.trim().is_empty());
        let (control, tokens): (HashSet<u32>, Vec<AddedToken>) =
            visible.map(|(id, token)| (*id, token.clone().special(true))).unzip();
        let mut plain = inner.clone();
        plain.add_special_tokens(&tokens);
        plain.set_encode_special_tokens(true);
        Ok(Vocabulary { inner, plain, control })
    }

    /// Ids of text without a control token in it, also where the vocabulary itself has one that the text spells.
    fn encode_text(&self, text: &str) -> Result<Vec<u32>, tokenizers::Error> {
        let ids = self.plain.encode_fast(text, false)?.get_ids().to_vec();
        if !ids.iter().any(|id| self.control.contains(id)) {
            return Ok(ids);
        }
        let mut apart = Vec::new();
        for c in text.chars() {
            let ids = self.plain.encode_fast(c.to_string(), false)?.get_ids().to_vec();
            apart.extend(ids.into_iter().filter(|id| !self.control.contains(id)));
        }
        Ok(apart)
    }

    fn encode_pieces(&self, pieces: &[Piece<'_>]) -> Result<Vec<u32>, tokenizers::Error> {
        let whole: String = pieces.iter().map(|(Piece::Frame(text) | Piece::Text(text))| *text).collect();
        let ids = self.inner.encode_fast(whole, false)?.get_ids().to_vec();
        let frames = pieces.iter().filter_map(|piece| match piece {
            Piece::Frame(text) => Some(*text),
            Piece::Text(_) => None,
        });
        let mut meant = Vec::new();
        for frame in frames {
            meant.extend_from_slice(self.inner.encode_fast(frame, false)?.get_ids());
        }
        let is_control = |id: &&u32| self.control.contains(*id);
        if ids.iter().filter(is_control).eq(meant.iter().filter(is_control)) {
            return Ok(ids);
        }
        self.encode_apart(pieces)
    }

    /// Encodes the text between the frames' control tokens by itself.
    fn encode_apart(&self, pieces: &[Piece<'_>]) -> Result<Vec<u32>, tokenizers::Error> {
        let (mut ids, mut text) = (Vec::new(), String::new());
        for piece in pieces {
            let frame = match piece {
                Piece::Text(words) => {
                    text.push_str(words);
                    continue;
                }
                Piece::Frame(frame) => *frame,
            };
            let encoded = self.inner.encode(frame, false)?;
            let mut done = 0;
            let spans = encoded.get_ids().iter().zip(encoded.get_offsets());
            for (id, (from, to)) in spans.filter(|(id, _)| self.control.contains(id)) {
                text.push_str(&frame[done..*from]);
                ids.extend(self.encode_text(&std::mem::take(&mut text))?);
                ids.push(*id);
                done = *to;
            }
            text.push_str(&frame[done..]);
        }
        ids.extend(self.encode_text(&text)?);
        Ok(ids)
    }
}

impl Tokenizer {
    /// Loads `dir/tokenizer.json` with the tokens that the files beside it declare, and the chat template from
    /// `chat_template.jinja` or `tokenizer_config.json`.
    ///
    /// # Errors
    /// If `tokenizer.json` is missing, or a file cannot be read or is not a tokenizer's.
    pub fn load(dir: &Path) -> Result<Tokenizer, TokenizerError> {
        let mut files = Vec::new();
        for name in FILES {
            let file = dir.join(name);
            match input::read(&file, if name == TEMPLATE { MAX_SOURCE as u64 } else { MAX_FILE }) {
                Ok(content) => files.push((name.to_string(), content)),
                Err(e) if e.kind() == ErrorKind::NotFound && name != TOKENIZER => {}
                Err(e) if e.kind() == ErrorKind::NotFound => return Err(TokenizerError::Missing { dir: dir.into() }),
                Err(source) => return Err(TokenizerError::Read { file, source }),
            }
        }
        Tokenizer::from_files(dir, files)
    }

    /// The tokenizer in `files`; `dir` is where they came from, for errors.
    fn from_files(dir: &Path, files: Vec<(String, Vec<u8>)>) -> Result<Tokenizer, TokenizerError> {
        let content = |name: &str| files.iter().find(|(n, _)| n == name).map(|(_, c)| c.as_slice());
        let corrupt = |name: &str, reason: String| TokenizerError::Corrupt { file: dir.join(name), reason };
        let object = |name: &str| match content(name) {
            None => Ok(Value::Null),
            Some(bytes) => serde_json::from_slice::<Value>(bytes).map_err(|e| corrupt(name, e.to_string())),
        };
        let config = object(CONFIG)?;
        let Declared { named, added } = declared(&config, &object(MAP)?, &object(ADDED)?, is_qwen2(dir, &config));
        let json = content(TOKENIZER).unwrap_or_default();
        if json.trim_ascii().is_empty() {
            return Err(TokenizerError::Empty { file: dir.join(TOKENIZER) });
        }
        let vocabulary = guarded(|| Vocabulary::new(json, &added)).and_then(|read| read);
        let vocabulary = vocabulary.map_err(|reason| corrupt(TOKENIZER, reason))?;
        let template = match content(TEMPLATE) {
            Some(text) => Some(String::from_utf8(text.to_vec()).map_err(|e| corrupt(TEMPLATE, e.to_string()))?),
            None => template_in(&config),
        };
        if let Some(length) = template.as_ref().map(String::len).filter(|length| *length > MAX_SOURCE) {
            return Err(corrupt(
                CONFIG,
                format!("its chat template has {length} bytes, at most {MAX_SOURCE} are taken"),
            ));
        }
        let chat = template.map(|source| ChatTemplate::new(source, &named));
        Ok(Tokenizer { vocabulary: Arc::new(vocabulary), chat, dir: dir.into(), files })
    }

    /// Trains a byte-level BPE on `texts`, with the three special tokens of ChatML as its last ids and a ChatML template.
    /// The same texts give the same tokenizer; few texts may give fewer tokens than asked.
    ///
    /// ```
    /// use uncouple::model::Tokenizer;
    ///
    /// let tokenizer = Tokenizer::train(&["go north", "go south"], 270)?;
    /// let ids = tokenizer.encode("go north")?;
    /// assert_eq!(tokenizer.decode(&ids, false)?, "go north");
    /// # Ok::<(), uncouple::model::tokenizer::TokenizerError>(())
    /// ```
    ///
    /// # Errors
    /// If `vocab_size` is less than the bytes and the special tokens, or training fails.
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

    /// The same tokenizer with another chat template, in `tokenizer_config.json`.
    ///
    /// # Errors
    /// If `tokenizer_config.json` is damaged, or the template is not valid.
    pub fn with_template(self, template: &str) -> Result<Tokenizer, TokenizerError> {
        if self.template() == Some(template) {
            return Ok(self);
        }
        let Tokenizer { dir, mut files, .. } = self;
        files.retain(|(name, _)| name != TEMPLATE);
        let at = files.iter().position(|(name, _)| name == CONFIG);
        let mut config = match at.map(|at| serde_json::from_slice::<Value>(&files[at].1)) {
            Some(Ok(config @ Value::Object(_))) => config,
            Some(Err(e)) => return Err(TokenizerError::Corrupt { file: dir.join(CONFIG), reason: e.to_string() }),
            _ => serde_json::json!({}),
        };
        config["chat_template"] = template.into();
        let written = (CONFIG.to_string(), format!("{config:#}\n").into_bytes());
        match at {
            Some(at) => files[at] = written,
            None => files.push(written),
        }
        Tokenizer::from_files(&dir, files)
    }

    /// Name and content of each file, to be written beside the weights.
    pub fn files(&self) -> &[(String, Vec<u8>)] {
        &self.files
    }

    /// Ids of `text`. No special token is added; those written out in the text are recognised.
    ///
    /// # Errors
    /// If the tokenizer fails on the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        self.encoded(|v| Ok(v.inner.encode_fast(text, false)?.get_ids().to_vec()))
    }

    /// Ids of `pieces` one after the other: those of the whole text, but that control tokens stand only where a frame has them.
    ///
    /// # Errors
    /// If the tokenizer fails on the text.
    pub fn encode_pieces(&self, pieces: &[Piece<'_>]) -> Result<Vec<u32>, TokenizerError> {
        self.encoded(|v| v.encode_pieces(pieces))
    }

    fn encoded(
        &self,
        encode: impl FnOnce(&Vocabulary) -> Result<Vec<u32>, tokenizers::Error>,
    ) -> Result<Vec<u32>, TokenizerError> {
        let ids = guarded(|| encode(&self.vocabulary).map_err(|e| e.to_string())).and_then(|ids| ids);
        ids.map_err(|reason| TokenizerError::Text { what: "encode a text", reason })
    }

    /// Text of `ids`; bytes that are no UTF-8 become U+FFFD, ids outside the vocabulary nothing.
    ///
    /// # Errors
    /// If the tokenizer fails on the ids.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String, TokenizerError> {
        let text = guarded(|| self.vocabulary.inner.decode(ids, skip_special).map_err(|e| e.to_string()));
        text.and_then(|text| text).map_err(|reason| TokenizerError::Text { what: "decode ids", reason })
    }

    /// The id of a token given by its exact text.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.vocabulary.inner.token_to_id(token)
    }

    /// Whether `id` is a control token: one that no text of others may hold.
    pub fn is_control(&self, id: u32) -> bool {
        self.vocabulary.control.contains(&id)
    }

    /// Text and id of each special token, by id.
    pub fn special_tokens(&self) -> Vec<(String, u32)> {
        let added = self.vocabulary.inner.get_added_tokens_decoder();
        let mut specials: Vec<_> =
            added.into_iter().filter(|(_, t)| t.special).map(|(id, t)| (t.content, id)).collect();
        specials.sort_by_key(|(_, id)| *id);
        specials
    }

    /// Number of ids, special tokens included. A model's vocabulary may be larger.
    pub fn vocab_size(&self) -> usize {
        self.vocabulary.inner.get_vocab_size(true)
    }

    /// Refuses a model whose embedding lacks the row of some id. The ids may have gaps, so their number says nothing.
    ///
    /// # Errors
    /// If an id is not below the number of rows of the embedding.
    pub fn check_fits(&self, model: &Architecture) -> Result<(), TokenizerError> {
        let rows = model.vocab_size;
        match self.vocabulary.inner.get_vocab(true).into_iter().max_by_key(|(_, id)| *id) {
            Some((token, id)) if id as usize >= rows => {
                Err(TokenizerError::Rows { dir: self.dir.clone(), token, id, rows })
            }
            _ => Ok(()),
        }
    }

    /// The chat template's source, when the model has one.
    pub fn template(&self) -> Option<&str> {
        self.chat.as_ref().map(ChatTemplate::source)
    }

    /// The conversation as the model was taught to read it; with `add_generation_prompt` the assistant's turn is opened.
    ///
    /// ```
    /// use uncouple::model::{Message, Tokenizer};
    ///
    /// let tokenizer = Tokenizer::train(&["go north"], 259)?;
    /// let text = tokenizer.render(&[Message::new("user", "You are in a maze.")], true)?;
    /// assert_eq!(text, "<|im_start|>user\nYou are in a maze.<|im_end|>\n<|im_start|>assistant\n");
    /// # Ok::<(), uncouple::model::tokenizer::TokenizerError>(())
    /// ```
    ///
    /// # Errors
    /// If there is no chat template, or it refuses the conversation.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String, TokenizerError> {
        let chat = self.chat.as_ref().ok_or_else(|| TokenizerError::NoTemplate(self.dir.clone()))?;
        let text = chat.render(messages, add_generation_prompt);
        text.map_err(|reason| TokenizerError::Template { dir: self.dir.clone(), reason })
    }
}

/// Whether transformers would read the folder's tokenizer with Qwen2's class: the model's type says so, or where there is no model
/// the tokenizer's own configuration.
fn is_qwen2(dir: &Path, config: &Value) -> bool {
    let model = input::read(&dir.join("config.json"), MAX_FILE).ok();
    let model = model.and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok());
    match model.as_ref().and_then(|model| model["model_type"].as_str()) {
        Some(kind) => kind == "qwen2",
        None => config["tokenizer_class"].as_str().is_some_and(|class| class.starts_with("Qwen2Tokenizer")),
    }
}

/// The template in `tokenizer_config.json`: a string, or a list of named ones of which `default` counts.
fn template_in(config: &Value) -> Option<String> {
    let field = &config["chat_template"];
    let named = || field.as_array()?.iter().find(|t| t["name"] == "default")?["template"].as_str();
    field.as_str().or_else(named).map(String::from)
}
