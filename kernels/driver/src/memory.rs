//! Device memory and pinned host memory, each allocation between pages that nobody may touch.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::ops::Range;
use std::os::fd::{AsRawFd, FromRawFd};

/// Bytes that nobody may touch, on either side.
const GUARD: usize = 1 << 20;
const PAGE: usize = 4096;
/// What memory holds that nobody has written: a NaN as bf16, and twice over as f32.
const POISON: [u8; 2] = 0xFFA5u16.to_le_bytes();
/// Bytes of the file that fresh memory is a private view of: pages that are only read, or never touched, take no memory.
const POISON_FILE: usize = 16 << 20;

#[derive(Default)]
pub struct Memory {
    device: BTreeMap<usize, Allocation>,
    pinned: BTreeMap<usize, Allocation>,
    poison: Option<File>,
}

struct Allocation {
    bytes: usize,
    /// With its guards.
    reserved: Range<usize>,
}

impl Memory {
    pub fn alloc(&mut self, bytes: usize) -> io::Result<usize> {
        let allocation = Allocation::reserve(bytes)?;
        let start = allocation.start();
        let poison = match &mut self.poison {
            Some(file) => file,
            none => none.insert(poison_file()?),
        };
        let end = allocation.reserved.end - GUARD;
        for at in (start..end).step_by(POISON_FILE) {
            map(at, POISON_FILE.min(end - at), libc::PROT_READ | libc::PROT_WRITE, Some(poison))?;
        }
        self.device.insert(start, allocation);
        Ok(start)
    }

    /// Whether there was such an allocation.
    pub fn free(&mut self, start: usize) -> io::Result<bool> {
        self.device.remove(&start).map_or(Ok(false), Allocation::withdraw)
    }

    /// Pinned host memory.
    pub fn pin(&mut self, bytes: usize) -> io::Result<usize> {
        let allocation = Allocation::reserve(bytes)?;
        let start = allocation.start();
        let length = allocation.reserved.len() - 2 * GUARD;
        map(start, length, libc::PROT_READ | libc::PROT_WRITE, None)?;
        self.pinned.insert(start, allocation);
        Ok(start)
    }

    pub fn unpin(&mut self, start: usize) -> io::Result<bool> {
        self.pinned.remove(&start).map_or(Ok(false), Allocation::withdraw)
    }

    /// Whether these bytes are all of one allocation on the device.
    pub fn is_device(&self, start: usize, bytes: usize) -> bool {
        holds(&self.device, start, bytes)
    }

    pub fn is_pinned(&self, start: usize, bytes: usize) -> bool {
        holds(&self.pinned, start, bytes)
    }

    /// Bytes allocated on the device.
    pub fn used(&self) -> usize {
        self.device.values().map(|a| a.bytes).sum()
    }

    /// Allocations on the device, and pinned.
    pub fn counts(&self) -> [usize; 2] {
        [self.device.len(), self.pinned.len()]
    }

    /// What a kernel may touch.
    pub fn ranges(&self) -> Vec<Range<usize>> {
        self.device.iter().map(|(start, a)| *start..start + a.bytes).collect()
    }
}

fn holds(of: &BTreeMap<usize, Allocation>, start: usize, bytes: usize) -> bool {
    let before = of.range(..=start).next_back();
    before.is_some_and(|(first, a)| start.checked_add(bytes).is_some_and(|end| end <= first + a.bytes))
}

impl Allocation {
    /// Address space that is not memory yet.
    fn reserve(bytes: usize) -> io::Result<Allocation> {
        let length = bytes.next_multiple_of(PAGE) + 2 * GUARD;
        let base = map(0, length, libc::PROT_NONE, None)?;
        Ok(Allocation { bytes, reserved: base..base + length })
    }

    fn start(&self) -> usize {
        self.reserved.start + GUARD
    }

    /// Gives the memory up, and keeps the addresses: nothing else is ever found there.
    fn withdraw(self) -> io::Result<bool> {
        map(self.reserved.start, self.reserved.len(), libc::PROT_NONE, None)?;
        Ok(true)
    }
}

/// Maps at an address, or anywhere for 0: a private view of `file` from its start, or zeros.
fn map(at: usize, bytes: usize, access: i32, file: Option<&File>) -> io::Result<usize> {
    let place = if at == 0 { 0 } else { libc::MAP_FIXED };
    let (source, fd) = file.map_or((libc::MAP_ANONYMOUS, -1), |file| (0, file.as_raw_fd()));
    let flags = libc::MAP_PRIVATE | libc::MAP_NORESERVE | place | source;
    // SAFETY: a fixed address is one that `Allocation::reserve` was given, so nothing of anybody else's is replaced.
    let mapped = unsafe { libc::mmap(at as *mut _, bytes, access, flags, fd, 0) };
    if mapped == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(mapped as usize) }
}

fn poison_file() -> io::Result<File> {
    // SAFETY: a valid name; the descriptor is nobody else's.
    let mut file = unsafe {
        match libc::memfd_create(c"poison".as_ptr(), libc::MFD_CLOEXEC) {
            -1 => return Err(io::Error::last_os_error()),
            fd => File::from_raw_fd(fd),
        }
    };
    let chunk = POISON.repeat(PAGE);
    (0..POISON_FILE / chunk.len()).try_for_each(|_| file.write_all(&chunk))?;
    Ok(file)
}

/// Fills host memory with what a program must not have relied on.
pub fn poison(start: usize, bytes: usize) {
    // SAFETY: the caller's own range, checked to be an allocation's.
    unsafe { (start as *mut u8).write_bytes(POISON[0], bytes) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fresh_memory_is_poisoned_and_freed_addresses_are_not_reused() {
        let mut memory = Memory::default();
        let start = memory.alloc(POISON_FILE + 6).unwrap();
        let word = |at: usize| unsafe { *((start + at) as *const u16) };
        assert_eq!([word(0), word(POISON_FILE), word(POISON_FILE + 4)], [0xFFA5; 3]);
        assert!(memory.is_device(start + 4, POISON_FILE + 2) && !memory.is_device(start + 4, POISON_FILE + 3));
        assert!(memory.free(start).unwrap() && !memory.free(start).unwrap());
        assert!(!memory.is_device(start, 1));
        assert_ne!(memory.alloc(POISON_FILE + 6).unwrap(), start);
    }
}
