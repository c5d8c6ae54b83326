//! Launches: arguments checked as no driver does, every schedule run, memory inspected.

use crate::block::Runner;
use crate::kernel::{self, Kernel, Parameter};
use crate::{Buffer, Fault, TensorMap};
use bytemuck::Zeroable;
use std::ffi::c_void;
use std::ops::Range;

/// In which order threads that could run, do; the blocks of a grid likewise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Schedule {
    /// The lowest first.
    Forward,
    /// The highest first.
    Reverse,
    /// Any, by seed.
    Random(u64),
    /// The lowest first, but whoever a phase of an mbarrier wakes runs at once; copies happen at once.
    Prompt,
}

/// What [`launch`] runs.
const SCHEDULES: [Schedule; 5] =
    [Schedule::Forward, Schedule::Reverse, Schedule::Random(1), Schedule::Random(2), Schedule::Prompt];

impl Schedule {
    /// Whether asynchronous copies happen at once.
    pub(crate) fn copies_at_once(self) -> bool {
        matches!(self, Schedule::Reverse | Schedule::Prompt)
    }
}

/// Extents of a grid or a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dim(pub [u32; 3]);

impl From<u32> for Dim {
    fn from(x: u32) -> Dim {
        Dim([x, 1, 1])
    }
}

impl From<(u32, u32)> for Dim {
    fn from((x, y): (u32, u32)) -> Dim {
        Dim([x, y, 1])
    }
}

impl Dim {
    pub(crate) fn count(self) -> usize {
        self.0.iter().map(|&n| n as usize).product()
    }

    /// Coordinates of a linear index.
    pub(crate) fn at(self, linear: usize) -> [u32; 3] {
        let [x, y, _] = self.0.map(|n| n as usize);
        [(linear % x) as u32, (linear / x % y) as u32, (linear / x / y) as u32]
    }
}

/// A kernel's argument.
#[derive(Clone)]
pub enum Arg<'a> {
    Buffer(&'a Buffer),
    /// From so many bytes into the buffer on.
    Inside(&'a Buffer, usize),
    Null,
    Scalar(Vec<u8>),
    /// Of a tensor in this buffer.
    Map(&'a Buffer, TensorMap),
}

impl<'a> Arg<'a> {
    fn buffer(&self) -> Option<&'a Buffer> {
        match self {
            Arg::Buffer(buffer) | Arg::Inside(buffer, _) | Arg::Map(buffer, _) => Some(buffer),
            Arg::Null | Arg::Scalar(_) => None,
        }
    }
}

impl<'a> From<&'a Buffer> for Arg<'a> {
    fn from(buffer: &'a Buffer) -> Arg<'a> {
        Arg::Buffer(buffer)
    }
}

impl<T: bytemuck::Pod> From<T> for Arg<'_> {
    fn from(scalar: T) -> Self {
        Arg::Scalar(bytemuck::bytes_of(&scalar).to_vec())
    }
}

/// The arguments of a launch: buffers by reference, scalars (and plain structs) by value.
#[macro_export]
macro_rules! args {
    ($($arg:expr),* $(,)?) => { &[$($crate::Arg::from($arg)),*] };
}

/// The names of all kernels.
pub fn kernels() -> Vec<&'static str> {
    kernel::all().map(Kernel::name).collect()
}

/// Launches under every schedule, from the same contents of the buffers; the results must agree bit for bit.
pub fn launch(
    kernel: &str,
    grid: impl Into<Dim>,
    block: impl Into<Dim>,
    shared: usize,
    args: &[Arg],
) -> Result<(), Fault> {
    let (grid, block) = (grid.into(), block.into());
    let buffers: Vec<(usize, &Buffer)> = args.iter().enumerate().filter_map(|(i, a)| Some((i, a.buffer()?))).collect();
    let contents = || -> Vec<Vec<u8>> { buffers.iter().map(|(_, b)| b.snapshot()).collect() };
    let before = contents();
    launch_under(SCHEDULES[0], kernel, grid, block, shared, args)?;
    let after = contents();
    for second in &SCHEDULES[1..] {
        buffers.iter().zip(&before).for_each(|((_, b), data)| b.restore(data));
        launch_under(*second, kernel, grid, block, shared, args)?;
        for ((argument, buffer), first) in buffers.iter().zip(&after) {
            if let Some(byte) = buffer.snapshot().iter().zip(first).position(|(a, b)| a != b) {
                let kernel = find(kernel)?.name();
                let (argument, first, second) = (*argument, SCHEDULES[0], *second);
                return Err(Fault::Race { kernel, argument, byte, first, second });
            }
        }
    }
    Ok(())
}

/// Launches under one schedule.
pub fn launch_under(
    schedule: Schedule,
    kernel: &str,
    grid: impl Into<Dim>,
    block: impl Into<Dim>,
    shared: usize,
    args: &[Arg],
) -> Result<(), Fault> {
    let (kernel, grid, block) = (find(kernel)?, grid.into(), block.into());
    let wrong = |problem: String| Err(Fault::Arguments { kernel: kernel.name(), problem });
    if !(1..=1024).contains(&block.count()) || grid.count() == 0 || grid.0[1] > 65535 || grid.0[2] > 65535 {
        return wrong(format!("a grid of {:?} blocks of {:?} threads cannot be launched", grid.0, block.0));
    }
    if args.len() != kernel.parameters().len() {
        return wrong(format!("takes {} arguments, was given {}", kernel.parameters().len(), args.len()));
    }
    let mut values = Vec::new();
    for (i, (arg, parameter)) in args.iter().zip(kernel.parameters()).enumerate() {
        let bytes = match arg {
            Arg::Buffer(buffer) => (buffer.data() as usize).to_ne_bytes().to_vec(),
            Arg::Inside(buffer, offset) => (buffer.data() as usize + offset).to_ne_bytes().to_vec(),
            Arg::Null => 0usize.to_ne_bytes().to_vec(),
            Arg::Scalar(bytes) => bytes.clone(),
            Arg::Map(_, map) => bytemuck::bytes_of(map).to_vec(),
        };
        if parameter.is_pointer() == matches!(arg, Arg::Scalar(_) | Arg::Map(..)) {
            return wrong(format!(
                "argument {i} should {}be a buffer",
                if parameter.is_pointer() { "" } else { "not " }
            ));
        }
        if bytes.len() != parameter.bytes() {
            return wrong(format!("argument {i} has {} bytes, should have {}", bytes.len(), parameter.bytes()));
        }
        values.push(aligned(&bytes));
    }
    let pointers: Vec<*mut c_void> = values.iter_mut().map(|v| v.as_mut_ptr().cast()).collect();
    let buffers = || args.iter().enumerate().filter_map(|(i, a)| Some((i, a.buffer()?)));
    let memory = buffers().map(|(_, b)| b.addresses()).collect();
    Runner::new(kernel, &pointers, memory, grid, block, shared, schedule).run()?;
    match buffers().find_map(|(argument, b)| b.damage().map(|found| (argument, found))) {
        Some((argument, (bytes, side))) => Err(Fault::Guard { kernel: kernel.name(), argument, bytes, side }),
        None => Ok(()),
    }
}

/// What a kernel takes; `None` where no kernel has this name.
pub fn parameters(kernel: &str) -> Option<&'static [Parameter]> {
    Some(find(kernel).ok()?.parameters())
}

/// Launches under one schedule, as a driver does: each parameter by its bytes, which may be addresses within `memory`.
pub fn launch_raw(
    schedule: Schedule,
    kernel: &str,
    grid: Dim,
    block: Dim,
    shared: usize,
    parameters: &[Vec<u8>],
    memory: Vec<Range<usize>>,
) -> Result<(), Fault> {
    let kernel = find(kernel)?;
    let mut values: Vec<_> = parameters.iter().map(|bytes| aligned(bytes)).collect();
    let pointers: Vec<*mut c_void> = values.iter_mut().map(|v| v.as_mut_ptr().cast()).collect();
    Runner::new(kernel, &pointers, memory, grid, block, shared, schedule).run()
}

/// A parameter's bytes, aligned as tensor maps are.
fn aligned(bytes: &[u8]) -> Vec<TensorMap> {
    let mut words = vec![TensorMap::zeroed(); bytes.len().div_ceil(size_of::<TensorMap>())];
    bytemuck::cast_slice_mut::<TensorMap, u8>(&mut words)[..bytes.len()].copy_from_slice(bytes);
    words
}

fn find(name: &str) -> Result<&'static Kernel, Fault> {
    kernel::find(name).ok_or_else(|| Fault::UnknownKernel(name.to_string()))
}
