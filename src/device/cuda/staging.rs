//! Copies between host and device through pinned memory, which the GPU reads on its own while the host goes on.

use super::call;
use crate::device::Result;
use cudarc::driver::result::{self, event, stream};
use cudarc::driver::sys;

/// Bytes of one slot.
const SLOT: usize = 8 << 20;

/// Two slots, so that one is filled while the other travels.
pub struct Staging {
    slots: [Slot; 2],
    next: usize,
}

struct Slot {
    memory: *mut u8,
    /// After the last copy out of it.
    free: sys::CUevent,
}

impl Staging {
    /// The context must be current.
    pub fn new() -> Result<Staging> {
        let slot = || -> Result<Slot> {
            // SAFETY: plain memory, of this size.
            let memory = call("pin memory", unsafe { result::malloc_host(SLOT, 0) })?.cast();
            let free = call("make an event", event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING))?;
            Ok(Slot { memory, free })
        };
        Ok(Staging { slots: [slot()?, slot()?], next: 0 })
    }

    /// `from` may be changed as soon as this returns.
    pub fn upload(&mut self, from: &[u8], to: u64, stream: sys::CUstream) -> Result<()> {
        for (i, piece) in from.chunks(SLOT).enumerate() {
            let slot = &self.slots[self.next];
            self.next = 1 - self.next;
            // SAFETY: a slot is as long as the longest piece, and is not written while a copy reads it: its event says when.
            unsafe {
                call("wait for a copy", event::synchronize(slot.free))?;
                slot.memory.copy_from_nonoverlapping(piece.as_ptr(), piece.len());
                let pinned = std::slice::from_raw_parts(slot.memory, piece.len());
                call("copy to the GPU", result::memcpy_htod_async(to + (i * SLOT) as u64, pinned, stream))?;
                call("record an event", event::record(slot.free, stream))?;
            }
        }
        Ok(())
    }

    pub fn download(&mut self, from: u64, to: &mut [u8], stream: sys::CUstream) -> Result<()> {
        let slot = &self.slots[self.next];
        for (i, piece) in to.chunks_mut(SLOT).enumerate() {
            // SAFETY: as above; the copy is over before the slot is read.
            unsafe {
                let pinned = std::slice::from_raw_parts_mut(slot.memory, piece.len());
                call("copy from the GPU", result::memcpy_dtoh_async(pinned, from + (i * SLOT) as u64, stream))?;
                call("copy from the GPU", stream::synchronize(stream))?;
                piece.copy_from_slice(pinned);
            }
        }
        Ok(())
    }

    /// Frees the memory, while the context is still there; to be called last.
    pub fn close(&mut self) {
        for slot in &mut self.slots {
            // SAFETY: of `new`, and idle: the stream was waited for.
            unsafe {
                let _ = event::destroy(slot.free);
                let _ = result::free_host(slot.memory.cast());
            }
        }
    }
}
