//! Kernels by name: their modules are loaded when first needed.

use super::fault::Launched;
use super::handles::Module;
use crate::device::kernels;
use crate::device::{Error, Result};
use cudarc::driver::result::{function, module};
use cudarc::driver::sys::{self, CUfunction_attribute as Attribute};
use std::collections::HashMap;
use std::ffi::CString;

/// Shared memory that a kernel may use without opting in for more, static and dynamic.
const SHARED: u32 = 48 << 10;

#[derive(Default)]
pub struct Modules {
    loaded: HashMap<&'static str, Module>,
    functions: HashMap<String, Function>,
}

struct Function {
    handle: sys::CUfunction,
    /// Dynamic shared memory that it may use.
    shared: u32,
}

impl Modules {
    /// The kernel of this name, allowed so much dynamic shared memory.
    pub fn function(&mut self, gpu: &str, kernel: &str, shared: u32, launched: &Launched) -> Result<sys::CUfunction> {
        if !self.functions.contains_key(kernel) {
            let function = self.find(gpu, kernel, launched)?;
            self.functions.insert(kernel.to_string(), function);
        }
        let unknown = || Error::UnknownKernel(kernel.to_string());
        let function = self.functions.get_mut(kernel).ok_or_else(unknown)?;
        if shared > function.shared {
            let attribute = Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: a function of a loaded module.
            let set = unsafe { function::set_function_attribute(function.handle, attribute, shared as i32) };
            launched.check("give a kernel more shared memory", set).map_err(|e| e.named(kernel))?;
            function.shared = shared;
        }
        Ok(function.handle)
    }

    fn find(&mut self, gpu: &str, kernel: &str, launched: &Launched) -> Result<Function> {
        let unknown = || Error::UnknownKernel(kernel.to_string());
        let of = kernels::module_of(kernel).ok_or_else(unknown)?;
        let module = match self.loaded.get(of.name) {
            Some(module) => module,
            None => {
                let module = load(gpu, of, launched)?;
                self.loaded.entry(of.name).or_insert(module)
            }
        };
        let name = CString::new(kernel).map_err(|_| unknown())?;
        // SAFETY: the module is loaded, and stays so for as long as its functions are known.
        let found = unsafe { module::get_function(module.0, name) };
        let handle = found.map_err(|e| match e.0 {
            sys::CUresult::CUDA_ERROR_NOT_FOUND => unknown(),
            _ => launched.blame("find a kernel", e).named(kernel),
        })?;
        // SAFETY: a function of a loaded module.
        let own = unsafe { function::get_function_attribute(handle, Attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES) };
        let own = launched.check("tell a kernel's shared memory", own).map_err(|e| e.named(kernel))?;
        Ok(Function { handle, shared: SHARED.saturating_sub(own as u32) })
    }
}

fn load(gpu: &str, of: &'static kernels::Module, launched: &Launched) -> Result<Module> {
    // A fat binary is read in words of 8 bytes; the bytes in this program lie anywhere.
    let mut image = vec![0u64; of.image.len().div_ceil(8)];
    bytemuck::cast_slice_mut::<u64, u8>(&mut image)[..of.image.len()].copy_from_slice(of.image);
    // SAFETY: the image is a fat binary of nvcc's, whole; CUDA keeps a copy.
    let loaded = unsafe { module::load_data(image.as_ptr().cast()) };
    loaded.map(Module).map_err(|e| match e.0 {
        sys::CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU => Error::NoImage { module: of.name, gpu: gpu.to_string() },
        _ => launched.blame("load kernels", e).named(&format!("kernels/{}.cu", of.name)),
    })
}
