//! Attention over pages that rows share.

use crate::emulated::gpu;
use half::bf16;
use uncouple::ops::attention::Shape;
use uncouple::ops::case::Bf16s;
use uncouple::ops::decode_attention;
use uncouple::ops::decode_attention::cuda::{Cache, PAGE, Rows, forward};
use uncouple::ops::rope;

/// Sequences that share the first pages of a prompt; what is fed of each, (sequence, position).
struct Fed {
    shape: Shape,
    shared: usize,
    tables: Vec<Vec<u32>>,
    rows: Vec<(u32, u32)>,
}

impl Fed {
    fn new([heads, kv_heads, head_dim]: [usize; 3], shared: usize, spans: &[(u32, u32)]) -> Fed {
        let mut page = (0..=300u32).rev();
        let common: Vec<u32> = page.by_ref().take(shared).collect();
        let own = |span: &(u32, u32)| (span.1 as usize).div_ceil(PAGE).saturating_sub(shared);
        let tables = spans.iter().map(|span| common.iter().copied().chain(page.by_ref().take(own(span))).collect());
        let rows = (0u32..).zip(spans).flat_map(|(s, span)| (span.0..span.1).map(move |at| (s, at))).collect();
        Fed { shape: Shape { heads, kv_heads, head_dim }, shared, tables: tables.collect(), rows }
    }

    /// What either kernel gives, over a cache of random keys and values.
    fn bits(&self, tiled: bool) -> Vec<u16> {
        let (gpu, shape) = (gpu(), self.shape);
        let cache = Cache::new(&gpu, shape, 1, 301).unwrap();
        let tables: Vec<&[u32]> = self.tables.iter().map(Vec::as_slice).collect();
        // Every token that any row sees, once.
        let seen =
            |s: usize| self.rows.iter().filter(|row| row.0 as usize == s).map(|row| row.1 + 1).max().unwrap_or(0);
        let first = |s: usize| if s == 0 { 0 } else { (self.shared * PAGE) as u32 };
        let all: Vec<(u32, u32)> =
            (0..self.tables.len()).flat_map(|s| (first(s)..seen(s)).map(move |at| (s as u32, at))).collect();
        let qkv = |seed, rows: usize| Bf16s::randoms(seed, rows * shape.qkv_dim()).on(&gpu).unwrap();
        let angles = rope::Tables::new(1e4, shape.head_dim, 2000);
        let angles = rope::cuda::Tables::new(&gpu, &angles).unwrap();
        let written = Rows::new(&gpu, &cache, &all, &tables).unwrap();
        decode_attention::cuda::append(&gpu, &qkv(1, all.len()), &written, &angles, &cache, 0).unwrap();
        let rows = Rows::new(&gpu, &cache, &self.rows, &tables).unwrap().by_tiles(tiled);
        let out = gpu.uninit::<bf16>(self.rows.len() * shape.q_dim()).unwrap();
        forward(&gpu, &qkv(2, self.rows.len()), &rows, &cache, 0, &out).unwrap();
        gpu.read(&*out).unwrap().iter().map(|x| x.to_bits()).collect()
    }

    fn tiled_by_itself(&self) -> bool {
        let (gpu, tables) = (gpu(), self.tables.iter().map(Vec::as_slice).collect::<Vec<_>>());
        let cache = Cache::new(&gpu, self.shape, 1, 301).unwrap();
        Rows::new(&gpu, &cache, &self.rows, &tables).unwrap().tiled()
    }
}

#[test]
fn a_row_has_the_same_bits_in_a_tile_and_alone() {
    let cases = [
        // A prompt, and one that goes on beyond a split.
        Fed::new([7, 1, 64], 0, &[(0, 70)]),
        Fed::new([8, 2, 128], 0, &[(500, 540)]),
        // A group; two groups' worth of rows that share nothing; heads that leave rows of products empty.
        Fed::new(
            [7, 1, 64],
            16,
            &[(511, 512), (512, 513), (530, 531), (600, 601), (513, 515), (520, 521), (580, 581), (575, 576)],
        ),
        Fed::new([3, 1, 128], 1, &[(40, 41), (32, 33), (100, 101), (33, 40)]),
        Fed::new([5, 5, 64], 0, &[(9, 10), (64, 66), (0, 1)]),
        Fed::new([16, 1, 64], 2, &[(64, 70), (65, 66)]),
    ];
    for fed in cases {
        let (alone, tiled) = (fed.bits(false), fed.bits(true));
        let differ = alone.iter().zip(&tiled).filter(|(a, b)| a != b).count();
        assert_eq!(differ, 0, "{:?}, {} pages shared, {:?}", fed.shape, fed.shared, fed.rows);
        assert!(alone.iter().any(|x| *x != 0));
    }
}

#[test]
fn tiles_are_taken_where_they_halve_what_is_read() {
    assert!(Fed::new([7, 1, 64], 0, &[(0, 70)]).tiled_by_itself(), "a prompt");
    assert!(!Fed::new([7, 1, 64], 0, &[(70, 71)]).tiled_by_itself(), "a row");
    assert!(!Fed::new([7, 1, 64], 0, &[(70, 71), (90, 91), (40, 41)]).tiled_by_itself(), "prompts of their own");
    assert!(Fed::new([7, 1, 64], 8, &[(256, 257), (260, 261), (280, 281), (257, 258)]).tiled_by_itself(), "a group");
    assert!(!Fed::new([16, 1, 64], 1, &[(256, 257), (260, 261)]).tiled_by_itself(), "little in common");
}
