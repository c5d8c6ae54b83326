//! The copy engine: bulk copies from global to shared memory, plain or of a box of a tensor, whose bytes an mbarrier counts.

use crate::block::{Line, Runner, State};
#[cfg(feature = "counters")]
use crate::races::Barrier;
use bytemuck::{Pod, Zeroable};

/// How the 16-byte chunks of a row are permuted by the row's number, so that a column of them is in different banks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Swizzle {
    None,
    /// Over rows of 64 bytes.
    B64,
    /// Over rows of 128 bytes.
    B128,
}

impl Swizzle {
    /// Of an address in shared memory.
    pub(crate) fn permute(self, address: usize) -> usize {
        match self {
            Swizzle::None => address,
            Swizzle::B64 => address ^ (address >> 7 & 3) << 4,
            Swizzle::B128 => address ^ (address >> 7 & 7) << 4,
        }
    }

    /// Bytes of a row; nothing where any will do.
    pub(crate) fn row(self) -> Option<usize> {
        match self {
            Swizzle::None => None,
            Swizzle::B64 => Some(64),
            Swizzle::B128 => Some(128),
        }
    }

    /// What the pattern repeats after.
    pub(crate) fn alignment(self) -> usize {
        self.row().map_or(128, |row| 8 * row)
    }
}

/// A tensor in global memory and the box of it that one copy takes; extents innermost first, of 2 or 3 dimensions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tiling {
    pub address: usize,
    pub element_bytes: usize,
    pub sizes: Vec<usize>,
    /// Bytes from one index to the next, of every dimension but the innermost.
    pub strides: Vec<usize>,
    /// Elements of the box.
    pub tile: Vec<usize>,
    pub swizzle: Swizzle,
}

/// A [`Tiling`] as a kernel takes it, by value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C, align(64))]
pub struct TensorMap([u64; 16]);

const MAGIC: u64 = 0x7465_6e73_6f72_6d61;

impl TensorMap {
    /// Refuses, in words, what the driver refuses.
    pub fn new(of: &Tiling) -> Result<TensorMap, String> {
        let Tiling { address, element_bytes, sizes, strides, tile, swizzle } = of;
        let rank = sizes.len();
        let inner = tile.first().map_or(0, |n| n * element_bytes);
        let sound = (2..=3).contains(&rank)
            && (strides.len(), tile.len()) == (rank - 1, rank)
            && address.is_multiple_of(16)
            && strides.iter().all(|s| s.is_multiple_of(16) && *s > 0)
            && sizes.iter().all(|n| (1..=1 << 32).contains(n))
            && tile.iter().all(|n| (1..=256).contains(n))
            && inner.is_multiple_of(16)
            && swizzle.row().is_none_or(|row| row == inner);
        if !sound {
            return Err(format!("no tensor map can be made of {of:?}"));
        }
        let mut words = [0; 16];
        let code = match swizzle {
            Swizzle::None => 0,
            Swizzle::B64 => 1,
            Swizzle::B128 => 2,
        };
        words[..5].copy_from_slice(&[MAGIC, *address as u64, rank as u64, *element_bytes as u64, code]);
        for (at, list) in [(5, sizes), (8, strides), (11, tile)] {
            words[at..].iter_mut().zip(list).for_each(|(word, n)| *word = *n as u64);
        }
        Ok(TensorMap(words))
    }

    /// Where the tensor is.
    pub fn address(&self) -> u64 {
        self.0[1]
    }

    fn tiling(&self) -> Option<Tiling> {
        let words = self.0.map(|w| w as usize);
        let rank = words[2];
        let swizzle = *[Swizzle::None, Swizzle::B64, Swizzle::B128].get(words[4])?;
        (self.0[0] == MAGIC).then(|| Tiling {
            address: words[1],
            element_bytes: words[3],
            sizes: words[5..5 + rank].to_vec(),
            strides: words[8..8 + rank - 1].to_vec(),
            tile: words[11..11 + rank].to_vec(),
            swizzle,
        })
    }
}

/// A copy under way.
pub struct Bulk {
    chunks: Vec<Chunk>,
    barrier: *const u64,
    line: Line,
}

/// 16 bytes, of which the first `valid` are read and the others zero.
struct Chunk {
    to: *mut u8,
    from: *const u8,
    valid: usize,
}

impl Runner<'_> {
    /// `bytes` from `from` to `to`, both in order.
    pub fn bulk_copy(&mut self, to: *mut u8, from: *const u8, bytes: usize, barrier: *const u64, line: Line) {
        if !bytes.is_multiple_of(16) || bytes == 0 {
            return self.blame(line, format!("a bulk copy of {bytes} bytes, which are no multiple of 16"));
        }
        let chunk = |i: usize| Chunk { to: to.wrapping_add(16 * i), from: from.wrapping_add(16 * i), valid: 16 };
        self.start((0..bytes / 16).map(chunk).collect(), barrier, line);
    }

    /// The box of a tensor that begins at `at` (innermost first, may lie outside): what does not exist is zero.
    pub fn tensor_copy(&mut self, to: *mut u8, map: &TensorMap, at: &[i32], barrier: *const u64, line: Line) {
        let Some(Tiling { address, element_bytes, sizes, strides, tile, swizzle }) = map.tiling() else {
            return self.blame(line, "this is no tensor map".into());
        };
        if at.len() != sizes.len() {
            return self.blame(line, format!("{} coordinates for a tensor map of {}", at.len(), sizes.len()));
        }
        let base = self.shared_address(to);
        if !self.is_shared(to as usize, 16) || !base.is_multiple_of(swizzle.alignment()) {
            let problem = format!("a box goes to shared memory at a multiple of {} bytes", swizzle.alignment());
            return self.blame(line, problem);
        }
        let inside = |d: usize, i: usize| usize::try_from(at[d] as i64 + i as i64).ok().filter(|&x| x < sizes[d]);
        let row_bytes = tile[0] * element_bytes;
        let mut chunks = Vec::new();
        for row in 0..tile[1..].iter().product() {
            let index = [row % tile[1], row / tile[1]];
            let start = (1..at.len()).try_fold(address, |sum, d| Some(sum + inside(d, index[d - 1])? * strides[d - 1]));
            for chunk in (0..row_bytes).step_by(16) {
                let first = i64::from(at[0]) * element_bytes as i64 + chunk as i64;
                let end = (sizes[0] * element_bytes) as i64;
                // A box that begins left of the tensor begins there with a whole chunk, or none of this is exact.
                if first < 0 && first > -16 {
                    return self.blame(line, "a box begins less than 16 bytes left of its tensor".into());
                }
                let valid = if first < 0 || start.is_none() { 0 } else { (end - first).clamp(0, 16) as usize };
                let from = (start.unwrap_or(address) as i64 + first) as *const u8;
                let to = to.wrapping_add(swizzle.permute(base + row * row_bytes + chunk) - base);
                chunks.push(Chunk { to, from, valid });
            }
        }
        self.start(chunks, barrier, line);
    }

    fn start(&mut self, chunks: Vec<Chunk>, barrier: *const u64, line: Line) {
        for Chunk { to, from, valid } in &chunks {
            self.check_access(*to as usize, 16, line);
            let aligned = (*from as usize).is_multiple_of(16);
            if *valid > 0 && (!aligned || !self.is_global(*from as usize, *valid)) {
                self.blame(
                    line,
                    "a bulk copy reads memory that the kernel was not given, or not aligned to 16 bytes".into(),
                );
            }
            if self.failed() {
                return;
            }
        }
        #[cfg(feature = "counters")]
        chunks.iter().for_each(|chunk| crate::counters::copied(chunk.from, chunk.valid));
        #[cfg(feature = "counters")]
        self.races.begin_copy(self.running, chunks.iter().map(|chunk| chunk.to as usize));
        let bulk = Bulk { chunks, barrier, line };
        if self.schedule.copies_at_once() { self.bulk_happens(bulk) } else { self.bulks.push(bulk) }
    }

    pub fn bulk_happens(&mut self, bulk: Bulk) {
        for Chunk { to, from, valid } in &bulk.chunks {
            #[cfg(feature = "counters")]
            {
                self.races.copy_arrives(*to as usize, Barrier::Address(bulk.barrier as usize));
                self.copied(*to as usize);
            }
            // SAFETY: checked when it was issued.
            unsafe {
                to.copy_from_nonoverlapping(*from, *valid);
                to.add(*valid).write_bytes(0, 16 - valid);
            }
            self.show_chunk(*to);
        }
        self.mbarrier_bytes(bulk.barrier, 16 * bulk.chunks.len(), bulk.line);
    }

    /// When no thread can run: the oldest copy that someone waits for, which may come before older ones.
    pub fn awaited_bulk_happens(&mut self) -> bool {
        let due = !self.bulks.is_empty() && self.anyone_waits();
        if due {
            let awaited = |bulk: &Bulk| {
                let at = |state| matches!(state, State::Phase { address, .. } if address == bulk.barrier as usize);
                self.threads.iter().any(|thread| at(thread.state))
            };
            let next = self.bulks.iter().position(awaited).unwrap_or(0);
            let bulk = self.bulks.remove(next);
            self.bulk_happens(bulk);
        }
        due
    }

    /// A copy that was still under way when the last thread returned.
    pub fn abandoned_bulk(&self) -> Option<Line> {
        self.bulks.first().map(|b| b.line)
    }
}
