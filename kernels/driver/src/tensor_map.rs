//! Tensor maps, by the rules of cuTensorMapEncodeTiled and in the emulator's own form.

use crate::driver::Gpu;
use crate::status::{INVALID_VALUE, Status};
use kernel_emulator as emulator;
use std::ffi::{c_int, c_void};

/// CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, of which kernels here have maps.
const BF16: c_int = 9;
const BF16_BYTES: u64 = 2;

/// As cuTensorMapEncodeTiled takes it.
#[derive(Debug)]
pub struct Encoding {
    pub dtype: c_int,
    pub address: usize,
    /// Innermost first.
    pub sizes: Vec<u64>,
    /// Bytes, of all dimensions but the innermost.
    pub strides: Vec<u64>,
    pub tile: Vec<u32>,
    pub steps: Vec<u32>,
    pub interleave: c_int,
    pub swizzle: c_int,
    pub promotion: c_int,
    pub fill: c_int,
}

impl Encoding {
    /// What is wrong with it.
    fn problems(&self, gpu: &Gpu) -> Vec<&'static str> {
        let inner = u64::from(self.tile[0]) * BF16_BYTES;
        let row = self.sizes[0].saturating_mul(BF16_BYTES);
        let last = self.sizes.last().map_or(0, |n| n.saturating_sub(1));
        let bytes = self.strides.last().map_or(row, |s| s.saturating_mul(last).saturating_add(row));
        let rules = [
            (gpu.settings.compute_capability.0 >= 9, "compute capability 9.0"),
            (self.dtype == BF16, "bf16 (no other is implemented)"),
            (self.address.is_multiple_of(16), "an address that is a multiple of 16"),
            (self.sizes.iter().all(|n| (1..=1 << 32).contains(n)), "sizes of 1 to 2^32"),
            (self.strides.iter().all(|s| s % 16 == 0 && *s < 1 << 40), "strides of a multiple of 16 below 2^40"),
            (self.strides.first().is_none_or(|s| *s >= row), "a stride of at least a row"),
            (self.tile.iter().all(|n| (1..=256).contains(n)), "a box of 1 to 256"),
            (self.steps.iter().all(|n| *n == 1), "element strides of 1 (no others are implemented)"),
            (self.interleave == 0, "no interleave (none is implemented)"),
            (inner.is_multiple_of(16), "a box whose rows are a multiple of 16 bytes"),
            (self.swizzle == 0 || inner <= 16 << self.swizzle, "a box whose rows fit the swizzle"),
            ((0..=3).contains(&self.promotion) && (0..=1).contains(&self.fill), "known enumerators"),
            // CUDA does not look.
            (gpu.memory.is_device(self.address, bytes as usize), "a tensor inside of device memory"),
        ];
        rules.into_iter().filter(|(holds, _)| !holds).map(|(_, rule)| rule).collect()
    }

    fn tiling(&self) -> emulator::Tiling {
        let sizes = |of: &[u64]| of.iter().map(|n| *n as usize).collect();
        emulator::Tiling {
            address: self.address,
            element_bytes: BF16_BYTES as usize,
            sizes: sizes(&self.sizes),
            strides: sizes(&self.strides),
            tile: self.tile.iter().map(|n| *n as usize).collect(),
            swizzle: match self.swizzle {
                2 => emulator::Swizzle::B64,
                3 => emulator::Swizzle::B128,
                _ => emulator::Swizzle::None,
            },
        }
    }
}

impl Gpu {
    pub fn encode(&mut self, map: *mut c_void, encoding: &Encoding) -> Result<emulator::TensorMap, Status> {
        let mut problems = encoding.problems(self);
        if !(map as usize).is_multiple_of(64) {
            problems.push("a map at a multiple of 64");
        }
        if !problems.is_empty() {
            return self.refuse(INVALID_VALUE, format!("cuTensorMapEncodeTiled of {encoding:?} needs {problems:?}"));
        }
        let made = emulator::TensorMap::new(&encoding.tiling());
        made.or_else(|problem| self.refuse(INVALID_VALUE, format!("cuTensorMapEncodeTiled: {problem}")))
    }
}
