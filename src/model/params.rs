//! Every parameter of a model in one flat f32 buffer, so that AdamW, gradient clipping and checkpoints are one loop.
//!
//! Storage order keeps q, k, v (weights, then biases) and gate, up adjacent: each pair or triple is one matrix product.

use super::Architecture;
use std::ops::Range;

/// One named tensor inside the flat buffer.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorEntry {
    /// Hugging Face's name, e.g. `model.layers.0.self_attn.q_proj.weight`.
    pub name: String,
    /// Row-major shape; linear weights are `[out, in]`.
    pub shape: Vec<usize>,
    /// Elements of the flat buffer.
    pub range: Range<usize>,
    /// Whether AdamW's decoupled weight decay applies (everything but norm weights and biases).
    pub decay: bool,
}

/// The table of tensors of a model: names, shapes and places in a flat buffer.
#[derive(Debug, Clone, PartialEq)]
pub struct Layout {
    /// In storage order.
    pub entries: Vec<TensorEntry>,
    /// Elements of the buffer.
    pub len: usize,
    pub(crate) embed: Range<usize>,
    pub(crate) layers: Vec<LayerLayout>,
    pub(crate) norm: Range<usize>,
    /// The head `[vocab, hidden]`: the embedding itself when tied.
    pub(crate) head: Range<usize>,
}

/// Ranges of one layer's tensors; `qkv_*`, `qk_norm` and `gate_up` are the fused views.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct LayerLayout {
    pub input_norm: Range<usize>,
    /// `[(heads + 2 kv_heads) * head_dim, hidden]`
    pub qkv: Range<usize>,
    /// `[(heads + 2 kv_heads) * head_dim]`, where the family has it
    pub qkv_bias: Option<Range<usize>>,
    /// `[2 * head_dim]`, where the family has it: of queries, then of keys
    pub qk_norm: Option<Range<usize>>,
    /// `[hidden, heads * head_dim]`
    pub o: Range<usize>,
    pub post_norm: Range<usize>,
    /// `[2 * intermediate, hidden]`: gate, then up
    pub gate_up: Range<usize>,
    /// `[hidden, intermediate]`
    pub down: Range<usize>,
}

impl Layout {
    /// The layout of a model of this shape.
    pub fn new(c: &Architecture) -> Layout {
        let (mut entries, mut at) = (Vec::new(), 0);
        let mut add = |name: String, shape: &[usize], decay: bool| -> Range<usize> {
            let range = at..at + shape.iter().product::<usize>();
            at = range.end;
            entries.push(TensorEntry { name, shape: shape.to_vec(), range: range.clone(), decay });
            range
        };
        let (h, q, kv, ffn) = (
            c.hidden_size,
            c.num_attention_heads * c.head_dim,
            c.num_key_value_heads * c.head_dim,
            c.intermediate_size,
        );
        let embed = add("model.embed_tokens.weight".into(), &[c.vocab_size, h], true);
        let layers = (0..c.num_hidden_layers)
            .map(|l| {
                let name = |tail: &str| format!("model.layers.{l}.{tail}");
                let input_norm = add(name("input_layernorm.weight"), &[h], false);
                let q_w = add(name("self_attn.q_proj.weight"), &[q, h], true);
                add(name("self_attn.k_proj.weight"), &[kv, h], true);
                let v_w = add(name("self_attn.v_proj.weight"), &[kv, h], true);
                let qkv_bias = c.family.qkv_bias.then(|| {
                    let q_b = add(name("self_attn.q_proj.bias"), &[q], false);
                    add(name("self_attn.k_proj.bias"), &[kv], false);
                    q_b.start..add(name("self_attn.v_proj.bias"), &[kv], false).end
                });
                let qk_norm = c.family.qk_norm.then(|| {
                    let q_norm = add(name("self_attn.q_norm.weight"), &[c.head_dim], false);
                    q_norm.start..add(name("self_attn.k_norm.weight"), &[c.head_dim], false).end
                });
                let o = add(name("self_attn.o_proj.weight"), &[h, q], true);
                let post_norm = add(name("post_attention_layernorm.weight"), &[h], false);
                let gate = add(name("mlp.gate_proj.weight"), &[ffn, h], true);
                let up = add(name("mlp.up_proj.weight"), &[ffn, h], true);
                let down = add(name("mlp.down_proj.weight"), &[h, ffn], true);
                LayerLayout {
                    input_norm,
                    qkv: q_w.start..v_w.end,
                    qkv_bias,
                    qk_norm,
                    o,
                    post_norm,
                    gate_up: gate.start..up.end,
                    down,
                }
            })
            .collect();
        let norm = add("model.norm.weight".into(), &[h], false);
        let head =
            if c.tie_word_embeddings { embed.clone() } else { add("lm_head.weight".into(), &[c.vocab_size, h], true) };
        Layout { entries, len: at, embed, layers, norm, head }
    }

    /// The entries within a range of the flat buffer that begins and ends with some of them.
    pub fn within(&self, range: &Range<usize>) -> Range<usize> {
        let at = |place: usize| self.entries.partition_point(|e| e.range.start < place);
        at(range.start)..at(range.end)
    }

    /// The table of tensors that belong to no model: (name, shape, whether weight decay applies).
    pub fn of(tensors: &[(&str, &[usize], bool)]) -> Layout {
        let (mut entries, mut at) = (Vec::new(), 0);
        for (name, shape, decay) in tensors {
            let range = at..at + shape.iter().product::<usize>();
            at = range.end;
            entries.push(TensorEntry { name: name.to_string(), shape: shape.to_vec(), range, decay: *decay });
        }
        Layout { entries, len: at, embed: 0..0, layers: Vec::new(), norm: 0..0, head: 0..0 }
    }
}

/// A flat buffer with a [`Layout`]: the weights of a model, its gradient, or an optimizer moment.
#[derive(Debug, Clone, PartialEq)]
pub struct Params {
    /// Where each tensor lies.
    pub layout: std::sync::Arc<Layout>,
    /// The values, `layout.len` of them.
    pub flat: Vec<f32>,
}

impl Params {
    /// All values 0.
    pub fn zeros(layout: std::sync::Arc<Layout>) -> Params {
        Params { flat: vec![0.0; layout.len], layout }
    }

    /// The named tensor's values, or `None` when the model has no such tensor.
    pub fn get(&self, name: &str) -> Option<&[f32]> {
        let entry = self.layout.entries.iter().find(|e| e.name == name)?;
        Some(&self.flat[entry.range.clone()])
    }
}
