//! Packed token sequences that share prefixes: no shared prefix is ever computed twice.
//!
//! Sequences are inserted into a trie whose nodes, packed in depth-first order, form one token array. Query `i` sees key
//! `j` iff `j <= i < reach[j]`: one integer per token covers causality, variable-length packing, a GRPO group sharing its
//! prompt, and N judgments sharing theirs.

/// Marks a node without a parent (the first token of a sequence).
pub const ROOT: u32 = u32::MAX;

/// A batch of token sequences as a packed forest. All arrays but `paths` have one entry per packed token ("node").
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Forest {
    /// Token ids in packed (depth-first) order.
    pub tokens: Vec<u32>,
    /// Depth of the node: the token's position in its sequence(s), for RoPE.
    pub position: Vec<u32>,
    /// Exclusive end of the node's subtree in packed order.
    pub reach: Vec<u32>,
    /// The preceding token's node, or [`ROOT`]. A node's log-prob is `log p(tokens[node] | hidden[parent[node]])`.
    pub parent: Vec<u32>,
    /// For each input sequence, the node of each of its tokens.
    pub paths: Vec<Vec<u32>>,
}

impl Forest {
    /// Packs `sequences`, sharing every common prefix.
    pub fn new<S: AsRef<[u32]>>(sequences: &[S]) -> Forest {
        let _ = sequences;
        unimplemented!()
    }
}
