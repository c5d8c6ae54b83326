//! A GPU as ops see it: a handle, typed memory that is freed when dropped, and launches by name.

use super::{Arg, Driver, Dtype, Error, Launch, Matmul, Result, Tiling};
use bytemuck::Pod;
use half::bf16;
use std::marker::PhantomData;
use std::ops::{Deref, Range};
use std::sync::Arc;

/// What kernels compute in.
pub trait Real: Pod {
    /// The type by its number.
    const DTYPE: Dtype;
    /// As kernels are named: `bf16`.
    const NAME: &'static str;
    /// The value as f32.
    fn to_f32(self) -> f32;
}

impl Real for bf16 {
    const DTYPE: Dtype = Dtype::Bf16;
    const NAME: &'static str = "bf16";
    fn to_f32(self) -> f32 {
        bf16::to_f32(self)
    }
}

impl Real for f32 {
    const DTYPE: Dtype = Dtype::F32;
    const NAME: &'static str = "f32";
    fn to_f32(self) -> f32 {
        self
    }
}

/// Elements in device memory, of a [`Tensor`] or a [`SubSlice`] of one. As on any GPU, a shared reference is enough to write to them.
#[derive(Debug)]
pub struct Slice<T> {
    address: u64,
    len: usize,
    of: PhantomData<T>,
}

impl<T: Pod> Slice<T> {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Address of the first element on the device.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// The address as a kernel's argument.
    pub fn arg(&self) -> Arg {
        Arg::Address(self.address)
    }

    /// Some of the elements; `None` if there are not so many.
    pub fn part(&self, range: Range<usize>) -> Option<SubSlice<'_, T>> {
        let fits = range.start <= range.end && range.end <= self.len;
        let address = self.address + (range.start * size_of::<T>()) as u64;
        fits.then(|| SubSlice { slice: Slice { address, len: range.len(), of: PhantomData }, of: PhantomData })
    }

    fn bytes(&self) -> usize {
        self.len * size_of::<T>()
    }

    /// New contents, for [`Gpu::write_all`]. Fails unless `data` is as long.
    ///
    /// # Errors
    /// If `data` has another length than the slice.
    pub fn piece<'a>(&self, data: &'a [T]) -> Result<SliceUpload<'a>> {
        same_length("upload", data.len(), self.len)?;
        Ok(SliceUpload { from: bytemuck::cast_slice(data), to: self.address })
    }

    /// The same elements as others of their size.
    pub fn cast<U: Pod>(&self) -> SubSlice<'_, U> {
        const { assert!(size_of::<T>() == size_of::<U>(), "elements keep their size") };
        SubSlice { slice: Slice { address: self.address, len: self.len, of: PhantomData }, of: PhantomData }
    }
}

/// What a slice is to hold.
pub struct SliceUpload<'a> {
    from: &'a [u8],
    to: u64,
}

/// A borrowed stretch of a [`Tensor`].
pub struct SubSlice<'a, T> {
    slice: Slice<T>,
    of: PhantomData<&'a T>,
}

impl<T> Deref for SubSlice<'_, T> {
    type Target = Slice<T>;
    fn deref(&self) -> &Slice<T> {
        &self.slice
    }
}

/// Device memory of its own, freed on drop.
pub struct Tensor<T> {
    slice: Slice<T>,
    memory: Allocation,
}

struct Allocation {
    address: u64,
    gpu: Gpu,
}

impl Drop for Allocation {
    fn drop(&mut self) {
        self.gpu.0.free(self.address);
    }
}

impl<T: Pod> Tensor<T> {
    fn new(gpu: &Gpu, address: u64, len: usize) -> Tensor<T> {
        let memory = Allocation { address, gpu: gpu.clone() };
        Tensor { slice: Slice { address, len, of: PhantomData }, memory }
    }

    /// The same memory as `len` elements of another type.
    ///
    /// # Panics
    /// If they do not fill it.
    pub(super) fn retyped<U: Pod>(self, len: usize) -> Tensor<U> {
        assert_eq!(self.bytes(), len * size_of::<U>(), "a tensor keeps its size");
        Tensor { slice: Slice { address: self.slice.address, len, of: PhantomData }, memory: self.memory }
    }
}

impl<T> Deref for Tensor<T> {
    type Target = Slice<T>;
    fn deref(&self) -> &Slice<T> {
        &self.slice
    }
}

/// Launches captured once, to be repeated at the price of one. The tensors that they use must outlive it.
pub struct Graph {
    number: u64,
    gpu: Gpu,
}

impl Graph {
    /// Executes the captured launches.
    ///
    /// # Errors
    /// If the launch is refused.
    pub fn replay(&self) -> Result<()> {
        self.gpu.0.replay(self.number)
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        self.gpu.0.forget(self.number);
    }
}

/// A device; clones are the same one.
#[derive(Clone)]
pub struct Gpu(Arc<dyn Driver>);

impl Gpu {
    /// A handle to the device of this driver.
    pub fn new(driver: impl Driver + 'static) -> Gpu {
        Gpu(Arc::new(driver))
    }

    /// For people: the GPU's name and size.
    pub fn describe(&self) -> String {
        self.0.describe()
    }

    /// Bytes of device memory that are free.
    pub fn free_bytes(&self) -> usize {
        self.0.free_bytes()
    }

    /// Whether the kernels of `*_hopper.cu` run here.
    pub fn is_hopper(&self) -> bool {
        self.0.chip().is_hopper()
    }

    /// Whether times taken here say nothing.
    pub fn is_simulated(&self) -> bool {
        self.0.chip().simulated
    }

    /// Number of streaming multiprocessors; grids are chosen by it.
    pub fn multiprocessors(&self) -> u32 {
        self.0.chip().multiprocessors
    }

    /// The most that a block may use, bytes.
    pub fn shared_memory(&self) -> usize {
        self.0.chip().shared_memory as usize
    }

    /// For a kernel that copies boxes of so many rows and 64 columns of a matrix. On a Hopper GPU only. Null for no rows.
    ///
    /// # Errors
    /// If the GPU is not a Hopper one, or the matrix does not divide into such boxes.
    pub fn tensor_map(&self, matrix: &Slice<bf16>, columns: usize, box_rows: u32) -> Result<Arg> {
        let rows = matrix.len / columns.max(1);
        if rows == 0 {
            return Ok(Arg::NULL);
        }
        self.0.tensor_map(&Tiling { address: matrix.address, rows, columns, box_rows }).map(Arg::Map)
    }

    /// `len` elements that nobody has written.
    ///
    /// # Errors
    /// If there is too little device memory.
    pub fn uninit<T: Pod>(&self, len: usize) -> Result<Tensor<T>> {
        Ok(Tensor::new(self, self.0.alloc(len.saturating_mul(size_of::<T>()))?, len))
    }

    /// `len` elements of 0.
    ///
    /// # Errors
    /// If there is too little device memory.
    pub fn zeros<T: Pod>(&self, len: usize) -> Result<Tensor<T>> {
        let tensor = self.uninit(len)?;
        self.zero(&tensor)?;
        Ok(tensor)
    }

    /// A copy of `data`.
    ///
    /// # Errors
    /// If there is too little device memory, or the copy fails.
    pub fn tensor<T: Pod>(&self, data: &[T]) -> Result<Tensor<T>> {
        let tensor = self.uninit(data.len())?;
        self.write(&tensor, data)?;
        Ok(tensor)
    }

    /// A copy of each list, all brought there in one.
    ///
    /// # Errors
    /// If there is too little device memory, or the copy fails.
    pub fn tensors<T: Pod>(&self, lists: &[&[T]]) -> Result<Vec<Tensor<T>>> {
        let bytes: Vec<&[u8]> = lists.iter().map(|list| bytemuck::cast_slice(list)).collect();
        let addresses = self.0.alloc_all(&bytes.iter().map(|list| list.len()).collect::<Vec<_>>())?;
        let tensors = addresses.iter().zip(lists).map(|(address, list)| Tensor::new(self, *address, list.len()));
        let tensors = tensors.collect();
        self.0.upload_all(&bytes.into_iter().zip(addresses).collect::<Vec<_>>())?;
        Ok(tensors)
    }

    /// Pieces of what [`Gpu::tensors`] or a [`super::Packed`] made together are written in one copy.
    ///
    /// # Errors
    /// If the copy fails.
    pub fn write_all(&self, pieces: &[SliceUpload<'_>]) -> Result<()> {
        self.0.upload_all(&pieces.iter().map(|piece| (piece.from, piece.to)).collect::<Vec<_>>())
    }

    /// Sets every element to 0.
    ///
    /// # Errors
    /// If the call fails.
    pub fn zero<T: Pod>(&self, to: &Slice<T>) -> Result<()> {
        if to.is_empty() { Ok(()) } else { self.0.zero(to.address, to.bytes()) }
    }

    /// Fails unless `data` is as long as `to`.
    ///
    /// # Errors
    /// If `data` and `to` differ in length, or the copy fails.
    pub fn write<T: Pod>(&self, to: &Slice<T>, data: &[T]) -> Result<()> {
        same_length("upload", data.len(), to.len)?;
        self.0.upload(bytemuck::cast_slice(data), to.address)
    }

    /// Waits for all earlier calls.
    ///
    /// # Errors
    /// If the copy, or an earlier launch, fails.
    pub fn read<T: Pod>(&self, from: &Slice<T>) -> Result<Vec<T>> {
        let mut data = vec![T::zeroed(); from.len];
        self.0.download(from.address, bytemuck::cast_slice_mut(&mut data))?;
        Ok(data)
    }

    /// Fails unless both are of one length.
    ///
    /// # Errors
    /// If the slices differ in length, or the copy fails.
    pub fn copy<T: Pod>(&self, from: &Slice<T>, to: &Slice<T>) -> Result<()> {
        same_length("copy", from.len, to.len)?;
        if to.is_empty() { Ok(()) } else { self.0.copy(from.address, to.address, to.bytes()) }
    }

    /// Nothing happens when the grid is empty.
    ///
    /// # Errors
    /// If the kernel does not exist, or the launch fails.
    pub fn launch(&self, launch: Launch) -> Result<()> {
        if launch.grid.contains(&0) { Ok(()) } else { self.0.launch(&launch) }
    }

    /// So many threads, in blocks of 256.
    ///
    /// # Errors
    /// As [`Gpu::launch`].
    pub fn launch_threads(&self, kernel: &str, threads: usize, args: &[Arg]) -> Result<()> {
        let (block, shared) = ([256, 1, 1], 0);
        // Kernels number their threads in 32 bits.
        let blocks = u32::try_from(threads).map(|t| t.div_ceil(256)).map_err(|_| {
            let (kernel, problem) =
                (kernel.to_string(), format!("{threads} threads are more than a kernel can number"));
            Error::Launch { kernel, grid: [u32::MAX, 1, 1], block, shared, problem }
        })?;
        self.launch(Launch { kernel, grid: [blocks, 1, 1], block, shared, args })
    }

    /// Nothing happens when C is empty.
    ///
    /// # Errors
    /// If the library refuses the product.
    pub fn matmul(&self, product: &Matmul) -> Result<()> {
        if product.m * product.n * product.batch == 0 { Ok(()) } else { self.0.matmul(product) }
    }

    /// Waits for all earlier calls; an error may be of any of them.
    ///
    /// # Errors
    /// If an earlier call failed.
    pub fn synchronize(&self) -> Result<()> {
        self.0.synchronize()
    }

    /// The seconds that the device takes for `work`; not a number where it is simulated, so that no such time is taken for a GPU's.
    ///
    /// # Errors
    /// If `work` fails.
    pub fn timed(&self, mut work: impl FnMut() -> Result<()>) -> Result<f64> {
        let time = self.0.timed(&mut work)?;
        Ok(if self.is_simulated() { f64::NAN } else { time.as_secs_f64() })
    }

    /// Captures `work` into a graph without executing it. Reading and writing from the host cannot be captured.
    ///
    /// # Errors
    /// If `work` fails.
    pub fn capture(&self, mut work: impl FnMut() -> Result<()>) -> Result<Graph> {
        Ok(Graph { number: self.0.capture(&mut work)?, gpu: self.clone() })
    }
}

fn same_length(op: &'static str, from: usize, to: usize) -> Result<()> {
    super::expect(op, from == to, || format!("{from} elements do not fit where {to} are"))
}
