//! Attention of single queries over a paged cache (decoding and prefill); on the CPU it is [`super::attention::decode`].

/// On a GPU, in bf16.
pub mod cuda {
    use crate::device::{Arg, Gpu, Launch, Result, Slice, Tensor, expect};
    use crate::ops::attention::Shape;
    use half::bf16;

    /// Tokens in a page.
    pub const PAGE: usize = 32;
    /// Keys of a part of a long context; a query's result does not depend on what is computed beside it.
    pub const SPLIT: usize = 512;
    /// Most query heads that share a kv head.
    const GROUP: usize = 16;

    /// Keys and values in pages, `[pages, layers, kv_heads, 2, PAGE, head_dim]`.
    pub struct Cache {
        memory: Tensor<bf16>,
        shape: Shape,
        layers: usize,
    }

    /// Tokens of sequences in a cache: row `i` is at `position[i]` of sequence `sequence[i]`.
    pub struct Rows {
        pub position: Tensor<u32>,
        sequence: Tensor<u32>,
        /// The pages of each sequence, `[sequences, table_len]`.
        table: Tensor<u32>,
        table_len: usize,
        /// Keys of the longest context.
        longest: usize,
    }

    impl Cache {
        /// Bytes of a page.
        pub fn page_bytes(shape: Shape, layers: usize) -> usize {
            layers * 2 * shape.kv_heads * PAGE * shape.head_dim * size_of::<bf16>()
        }

        pub fn new(gpu: &Gpu, shape: Shape, layers: usize, pages: usize) -> Result<Cache> {
            let Shape { heads, kv_heads, head_dim } = shape;
            let fits = kv_heads > 0 && heads.is_multiple_of(kv_heads) && heads / kv_heads <= GROUP;
            expect("decode attention", fits && (head_dim == 64 || head_dim == 128), || {
                format!("{shape:?}: heads must be of 64 or 128, at most {GROUP} to a kv head")
            })?;
            let stride = Cache::page_bytes(shape, layers) / size_of::<bf16>();
            expect("decode attention", stride <= i32::MAX as usize, || format!("pages of {stride} elements"))?;
            // Zeroed: a page may be copied before it is full.
            Ok(Cache { memory: gpu.zeros(pages * stride)?, shape, layers })
        }

        /// Elements from one page to the next.
        fn stride(&self) -> usize {
            Cache::page_bytes(self.shape, self.layers) / size_of::<bf16>()
        }

        pub fn pages(&self) -> usize {
            self.memory.len() / self.stride().max(1)
        }

        /// All layers of page `from` to page `to`.
        pub fn copy_page(&self, gpu: &Gpu, from: u32, to: u32) -> Result<()> {
            let page = |i: u32| {
                let (i, stride) = (i as usize, self.stride());
                self.memory.part(i * stride..(i + 1) * stride)
            };
            match (page(from), page(to)) {
                (Some(from), Some(to)) => gpu.copy(&from, &to),
                _ => expect("page copy", false, || format!("{from} to {to} of {} pages", self.pages())),
            }
        }

        /// Where a layer starts in the first page.
        fn layer(&self, layer: usize) -> Result<Arg> {
            expect("decode attention", layer < self.layers, || format!("layer {layer} of {}", self.layers))?;
            let offset = layer * self.stride() / self.layers * size_of::<bf16>();
            Ok(Arg::Address(self.memory.address() + offset as u64))
        }
    }

    impl Rows {
        /// `rows` are (sequence, position); `tables` the pages of each sequence. Refuses a row whose page is not among the `pages` of
        /// the cache.
        pub fn new(gpu: &Gpu, rows: &[(u32, u32)], tables: &[&[u32]], pages: usize) -> Result<Rows> {
            for (sequence, position) in rows {
                let held = tables.get(*sequence as usize).copied().unwrap_or_default();
                let used = held.get(..=*position as usize / PAGE);
                expect("decode attention", used.is_some_and(|t| t.iter().all(|p| (*p as usize) < pages)), || {
                    format!("position {position} of sequence {sequence}: pages {held:?} of {pages}")
                })?;
            }
            let table_len = tables.iter().map(|t| t.len()).max().unwrap_or(0);
            let padded =
                |t: &&[u32]| -> Vec<u32> { t.iter().copied().chain(std::iter::repeat(0)).take(table_len).collect() };
            let table: Vec<u32> = tables.iter().flat_map(padded).collect();
            let (sequence, position): (Vec<u32>, Vec<u32>) = rows.iter().copied().unzip();
            let longest = position.iter().max().map_or(0, |p| *p as usize + 1);
            let [position, sequence, table] = [&position, &sequence, &table].map(|list| gpu.tensor(list));
            Ok(Rows { position: position?, sequence: sequence?, table: table?, table_len, longest })
        }

        pub fn len(&self) -> usize {
            self.position.len()
        }

        pub fn is_empty(&self) -> bool {
            self.len() == 0
        }
    }

    /// Copies the keys and values of `qkv` `[rows, qkv_dim]` (rotated) to their places in a layer of the cache; no two rows are of
    /// one place.
    pub fn append(gpu: &Gpu, qkv: &Slice<bf16>, rows: &Rows, cache: &Cache, layer: usize) -> Result<()> {
        let (n, shape) = (rows.len(), cache.shape);
        expect("decode attention (append)", qkv.len() == n * shape.qkv_dim(), || {
            format!("{} elements for {n} rows of {}", qkv.len(), shape.qkv_dim())
        })?;
        let Shape { heads, kv_heads, head_dim } = shape;
        let sizes = [n, heads, kv_heads, head_dim, rows.table_len, cache.stride()].map(|n| Arg::from(n as i32));
        let lists = [qkv.arg(), rows.sequence.arg(), rows.position.arg(), rows.table.arg(), cache.layer(layer)?];
        let args = [&lists[..], &sizes].concat();
        gpu.launch_threads("decode_attention_append_bf16", n * kv_heads * head_dim / 4, &args)
    }

    /// The queries of `qkv` `[rows, qkv_dim]` over all keys of their sequences up to their own, which are in the cache; `out`
    /// `[rows, heads · head_dim]`.
    pub fn forward(
        gpu: &Gpu,
        qkv: &Slice<bf16>,
        rows: &Rows,
        cache: &Cache,
        layer: usize,
        out: &Slice<bf16>,
    ) -> Result<()> {
        let (n, shape) = (rows.len(), cache.shape);
        let (lengths, wanted) = ([qkv.len(), out.len()], [n * shape.qkv_dim(), n * shape.q_dim()]);
        expect("decode attention", lengths == wanted, || format!("{lengths:?} elements for {wanted:?} of {n} rows"))?;
        let Shape { heads, kv_heads, head_dim } = shape;
        let splits = rows.longest.div_ceil(SPLIT);
        let parts = if splits > 1 { n * heads * splits } else { 0 };
        let (sums, stats) = (gpu.uninit::<f32>(parts * head_dim)?, gpu.uninit::<f32>(parts * 2)?);
        let mut args = vec![qkv.arg(), rows.sequence.arg(), rows.position.arg(), rows.table.arg(), cache.layer(layer)?];
        args.extend([out.arg(), sums.arg(), stats.arg()]);
        args.extend([heads, kv_heads, rows.table_len, cache.stride()].map(|n| Arg::from(n as i32)));
        args.push(Arg::from(shape.scale()));
        let kernel = &format!("decode_attention_hd{head_dim}_bf16");
        let grid = [n as u32, kv_heads as u32, splits as u32];
        gpu.launch(Launch { kernel, grid, block: [128, 1, 1], shared: 0, args: &args })?;
        if splits <= 1 {
            return Ok(());
        }
        let mut args = vec![rows.position.arg(), sums.arg(), stats.arg(), out.arg()];
        args.extend([n, heads, splits].map(|n| Arg::from(n as i32)));
        gpu.launch_threads(&format!("decode_attention_combine_hd{head_dim}_bf16"), n * heads * head_dim / 8, &args)
    }
}
