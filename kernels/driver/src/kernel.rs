//! Kernels: what is known of one, whether a launch of it may be, and running it on the emulator.

use crate::command::Command;
use crate::driver::Gpu;
use crate::image::{Image, Usage};
use crate::signal;
use crate::status::{ILLEGAL_ADDRESS, INVALID_VALUE, LAUNCH_FAILED, LAUNCH_OUT_OF_RESOURCES, NOT_FOUND, Status};
use kernel_emulator as emulator;
use std::ffi::c_void;

/// Shared memory that a block has without having opted in for more, static and dynamic.
const DEFAULT_SHARED: u32 = 48 << 10;
/// Registers of a multiprocessor, which one block may take all of.
const REGISTERS: u32 = 65536;

pub struct Module {
    pub image: Image,
}

/// A kernel of a module.
#[derive(Debug, Clone)]
pub struct Function {
    pub name: String,
    pub module: usize,
    usage: Usage,
    /// Which parameters are pointers.
    pointers: Vec<bool>,
    /// Dynamic shared memory that a launch may have.
    shared: u32,
}

/// What a kernel is launched with.
#[derive(Debug, Clone)]
pub struct Launch {
    pub function: usize,
    pub grid: [u32; 3],
    pub block: [u32; 3],
    pub shared: u32,
    /// Bytes of each, once they were read.
    pub parameters: Vec<Vec<u8>>,
}

impl Function {
    /// The kernel of this name, by the module's machine code and the emulator's table, which must agree.
    fn find(module: usize, image: &Image, name: &str) -> Result<Function, String> {
        let parameters = emulator::parameters(name).ok_or("the emulator has no such kernel")?;
        let sizes: Vec<usize> = parameters.iter().map(|p| p.bytes()).collect();
        let usage = match &image.kernels {
            // As much as PTX promises.
            None => Usage { parameters: sizes.clone(), registers: 32, ..Usage::default() },
            Some(kernels) => kernels.get(name).cloned().ok_or("the module has no such kernel")?,
        };
        if usage.parameters != sizes {
            let compiled = &usage.parameters;
            return Err(format!("its parameters have {compiled:?} bytes compiled, {sizes:?} on the emulator"));
        }
        let shared = DEFAULT_SHARED.saturating_sub(usage.shared);
        let pointers = parameters.iter().map(|p| p.is_pointer()).collect();
        Ok(Function { name: name.into(), module, usage, pointers, shared })
    }

    /// Bytes.
    pub fn static_shared(&self) -> u32 {
        self.usage.shared
    }

    /// Why a launch cannot be.
    fn refuses(&self, launch: &Launch) -> Option<(Status, String)> {
        let Launch { grid, block, shared, .. } = launch;
        let threads = block.iter().map(|n| u64::from(*n)).product::<u64>();
        let most = self.usage.max_threads.unwrap_or(1024).min(1024);
        let in_range = |n: u32, most: u32| (1..=most).contains(&n);
        let fits = in_range(grid[0], i32::MAX as u32)
            && grid[1..].iter().all(|n| in_range(*n, 65535))
            && in_range(block[0], 1024)
            && in_range(block[1], 1024)
            && in_range(block[2], 64)
            && threads <= u64::from(most);
        // Registers are given to warps, 256 at a time.
        let registers = u64::from((self.usage.registers * 32).next_multiple_of(256)) * threads.div_ceil(32);
        if !fits {
            Some((INVALID_VALUE, format!("its extents; a block may have {most} threads")))
        } else if *shared > self.shared {
            let (own, most) = (self.usage.shared, self.shared);
            Some((INVALID_VALUE, format!("it may have {most} bytes of dynamic shared memory beside {own} static ones")))
        } else if registers > u64::from(REGISTERS) {
            Some((LAUNCH_OUT_OF_RESOURCES, format!("its block takes {registers} registers")))
        } else {
            None
        }
    }
}

impl Gpu {
    /// Of static and dynamic shared memory, what a kernel may opt in for.
    pub fn shared_limit(&self) -> u32 {
        match self.settings.compute_capability {
            (9 | 10, _) => 227 << 10,
            (8, 0 | 7) => 163 << 10,
            _ => 99 << 10,
        }
    }

    pub fn function(&mut self, module: usize, name: &str) -> Result<usize, Status> {
        let found = Function::find(module, &self.modules.get(module)?.image, name);
        let function = found.map_err(|problem| {
            self.violation(format!("cuModuleGetFunction of {name}: {problem}"));
            NOT_FOUND
        })?;
        Ok(self.functions.insert(function))
    }

    /// Allows a kernel so much dynamic shared memory.
    pub fn opt_in(&mut self, function: usize, bytes: i32) -> Result<(), Status> {
        let limit = self.shared_limit();
        let function = self.functions.get_mut(function)?;
        let (name, own) = (function.name.clone(), function.usage.shared);
        match u32::try_from(bytes) {
            Ok(bytes) if bytes.saturating_add(own) <= limit => {
                function.shared = bytes;
                self.trace.line(|| format!("optin {name} {bytes}"));
                Ok(())
            }
            _ => {
                let problem =
                    format!("cuFuncSetAttribute: {bytes} bytes beside {own} static ones for {name}, of {limit}");
                self.violation(problem);
                Err(INVALID_VALUE)
            }
        }
    }

    /// # Safety
    /// `parameters` points to as many pointers as the kernel has parameters, each to one.
    pub unsafe fn launch(
        &mut self,
        mut launch: Launch,
        parameters: *const *const c_void,
        stream: usize,
    ) -> Result<(), Status> {
        let Ok(function) = self.functions.get(launch.function).cloned() else {
            return self.refuse(INVALID_VALUE, "cuLaunchKernel of what is no function".into());
        };
        let what = format!("cuLaunchKernel of {} {:?} {:?}", function.name, launch.grid, launch.block);
        if let Some((status, why)) = function.refuses(&launch) {
            return self.refuse(status, format!("{what} with {} bytes: {why}", launch.shared));
        }
        for (i, (bytes, is_pointer)) in function.usage.parameters.iter().zip(&function.pointers).enumerate() {
            // SAFETY: the caller's word.
            let value = unsafe {
                let at = *parameters.add(i);
                if at.is_null() {
                    return self.refuse(INVALID_VALUE, format!("{what}: parameter {i} is not given"));
                }
                std::slice::from_raw_parts(at.cast::<u8>(), *bytes)
            };
            let address = value.try_into().map(usize::from_le_bytes).unwrap_or(0);
            if *is_pointer && address != 0 && !self.memory.is_device(address, 0) {
                self.violation(format!("{what}: parameter {i} is {address:#x}, which is no device memory"));
            }
            launch.parameters.push(value.to_vec());
        }
        let list = |of: [u32; 3]| of.map(|n| n.to_string()).join(",");
        self.trace.line(|| {
            let (name, grid, block) = (&function.name, list(launch.grid), list(launch.block));
            format!("launch {name} {grid} {block} {}", launch.shared)
        });
        self.submit(stream, Command::Launch(launch))
    }

    pub fn run_kernel(&mut self, launch: &Launch) -> Result<(), Status> {
        let Ok(function) = self.functions.get(launch.function) else {
            return self.refuse(LAUNCH_FAILED, "a launch whose module was unloaded before it ran".into());
        };
        let name = function.name.clone();
        self.kernels_run += 1;
        if self.settings.fault == Some(self.kernels_run) {
            eprintln!("software GPU: kernel {} ({name}) touches memory that is not there, as asked", self.kernels_run);
            return Err(ILLEGAL_ADDRESS);
        }
        let (grid, block) = (emulator::Dim(launch.grid), emulator::Dim(launch.block));
        let (schedule, memory) = (self.settings.schedule, self.memory.ranges());
        let _running = signal::running(&name);
        let shared = launch.shared as usize;
        match emulator::launch_raw(schedule, &name, grid, block, shared, &launch.parameters, memory) {
            Ok(()) => Ok(()),
            Err(fault) => self.refuse(LAUNCH_FAILED, format!("a kernel's fault: {fault}")),
        }
    }
}
