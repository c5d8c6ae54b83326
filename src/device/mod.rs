//! Where numbers live and how work is spread over a device.

pub mod cpu;
pub mod kernels;
