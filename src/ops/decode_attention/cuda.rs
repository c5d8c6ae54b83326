//! Attention over a paged cache on a GPU, in bf16.

use crate::device::{Arg, Gpu, Launch, Packed, Result, Slice, Tensor, Unpacked, expect};
use crate::ops::attention::Shape;
use crate::ops::rope::cuda::Tables;
use half::bf16;

/// Tokens in a page.
pub const PAGE: usize = 32;
/// Keys of a part of a long context; a query's result does not depend on what is computed beside it.
pub const SPLIT: usize = 512;
/// Most query heads that share a kv head: rows of a product.
const GROUP: usize = 16;
/// Products of a tile of rows.
const PRODUCTS: usize = 4;

/// Keys and values in pages, `[pages, layers, kv_heads, 2, PAGE, head_dim]`.
pub struct Cache {
    memory: Tensor<bf16>,
    shape: Shape,
    layers: usize,
    /// Whether the GPU has the shared memory for tiles of rows.
    tiles: bool,
}

/// Tokens of sequences in a cache: row `i` is at `position[i]` of sequence `sequence[i]`.
pub struct Rows {
    len: usize,
    /// Positions, sequences, and the pages of each sequence, `[sequences, table_len]`.
    lists: Tensor<u32>,
    table_len: usize,
    /// Parts of the longest context.
    splits: usize,
    /// What the parts find, with more than one.
    sums: Tensor<f32>,
    stats: Tensor<f32>,
    /// Which kernel reads the cache.
    tiled: bool,
}

/// Shared memory of a block of the tiled kernel, bytes: its `Tile`.
fn tile_bytes(head_dim: usize) -> usize {
    1152 * head_dim + 10496
}

/// Whether rows may be read by tiles where a block has so many bytes of shared memory.
pub(crate) fn has_tiles(head_dim: usize, shared_memory: usize) -> bool {
    tile_bytes(head_dim) <= shared_memory
}

/// Whether rows that follow each other share so many pages that tiles of them read half as many or fewer: those of a prompt do, and those
/// of a group that went on from one prompt.
fn pays(shape: Shape, rows: &[(u32, u32)], tables: &[&[u32]]) -> bool {
    let pages = |(sequence, position): &(u32, u32)| &tables[*sequence as usize][..=*position as usize / PAGE];
    let alone: usize = rows.iter().map(|row| pages(row).len()).sum();
    // A page is read for the rows before which it was not the row's at this place.
    let new = |(row, before): (&(u32, u32), Option<&(u32, u32)>)| {
        let before = before.map(pages).unwrap_or_default();
        pages(row).iter().enumerate().filter(|(at, page)| before.get(*at) != Some(page)).count()
    };
    let of_tile = |tile: &[(u32, u32)]| -> usize {
        tile.iter().zip([None].into_iter().chain(tile.iter().map(Some))).map(new).sum()
    };
    let tiled: usize = rows.chunks(members(shape)).map(of_tile).sum();
    2 * tiled <= alone
}

/// Rows of a tile.
fn members(shape: Shape) -> usize {
    PRODUCTS * (GROUP / (shape.heads / shape.kv_heads))
}

impl Cache {
    /// Bytes of a page.
    pub fn page_bytes(shape: Shape, layers: usize) -> usize {
        layers * 2 * shape.kv_heads * PAGE * shape.head_dim * size_of::<bf16>()
    }

    /// A cache of so many pages.
    ///
    /// # Errors
    /// If heads are neither 64 nor 128 wide, or there is too little device memory.
    pub fn new(gpu: &Gpu, shape: Shape, layers: usize, pages: usize) -> Result<Cache> {
        let Shape { heads, kv_heads, head_dim } = shape;
        let fits = kv_heads > 0 && heads.is_multiple_of(kv_heads) && heads / kv_heads <= GROUP;
        expect("decode attention", fits && (head_dim == 64 || head_dim == 128), || {
            format!("{shape:?}: heads must be of 64 or 128, at most {GROUP} to a kv head")
        })?;
        let stride = Cache::page_bytes(shape, layers) / size_of::<bf16>();
        expect("decode attention", stride <= i32::MAX as usize, || format!("pages of {stride} elements"))?;
        // Zeroed: a page may be copied before it is full.
        Ok(Cache { memory: gpu.zeros(pages * stride)?, shape, layers, tiles: has_tiles(head_dim, gpu.shared_memory()) })
    }

    /// Elements from one page to the next.
    fn stride(&self) -> usize {
        Cache::page_bytes(self.shape, self.layers) / size_of::<bf16>()
    }

    /// Address of the first page.
    pub fn address(&self) -> u64 {
        self.memory.address()
    }

    /// Number of pages.
    pub fn pages(&self) -> usize {
        self.memory.len() / self.stride().max(1)
    }

    /// All layers of page `from` to page `to`.
    ///
    /// # Errors
    /// If there is no such page, or the copy fails.
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
    /// `rows` are (sequence, position); `tables` the pages of each sequence.
    ///
    /// # Errors
    /// If a row's page is not in the cache, or there is too little device memory.
    pub fn new(gpu: &Gpu, cache: &Cache, rows: &[(u32, u32)], tables: &[&[u32]]) -> Result<Rows> {
        let mut packed = Packed::default();
        let rows = Rows::pack(&mut packed, gpu, cache, rows, tables, Rows::splits(rows))?;
        Ok(rows(&mut packed.upload(gpu)?))
    }

    /// The same beside other lists, with room for contexts in as many parts or fewer.
    ///
    /// # Errors
    /// If a row's page is not in the cache, or the contexts do not fit.
    pub fn pack(
        packed: &mut Packed,
        gpu: &Gpu,
        cache: &Cache,
        rows: &[(u32, u32)],
        tables: &[&[u32]],
        splits: usize,
    ) -> Result<impl FnOnce(&mut Unpacked) -> Rows + use<>> {
        let (len, table_len) = (rows.len(), splits * SPLIT / PAGE);
        let lists = packed.add(&Rows::checked(cache, rows, tables, table_len)?);
        let tiled = cache.tiles && pays(cache.shape, rows, tables);
        let parts = if splits > 1 { len * cache.shape.heads * splits } else { 0 };
        let (sums, stats) = (gpu.uninit(parts * cache.shape.head_dim)?, gpu.uninit(parts * 2)?);
        Ok(move |on: &mut Unpacked| Rows { len, lists: on.take(lists), table_len, splits, sums, stats, tiled })
    }

    /// Parts that the longest context of `rows` is cut in.
    pub fn splits(rows: &[(u32, u32)]) -> usize {
        rows.iter().map(|(_, position)| *position as usize / SPLIT + 1).max().unwrap_or(0)
    }

    /// Takes other rows and tables, as many; what the lists are to become.
    ///
    /// # Errors
    /// If a row's page is not in the cache, or the contexts do not fit.
    pub fn replace(&mut self, cache: &Cache, rows: &[(u32, u32)], tables: &[&[u32]]) -> Result<Vec<u32>> {
        let lists = Rows::checked(cache, rows, tables, self.table_len)?;
        self.tiled = cache.tiles && pays(cache.shape, rows, tables);
        Ok(lists)
    }

    /// Whether tiles of rows read the cache, rather than each row by itself. The results' bits are the same.
    pub fn tiled(&self) -> bool {
        self.tiled
    }

    /// The same, by the kernel that is chosen.
    pub fn by_tiles(self, tiled: bool) -> Rows {
        Rows { tiled, ..self }
    }

    /// The lists, in one.
    pub fn lists(&self) -> &Slice<u32> {
        &self.lists
    }

    /// Of all memory that a launch over these rows reads or writes.
    pub fn addresses(&self) -> [u64; 3] {
        [self.lists.address(), self.sums.address(), self.stats.address()]
    }

    /// The lists' elements. Refuses a row whose page is not in the cache.
    fn checked(cache: &Cache, rows: &[(u32, u32)], tables: &[&[u32]], table_len: usize) -> Result<Vec<u32>> {
        for (sequence, position) in rows {
            let held = tables.get(*sequence as usize).copied().unwrap_or_default();
            let used = held.get(..=*position as usize / PAGE).filter(|used| used.len() <= table_len);
            expect("decode attention", used.is_some_and(|t| t.iter().all(|p| (*p as usize) < cache.pages())), || {
                let (pages, room) = (cache.pages(), table_len);
                format!("position {position} of sequence {sequence}: pages {held:?} of {pages}, room for {room}")
            })?;
        }
        let padded =
            |t: &&[u32]| -> Vec<u32> { t.iter().copied().chain(std::iter::repeat(0)).take(table_len).collect() };
        let (sequence, position): (Vec<u32>, Vec<u32>) = rows.iter().copied().unzip();
        Ok([position, sequence, tables.iter().flat_map(padded).collect()].concat())
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Most parts of a context.
    pub fn room(&self) -> usize {
        self.splits
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Sequences, positions and pages, as kernels take them.
    fn args(&self) -> [Arg; 3] {
        let at = |element: usize| Arg::Address(self.lists.address() + (element * size_of::<u32>()) as u64);
        [at(self.len), at(0), at(2 * self.len)]
    }
}

/// Rotates the queries of `qkv` `[rows, qkv_dim]` where they are; puts its keys, rotated, and its values in their places in a
/// layer of the cache. No two rows are of one place, and positions are in the tables.
///
/// # Errors
/// If the sizes do not fit together, or a launch fails.
pub fn append(gpu: &Gpu, qkv: &Slice<bf16>, rows: &Rows, tables: &Tables, cache: &Cache, layer: usize) -> Result<()> {
    let (n, shape) = (rows.len(), cache.shape);
    let fits = qkv.len() == n * shape.qkv_dim() && shape.head_dim == 2 * tables.half;
    expect("decode attention (append)", fits, || {
        let (wide, d) = (shape.qkv_dim(), 2 * tables.half);
        format!("{} elements for {n} rows of {wide}, angles for heads of {d} of {}", qkv.len(), shape.head_dim)
    })?;
    let Shape { heads, kv_heads, head_dim } = shape;
    let [sequence, position, table] = rows.args();
    let mut args = vec![qkv.arg(), sequence, position, table, cache.layer(layer)?, tables.cos.arg(), tables.sin.arg()];
    args.extend([n, heads, kv_heads, head_dim, rows.table_len, cache.stride()].map(|n| Arg::from(n as i32)));
    gpu.launch_threads("decode_attention_append_bf16", n * shape.qkv_dim() / 16, &args)
}

/// The rotated queries of `qkv` `[rows, qkv_dim]` over all keys of their sequences up to their own, which are in the cache; `out`
/// `[rows, heads · head_dim]`.
///
/// # Errors
/// If the sizes do not fit together, or a launch fails.
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
    let [sequence, position, table] = rows.args();
    let (splits, sums, stats) = (rows.splits, rows.sums.arg(), rows.stats.arg());
    let mut args = vec![qkv.arg(), sequence, position, table, cache.layer(layer)?, out.arg(), sums, stats];
    if rows.tiled {
        args.push(Arg::from(n as i32));
    }
    args.extend([heads, kv_heads, rows.table_len, cache.stride()].map(|n| Arg::from(n as i32)));
    args.push(Arg::from(shape.scale()));
    let (kernel, blocks, threads, shared) = match rows.tiled {
        true => ("decode_attention_tiled", n.div_ceil(members(shape)), 512, tile_bytes(head_dim)),
        false => ("decode_attention", n, 128, 0),
    };
    let kernel = &format!("{kernel}_hd{head_dim}_bf16");
    let grid = [blocks as u32, kv_heads as u32, splits as u32];
    gpu.launch(Launch { kernel, grid, block: [threads, 1, 1], shared: shared as u32, args: &args })?;
    if splits <= 1 {
        return Ok(());
    }
    let mut args = vec![position, sums, stats, out.arg()];
    args.extend([n, heads, splits].map(|n| Arg::from(n as i32)));
    gpu.launch_threads(&format!("decode_attention_combine_hd{head_dim}_bf16"), n * heads * head_dim / 8, &args)
}
