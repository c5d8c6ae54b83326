//! The driver's C functions, as cuda.h declares them: arguments in, results out, the work elsewhere.

// SAFETY of every function: pointers are what cuda.h says, which is the caller's word; those for results may be null.
#![allow(clippy::missing_safety_doc, clippy::too_many_arguments, non_snake_case, unsafe_op_in_unsafe_fn)]

use crate::driver::Needs::{Context, Initialised, Nothing};
use crate::driver::{Gpu, call};
use crate::event::Event;
use crate::kernel::Launch;
use crate::status::{INVALID_DEVICE, INVALID_VALUE, Status, text};
use crate::stream::Stream;
use crate::tensor_map::Encoding;
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::slice::from_raw_parts;

/// Gives a result back.
pub unsafe fn put<T>(to: *mut T, value: T) -> Result<(), Status> {
    if to.is_null() {
        return Err(INVALID_VALUE);
    }
    to.write(value);
    Ok(())
}

fn expect_device(device: c_int) -> Result<(), Status> {
    if device == 0 { Ok(()) } else { Err(INVALID_DEVICE) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGetErrorString(status: Status, to: *mut *const c_char) -> Status {
    put(to, text(status).as_ptr()).err().unwrap_or(0)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDriverGetVersion(to: *mut c_int) -> Status {
    call("cuDriverGetVersion", Nothing, |gpu| put(to, gpu.settings.driver))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuInit(flags: c_uint) -> Status {
    call("cuInit", Nothing, |gpu| gpu.initialise(flags))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetCount(to: *mut c_int) -> Status {
    call("cuDeviceGetCount", Initialised, |_| put(to, 1))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGet(to: *mut c_int, ordinal: c_int) -> Status {
    call("cuDeviceGet", Initialised, |_| expect_device(ordinal).and_then(|()| put(to, 0)))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetName(to: *mut c_char, room: c_int, device: c_int) -> Status {
    call("cuDeviceGetName", Initialised, |gpu| {
        expect_device(device)?;
        let name = gpu.name();
        if to.is_null() || room as usize <= name.len() {
            return Err(INVALID_VALUE);
        }
        to.copy_from_nonoverlapping(name.as_ptr().cast(), name.len());
        put(to.add(name.len()), 0)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceTotalMem_v2(to: *mut usize, device: c_int) -> Status {
    call("cuDeviceTotalMem", Initialised, |gpu| expect_device(device).and_then(|()| put(to, gpu.settings.memory)))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetAttribute(to: *mut c_int, attribute: c_int, device: c_int) -> Status {
    call("cuDeviceGetAttribute", Initialised, |gpu| {
        expect_device(device)?;
        put(to, gpu.attribute(attribute)?)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDevicePrimaryCtxRetain(to: *mut usize, device: c_int) -> Status {
    call("cuDevicePrimaryCtxRetain", Initialised, |gpu| expect_device(device).and_then(|()| put(to, gpu.retain())))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDevicePrimaryCtxRelease_v2(device: c_int) -> Status {
    call("cuDevicePrimaryCtxRelease", Initialised, |gpu| expect_device(device).and_then(|()| gpu.release()))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxSetCurrent(context: usize) -> Status {
    call("cuCtxSetCurrent", Initialised, |gpu| gpu.set_current(context))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) -> Status {
    call("cuMemGetInfo", Context, |gpu| {
        let (left, all) = gpu.memory_info();
        put(free, left).and_then(|()| put(total, all))
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemAlloc_v2(to: *mut usize, bytes: usize) -> Status {
    call("cuMemAlloc", Context, |gpu| put(to, gpu.alloc(bytes)?))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemFree_v2(start: usize) -> Status {
    call("cuMemFree", Context, |gpu| gpu.free(start))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemHostAlloc(to: *mut usize, bytes: usize, flags: c_uint) -> Status {
    call("cuMemHostAlloc", Context, |gpu| put(to, gpu.pin(bytes, flags)?))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemFreeHost(start: usize) -> Status {
    call("cuMemFreeHost", Context, |gpu| gpu.unpin(start))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemsetD8Async(to: usize, byte: u8, bytes: usize, stream: usize) -> Status {
    call("cuMemsetD8Async", Context, |gpu| gpu.set(to, byte, bytes, stream))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyHtoDAsync_v2(to: usize, from: usize, bytes: usize, stream: usize) -> Status {
    call("cuMemcpyHtoDAsync", Context, |gpu| gpu.upload(from, to, bytes, stream))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyDtoHAsync_v2(to: usize, from: usize, bytes: usize, stream: usize) -> Status {
    call("cuMemcpyDtoHAsync", Context, |gpu| gpu.download(from, to, bytes, stream))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyDtoDAsync_v2(to: usize, from: usize, bytes: usize, stream: usize) -> Status {
    call("cuMemcpyDtoDAsync", Context, |gpu| gpu.copy(from, to, bytes, stream))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamCreate(to: *mut usize, flags: c_uint) -> Status {
    call("cuStreamCreate", Context, |gpu| {
        gpu.not_while_capturing("cuStreamCreate")?;
        if flags > 1 { Err(INVALID_VALUE) } else { put(to, gpu.streams.insert(Stream::default())) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamDestroy_v2(stream: usize) -> Status {
    call("cuStreamDestroy", Context, |gpu| {
        gpu.not_capturing(stream, "cuStreamDestroy")?;
        gpu.run(stream, u64::MAX)?;
        gpu.streams.remove(stream).map(drop)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamSynchronize(stream: usize) -> Status {
    call("cuStreamSynchronize", Context, |gpu| gpu.synchronize(stream))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamBeginCapture_v2(stream: usize, mode: c_uint) -> Status {
    call("cuStreamBeginCapture", Context, |gpu| gpu.begin_capture(stream, mode))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamEndCapture(stream: usize, to: *mut usize) -> Status {
    call("cuStreamEndCapture", Context, |gpu| {
        put(to, 0)?;
        put(to, gpu.end_capture(stream)?)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventCreate(to: *mut usize, flags: c_uint) -> Status {
    const DISABLE_TIMING: c_uint = 2;
    call("cuEventCreate", Context, |gpu| {
        let timing = flags & DISABLE_TIMING == 0;
        if flags > 7 { Err(INVALID_VALUE) } else { put(to, gpu.events.insert(Event::new(timing))) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventRecord(event: usize, stream: usize) -> Status {
    call("cuEventRecord", Context, |gpu| gpu.record(event, stream))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventSynchronize(event: usize) -> Status {
    call("cuEventSynchronize", Context, |gpu| gpu.wait_event(event))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventElapsedTime_v2(to: *mut f32, begin: usize, end: usize) -> Status {
    call("cuEventElapsedTime", Context, |gpu| put(to, gpu.elapsed(begin, end)?))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventDestroy_v2(event: usize) -> Status {
    call("cuEventDestroy", Context, |gpu| gpu.events.remove(event).map(drop))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGraphInstantiateWithFlags(to: *mut usize, graph: usize, flags: u64) -> Status {
    call(
        "cuGraphInstantiate",
        Context,
        |gpu| {
            if flags > 15 { Err(INVALID_VALUE) } else { put(to, gpu.instantiate(graph)?) }
        },
    )
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGraphDestroy(graph: usize) -> Status {
    call("cuGraphDestroy", Context, |gpu| gpu.graphs.remove(graph).map(drop))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGraphExecDestroy(executable: usize) -> Status {
    call("cuGraphExecDestroy", Context, |gpu| gpu.executables.remove(executable).map(drop))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGraphLaunch(executable: usize, stream: usize) -> Status {
    call("cuGraphLaunch", Context, |gpu| gpu.replay(executable, stream))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleLoadData(to: *mut usize, image: *const u8) -> Status {
    call("cuModuleLoadData", Context, |gpu| put(to, gpu.load(image)?))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleUnload(module: usize) -> Status {
    call("cuModuleUnload", Context, |gpu| gpu.unload(module))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleGetFunction(to: *mut usize, module: usize, name: *const c_char) -> Status {
    call("cuModuleGetFunction", Context, |gpu| {
        let name = CStr::from_ptr(name).to_str().map_err(|_| INVALID_VALUE)?;
        put(to, gpu.function(module, name)?)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuFuncSetAttribute(function: usize, attribute: c_int, value: c_int) -> Status {
    const MAX_DYNAMIC_SHARED_SIZE_BYTES: c_int = 8;
    call("cuFuncSetAttribute", Context, |gpu| match attribute {
        MAX_DYNAMIC_SHARED_SIZE_BYTES => gpu.opt_in(function, value),
        other => gpu.refuse(INVALID_VALUE, format!("attribute {other} of a function is not implemented")),
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuFuncGetAttribute(to: *mut c_int, attribute: c_int, function: usize) -> Status {
    const SHARED_SIZE_BYTES: c_int = 1;
    call("cuFuncGetAttribute", Context, |gpu| match attribute {
        SHARED_SIZE_BYTES => put(to, gpu.functions.get(function)?.static_shared() as c_int),
        other => gpu.refuse(INVALID_VALUE, format!("attribute {other} of a function is not implemented")),
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuLaunchKernel(
    function: usize,
    grid_x: c_uint,
    grid_y: c_uint,
    grid_z: c_uint,
    block_x: c_uint,
    block_y: c_uint,
    block_z: c_uint,
    shared: c_uint,
    stream: usize,
    parameters: *const *const c_void,
    extra: *const c_void,
) -> Status {
    call("cuLaunchKernel", Context, |gpu| {
        if !extra.is_null() || parameters.is_null() {
            return gpu.refuse(INVALID_VALUE, "cuLaunchKernel with `extra` is not implemented".into());
        }
        let (grid, block) = ([grid_x, grid_y, grid_z], [block_x, block_y, block_z]);
        gpu.launch(Launch { function, grid, block, shared, parameters: Vec::new() }, parameters, stream)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuTensorMapEncodeTiled(
    map: *mut c_void,
    dtype: c_int,
    rank: u32,
    address: usize,
    sizes: *const u64,
    strides: *const u64,
    tile: *const u32,
    steps: *const u32,
    interleave: c_int,
    swizzle: c_int,
    promotion: c_int,
    fill: c_int,
) -> Status {
    call("cuTensorMapEncodeTiled", Initialised, |gpu: &mut Gpu| {
        if !(1..=5).contains(&rank) {
            return gpu.refuse(INVALID_VALUE, format!("cuTensorMapEncodeTiled of rank {rank}"));
        }
        let rank = rank as usize;
        let encoding = Encoding {
            dtype,
            address,
            sizes: from_raw_parts(sizes, rank).to_vec(),
            strides: from_raw_parts(strides, rank - 1).to_vec(),
            tile: from_raw_parts(tile, rank).to_vec(),
            steps: from_raw_parts(steps, rank).to_vec(),
            interleave,
            swizzle,
            promotion,
            fill,
        };
        put(map.cast(), gpu.encode(map, &encoding)?)
    })
}
