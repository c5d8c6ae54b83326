//! Changes of real inputs: bits, bytes, words, JSON values, tensors' headers.

use serde_json::{Value, json};

/// A xorshift generator: the inputs are the same on every machine and for ever.
pub struct Random(u64);

impl Random {
    /// The numbers of input `index` of `target`.
    pub fn new(target: &str, index: u64) -> Random {
        let name =
            target.bytes().fold(0xcbf2_9ce4_8422_2325, |h: u64, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
        let mut random = Random((name ^ index.wrapping_mul(0x9e37_79b9_7f4a_7c15)) | 1);
        (0..4).for_each(|_| _ = random.next());
        random
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A number below `most`; 0 where there is none.
    pub fn below(&mut self, most: usize) -> usize {
        if most == 0 { 0 } else { (self.next() >> 11) as usize % most }
    }

    pub fn one_in(&mut self, count: usize) -> bool {
        self.below(count) == 0
    }

    pub fn of<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        &list[self.below(list.len())]
    }
}

/// What every reader may stumble over.
pub const WORDS: &[&str] = &[
    "0",
    "1",
    "-1",
    "2",
    "7",
    "255",
    "256",
    "65535",
    "65536",
    "4294967295",
    "4294967296",
    "18446744073709551615",
    "9223372036854775807",
    "-9223372036854775808",
    "1e30",
    "-1e30",
    "1e999",
    "0.0",
    "-0.0",
    "1e-45",
    "nan",
    "inf",
    "\"\"",
    "null",
    "true",
    "[]",
    "{}",
    "\u{0}",
    "\u{202e}",
    "é",
    "𝔘",
    "\u{2028}",
    "(",
    ")",
    "((",
    "))",
    "{",
    "}",
    "[",
    "]",
    "#",
    "|",
    "&",
    "?x",
    "- object",
    "<|im_end|>",
];

/// Of games.
pub const GAME: &[&str] = &[
    "(and",
    "(or",
    "(not",
    "(forall (?x)",
    "(exists (?y)",
    "(when",
    "(imply",
    "(=",
    ")",
    ")",
    "?x",
    "?y",
    "- object",
    "- thing",
    ":action",
    ":effect",
    ":precondition",
    ":parameters",
    "()",
    "(at a b)",
    "#intro#",
    "#a#",
    "{x.name}",
    "{x | at(x:thing, y:place)}",
    "[{x | at(x:thing, y:place)}]",
    "not_",
    "grammar :: \"\"\"",
    "\"\"\";",
    "define",
    ";",
];

/// Of templates.
pub const JINJA: &[&str] = &[
    "{%",
    "%}",
    "{{",
    "}}",
    "{% for m in messages %}",
    "{% endfor %}",
    "{% for i in range(100000) %}",
    "range(1000000000)",
    "{% if x %}",
    "{% endif %}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{% include 'x' %}",
    "{% extends 'x' %}",
    "{% import 'x' as y %}",
    "{{ 'a' * 1000000000000 }}",
    "{{ self }}",
    "{{ messages | tojson }}",
    "{{ messages[0]['content'] }}",
    "{{ 1 // 0 }}",
    "{{ 1 % 0 }}",
    "{{ 2 ** 100000 }}",
    "{{ -9223372036854775807 - 5 }}",
    "{% set x = x ~ x %}",
    "{{ messages[::-1] }}",
    "{{ messages[1:][::0] }}",
    "{{ raise_exception('x') }}",
    "{{ 'x'.split('') }}",
    "| indent(1000000)",
];

/// Flips, cuts, copies and inserts bytes and words.
pub fn bytes(random: &mut Random, from: &[u8], words: &[&str]) -> Vec<u8> {
    let mut out = from.to_vec();
    for _ in 0..1 + random.below(6) {
        if out.is_empty() {
            out.push(0);
        }
        let at = random.below(out.len());
        let left = out.len() - at;
        match random.below(9) {
            0 => out[at] ^= 1 << random.below(8),
            1 => out[at] = random.next() as u8,
            2 => out.truncate(at),
            3 => _ = out.drain(at..at + (1 + random.below(64)).min(left)),
            4 => {
                let copied = out[at..at + (1 + random.below(200)).min(left)].to_vec();
                let to = random.below(out.len());
                out.splice(to..to, copied);
            }
            5 | 6 => _ = out.splice(at..at, random.of(words).bytes()),
            7 => {
                let over = (1 + random.below(12)).min(left);
                out.splice(at..at + over, random.of(words).bytes());
            }
            _ => out[at..].iter_mut().take(8).for_each(|byte| *byte = *random.of(&[0, 255, 127, 128])),
        }
    }
    out
}

/// Removes, copies, replaces and inserts words of a text.
pub fn text(random: &mut Random, from: &str, words: &[&str]) -> String {
    let joins = |c: char| c.is_alphanumeric() || c == '_';
    let mut parts: Vec<String> = Vec::new();
    let mut open = false;
    for c in from.chars() {
        match parts.last_mut() {
            Some(last) if open && joins(c) => last.push(c),
            _ => parts.push(c.into()),
        }
        open = joins(c);
    }
    for _ in 0..1 + random.below(5) {
        if parts.is_empty() {
            return from.into();
        }
        let at = random.below(parts.len());
        let left = parts.len() - at;
        match random.below(6) {
            0 => _ = parts.remove(at),
            1 => parts[at] = parts[random.below(parts.len())].clone(),
            2 => parts.insert(at, random.of(words).to_string()),
            3 => parts[at] = random.of(words).to_string(),
            4 => {
                let copied = parts[at..at + (1 + random.below(60)).min(left)].to_vec();
                let to = random.below(parts.len());
                parts.splice(to..to, copied);
            }
            _ => _ = parts.drain(at..at + (1 + random.below(30)).min(left)),
        }
    }
    parts.concat()
}

/// Mostly words, now and then bytes.
pub fn text_or_bytes(random: &mut Random, from: &str, words: &[&str]) -> Vec<u8> {
    if random.one_in(3) { bytes(random, from.as_bytes(), words) } else { text(random, from, words).into_bytes() }
}

/// Where every value of a JSON document is; of long lists the beginning.
fn places(value: &Value, at: String, out: &mut Vec<String>) {
    out.push(at.clone());
    match value {
        Value::Object(fields) => fields.iter().take(400).for_each(|(key, value)| {
            places(value, format!("{at}/{}", key.replace('~', "~0").replace('/', "~1")), out);
        }),
        Value::Array(items) => {
            items.iter().take(400).enumerate().for_each(|(i, v)| places(v, format!("{at}/{i}"), out))
        }
        _ => {}
    }
}

/// A value that nobody expects.
fn odd(random: &mut Random) -> Value {
    match random.below(20) {
        0 => Value::Null,
        1 => json!(true),
        2 => json!(-1),
        3 => json!(0),
        4 => json!(1),
        5 => json!(u64::MAX),
        6 => json!(i64::MIN),
        7 => json!(1e30),
        8 => json!(0.5),
        9 => json!(""),
        10 => json!([]),
        11 => json!({}),
        12 => json!("a".repeat(1 + random.below(3000))),
        13 => json!("<|im_end|>"),
        14 => json!("../../../../etc/passwd"),
        15 => json!(3),
        16 => json!(1u64 << random.below(40)),
        17 => (0..60).fold(json!(1), |inner, _| json!([inner])),
        18 => json!("\u{0}\u{202e}é𝔘"),
        _ => json!(-0.0),
    }
}

/// Changes, removes, renames, repeats and swaps values.
fn structure(random: &mut Random, from: &Value, words: &[&str]) -> Value {
    let mut out = from.clone();
    for _ in 0..1 + random.below(4) {
        let mut all = Vec::new();
        places(&out, String::new(), &mut all);
        let at = random.of(&all).clone();
        let other = out.pointer(random.of::<String>(&all)).cloned().unwrap_or_default();
        let replacement = match (random.below(10), out.pointer(&at)) {
            (0..=3, Some(Value::String(s))) => json!(text(random, s, words)),
            (0..=3, Some(Value::Number(n))) => {
                let n = n.as_i64().unwrap_or(1);
                let near = [
                    n.wrapping_add(1),
                    n.wrapping_sub(1),
                    n.wrapping_mul(2),
                    n.wrapping_neg(),
                    n / 2,
                    n.wrapping_mul(1000),
                    0,
                ];
                json!(*random.of(&near))
            }
            (4, _) => other,
            _ => odd(random),
        };
        match (random.below(6), out.pointer_mut(&at)) {
            (how @ (0 | 1), Some(Value::Object(fields))) if !fields.is_empty() => {
                let key = fields.keys().nth(random.below(fields.len())).cloned().unwrap_or_default();
                let value = fields.shift_remove(&key).unwrap_or_default();
                if how == 1 {
                    fields.insert(text(random, &key, words), value);
                }
            }
            (0, Some(Value::Array(items))) if !items.is_empty() => _ = items.remove(random.below(items.len())),
            (1, Some(Value::Array(items))) if !items.is_empty() => items.push(items[random.below(items.len())].clone()),
            (2, Some(Value::Array(items))) if items.len() > 1 => {
                let (a, b) = (random.below(items.len()), random.below(items.len()));
                items.swap(a, b);
            }
            (_, Some(place)) => *place = replacement,
            _ => {}
        }
    }
    out
}

/// JSON with other values, now and then with other bytes.
pub fn json(random: &mut Random, from: &[u8], words: &[&str]) -> Vec<u8> {
    match serde_json::from_slice::<Value>(from) {
        Ok(value) if !random.one_in(4) => structure(random, &value, words).to_string().into_bytes(),
        _ => bytes(random, from, words),
    }
}

/// A tensor file with another header, other data or another length.
pub fn tensors(random: &mut Random, from: &[u8]) -> Vec<u8> {
    if random.one_in(4) {
        return bytes(random, from, WORDS);
    }
    let (header, data) = from[8..].split_at(u64::from_le_bytes(from[..8].try_into().unwrap()) as usize);
    let mut header = structure(random, &serde_json::from_slice(header).unwrap(), WORDS);
    if random.one_in(3) {
        let tensors = header.as_object_mut().into_iter().flat_map(|fields| fields.iter_mut());
        let mut tensors: Vec<&mut Value> =
            tensors.filter(|(key, v)| *key != "__metadata__" && v.is_object()).map(|(_, v)| v).collect();
        if !tensors.is_empty() {
            let at = random.below(tensors.len());
            let (field, value) = match random.below(6) {
                0 => (
                    "dtype",
                    json!(*random.of(&["F64", "I8", "U8", "BOOL", "F8_E4M3", "F4", "C64", "BF16", "F16", "F32", "X"])),
                ),
                1 => ("shape", json!([1u64 << 32, 1u64 << 32])),
                2 => ("shape", json!([u64::MAX, 2])),
                3 => ("data_offsets", json!([0, 4])),
                4 => ("shape", json!([0])),
                _ => ("data_offsets", json!([u64::MAX - 4, u64::MAX])),
            };
            tensors[at][field] = value;
        }
    }
    let mut header = header.to_string().into_bytes();
    if random.one_in(8) {
        header = bytes(random, &header, WORDS);
    }
    let mut data = data.to_vec();
    if random.one_in(5) {
        (0..40).for_each(|_| data[random.below(from.len() / 2)] = 255);
    }
    if random.one_in(6) {
        data.truncate(random.below(data.len()));
    }
    let length = header.len() as u64;
    let odd = [0, 1, 8, u64::MAX, 1 << 40, 100_000_000, 100_000_001, length + 1];
    let length = if random.one_in(10) { *random.of(&odd) } else { length };
    [&length.to_le_bytes()[..], &header, &data].concat()
}
