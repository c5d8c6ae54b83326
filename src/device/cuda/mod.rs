//! An NVIDIA GPU through its driver, loaded at run time: this file compiles, and says politely what is missing, without one.
//!
//! One context, one stream, one arena. Nothing of CUDA's is called before the library was seen to be there, since a missing one
//! would end the program.

mod fault;
mod handles;
mod matmul;
mod modules;
mod probe;
mod staging;

pub use matmul::find_cublaslt;
pub use probe::{describe, first_chip};

use super::arena::padded;
use super::kernels::MODULES;
use super::{Arena, Arg, Chip, Driver, Error, Launch, Matmul, Result, TensorMap, Tiling};
use cudarc::cublaslt::result::CublasError;
use cudarc::driver::result::{self, event, graph, mem_get_info, stream};
use cudarc::driver::sys;
use fault::{Launched, call, problem};
use handles::{Context, Event, Executable, Memory, Stream};
use matmul::CublasLt;
use modules::Modules;
use staging::Staging;
use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What kernels/driver calls itself.
const SIMULATED: &str = "Software GPU";
/// Left to CUDA itself, beside the arena.
const RESERVE: usize = 512 << 20;

/// A GPU.
pub struct Cuda {
    name: String,
    chip: Chip,
    // Dropped in this order.
    state: Mutex<State>,
    memory: Memory,
    stream: Stream,
    context: Context,
}

// SAFETY: the driver's handles may be used from any thread that has made the context current, which every method does first.
unsafe impl Send for Cuda {}
unsafe impl Sync for Cuda {}

struct State {
    arena: Arena,
    staging: Staging,
    graphs: HashMap<u64, Executable>,
    next_graph: u64,
    /// Loaded at the first product.
    cublas: Option<CublasLt>,
    modules: Modules,
    launched: Launched,
    /// Whether what is launched goes to a graph, and does not run.
    captures: bool,
}

impl Cuda {
    /// The first GPU that CUDA_VISIBLE_DEVICES leaves, with an arena of `bytes`, or of all that is free but half a GiB.
    ///
    /// # Errors
    /// If there is no driver, GPU, kernel or cuBLASLt that fits, or too little memory is free.
    pub fn open(bytes: Option<usize>) -> Result<Cuda> {
        if MODULES.is_empty() {
            return Err(Error::NoKernels);
        }
        let device = probe::first_device()?;
        let name = probe::name(device)?;
        let chip = probe::chip(device, &name)?;
        let context = Context::retain(device)?;
        let stream = Stream::new()?;
        let staging = Staging::new()?;
        let bytes = match bytes {
            Some(bytes) => bytes,
            None => call("tell its free memory", mem_get_info())?.0.saturating_sub(RESERVE),
        };
        let memory = Memory::new(bytes)?;
        let state = State {
            arena: Arena::new(bytes),
            staging,
            graphs: HashMap::new(),
            next_graph: 0,
            cublas: None,
            modules: Modules::default(),
            launched: Launched::default(),
            captures: false,
        };
        Ok(Cuda { name, chip, state: Mutex::new(state), memory, stream, context })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A poisoned lock is one whose holder panicked: between two calls of the driver, so the state is whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the context this thread's, and this thread the only one.
    fn enter(&self) -> Result<MutexGuard<'_, State>> {
        let state = self.state();
        self.context.make_current()?;
        Ok(state)
    }

    fn record(&self) -> Result<Event> {
        let state = self.enter()?;
        let event = Event::timing()?;
        // SAFETY: both live.
        state.launched.check("record an event", unsafe { event::record(event.0, self.stream.0) })?;
        Ok(event)
    }
}

impl Drop for Cuda {
    fn drop(&mut self) {
        // What is freed now is in use until the stream is idle. A failure was seen before, or harms nobody any more.
        if let Ok(state) = self.enter() {
            // SAFETY: the stream lives.
            let _ = unsafe { stream::synchronize(self.stream.0) };
            drop(state);
        }
    }
}

// SAFETY of the calls below: the context is current, the stream and whatever was loaded live until `drop`, addresses and sizes
// are the caller's promise (see `Driver`).
impl Driver for Cuda {
    fn describe(&self) -> String {
        let total = self.state().arena.total();
        format!("{}, {:.1} GiB for this program", self.name, total as f64 / f64::from(1 << 30))
    }

    fn alloc(&self, bytes: usize) -> Result<u64> {
        Ok(self.memory.0 + self.state().arena.alloc(bytes)? as u64)
    }

    fn alloc_all(&self, bytes: &[usize]) -> Result<Vec<u64>> {
        let offsets = self.state().arena.alloc_all(bytes)?;
        Ok(offsets.into_iter().map(|offset| self.memory.0 + offset as u64).collect())
    }

    fn free(&self, address: u64) {
        self.state().arena.free((address - self.memory.0) as usize);
    }

    fn free_bytes(&self) -> usize {
        self.state().arena.free_bytes()
    }

    fn zero(&self, to: u64, bytes: usize) -> Result<()> {
        let state = self.enter()?;
        state.launched.check("zero memory", unsafe { result::memset_d8_async(to, 0, bytes, self.stream.0) })
    }

    fn upload(&self, from: &[u8], to: u64) -> Result<()> {
        let State { staging, launched, .. } = &mut *self.enter()?;
        staging.upload(from, to, &self.stream, launched)
    }

    fn upload_all(&self, pieces: &[(&[u8], u64)]) -> Result<()> {
        let mut rest = pieces;
        while let [(first, start), others @ ..] = rest {
            let mut packed = first.to_vec();
            rest = others;
            while let [(from, to), after @ ..] = rest
                && *to == start + padded(packed.len()) as u64
            {
                // What lies between two is padding of the first, and nobody's.
                packed.resize((to - start) as usize, 0);
                packed.extend_from_slice(from);
                rest = after;
            }
            self.upload(&packed, *start)?;
        }
        Ok(())
    }

    fn download(&self, from: u64, to: &mut [u8]) -> Result<()> {
        let State { staging, launched, .. } = &mut *self.enter()?;
        staging.download(from, to, &self.stream, launched)
    }

    fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<()> {
        let state = self.enter()?;
        state.launched.check("copy memory", unsafe { result::memcpy_dtod_async(to, from, bytes, self.stream.0) })
    }

    fn chip(&self) -> Chip {
        self.chip
    }

    fn tensor_map(&self, tiling: &Tiling) -> Result<TensorMap> {
        let Tiling { address, rows, columns, box_rows } = *tiling;
        let mut map = sys::CUtensorMap { opaque: [0; 16] };
        let made = unsafe {
            sys::cuTensorMapEncodeTiled(
                &mut map,
                sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                2,
                address as *mut c_void,
                [columns as u64, rows as u64].as_ptr(),
                [2 * columns as u64].as_ptr(),
                [Tiling::BOX_COLUMNS, box_rows].as_ptr(),
                [1, 1].as_ptr(),
                sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
                sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        };
        let what = "make a tensor map";
        let failed = |e| Error::Call { what, problem: format!("{} ({tiling:?})", problem(e)) };
        made.result().map(|()| TensorMap(map.opaque)).map_err(failed)
    }

    fn launch(&self, launch: &Launch) -> Result<()> {
        let State { modules, launched, .. } = &mut *self.enter()?;
        let function = modules.function(&self.name, launch.kernel, launch.shared, launched)?;
        // CUDA reads as many bytes as the kernel's parameter has.
        let value = |arg: &Arg| -> *mut c_void {
            match arg {
                Arg::Address(address) => (&raw const *address).cast_mut().cast(),
                Arg::Scalar { words, .. } => words.as_ptr().cast_mut().cast(),
                Arg::Map(map) => map.0.as_ptr().cast_mut().cast(),
            }
        };
        let mut pointers: Vec<*mut c_void> = launch.args.iter().map(value).collect();
        let triple = |[x, y, z]: [u32; 3]| (x, y, z);
        let (grid, block, stream) = (triple(launch.grid), triple(launch.block), self.stream.0);
        let (kernel, shared) = (launch.kernel.to_string(), launch.shared);
        let this = Error::Launch { kernel, grid: launch.grid, block: launch.block, shared, problem: String::new() };
        launched.note(this.clone());
        let done = unsafe { result::launch_kernel(function, grid, block, shared, stream, &mut pointers) };
        done.map_err(|e| match fault::is_of_a_kernel(e) {
            true => launched.blame("launch it", e),
            false => this.with_problem(problem(e)),
        })
    }

    fn matmul(&self, product: &Matmul) -> Result<()> {
        let State { arena, cublas, launched, captures, .. } = &mut *self.enter()?;
        let cublas = match cublas {
            Some(cublas) => cublas,
            None => {
                let opened = CublasLt::open(self.memory.0 + arena.alloc(CublasLt::WORKSPACE)? as u64)?;
                cublas.insert(opened)
            }
        };
        let this = Error::Matmul { sizes: product.sizes(), problem: String::new() };
        launched.note(this.clone());
        // What cuBLASLt calls a failure of its own may be that of a launch before. While a graph is captured nothing runs, nor may be
        // waited for.
        let wait = || if *captures { Ok(()) } else { unsafe { stream::synchronize(self.stream.0) } };
        let mend = |e: CublasError| match wait() {
            Err(fault) if fault::is_of_a_kernel(fault) => launched.blame("multiply matrices", fault),
            _ => this.with_problem(e.to_string()),
        };
        cublas.matmul(product, self.stream.0).map_err(mend)
    }

    fn synchronize(&self) -> Result<()> {
        let State { staging, launched, .. } = &mut *self.enter()?;
        staging.synchronize(&self.stream, launched)
    }

    fn timed(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<Duration> {
        let begin = self.record()?;
        work()?;
        let end = self.record()?;
        let State { staging, launched, .. } = &mut *self.enter()?;
        staging.synchronize(&self.stream, launched)?;
        let milliseconds = launched.check("read the time", unsafe { event::elapsed(begin.0, end.0) })?;
        Ok(Duration::from_secs_f64(f64::from(milliseconds) / 1e3))
    }

    fn capture(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<u64> {
        // Strict: whatever would load a module or allocate was to be done once before.
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        let begin = || {
            let mut state = self.enter()?;
            let begun = unsafe { stream::begin_capture(self.stream.0, mode) };
            state.captures = begun.is_ok();
            state.launched.check("begin a graph", begun)
        };
        begin()?;
        let done = work();
        self.state().captures = false;
        let entered = self.enter();
        // Ended in any case, or the stream stays unusable; and prepared in any case, for that frees what was captured.
        let captured = unsafe { stream::end_capture(self.stream.0) };
        let mut state = entered.inspect_err(|_| drop(captured.map(Executable::new)))?;
        let ready = state.launched.check("end a graph", captured).and_then(Executable::new);
        done?;
        let number = state.next_graph;
        state.graphs.insert(number, ready?);
        state.next_graph += 1;
        Ok(number)
    }

    fn replay(&self, graph: u64) -> Result<()> {
        let state = self.enter()?;
        let missing = || Error::Call { what: "replay a graph", problem: format!("there is no graph {graph}") };
        let ready = state.graphs.get(&graph).ok_or_else(missing)?;
        state.launched.check("replay a graph", unsafe { graph::launch(ready.0, self.stream.0) })
    }

    fn forget(&self, graph: u64) {
        // Nothing can be done about a failure, nor does it harm: the context's end frees the rest.
        if let Ok(mut state) = self.enter() {
            state.graphs.remove(&graph);
        }
    }
}
