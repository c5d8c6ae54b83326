//! What a thread may touch: the block's shared memory and what the launch was given.

use crate::block::{Line, Runner};
use crate::fault::Fault;
use std::ops::Range;

impl Runner<'_> {
    pub fn shared_array(&mut self, line: Line, bytes: usize, alignment: usize) -> Option<*mut u8> {
        let array = self.shared.array(line, bytes, alignment);
        array.map_err(|bytes| self.fail(Fault::SharedSize { place: self.here(), bytes })).ok()
    }

    pub fn dynamic_shared(&mut self) -> Option<*mut u8> {
        self.shared_array(Line(c"the launch".as_ptr(), 0), self.dynamic_shared, 1024)
    }

    /// A thread's access, unless it is outside of shared memory: one that nothing orders with another's is a fault.
    #[cfg(feature = "counters")]
    pub fn accessed(&mut self, address: usize, bytes: usize, write: bool) {
        let me = self.running;
        if let Some((line, byte)) = self.shared.array_of(address)
            && let Some(other) = self.races.access(me, address, bytes, write)
            && !self.failed()
        {
            self.fail(Fault::Unordered { place: self.here(), other, byte, site: line.site() });
        }
    }

    /// An asynchronous copy's write, likewise.
    #[cfg(feature = "counters")]
    pub fn copied(&mut self, to: usize) {
        if let Some(other) = self.races.copy_happens(to)
            && let Some((line, byte)) = self.shared.array_of(to)
            && !self.failed()
        {
            self.fail(Fault::Unordered { place: self.here(), other, byte, site: line.site() });
        }
    }

    /// As the hardware counts, from the start of the block's shared memory.
    pub fn shared_address(&self, p: *const u8) -> usize {
        (p as usize).wrapping_sub(self.shared.base())
    }

    pub fn is_shared(&self, address: usize, bytes: usize) -> bool {
        self.shared.contains(&(address..address.saturating_add(bytes)))
    }

    pub fn is_global(&self, address: usize, bytes: usize) -> bool {
        self.memory.iter().any(|r| r.start <= address && address.saturating_add(bytes) <= r.end)
    }

    /// 16 bytes at a shared address, if they are an array's, and whether the asynchronous parts see them as they are.
    pub fn shared_chunk(&self, address: usize) -> Option<([u16; 8], bool)> {
        let p = self.shared.base() + address;
        let shown = self.shared.is_shown(address);
        // SAFETY: aligned and inside of the shared memory, as just checked.
        (address.is_multiple_of(16) && self.is_shared(p, 16)).then(|| (unsafe { *(p as *const [u16; 8]) }, shown))
    }

    /// Ordinary stores become visible to products.
    pub fn show_stores(&mut self) {
        self.shared.show_all();
    }

    /// What a copy brought is visible to products at once.
    pub fn show_chunk(&mut self, p: *const u8) {
        self.shared.show_chunk(self.shared_address(p));
    }

    pub fn check_access(&mut self, address: usize, bytes: usize, line: Line) {
        let wanted = address..address + bytes;
        let inside = |r: &Range<usize>| r.start <= wanted.start && wanted.end <= r.end;
        let problem = if !address.is_multiple_of(bytes) {
            format!("is not aligned to {bytes} bytes")
        } else if !self.memory.iter().any(inside) && !self.shared.contains(&wanted) {
            let past = self.memory.iter().filter(|r| r.end < wanted.end).map(|r| wanted.end - r.end).min();
            let past = past.map(|n| format!(" (ends {n} bytes past a buffer)")).unwrap_or_default();
            format!("touches memory that the kernel was not given{past}")
        } else {
            return;
        };
        self.fail(Fault::Access { place: self.here(), site: line.site(), problem });
    }
}
