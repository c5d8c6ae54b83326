//! The one GPU that there is, and the way in for every call.

use crate::blas::Blas;
use crate::command::Command;
use crate::event::Event;
use crate::handles::Handles;
use crate::image;
use crate::kernel::{Function, Module};
use crate::memory::Memory;
use crate::settings::Settings;
use crate::signal;
use crate::status::{
    INVALID_CONTEXT, INVALID_VALUE, NO_DEVICE, NOT_INITIALIZED, OUT_OF_MEMORY, SUCCESS, Status, is_sticky,
};
use crate::stream::Stream;
use crate::trace::Trace;
use std::cell::Cell;
use std::fs::File;
use std::process::exit;
use std::sync::{Mutex, PoisonError};

/// The primary context.
pub const CONTEXT: usize = 0xC0DE_0000;
/// Memory that a context takes for itself.
const CONTEXT_MEMORY: usize = 300 << 20;

static GPU: Mutex<Option<Gpu>> = Mutex::new(None);

thread_local! {
    /// This thread's current context, 0 for none.
    static CURRENT: Cell<usize> = const { Cell::new(0) };
}

pub struct Gpu {
    pub settings: Settings,
    pub trace: Trace,
    pub memory: Memory,
    pub streams: Handles<Stream>,
    pub events: Handles<Event>,
    pub modules: Handles<Module>,
    pub functions: Handles<Function>,
    pub graphs: Handles<Vec<Command>>,
    pub executables: Handles<Vec<Command>>,
    pub blas: Blas,
    /// Of the last command submitted.
    pub turn: u64,
    /// The error that every call answers from now on.
    pub sticky: Status,
    pub kernels_run: u64,
    initialised: bool,
    /// How often the context is retained.
    retained: u32,
}

/// What must have come before a call.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    Nothing,
    Initialised,
    /// The context is this thread's current one, and no error stays.
    Context,
}

/// Runs a call of a function, named as in the headers but for its version.
pub fn call(function: &'static str, needs: Needs, body: impl FnOnce(&mut Gpu) -> Result<(), Status>) -> Status {
    let mut gpu = GPU.lock().unwrap_or_else(PoisonError::into_inner);
    let gpu = gpu.get_or_insert_with(Gpu::start);
    gpu.enter(function, needs).and_then(|()| body(gpu)).err().unwrap_or(SUCCESS)
}

extern "C" fn finish() {
    // Another thread may be in the middle of a call while the process ends.
    if let Ok(mut gpu) = GPU.try_lock()
        && let Some(gpu) = gpu.as_mut()
    {
        gpu.trace.finish();
    }
}

impl Gpu {
    fn start() -> Gpu {
        let refuse = |problem: String| -> ! {
            eprintln!("software GPU: {problem}");
            exit(2)
        };
        let settings = Settings::read(|name| std::env::var(name).ok()).unwrap_or_else(|problem| refuse(problem));
        let file = settings.trace.as_ref().map(|path| match File::create(path) {
            Ok(file) => file,
            Err(e) => refuse(format!("SOFTWARE_GPU_TRACE {}: {e}", path.display())),
        });
        signal::install();
        // SAFETY: a function that may run at any time.
        unsafe { libc::atexit(finish) };
        Gpu {
            settings,
            trace: Trace::new(file),
            memory: Memory::default(),
            streams: Handles::default(),
            events: Handles::default(),
            modules: Handles::default(),
            functions: Handles::default(),
            graphs: Handles::default(),
            executables: Handles::default(),
            blas: Blas::default(),
            turn: 0,
            sticky: SUCCESS,
            kernels_run: 0,
            initialised: false,
            retained: 0,
        }
    }

    fn enter(&mut self, function: &'static str, needs: Needs) -> Result<(), Status> {
        let call = self.trace.call(function);
        let asked = self.settings.fail.as_ref();
        if let Some(failure) = asked.filter(|f| f.function == function && f.call == call) {
            let status = failure.status;
            eprintln!("software GPU: call {call} of {function} fails with {status}, as asked");
            if is_sticky(status) {
                self.sticky = status;
            }
            return Err(status);
        }
        if needs != Needs::Nothing && !self.initialised {
            return self.refuse(NOT_INITIALIZED, format!("{function} before cuInit"));
        }
        if needs != Needs::Context {
            return Ok(());
        }
        if self.sticky != SUCCESS {
            return Err(self.sticky);
        }
        if CURRENT.get() != CONTEXT || self.retained == 0 {
            return self.refuse(INVALID_CONTEXT, format!("{function} without a current context"));
        }
        Ok(())
    }

    /// Tells of a rule that was broken.
    pub fn violation(&mut self, problem: String) {
        self.trace.violation(&problem);
    }

    /// Tells of a rule that was broken, and fails.
    pub fn refuse<T>(&mut self, status: Status, problem: String) -> Result<T, Status> {
        self.violation(problem);
        Err(status)
    }

    pub fn initialise(&mut self, flags: u32) -> Result<(), Status> {
        if flags != 0 {
            return self.refuse(INVALID_VALUE, "cuInit with flags".into());
        }
        if std::env::var("CUDA_VISIBLE_DEVICES").is_ok_and(|devices| devices.is_empty() || devices == "-1") {
            return Err(NO_DEVICE);
        }
        self.initialised = true;
        Ok(())
    }

    pub fn name(&self) -> String {
        let (major, minor) = self.settings.compute_capability;
        format!("Software GPU {major}.{minor}")
    }

    /// By number, as CUdevice_attribute has them.
    pub fn attribute(&mut self, attribute: i32) -> Result<i32, Status> {
        let (major, minor) = self.settings.compute_capability;
        Ok(match attribute {
            16 => self.settings.multiprocessors as i32,
            75 => major as i32,
            76 => minor as i32,
            97 => self.shared_limit() as i32,
            other => return self.refuse(INVALID_VALUE, format!("attribute {other} of a device is not implemented")),
        })
    }

    pub fn retain(&mut self) -> usize {
        self.retained += 1;
        CONTEXT
    }

    /// The last release ends the context, in which nothing should be left.
    pub fn release(&mut self) -> Result<(), Status> {
        self.retained = self.retained.checked_sub(1).ok_or(INVALID_CONTEXT)?;
        let [allocations, pinned] = self.memory.counts();
        let left = [
            ("streams", self.streams.len()),
            ("events", self.events.len()),
            ("modules", self.modules.len()),
            ("graphs", self.graphs.len() + self.executables.len()),
            ("allocations", allocations),
            ("pinned allocations", pinned),
            ("objects of cuBLASLt", self.blas.objects()),
        ];
        let left: Vec<String> = left.iter().filter(|(_, n)| *n > 0).map(|(what, n)| format!("{n} {what}")).collect();
        // After a kernel's fault nothing can be given back: every call answers with the fault.
        if self.retained == 0 && !left.is_empty() && self.sticky == SUCCESS {
            self.violation(format!("left when the context ended: {}", left.join(", ")));
        }
        Ok(())
    }

    pub fn set_current(&mut self, context: usize) -> Result<(), Status> {
        if context != 0 && (context != CONTEXT || self.retained == 0) {
            return self.refuse(INVALID_CONTEXT, "cuCtxSetCurrent of no context".into());
        }
        CURRENT.set(context);
        Ok(())
    }

    /// Free, and in all.
    pub fn memory_info(&self) -> (usize, usize) {
        let all = self.settings.memory;
        (all.saturating_sub(CONTEXT_MEMORY + self.memory.used()), all)
    }

    pub fn alloc(&mut self, bytes: usize) -> Result<usize, Status> {
        self.not_while_capturing("cuMemAlloc")?;
        if bytes == 0 {
            return self.refuse(INVALID_VALUE, "cuMemAlloc of nothing".into());
        }
        if bytes > self.memory_info().0 {
            return Err(OUT_OF_MEMORY);
        }
        self.trace.line(|| format!("alloc {bytes}"));
        self.memory.alloc(bytes).map_err(|_| OUT_OF_MEMORY)
    }

    /// Waits for all that was submitted, as CUDA does.
    pub fn free(&mut self, start: usize) -> Result<(), Status> {
        self.not_while_capturing("cuMemFree")?;
        self.run_all()?;
        match self.memory.free(start) {
            Ok(true) => Ok(()),
            _ => self.refuse(INVALID_VALUE, format!("cuMemFree of {start:#x}, where no allocation begins")),
        }
    }

    pub fn pin(&mut self, bytes: usize, flags: u32) -> Result<usize, Status> {
        self.not_while_capturing("cuMemHostAlloc")?;
        if bytes == 0 || flags > 7 {
            return self.refuse(INVALID_VALUE, format!("cuMemHostAlloc of {bytes} bytes with flags {flags:#x}"));
        }
        self.trace.line(|| format!("pin {bytes}"));
        self.memory.pin(bytes).map_err(|_| OUT_OF_MEMORY)
    }

    pub fn unpin(&mut self, start: usize) -> Result<(), Status> {
        self.not_while_capturing("cuMemFreeHost")?;
        self.run_all()?;
        match self.memory.unpin(start) {
            Ok(true) => Ok(()),
            _ => self.refuse(INVALID_VALUE, format!("cuMemFreeHost of {start:#x}, where no allocation begins")),
        }
    }

    /// # Safety
    /// `start` is the beginning of a fat binary.
    pub unsafe fn load(&mut self, start: *const u8) -> Result<usize, Status> {
        self.not_while_capturing("cuModuleLoadData")?;
        // SAFETY: the caller's word.
        let chosen =
            unsafe { image::whole(start) }.and_then(|whole| image::choose(whole, self.settings.compute_capability));
        match chosen {
            Ok(image) => {
                let kernels = image.kernels.as_ref().map_or("PTX".into(), |k| format!("{} kernels", k.len()));
                self.trace.line(|| format!("module sm_{} {kernels}", image.arch));
                Ok(self.modules.insert(Module { image }))
            }
            Err((status, problem)) => self.refuse(status, format!("cuModuleLoadData: {problem}")),
        }
    }

    pub fn unload(&mut self, module: usize) -> Result<(), Status> {
        self.not_while_capturing("cuModuleUnload")?;
        self.run_all()?;
        self.functions.retain(|function| function.module != module);
        self.modules.remove(module).map(drop)
    }
}
