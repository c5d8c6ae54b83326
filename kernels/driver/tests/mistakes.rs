//! What a host program may do wrong, done on purpose: each is answered as CUDA answers, and told as a violation. One test, for there is
//! one GPU in a process.

use software_gpu::api::*;
use software_gpu::blas::api::*;
use software_gpu::blas::{Heuristic, status as blas};
use software_gpu::status;
use std::env;
use std::ffi::{CStr, c_void};
use std::fs;
use std::path::PathBuf;
use std::ptr::{null, null_mut};

const CU_STREAM_NON_BLOCKING: u32 = 1;
const STRICT: u32 = 0;
const RELAXED: u32 = 2;
const BF16: i32 = 14;

/// A context with a stream, device memory of 4 KiB and pinned memory as large.
struct Host {
    stream: usize,
    device: usize,
    pinned: usize,
    trace: PathBuf,
    /// Violations that were expected, and told.
    found: usize,
}

const BYTES: usize = 4096;

/// A result that a call writes.
fn out<T: Default>(call: impl FnOnce(*mut T) -> i32) -> T {
    let mut value = T::default();
    assert_eq!(call(&mut value), status::SUCCESS);
    value
}

impl Host {
    fn new(trace: PathBuf) -> Host {
        unsafe {
            assert_eq!(cuDeviceGetCount(&mut 0), status::NOT_INITIALIZED);
            assert_eq!(cuInit(0), status::SUCCESS);
            let context = out(|to| cuDevicePrimaryCtxRetain(to, 0));
            assert_eq!(cuMemAlloc_v2(&mut 0, 8), status::INVALID_CONTEXT);
            assert_eq!(cuCtxSetCurrent(context + 8), status::INVALID_CONTEXT);
            assert_eq!(cuCtxSetCurrent(context), status::SUCCESS);
            let stream = out(|to| cuStreamCreate(to, CU_STREAM_NON_BLOCKING));
            let (device, pinned) = (out(|to| cuMemAlloc_v2(to, BYTES)), out(|to| cuMemHostAlloc(to, BYTES, 0)));
            let mut host = Host { stream, device, pinned, trace, found: 0 };
            host.told("cuDeviceGetCount before cuInit");
            host.told("cuMemAlloc without a current context");
            host.told("cuCtxSetCurrent of no context");
            host
        }
    }

    /// The next violation is this one.
    fn told(&mut self, problem: &str) {
        let trace = fs::read_to_string(&self.trace).expect("a trace");
        let mut told = trace.lines().filter(|line| line.starts_with("violation ")).skip(self.found);
        let line = told.next().unwrap_or_else(|| panic!("nothing is told of: {problem}"));
        assert!(line.contains(problem), "{line}: should be {problem}");
        self.found += 1;
    }

    fn wrong(&mut self, answer: i32, expected: i32, problem: &str) {
        assert_eq!(answer, expected, "{problem}");
        self.told(problem);
    }

    fn wait(&self) {
        assert_eq!(unsafe { cuStreamSynchronize(self.stream) }, status::SUCCESS);
    }

    fn pinned(&mut self) -> &mut [u8] {
        unsafe { std::slice::from_raw_parts_mut(self.pinned as *mut u8, BYTES) }
    }
}

fn memory(host: &mut Host) {
    let Host { stream, device, pinned, .. } = *host;
    let pageable = [0u8; 64];
    unsafe {
        let answer = cuMemcpyHtoDAsync_v2(device, pageable.as_ptr() as usize, 64, stream);
        host.wrong(answer, status::INVALID_VALUE, "64 bytes at");
        host.wrong(
            cuMemcpyHtoDAsync_v2(device + 8, pinned, BYTES, stream),
            status::INVALID_VALUE,
            "are no device memory",
        );
        host.wrong(cuMemsetD8Async(device, 0, 0, stream), status::INVALID_VALUE, "0 bytes at");
        host.wrong(cuMemcpyDtoDAsync_v2(device, device + 8, 64, stream), status::SUCCESS, "ranges that overlap");
        host.wrong(cuMemFree_v2(device + 8), status::INVALID_VALUE, "where no allocation begins");
        host.wrong(cuMemFreeHost(device), status::INVALID_VALUE, "where no allocation begins");
        host.wrong(cuMemAlloc_v2(&mut 0, 0), status::INVALID_VALUE, "cuMemAlloc of nothing");
        assert_eq!(cuMemAlloc_v2(&mut 0, 1 << 50), status::OUT_OF_MEMORY);
        let freed = out(|to| cuMemAlloc_v2(to, 64));
        assert_eq!(cuMemFree_v2(freed), status::SUCCESS);
        host.wrong(cuMemsetD8Async(freed, 0, 64, stream), status::INVALID_VALUE, "are no device memory");
    }
}

/// Pinned memory that is written, or read, while a copy is under way.
fn transfers(host: &mut Host) {
    let Host { stream, device, pinned, .. } = *host;
    unsafe {
        host.pinned().fill(1);
        assert_eq!(cuMemcpyHtoDAsync_v2(device, pinned, 64, stream), status::SUCCESS);
        // Too early: this is what arrives.
        host.pinned().fill(2);
        host.wait();
        assert_eq!(cuMemcpyDtoHAsync_v2(pinned, device, 64, stream), status::SUCCESS);
        assert_ne!(host.pinned()[0], 2, "read before the copy was waited for");
        let answer = cuMemcpyDtoHAsync_v2(pinned + 8, device, 64, stream);
        host.wrong(answer, status::SUCCESS, "memory that an earlier copy still uses");
        host.wait();
        assert_eq!(host.pinned()[0], 2);
        // What was copied before, in a new allocation: nobody has written it.
        let fresh = out(|to| cuMemAlloc_v2(to, 64));
        assert_eq!(cuMemcpyDtoHAsync_v2(pinned, fresh, 64, stream), status::SUCCESS);
        host.wait();
        assert_eq!(host.pinned()[..2], 0xFFA5u16.to_le_bytes());
        assert_eq!(cuMemFree_v2(fresh), status::SUCCESS);
    }
}

fn captures(host: &mut Host) {
    let Host { stream, device, pinned, .. } = *host;
    let event: usize = out(|to| unsafe { cuEventCreate(to, 0) });
    unsafe {
        assert_eq!(cuStreamEndCapture(stream, &mut 0), status::STREAM_CAPTURE_UNMATCHED);
        assert_eq!(cuStreamBeginCapture_v2(stream, STRICT), status::SUCCESS);
        let answer = cuStreamBeginCapture_v2(stream, STRICT);
        host.wrong(answer, status::INVALID_VALUE, "cuStreamBeginCapture of a stream that captures");
        host.wrong(cuStreamSynchronize(stream), status::STREAM_CAPTURE_UNSUPPORTED, "cuStreamSynchronize of a stream");
        assert_eq!(cuMemsetD8Async(device, 0, 8, stream), status::STREAM_CAPTURE_INVALIDATED);
        assert_eq!(cuStreamEndCapture(stream, &mut 0), status::STREAM_CAPTURE_INVALIDATED);

        assert_eq!(cuStreamBeginCapture_v2(stream, STRICT), status::SUCCESS);
        host.wrong(cuMemAlloc_v2(&mut 0, 8), status::STREAM_CAPTURE_UNSUPPORTED, "cuMemAlloc while a stream captures");
        assert_eq!(cuStreamEndCapture(stream, &mut 0), status::STREAM_CAPTURE_INVALIDATED);

        assert_eq!(cuStreamBeginCapture_v2(stream, RELAXED), status::SUCCESS);
        assert_eq!(cuEventRecord(event, stream), status::SUCCESS);
        host.wrong(cuEventSynchronize(event), status::CAPTURED_EVENT, "recorded in a capture");
        host.wrong(cuMemcpyHtoDAsync_v2(device, pinned, 8, stream), status::SUCCESS, "cuMemcpyHtoDAsync is captured");
        let graph = out(|to| cuStreamEndCapture(stream, to));
        assert_eq!(cuGraphDestroy(graph), status::SUCCESS);
        assert_eq!(cuGraphLaunch(graph, stream), status::INVALID_HANDLE);

        let end: usize = out(|to| cuEventCreate(to, 0));
        assert_eq!([cuEventRecord(event, stream), cuEventRecord(end, stream)], [0; 2]);
        assert_eq!(cuEventElapsedTime_v2(&mut 0.0, event, end), status::NOT_READY);
        host.wait();
        assert_eq!(cuEventElapsedTime_v2(&mut 0.0, event, end), status::SUCCESS);
        assert_eq!([cuEventDestroy_v2(event), cuEventDestroy_v2(end)], [0; 2]);
    }
}

/// A fat binary with one image of PTX, of which only the architecture is read.
fn fat_binary(arch: u32) -> Vec<u64> {
    let entry = [1 | 1 << 16 | 64 << 32, 0, 0, u64::from(arch) << 32, 0, 0, 0, 0];
    [&[0xBA55_ED50 | 1 << 32 | 16 << 48, 64][..], &entry[..]].concat()
}

fn launch(function: usize, block: u32, shared: u32, parameters: &[*const c_void], stream: usize) -> i32 {
    unsafe { cuLaunchKernel(function, 1, 1, 1, block, 1, 1, shared, stream, parameters.as_ptr(), null()) }
}

fn kernels(host: &mut Host) {
    let Host { stream, device, .. } = *host;
    let find = |module: usize, name: &CStr, to: &mut usize| unsafe { cuModuleGetFunction(to, module, name.as_ptr()) };
    unsafe {
        let text = [0u64; 8];
        host.wrong(cuModuleLoadData(&mut 0, text.as_ptr().cast()), status::INVALID_IMAGE, "no fat binary");
        let answer = cuModuleLoadData(&mut 0, fat_binary(100).as_ptr().cast());
        host.wrong(answer, status::NO_BINARY_FOR_GPU, "no image for (9, 0)");
        let module = out(|to| cuModuleLoadData(to, fat_binary(80).as_ptr().cast()));
        let mut function = 0;
        host.wrong(find(module, c"nothing", &mut function), status::NOT_FOUND, "no such kernel");
        assert_eq!(find(module, c"planted_copy", &mut function), status::SUCCESS);

        let (from, to, n, stray) = (device, device + 1024, 8i32, 64usize);
        let given = [(&raw const from).cast(), (&raw const to).cast(), (&raw const n).cast()];
        host.wrong(launch(function, 2048, 0, &given, stream), status::INVALID_VALUE, "a block may have 1024 threads");
        host.wrong(launch(function, 32, 49 << 10, &given, stream), status::INVALID_VALUE, "of dynamic shared memory");
        host.wrong(cuFuncSetAttribute(function, 8, 228 << 10), status::INVALID_VALUE, "233472 bytes beside 0 static");
        assert_eq!(cuFuncSetAttribute(function, 8, 49 << 10), status::SUCCESS);
        assert_eq!(launch(function, 32, 49 << 10, &given, stream), status::SUCCESS);
        host.wait();
        let missing = [given[0], given[1], null()];
        host.wrong(launch(function, 32, 0, &missing, stream), status::INVALID_VALUE, "parameter 2 is not given");
        let astray = [given[0], (&raw const stray).cast(), given[2]];
        let nothing = 0i32;
        let astray = [astray[0], astray[1], (&raw const nothing).cast()];
        host.wrong(launch(function, 32, 0, &astray, stream), status::SUCCESS, "parameter 1 is 0x40");
        host.wait();
        assert_eq!(cuModuleUnload(module), status::SUCCESS);
        host.wrong(launch(function, 32, 0, &given, stream), status::INVALID_VALUE, "of what is no function");
    }
}

fn tensor_maps(host: &mut Host) {
    #[repr(C, align(64))]
    struct Map([u64; 17]);
    let mut map = Map([0; 17]);
    let at = map.0.as_mut_ptr();
    let encode = |map: *mut u64, address: usize, stride: u64, tile: u32| unsafe {
        let (sizes, strides, tile, steps) = ([64u64, 8], [stride], [tile, 8], [1u32; 2]);
        let list = (sizes.as_ptr(), strides.as_ptr(), tile.as_ptr(), steps.as_ptr());
        cuTensorMapEncodeTiled(map.cast(), 9, 2, address, list.0, list.1, list.2, list.3, 0, 3, 0, 0)
    };
    let device = host.device;
    assert_eq!(encode(at, device, 128, 64), status::SUCCESS);
    host.wrong(encode(at, device + 8, 128, 64), status::INVALID_VALUE, "an address that is a multiple of 16");
    host.wrong(encode(at, device, 120, 64), status::INVALID_VALUE, "strides of a multiple of 16");
    host.wrong(encode(at, device, 128, 128), status::INVALID_VALUE, "rows fit the swizzle");
    host.wrong(encode(at, device + 3584, 128, 64), status::INVALID_VALUE, "a tensor inside of device memory");
    host.wrong(encode(at.wrapping_add(1), device, 128, 64), status::INVALID_VALUE, "a map at a multiple of 64");
}

/// A product of 8 × 8 matrices in bf16.
fn products(host: &mut Host) {
    let Host { stream, device, .. } = *host;
    let layout = |rows: u64| out(|to| unsafe { cublasLtMatrixLayoutCreate(to, BF16, rows, 8, rows as i64) });
    unsafe {
        let handle: usize = out(|to| cublasLtCreate(to));
        let operation: usize = out(|to| cublasLtMatmulDescCreate(to, 68, 0));
        let preference: usize = out(|to| cublasLtMatmulPreferenceCreate(to));
        let (square, tall) = (layout(8), layout(16));
        let plan = |a: usize, found: &mut Heuristic| {
            cublasLtMatmulAlgoGetHeuristic(handle, operation, a, square, square, square, preference, 1, found, &mut 0)
        };
        let mut found = Heuristic { algorithm: [0; 8], workspace: 0, state: 0, waves: 0.0, reserved: [0; 4] };
        host.wrong(plan(square, &mut found), blas::SUCCESS, "whose parts may be added up in bf16");
        let set = |attribute: i32, value: &u32| {
            cublasLtMatmulPreferenceSetAttribute(preference, attribute, (&raw const *value).cast(), 4)
        };
        assert_eq!(set(3, &2), blas::SUCCESS);
        host.wrong(plan(tall, &mut found), blas::NOT_SUPPORTED, "layouts that do not fit");
        assert_eq!(plan(square, &mut found), blas::SUCCESS);
        let multiply = |a: usize, b: usize, layouts: [usize; 2], factors: [f32; 2]| {
            let [alpha, beta] = &factors;
            let [a_layout, b_layout] = layouts;
            let (c, space) = (device + 1024, (device + 2048, 0));
            let algorithm = &found.algorithm;
            cublasLtMatmul(
                handle, operation, alpha, a, a_layout, b, b_layout, beta, c, square, c, square, algorithm, space.0,
                space.1, stream,
            )
        };
        assert_eq!(cuMemsetD8Async(device, 0, BYTES, stream), status::SUCCESS);
        let fine = [square, square];
        assert_eq!(multiply(device, device + 512, fine, [1.0, 0.0]), blas::SUCCESS);
        host.wait();
        let answer = multiply(device + 64, device + 512, fine, [1.0, 0.0]);
        host.wrong(answer, blas::INVALID_VALUE, "which was to be a multiple of 256");
        let answer = multiply(device + BYTES, device, fine, [1.0, 0.0]);
        host.wrong(answer, blas::INVALID_VALUE, "outside of device memory");
        let wide: usize = out(|to| cublasLtMatrixLayoutCreate(to, BF16, 8, 8, 16));
        host.wrong(multiply(device, device + 512, [wide, square], [1.0, 0.0]), blas::INVALID_VALUE, "another product");
        for left in [square, tall, wide] {
            assert_eq!(cublasLtMatrixLayoutDestroy(left), blas::SUCCESS);
        }
        assert_eq!([cublasLtMatmulDescDestroy(operation), cublasLtMatmulPreferenceDestroy(preference)], [0; 2]);
        assert_eq!(cublasLtDestroy(handle), blas::SUCCESS);
        host.wrong(cublasLtMatrixLayoutCreate(null_mut(), BF16, 0, 8, 8), blas::INVALID_VALUE, "of 0 x 8");
    }
}

#[test]
fn every_mistake_is_found() {
    let trace = env::temp_dir().join(format!("software-gpu-mistakes-{}", std::process::id()));
    // SAFETY: no other thread runs yet that reads variables.
    unsafe { env::set_var("SOFTWARE_GPU_TRACE", &trace) };
    let mut host = Host::new(trace.clone());
    memory(&mut host);
    transfers(&mut host);
    captures(&mut host);
    kernels(&mut host);
    tensor_maps(&mut host);
    products(&mut host);
    assert_eq!(unsafe { cuStreamDestroy_v2(host.stream) }, status::SUCCESS);
    assert_eq!(unsafe { cuDevicePrimaryCtxRelease_v2(0) }, status::SUCCESS);
    host.told("left when the context ended: 1 allocations, 1 pinned allocations");
    assert!(host.found >= 30, "{} mistakes", host.found);
    fs::remove_file(trace).expect("a trace");
}
