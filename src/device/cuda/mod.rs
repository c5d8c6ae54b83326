//! An NVIDIA GPU through its driver, loaded at run time: this file compiles, and says politely what is missing, without one.
//!
//! One context, one stream, one arena. Nothing of CUDA's is called before the library was seen to be there, since a missing one
//! would end the program.

mod matmul;
mod staging;

use super::kernels::{self, MODULES};
use super::{Arena, Arg, Chip, Driver, Error, Launch, Matmul, Result, TensorMap, Tiling};
use cudarc::driver::DriverError;
use cudarc::driver::result::{self, ctx, device, event, function, graph, module, primary_ctx, stream};
use cudarc::driver::sys;
use matmul::CublasLt;
use staging::Staging;
use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The CUDA release that the kernels are built with: a driver that is older cannot load them.
const NEEDED: i32 = 13000;
/// Dynamic shared memory that a kernel may use without asking.
const SHARED: u32 = 48 << 10;
/// Left to CUDA itself, beside the arena.
const RESERVE: usize = 512 << 20;

/// A GPU.
pub struct Cuda {
    device: sys::CUdevice,
    context: sys::CUcontext,
    stream: sys::CUstream,
    name: String,
    chip: Chip,
    memory: u64,
    state: Mutex<State>,
}

// SAFETY: the driver's handles may be used from any thread that has made the context current, which every method does first.
unsafe impl Send for Cuda {}
unsafe impl Sync for Cuda {}

struct State {
    arena: Arena,
    staging: Staging,
    modules: HashMap<&'static str, sys::CUmodule>,
    functions: HashMap<String, Function>,
    /// Loaded at the first product.
    cublas: Option<CublasLt>,
    graphs: HashMap<u64, sys::CUgraphExec>,
    next_graph: u64,
    /// For errors that show up later.
    last: Option<Error>,
}

struct Function {
    handle: sys::CUfunction,
    /// Dynamic shared memory that it may use.
    shared: u32,
}

fn call<T>(what: &'static str, result: Result<T, DriverError>) -> Result<T> {
    result.map_err(|e| Error::Call { what, problem: problem(e) })
}

/// CUDA's words for an error.
fn problem(error: DriverError) -> String {
    let text = error.error_string().map(|text| text.to_string_lossy().into_owned());
    text.unwrap_or_else(|_| format!("error {}", error.0 as u32))
}

impl Cuda {
    /// The first GPU that CUDA_VISIBLE_DEVICES leaves, with an arena of `bytes`, or of all that is free but half a GiB.
    pub fn open(bytes: Option<usize>) -> Result<Cuda> {
        if MODULES.is_empty() {
            return Err(Error::NoKernels);
        }
        let device = first_device()?;
        let name = call("tell its name", device::get_name(device))?;
        // SAFETY: the device is one that the driver named; the context lives until `drop`.
        let context = call("give a context", unsafe { primary_ctx::retain(device) })?;
        Cuda::with_context(device, context, name, bytes).inspect_err(|_| {
            // SAFETY: retained above, and nobody has it.
            let _ = unsafe { primary_ctx::release(device) };
        })
    }

    fn with_context(
        device: sys::CUdevice,
        context: sys::CUcontext,
        name: String,
        bytes: Option<usize>,
    ) -> Result<Cuda> {
        // SAFETY: a context just retained; memory of the sizes that the calls are told.
        unsafe {
            call("take a context", ctx::set_current(context))?;
            let (free, total) = call("tell its free memory", result::mem_get_info())?;
            let bytes = bytes.unwrap_or(free.saturating_sub(RESERVE));
            let out_of_memory = |_| Error::OutOfMemory { asked: bytes, free, largest: free, total };
            let stream = call("make a stream", stream::create(stream::StreamKind::NonBlocking))?;
            let staging = Staging::new()?;
            let chip = chip(device)?;
            let memory = result::malloc_sync(bytes).map_err(out_of_memory)?;
            let state = State {
                arena: Arena::new(bytes),
                staging,
                modules: HashMap::new(),
                functions: HashMap::new(),
                cublas: None,
                graphs: HashMap::new(),
                next_graph: 0,
                last: None,
            };
            Ok(Cuda { device, context, stream, name, chip, memory, state: Mutex::new(state) })
        }
    }

    /// Makes the context this thread's, and this thread the only one.
    fn enter(&self) -> Result<MutexGuard<'_, State>> {
        // A poisoned lock is one whose holder panicked: between two calls of the driver, so the state is whole.
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: retained until `drop`.
        call("take a context", unsafe { ctx::set_current(self.context) })?;
        Ok(state)
    }

    /// Of a problem that came to light: the launch that may have caused it.
    fn blame(&self, state: &State, what: &'static str, error: DriverError) -> Error {
        match &state.last {
            Some(Error::Launch { kernel, grid, block, shared, .. }) => Error::Launch {
                kernel: kernel.clone(),
                grid: *grid,
                block: *block,
                shared: *shared,
                problem: format!("{} (this or an earlier launch; seen on the attempt to {what})", problem(error)),
            },
            _ => Error::Call { what, problem: problem(error) },
        }
    }

    fn wait(&self, state: &State) -> Result<()> {
        // SAFETY: the stream lives until `drop`.
        unsafe { stream::synchronize(self.stream) }.map_err(|e| self.blame(state, "finish", e))
    }
}

impl State {
    /// The kernel of this name, its module loaded if it was not, allowed so much dynamic shared memory.
    fn function(&mut self, gpu: &str, kernel: &str, shared: u32) -> Result<sys::CUfunction, Error> {
        let unknown = || Error::UnknownKernel(kernel.to_string());
        if !self.functions.contains_key(kernel) {
            let of = kernels::module_of(kernel).ok_or_else(unknown)?;
            let module = match self.modules.get(of.name) {
                Some(module) => *module,
                None => {
                    // A fat binary is read in words of 8 bytes; the bytes in this program lie anywhere.
                    let mut image = vec![0u64; of.image.len().div_ceil(8)];
                    bytemuck::cast_slice_mut::<u64, u8>(&mut image)[..of.image.len()].copy_from_slice(of.image);
                    // SAFETY: the image is a fat binary of nvcc's, whole; CUDA keeps a copy.
                    let loaded = unsafe { module::load_data(image.as_ptr().cast()) }.map_err(|e| match e.0 {
                        sys::CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU => {
                            Error::NoImage { module: of.name, gpu: gpu.to_string() }
                        }
                        _ => Error::Call { what: "load kernels", problem: format!("{}: {}", of.name, problem(e)) },
                    })?;
                    self.modules.insert(of.name, loaded);
                    loaded
                }
            };
            let name = CString::new(kernel).map_err(|_| unknown())?;
            // SAFETY: the module is loaded and never unloaded before `drop`.
            let handle = unsafe { module::get_function(module, name) }.map_err(|_| unknown())?;
            self.functions.insert(kernel.to_string(), Function { handle, shared: SHARED });
        }
        let function = self.functions.get_mut(kernel).ok_or_else(unknown)?;
        if shared > function.shared {
            let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: a function of a loaded module.
            let set = unsafe { function::set_function_attribute(function.handle, attribute, shared as i32) };
            call("give a kernel more shared memory", set)?;
            function.shared = shared;
        }
        Ok(function.handle)
    }
}

/// What `doctor` says: the GPU's name and memory, and the driver's release.
pub fn describe() -> Result<String> {
    let device = first_device()?;
    // SAFETY: the device is one that the driver named.
    let bytes = call("tell its memory", unsafe { device::total_mem(device) })?;
    let name = call("tell its name", device::get_name(device))?;
    let version = driver_version()?;
    Ok(format!("{name}, {} GiB, driver for CUDA {}.{}", bytes >> 30, version / 1000, version % 1000 / 10))
}

fn chip(of: sys::CUdevice) -> Result<Chip> {
    use sys::CUdevice_attribute as Attribute;
    // SAFETY: the device is one that the driver named.
    let ask = |what| call("tell its kind", unsafe { device::get_attribute(of, what) }).map(|n| n as u32);
    Ok(Chip {
        compute_capability: (
            ask(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            ask(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ),
        multiprocessors: ask(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
    })
}

/// Initialises the driver. Every way into CUDA starts here.
fn first_device() -> Result<sys::CUdevice> {
    // SAFETY: only opens the library.
    if !unsafe { sys::is_culib_present() } {
        return Err(Error::NoDriver);
    }
    // Before anything else: an older driver lacks functions whose absence would end the program.
    let found = driver_version()?;
    if found < NEEDED {
        return Err(Error::DriverTooOld { found });
    }
    match result::init() {
        Err(e) if e.0 == sys::CUresult::CUDA_ERROR_NO_DEVICE => return Err(Error::NoGpu),
        other => call("start", other)?,
    }
    match call("count GPUs", device::get_count())? {
        0 => Err(Error::NoGpu),
        _ => call("open the first GPU", device::get(0)),
    }
}

fn driver_version() -> Result<i32> {
    let mut found = 0;
    // SAFETY: writes one number; needs no initialisation.
    call("tell the driver's version", unsafe { sys::cuDriverGetVersion(&mut found) }.result())?;
    Ok(found)
}

// SAFETY of the calls below: the context is current, the stream and whatever was loaded live until `drop`, addresses and sizes
// are the caller's promise (see `Driver`).
impl Driver for Cuda {
    fn describe(&self) -> String {
        let total = self.state.lock().unwrap_or_else(PoisonError::into_inner).arena.total();
        format!("{}, {:.1} GiB for this program", self.name, total as f64 / f64::from(1 << 30))
    }

    fn alloc(&self, bytes: usize) -> Result<u64> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(self.memory + state.arena.alloc(bytes)? as u64)
    }

    fn free(&self, address: u64) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.arena.free((address - self.memory) as usize);
    }

    fn free_bytes(&self) -> usize {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).arena.free_bytes()
    }

    fn zero(&self, to: u64, bytes: usize) -> Result<()> {
        let _state = self.enter()?;
        call("zero memory", unsafe { result::memset_d8_async(to, 0, bytes, self.stream) })
    }

    fn upload(&self, from: &[u8], to: u64) -> Result<()> {
        self.enter()?.staging.upload(from, to, self.stream)
    }

    fn download(&self, from: u64, to: &mut [u8]) -> Result<()> {
        let mut state = self.enter()?;
        // What is found out by waiting is the kernels', not the copy's.
        self.wait(&state)?;
        state.staging.download(from, to, self.stream)
    }

    fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<()> {
        let _state = self.enter()?;
        call("copy memory", unsafe { result::memcpy_dtod_async(to, from, bytes, self.stream) })
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
        let mut state = self.enter()?;
        let function = state.function(&self.name, launch.kernel, launch.shared)?;
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
        let (grid, block) = (triple(launch.grid), triple(launch.block));
        let this = |problem: String| Error::Launch {
            kernel: launch.kernel.to_string(),
            grid: launch.grid,
            block: launch.block,
            shared: launch.shared,
            problem,
        };
        let launched =
            unsafe { result::launch_kernel(function, grid, block, launch.shared, self.stream, &mut pointers) };
        launched.map_err(|e| this(problem(e)))?;
        state.last = Some(this(String::new()));
        Ok(())
    }

    fn matmul(&self, product: &Matmul) -> Result<()> {
        let mut state = self.enter()?;
        if state.cublas.is_none() {
            let workspace = self.memory + state.arena.alloc(CublasLt::WORKSPACE)? as u64;
            state.cublas = Some(CublasLt::open(workspace)?);
        }
        match &mut state.cublas {
            Some(cublas) => cublas.matmul(product, self.stream),
            None => Err(Error::NoCublasLt),
        }
    }

    fn synchronize(&self) -> Result<()> {
        let state = self.enter()?;
        self.wait(&state)
    }

    fn timed(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<Duration> {
        let mark = || -> Result<sys::CUevent> {
            let _state = self.enter()?;
            let mark = call("make an event", event::create(sys::CUevent_flags::CU_EVENT_DEFAULT))?;
            call("record an event", unsafe { event::record(mark, self.stream) })?;
            Ok(mark)
        };
        let begin = mark()?;
        let done = work();
        let end = mark()?;
        let state = self.enter()?;
        let elapsed = done
            .and_then(|()| self.wait(&state))
            .and_then(|()| call("read the time", unsafe { event::elapsed(begin, end) }).map(|ms| f64::from(ms) / 1e3));
        for mark in [begin, end] {
            call("drop an event", unsafe { event::destroy(mark) })?;
        }
        elapsed.map(Duration::from_secs_f64)
    }

    fn capture(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<u64> {
        // Relaxed: the first launch of a kernel loads its module in the middle of this.
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        drop(self.enter()?);
        call("begin a graph", unsafe { stream::begin_capture(self.stream, mode) })?;
        let done = work();
        let mut state = self.enter()?;
        // Ended in any case, or the stream stays unusable.
        let noted = call("end a graph", unsafe { stream::end_capture(self.stream) });
        done?;
        let noted = noted?;
        let ready = unsafe { graph::instantiate(noted, sys::CUgraphInstantiate_flags(0)) };
        call("drop a graph", unsafe { graph::destroy(noted) })?;
        let number = state.next_graph;
        state.graphs.insert(number, call("prepare a graph", ready)?);
        state.next_graph += 1;
        Ok(number)
    }

    fn replay(&self, graph: u64) -> Result<()> {
        let state = self.enter()?;
        let missing = || Error::Call { what: "replay a graph", problem: format!("there is no graph {graph}") };
        let ready = *state.graphs.get(&graph).ok_or_else(missing)?;
        unsafe { graph::launch(ready, self.stream) }.map_err(|e| self.blame(&state, "replay a graph", e))
    }

    fn forget(&self, graph: u64) {
        // Nothing can be done about a failure, nor does it harm: the context's end frees the rest.
        let Ok(mut state) = self.enter() else { return };
        if let Some(ready) = state.graphs.remove(&graph) {
            let _ = unsafe { graph::exec_destroy(ready) };
        }
    }
}

impl Drop for Cuda {
    fn drop(&mut self) {
        let Ok(mut state) = self.enter() else { return };
        // Nobody has the handles any more; failures harm nobody, for the process or the context ends.
        unsafe {
            let _ = stream::synchronize(self.stream);
            for (_, ready) in state.graphs.drain() {
                let _ = graph::exec_destroy(ready);
            }
            state.cublas = None;
            for (_, loaded) in state.modules.drain() {
                let _ = module::unload(loaded);
            }
            state.staging.close();
            let _ = result::free_sync(self.memory);
            let _ = stream::destroy(self.stream);
            let _ = primary_ctx::release(self.device);
        }
    }
}
