//! A GPU of the tests: kernels by the emulator, under all its schedules; matrix products by the CPU, in f32.

// Every test uses a part of it.
#![allow(dead_code)]

use half::bf16;
use kernel_emulator::{self as emulator, Buffer, Fault, Schedule};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use uncouple::device::cpu::{Mat, Product};
use uncouple::device::{Arg, Chip, Driver, Dtype, Error, Gpu, Launch, Matmul, Operand, Result, TensorMap, Tiling};

/// A fresh device.
pub fn gpu() -> Gpu {
    Gpu::new(Emulated(Mutex::default()))
}

/// One that runs each kernel under one schedule: for whole models, whose kernels have been run under all of them.
pub fn quick_gpu() -> Gpu {
    Gpu::new(Emulated(Mutex::new(State { quick: true, ..State::default() })))
}

/// One on which a kernel does nothing, and each of the others runs under one schedule.
#[allow(dead_code)] // by some of the tests
pub fn gpu_without(kernel: &str) -> Gpu {
    Gpu::new(Emulated(Mutex::new(State { idle: kernel.into(), quick: true, ..State::default() })))
}

/// As [`quick_gpu`], and what tells the most bytes that it held at once.
pub fn metered_gpu() -> (Gpu, Arc<AtomicUsize>) {
    let meter = Arc::new(AtomicUsize::new(0));
    let state = State { quick: true, most: meter.clone(), ..State::default() };
    (Gpu::new(Emulated(Mutex::new(state))), meter)
}

struct Emulated(Mutex<State>);

#[derive(Default)]
struct State {
    /// By their first address. Guard zones keep them apart.
    buffers: BTreeMap<u64, Buffer>,
    /// What is captured now.
    capturing: Option<Vec<Command>>,
    graphs: BTreeMap<u64, Vec<Command>>,
    next_graph: u64,
    /// The kernel that does nothing.
    idle: String,
    /// One schedule is enough.
    quick: bool,
    /// Bytes in buffers, and the most that ever were.
    held: usize,
    most: Arc<AtomicUsize>,
}

#[derive(Clone)]
enum Command {
    Zero { to: u64, bytes: usize },
    Copy { from: u64, to: u64, bytes: usize },
    Launch { kernel: String, grid: [u32; 3], block: [u32; 3], shared: u32, args: Vec<Arg> },
    Matmul(Matmul),
}

impl State {
    /// The buffer that holds these bytes, and where in it they start.
    fn find(&self, address: u64, bytes: usize) -> Result<(&Buffer, usize)> {
        let outside = || Error::Call { what: "find memory", problem: format!("{bytes} bytes at {address:#x}") };
        let (start, buffer) = self.buffers.range(..=address).next_back().ok_or_else(outside)?;
        let offset = (address - start) as usize;
        if offset + bytes <= buffer.size() { Ok((buffer, offset)) } else { Err(outside()) }
    }

    fn read(&self, from: u64, to: &mut [u8]) -> Result<()> {
        let (buffer, offset) = self.find(from, to.len())?;
        buffer.read_at(offset, to).map_err(|f| Error::Call { what: "read memory", problem: f.to_string() })
    }

    fn write(&self, from: &[u8], to: u64) -> Result<()> {
        let (buffer, offset) = self.find(to, from.len())?;
        buffer.write_at(offset, from);
        Ok(())
    }

    /// Does it, or notes it.
    fn ask(&mut self, command: Command) -> Result<()> {
        match &mut self.capturing {
            Some(captured) => {
                captured.push(command);
                Ok(())
            }
            None => self.run(&command),
        }
    }

    fn run(&self, command: &Command) -> Result<()> {
        match command {
            Command::Zero { to, bytes } => self.write(&vec![0; *bytes], *to),
            Command::Copy { from, to, bytes } => {
                let mut data = vec![0; *bytes];
                self.read(*from, &mut data)?;
                self.write(&data, *to)
            }
            Command::Launch { kernel, .. } if *kernel == self.idle => Ok(()),
            Command::Launch { kernel, grid, block, shared, args } => {
                let failed = |fault: Fault| Error::Launch {
                    kernel: kernel.clone(),
                    grid: *grid,
                    block: *block,
                    shared: *shared,
                    problem: fault.to_string(),
                };
                let args = args.iter().map(|arg| self.argument(arg)).collect::<Result<Vec<_>>>()?;
                let (grid, block) = (emulator::Dim(*grid), emulator::Dim(*block));
                let shared = *shared as usize;
                match self.quick {
                    true => emulator::launch_under(Schedule::Random(1), kernel, grid, block, shared, &args),
                    false => emulator::launch(kernel, grid, block, shared, &args),
                }
                .map_err(failed)
            }
            Command::Matmul(product) => self.matmul(product),
        }
    }

    fn argument(&self, arg: &Arg) -> Result<emulator::Arg<'_>> {
        Ok(match arg {
            &Arg::NULL => emulator::Arg::Null,
            Arg::Address(address) => {
                let (buffer, offset) = self.find(*address, 0)?;
                emulator::Arg::Inside(buffer, offset)
            }
            Arg::Map(TensorMap(words)) => {
                let map: emulator::TensorMap = bytemuck::cast(*words);
                emulator::Arg::Map(self.find(map.address(), 0)?.0, map)
            }
            Arg::Scalar { words, bytes } => {
                emulator::Arg::Scalar(bytemuck::cast_slice::<u64, u8>(words)[..*bytes].to_vec())
            }
        })
    }

    /// A `[rows, columns]` matrix as stored, of batch number `i`.
    fn matrix(&self, of: Operand, i: usize, rows: usize, columns: usize) -> Result<Vec<f32>> {
        let address = of.address + (i * of.batch_stride * of.dtype.bytes()) as u64;
        let mut bytes = vec![0; rows.saturating_sub(1) * of.stride * of.dtype.bytes() + columns * of.dtype.bytes()];
        self.read(address, &mut bytes)?;
        Ok(widen(of.dtype, &bytes))
    }

    fn matmul(&self, product: &Matmul) -> Result<()> {
        let Matmul { m, n, k, batch, alpha, beta, a, b, c, bias } = *product;
        assert!(a.dtype == b.dtype && !c.transposed, "a product that cuBLASLt does not have");
        let stored = |of: Operand, i, rows, columns| match of.transposed {
            true => self.matrix(of, i, columns, rows),
            false => self.matrix(of, i, rows, columns),
        };
        for i in 0..batch {
            let (a_data, b_data) = (stored(a, i, m, k)?, stored(b, i, k, n)?);
            let view = |of: Operand, data| match of.transposed {
                true => Mat::transposed(data, of.stride),
                false => Mat::rows(data, of.stride),
            };
            let mut sums = vec![0.0; m * n];
            Product::new(Dtype::F32, (m, n, k)).alpha(alpha).run(&mut sums, n, view(a, &a_data), view(b, &b_data));
            if let Some(address) = bias {
                let mut bytes = vec![0; n * c.dtype.bytes()];
                self.read(address, &mut bytes)?;
                let bias = widen(c.dtype, &bytes);
                sums.chunks_mut(n).for_each(|row| row.iter_mut().zip(&bias).for_each(|(c, b)| *c += b));
            }
            for (row, sums) in sums.chunks_mut(n).enumerate() {
                let at = c.address + ((i * c.batch_stride + row * c.stride) * c.dtype.bytes()) as u64;
                if beta != 0.0 {
                    let mut bytes = vec![0; n * c.dtype.bytes()];
                    self.read(at, &mut bytes)?;
                    sums.iter_mut().zip(widen(c.dtype, &bytes)).for_each(|(c, old)| *c += beta * old);
                }
                self.write(&narrow(c.dtype, sums), at)?;
            }
        }
        Ok(())
    }
}

fn widen(dtype: Dtype, bytes: &[u8]) -> Vec<f32> {
    match dtype {
        Dtype::Bf16 => bytes.chunks(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
        Dtype::F32 => bytes.chunks(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
    }
}

fn narrow(dtype: Dtype, values: &[f32]) -> Vec<u8> {
    match dtype {
        Dtype::Bf16 => values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect(),
        Dtype::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
    }
}

impl Emulated {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Driver for Emulated {
    fn describe(&self) -> String {
        "the emulated device".into()
    }

    fn alloc(&self, bytes: usize) -> Result<u64> {
        let buffer = Buffer::poisoned::<u8>(bytes);
        let address = buffer.address() as u64;
        let mut state = self.state();
        state.held += bytes;
        state.most.fetch_max(state.held, Ordering::Relaxed);
        state.buffers.insert(address, buffer);
        Ok(address)
    }

    fn free(&self, address: u64) {
        let mut state = self.state();
        let freed = state.buffers.remove(&address).expect("memory that was freed was allocated");
        state.held -= freed.size();
    }

    fn free_bytes(&self) -> usize {
        usize::MAX
    }

    fn zero(&self, to: u64, bytes: usize) -> Result<()> {
        self.state().ask(Command::Zero { to, bytes })
    }

    fn upload(&self, from: &[u8], to: u64) -> Result<()> {
        let state = self.state();
        assert!(state.capturing.is_none(), "an upload cannot be captured");
        state.write(from, to)
    }

    fn download(&self, from: u64, to: &mut [u8]) -> Result<()> {
        let state = self.state();
        assert!(state.capturing.is_none(), "a download cannot be captured");
        state.read(from, to)
    }

    fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<()> {
        self.state().ask(Command::Copy { from, to, bytes })
    }

    // Its clock is for the tests of what is computed from times.
    fn chip(&self) -> Chip {
        Chip { compute_capability: (9, 0), multiprocessors: 3, shared_memory: 227 << 10, simulated: false }
    }

    fn tensor_map(&self, tiling: &Tiling) -> Result<TensorMap> {
        let Tiling { address, rows, columns, box_rows } = *tiling;
        let map = emulator::TensorMap::new(&emulator::Tiling {
            address: address as usize,
            element_bytes: 2,
            sizes: vec![columns, rows],
            strides: vec![2 * columns],
            tile: vec![Tiling::BOX_COLUMNS as usize, box_rows as usize],
            swizzle: emulator::Swizzle::B128,
        });
        let refused = |problem| Error::Call { what: "make a tensor map", problem };
        map.map(|map| TensorMap(bytemuck::cast(map))).map_err(refused)
    }

    fn launch(&self, launch: &Launch) -> Result<()> {
        let Launch { kernel, grid, block, shared, args } = launch.clone();
        self.state().ask(Command::Launch { kernel: kernel.into(), grid, block, shared, args: args.into() })
    }

    fn matmul(&self, product: &Matmul) -> Result<()> {
        self.state().ask(Command::Matmul(*product))
    }

    fn synchronize(&self) -> Result<()> {
        Ok(())
    }

    fn timed(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<Duration> {
        let began = Instant::now();
        work()?;
        Ok(began.elapsed())
    }

    fn capture(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<u64> {
        self.state().capturing = Some(Vec::new());
        let done = work();
        let mut state = self.state();
        let captured = state.capturing.take().unwrap_or_default();
        done?;
        let number = state.next_graph;
        state.next_graph += 1;
        state.graphs.insert(number, captured);
        Ok(number)
    }

    fn replay(&self, graph: u64) -> Result<()> {
        let state = self.state();
        let missing = || Error::Call { what: "replay a graph", problem: format!("there is no graph {graph}") };
        state.graphs.get(&graph).ok_or_else(missing)?.iter().try_for_each(|command| state.run(command))
    }

    fn forget(&self, graph: u64) {
        self.state().graphs.remove(&graph);
    }
}
