//! CUresult: what a call answers.

use std::ffi::{CStr, c_int};

pub type Status = c_int;

pub const SUCCESS: Status = 0;
pub const INVALID_VALUE: Status = 1;
pub const OUT_OF_MEMORY: Status = 2;
pub const NOT_INITIALIZED: Status = 3;
pub const NO_DEVICE: Status = 100;
pub const INVALID_DEVICE: Status = 101;
pub const INVALID_IMAGE: Status = 200;
pub const INVALID_CONTEXT: Status = 201;
pub const NO_BINARY_FOR_GPU: Status = 209;
pub const INVALID_HANDLE: Status = 400;
pub const NOT_FOUND: Status = 500;
pub const NOT_READY: Status = 600;
pub const ILLEGAL_ADDRESS: Status = 700;
pub const LAUNCH_OUT_OF_RESOURCES: Status = 701;
pub const LAUNCH_FAILED: Status = 719;
pub const STREAM_CAPTURE_UNSUPPORTED: Status = 900;
pub const STREAM_CAPTURE_INVALIDATED: Status = 901;
pub const STREAM_CAPTURE_UNMATCHED: Status = 903;
pub const CAPTURED_EVENT: Status = 907;
pub const STREAM_CAPTURE_WRONG_THREAD: Status = 908;

/// Whether every later call in the context answers the same.
pub fn is_sticky(status: Status) -> bool {
    matches!(status, 214 | ILLEGAL_ADDRESS | 702 | 710 | 714..=LAUNCH_FAILED)
}

/// CUDA's words.
pub fn text(status: Status) -> &'static CStr {
    match status {
        SUCCESS => c"no error",
        INVALID_VALUE => c"invalid argument",
        OUT_OF_MEMORY => c"out of memory",
        NOT_INITIALIZED => c"initialization error",
        NO_DEVICE => c"no CUDA-capable device is detected",
        INVALID_DEVICE => c"invalid device ordinal",
        INVALID_IMAGE => c"device kernel image is invalid",
        INVALID_CONTEXT => c"invalid device context",
        NO_BINARY_FOR_GPU => c"no kernel image is available for execution on the device",
        INVALID_HANDLE => c"invalid resource handle",
        NOT_FOUND => c"named symbol not found",
        NOT_READY => c"device not ready",
        ILLEGAL_ADDRESS => c"an illegal memory access was encountered",
        LAUNCH_OUT_OF_RESOURCES => c"too many resources requested for launch",
        LAUNCH_FAILED => c"unspecified launch failure",
        STREAM_CAPTURE_UNSUPPORTED => c"operation not permitted when stream is capturing",
        STREAM_CAPTURE_INVALIDATED => c"operation failed due to a previous error during capture",
        STREAM_CAPTURE_UNMATCHED => c"capture was not initiated in this stream",
        CAPTURED_EVENT => c"operation not permitted on an event last recorded in a capturing stream",
        STREAM_CAPTURE_WRONG_THREAD => c"attempt to terminate a thread-local capture sequence from another thread",
        _ => c"unrecognized error code",
    }
}
