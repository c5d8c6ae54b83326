//! What the driver gives and must have back. Each is freed when dropped, in a context that must be current then; a failure to free
//! harms nobody, for the process or the context ends.

use super::fault::call;
use crate::device::{Error, Result};
use cudarc::driver::result::{self, ctx, event, graph, module, primary_ctx, stream};
use cudarc::driver::sys;

/// The primary context of a device.
pub struct Context {
    device: sys::CUdevice,
    handle: sys::CUcontext,
}

impl Context {
    /// Makes it this thread's.
    pub fn retain(device: sys::CUdevice) -> Result<Context> {
        // SAFETY: the device is one that the driver named.
        let handle = call("give a context", unsafe { primary_ctx::retain(device) })?;
        let context = Context { device, handle };
        context.make_current()?;
        Ok(context)
    }

    pub fn make_current(&self) -> Result<()> {
        // SAFETY: retained until dropped.
        call("take a context", unsafe { ctx::set_current(self.handle) })
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: retained once.
        let _ = unsafe { primary_ctx::release(self.device) };
    }
}

pub struct Stream(pub sys::CUstream);

impl Stream {
    pub fn new() -> Result<Stream> {
        call("make a stream", stream::create(stream::StreamKind::NonBlocking)).map(Stream)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: created once.
        let _ = unsafe { stream::destroy(self.0) };
    }
}

/// Device memory.
pub struct Memory(pub u64);

impl Memory {
    pub fn new(bytes: usize) -> Result<Memory> {
        let (free, total) = call("tell its free memory", result::mem_get_info())?;
        // SAFETY: nobody reads it before writing it.
        match unsafe { result::malloc_sync(bytes) } {
            Err(e) if e.0 == sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
                Err(Error::OutOfMemory { asked: bytes, free, largest: free, total })
            }
            other => call("give memory", other).map(Memory),
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: allocated once.
        let _ = unsafe { result::free_sync(self.0) };
    }
}

/// Host memory that the GPU reads and writes on its own.
pub struct Pinned(pub *mut u8);

impl Pinned {
    pub fn new(bytes: usize) -> Result<Pinned> {
        // SAFETY: nobody reads it before writing it.
        let memory = call("pin memory", unsafe { result::malloc_host(bytes, 0) })?;
        Ok(Pinned(memory.cast()))
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // SAFETY: allocated once.
        let _ = unsafe { result::free_host(self.0.cast()) };
    }
}

pub struct Module(pub sys::CUmodule);

impl Drop for Module {
    fn drop(&mut self) {
        // SAFETY: loaded once.
        let _ = unsafe { module::unload(self.0) };
    }
}

pub struct Event(pub sys::CUevent);

impl Event {
    pub fn timing() -> Result<Event> {
        call("make an event", event::create(sys::CUevent_flags::CU_EVENT_DEFAULT)).map(Event)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: created once.
        let _ = unsafe { event::destroy(self.0) };
    }
}

/// A graph that is ready to be launched.
pub struct Executable(pub sys::CUgraphExec);

impl Executable {
    /// Of a captured graph, which is no longer needed then.
    pub fn new(captured: sys::CUgraph) -> Result<Executable> {
        // SAFETY: captured once.
        unsafe {
            let ready = graph::instantiate(captured, sys::CUgraphInstantiate_flags(0));
            let _ = graph::destroy(captured);
            call("prepare a graph", ready).map(Executable)
        }
    }
}

impl Drop for Executable {
    fn drop(&mut self) {
        // SAFETY: instantiated once.
        let _ = unsafe { graph::exec_destroy(self.0) };
    }
}
