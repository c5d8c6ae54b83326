//! Copies between host and device through pinned memory, which the GPU reads on its own while the host goes on.

use super::fault::Launched;
use super::handles::{Pinned, Stream};
use crate::device::Result;
use cudarc::driver::result::{self, stream};

/// Bytes of pinned memory. What lies between two waits of a training step or a decoded token fits many times over.
const BYTES: usize = 32 << 20;
/// Copies begin at a multiple of this.
const ALIGNMENT: usize = 64;

/// Pinned memory, filled from its beginning on. Whoever waits for the stream empties it: no copy is then under way.
pub struct Staging {
    memory: Pinned,
    used: usize,
}

impl Staging {
    /// The context must be current.
    pub fn new() -> Result<Staging> {
        Ok(Staging { memory: Pinned::new(BYTES)?, used: 0 })
    }

    /// Waits for the stream.
    pub fn synchronize(&mut self, stream: &Stream, launched: &Launched) -> Result<()> {
        // SAFETY: the stream lives.
        launched.check("finish", unsafe { stream::synchronize(stream.0) })?;
        self.used = 0;
        Ok(())
    }

    /// `from` may be changed as soon as this returns.
    pub fn upload(&mut self, from: &[u8], to: u64, stream: &Stream, launched: &Launched) -> Result<()> {
        for (i, piece) in from.chunks(BYTES).enumerate() {
            if piece.len() > BYTES - self.used {
                self.synchronize(stream, launched)?;
            }
            // SAFETY: the piece fits behind what is used, which copies under way may still read.
            let pinned = unsafe {
                let memory = self.memory.0.add(self.used);
                memory.copy_from_nonoverlapping(piece.as_ptr(), piece.len());
                std::slice::from_raw_parts(memory, piece.len())
            };
            self.used = (self.used + piece.len()).next_multiple_of(ALIGNMENT).min(BYTES);
            // SAFETY: the pinned bytes are not written again before the stream was waited for.
            let copied = unsafe { result::memcpy_htod_async(to + (i * BYTES) as u64, pinned, stream.0) };
            launched.check("copy to the GPU", copied)?;
        }
        Ok(())
    }

    /// Waits for the stream.
    pub fn download(&mut self, from: u64, to: &mut [u8], stream: &Stream, launched: &Launched) -> Result<()> {
        for (i, piece) in to.chunks_mut(BYTES).enumerate() {
            if piece.len() > BYTES - self.used {
                self.synchronize(stream, launched)?;
            }
            // SAFETY: as above, and the copy is over before the bytes are read.
            let pinned = unsafe { std::slice::from_raw_parts_mut(self.memory.0.add(self.used), piece.len()) };
            let copied = unsafe { result::memcpy_dtoh_async(pinned, from + (i * BYTES) as u64, stream.0) };
            launched.check("copy from the GPU", copied)?;
            self.synchronize(stream, launched)?;
            piece.copy_from_slice(pinned);
        }
        Ok(())
    }
}
