//! Packed token sequences that share prefixes: no shared prefix is ever computed twice.
//!
//! Sequences are inserted into a trie whose nodes, packed in depth-first order, form one token array. Query `i` sees key
//! `j` iff `j <= i < reach[j]`: one integer per token covers causality, variable-length packing, a GRPO group sharing its
//! prompt, and N judgments sharing theirs.

use std::collections::HashMap;

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

/// A trie node before packing.
struct TrieNode {
    token: u32,
    parent: u32,
    children: Vec<u32>,
}

impl Forest {
    /// Packs `sequences`, sharing every common prefix. Siblings keep the order in which they first occur.
    pub fn new<S: AsRef<[u32]>>(sequences: &[S]) -> Forest {
        let mut nodes: Vec<TrieNode> = Vec::new();
        let mut roots: Vec<u32> = Vec::new();
        let mut child_of: HashMap<(u32, u32), u32> = HashMap::new();
        let mut paths: Vec<Vec<u32>> = Vec::with_capacity(sequences.len());
        for sequence in sequences {
            let mut parent = ROOT;
            let path = sequence.as_ref().iter().map(|&token| {
                parent = *child_of.entry((parent, token)).or_insert_with(|| {
                    let id = nodes.len() as u32;
                    nodes.push(TrieNode { token, parent, children: Vec::new() });
                    match parent {
                        ROOT => roots.push(id),
                        p => nodes[p as usize].children.push(id),
                    }
                    id
                });
                parent
            });
            paths.push(path.collect());
        }
        Forest::pack(&nodes, &roots, paths)
    }

    /// Packs `sequences` one behind the other and shares nothing, so that each has rows of its own.
    pub fn unshared<S: AsRef<[u32]>>(sequences: &[S]) -> Forest {
        let mut forest = Forest::default();
        for sequence in sequences.iter().map(AsRef::as_ref) {
            let (first, length) = (forest.tokens.len() as u32, sequence.len() as u32);
            forest.tokens.extend(sequence);
            forest.position.extend(0..length);
            forest.reach.extend((0..length).map(|_| first + length));
            forest.parent.extend((0..length).map(|at| if at == 0 { ROOT } else { first + at - 1 }));
            forest.paths.push((first..first + length).collect());
        }
        forest
    }

    /// Depth-first packing of a trie; `paths` come in as trie ids and leave as packed nodes.
    fn pack(nodes: &[TrieNode], roots: &[u32], mut paths: Vec<Vec<u32>>) -> Forest {
        let mut forest = Forest::default();
        let mut packed = vec![0u32; nodes.len()];
        let mut stack: Vec<u32> = roots.iter().rev().copied().collect();
        while let Some(id) = stack.pop() {
            let node = &nodes[id as usize];
            packed[id as usize] = forest.tokens.len() as u32;
            let parent = if node.parent == ROOT { ROOT } else { packed[node.parent as usize] };
            forest.position.push(if parent == ROOT { 0 } else { forest.position[parent as usize] + 1 });
            forest.tokens.push(node.token);
            forest.parent.push(parent);
            stack.extend(node.children.iter().rev());
        }
        forest.reach = (1..=forest.tokens.len() as u32).collect();
        for i in (0..forest.tokens.len()).rev() {
            if let Some(reach) = forest.reach.get(forest.parent[i] as usize).copied() {
                forest.reach[forest.parent[i] as usize] = reach.max(forest.reach[i]);
            }
        }
        paths.iter_mut().flatten().for_each(|id| *id = packed[*id as usize]);
        forest.paths = paths;
        forest
    }

    /// Packed tokens.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether there are no tokens.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// The `i`-th input sequence.
    pub fn sequence(&self, i: usize) -> Vec<u32> {
        self.paths[i].iter().map(|&node| self.tokens[node as usize]).collect()
    }
}
