//! The tokens that a folder declares beside its `tokenizer.json`: special ones by name, and added ones, as transformers takes them
//! from `tokenizer_config.json` and the older `special_tokens_map.json` and `added_tokens.json`.

use serde_json::{Map, Value};
use tokenizers::AddedToken;

/// The names that every tokenizer may give.
const NAMES: [&str; 7] = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];
/// What Qwen2's tokenizer class has where its files say nothing.
const QWEN2: [(&str, &str); 3] =
    [("eos_token", "<|endoftext|>"), ("unk_token", "<|endoftext|>"), ("pad_token", "<|endoftext|>")];

/// What the files declare.
#[derive(Default)]
pub(super) struct Declared {
    /// Name and text of the special tokens that chat templates may name.
    pub named: Vec<(String, String)>,
    /// Tokens that must be one id each, in the order in which they get theirs.
    pub added: Vec<AddedToken>,
}

/// Reads `tokenizer_config.json`, `special_tokens_map.json` and `added_tokens.json`, each `null` where it is absent; `qwen2` says
/// whether the class of the tokenizer is Qwen2's.
pub(super) fn declared(config: &Value, map: &Value, added: &Value, qwen2: bool) -> Declared {
    let mut fields = config.as_object().cloned().unwrap_or_default();
    let decoder = fields.remove("added_tokens_decoder").filter(Value::is_object);
    // The older files count only where the newer form is absent.
    if decoder.is_none() {
        fields.extend(map.as_object().cloned().unwrap_or_default());
    }
    let mut tokens: Vec<(u64, AddedToken)> = match &decoder {
        Some(of) => {
            entries(of).filter_map(|(id, token)| Some((id.parse().ok()?, added_token(token, false)?))).collect()
        }
        None => entries(added).filter_map(|(text, id)| Some((id.as_u64()?, AddedToken::from(text, false)))).collect(),
    };
    tokens.sort_by_key(|(id, _)| *id);

    let (given, unnamed) = special(&fields);
    let mut all: Vec<AddedToken> = tokens.into_iter().map(|(_, token)| token).collect();
    for token in given.iter().map(|(_, token)| token).chain(&unnamed) {
        match all.iter_mut().find(|known| known.content == token.content) {
            Some(known) => known.special = true,
            None => all.push(token.clone()),
        }
    }
    all.retain(|token| !token.content.is_empty());
    // An explicit null takes a default away. A default is a name only: no file declares its token.
    let defaults = QWEN2.iter().filter(|(name, _)| qwen2 && !fields.contains_key(*name));
    let defaults = defaults.map(|(name, text)| (name.to_string(), text.to_string()));
    let named = given.iter().map(|(name, token)| (name.clone(), token.content.clone()));
    Declared { named: named.chain(defaults).collect(), added: all }
}

/// The special tokens that the files give: those with a name, and the others.
fn special(fields: &Map<String, Value>) -> (Vec<(String, AddedToken)>, Vec<AddedToken>) {
    let standard = NAMES.iter().filter_map(|name| Some((*name, fields.get(*name)?)));
    let extra = ["extra_special_tokens", "additional_special_tokens"];
    let extra = extra.iter().find_map(|key| fields.get(*key).filter(|v| v.as_array().is_none_or(|l| !l.is_empty())));
    let own = fields.iter().map(|(name, value)| (name.as_str(), value));
    let own = own.filter(|(name, value)| name.ends_with("_token") && !NAMES.contains(name) && text_of(value).is_some());
    let extra_named = extra.and_then(Value::as_object).into_iter().flatten();
    let all = standard.chain(own).chain(extra_named.map(|(name, value)| (name.as_str(), value)));
    let named = all.filter_map(|(name, value)| Some((name.to_string(), added_token(value, true)?))).collect();
    let listed = extra.and_then(Value::as_array).into_iter().flatten();
    (named, listed.filter_map(|value| added_token(value, true)).collect())
}

fn entries(object: &Value) -> impl Iterator<Item = (&String, &Value)> {
    object.as_object().into_iter().flatten()
}

fn text_of(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value.get("content")?.as_str())
}

/// A token given as its text, or as an object with its flags.
fn added_token(value: &Value, special: bool) -> Option<AddedToken> {
    let flag = |name: &str| value.get(name).and_then(Value::as_bool);
    let special = special || flag("special").unwrap_or(false);
    let token = AddedToken::from(text_of(value)?, special)
        .lstrip(flag("lstrip").unwrap_or(false))
        .rstrip(flag("rstrip").unwrap_or(false))
        .single_word(flag("single_word").unwrap_or(false));
    Some(token.normalized(flag("normalized").unwrap_or(!special)))
}
