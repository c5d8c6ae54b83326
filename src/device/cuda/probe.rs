//! What is there: the driver's library, its release, the first GPU.

use super::SIMULATED;
use super::fault::call;
use crate::device::{Chip, Error, Result};
use cudarc::driver::result::{self, device};
use cudarc::driver::sys;

/// The CUDA release that the kernels are built with: a driver that is older cannot load them.
const NEEDED: i32 = 13000;

/// What `doctor` says: the GPU's name and memory, and the driver's release.
///
/// # Errors
/// If there is no driver, or no GPU.
pub fn describe() -> Result<String> {
    let device = first_device()?;
    // SAFETY: the device is one that the driver named.
    let bytes = call("tell its memory", unsafe { device::total_mem(device) })?;
    let name = name(device)?;
    let version = driver_version()?;
    Ok(format!("{name}, {} GiB, driver for CUDA {}.{}", bytes >> 30, version / 1000, version % 1000 / 10))
}

/// The first GPU's kind.
///
/// # Errors
/// If there is no driver, or no GPU.
pub fn first_chip() -> Result<Chip> {
    let device = first_device()?;
    chip(device, &name(device)?)
}

/// Initialises the driver. Every way into CUDA starts here.
pub fn first_device() -> Result<sys::CUdevice> {
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

pub fn name(of: sys::CUdevice) -> Result<String> {
    call("tell its name", device::get_name(of))
}

pub fn chip(of: sys::CUdevice, name: &str) -> Result<Chip> {
    use sys::CUdevice_attribute as Attribute;
    // SAFETY: the device is one that the driver named.
    let ask = |what| call("tell its kind", unsafe { device::get_attribute(of, what) }).map(|n| n as u32);
    Ok(Chip {
        compute_capability: (
            ask(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            ask(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ),
        multiprocessors: ask(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        shared_memory: ask(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
        simulated: name.starts_with(SIMULATED),
    })
}
