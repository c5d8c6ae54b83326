//! Device memory: data between guard zones.

use crate::Fault;
use bytemuck::{Pod, Zeroable};
use std::cell::UnsafeCell;
use std::ops::Range;

/// What memory holds that nobody has written: a signalling NaN as bf16, and twice over as f32.
pub(crate) const POISON: u16 = 0xFFA5;
/// Lines of a guard zone.
const GUARD: usize = 16;

/// The alignment that cudaMalloc gives.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(256))]
struct Line([u16; 128]);

/// An allocation on the emulated device.
pub struct Buffer {
    lines: Box<[UnsafeCell<Line>]>,
    bytes: usize,
}

impl Buffer {
    /// Holds a copy of `data`.
    pub fn new<T: Pod>(data: &[T]) -> Buffer {
        let buffer = Buffer::poisoned::<T>(data.len());
        buffer.restore(bytemuck::cast_slice(data));
        buffer
    }

    /// Holds `len` elements that no one has written.
    pub fn poisoned<T: Pod>(len: usize) -> Buffer {
        let bytes = len * size_of::<T>();
        let lines = bytes.div_ceil(size_of::<Line>()) + 2 * GUARD;
        Buffer { lines: (0..lines).map(|_| UnsafeCell::new(Line([POISON; 128]))).collect(), bytes }
    }

    /// The contents. An element that still holds the poison was never written, which is an error.
    pub fn read<T: Pod>(&self) -> Result<Vec<T>, Fault> {
        let bytes = self.snapshot();
        let poisoned = |element: &[u8]| element.chunks(2).all(|half| half == &POISON.to_ne_bytes()[..half.len()]);
        match bytes.chunks(size_of::<T>()).position(poisoned) {
            Some(element) => Err(Fault::Unwritten { element }),
            None => {
                let mut elements = vec![T::zeroed(); self.bytes / size_of::<T>()];
                bytemuck::cast_slice_mut::<T, u8>(&mut elements).copy_from_slice(&bytes);
                Ok(elements)
            }
        }
    }

    /// Where the data is: what a pointer to it holds.
    pub fn address(&self) -> usize {
        self.data() as usize
    }

    /// Bytes of data.
    pub fn size(&self) -> usize {
        self.bytes
    }

    /// Reads bytes from an offset on. A word of 4 (aligned) that still holds the poison was never written, which is an error.
    pub fn read_at(&self, offset: usize, to: &mut [u8]) -> Result<(), Fault> {
        to.copy_from_slice(&self.snapshot()[offset..offset + to.len()]);
        let poison = [POISON; 2].map(u16::to_ne_bytes).concat();
        match to.chunks_exact(4).position(|word| word == poison) {
            Some(word) => Err(Fault::Unwritten { element: offset / 4 + word }),
            None => Ok(()),
        }
    }

    /// Writes bytes from an offset on.
    pub fn write_at(&self, offset: usize, from: &[u8]) {
        assert!(offset + from.len() <= self.bytes, "a write past the end of a buffer");
        unsafe { self.data().add(offset).copy_from_nonoverlapping(from.as_ptr(), from.len()) }
    }

    pub(crate) fn data(&self) -> *mut u8 {
        self.lines[GUARD].get().cast()
    }

    /// The addresses of the data.
    pub(crate) fn addresses(&self) -> Range<usize> {
        let start = self.data() as usize;
        start..start + self.bytes
    }

    pub(crate) fn snapshot(&self) -> Vec<u8> {
        unsafe { std::slice::from_raw_parts(self.data(), self.bytes) }.to_vec()
    }

    pub(crate) fn restore(&self, data: &[u8]) {
        assert_eq!(data.len(), self.bytes);
        unsafe { self.data().copy_from_nonoverlapping(data.as_ptr(), self.bytes) }
    }

    /// The nearest damage outside of the data: bytes away, and the side.
    pub(crate) fn damage(&self) -> Option<(usize, &'static str)> {
        let whole = self.lines.len() * size_of::<Line>();
        let all = unsafe { std::slice::from_raw_parts(self.lines[0].get().cast::<u8>(), whole) };
        let (before, rest) = all.split_at(GUARD * size_of::<Line>());
        let after = &rest[self.bytes..];
        // Where `after` starts in the pattern is told by the length, the pattern being two bytes.
        let good = |(i, byte): (usize, &u8)| *byte == POISON.to_ne_bytes()[i % 2];
        if let Some(i) = after.iter().enumerate().position(|(i, byte)| !good((self.bytes + i, byte))) {
            return Some((i, "after"));
        }
        before.iter().enumerate().rposition(|at| !good(at)).map(|i| (before.len() - i, "before"))
    }
}
