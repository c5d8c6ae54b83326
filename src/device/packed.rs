//! Lists that are made on the host together, and go to the device in one copy.

use super::{Gpu, Result, Tensor};
use bytemuck::Pod;
use std::marker::PhantomData;

/// Lists on their way to the device.
#[derive(Default)]
pub struct Packed(Vec<Vec<u8>>);

/// Which of them a list is.
pub struct PackedIndex<T> {
    at: usize,
    len: usize,
    of: PhantomData<T>,
}

/// Lists on the device.
pub struct Unpacked(Vec<Option<Tensor<u8>>>);

impl Packed {
    /// Adds a list, and says where it will be found after the upload.
    pub fn add<T: Pod>(&mut self, list: &[T]) -> PackedIndex<T> {
        self.0.push(bytemuck::cast_slice(list).to_vec());
        PackedIndex { at: self.0.len() - 1, len: list.len(), of: PhantomData }
    }

    /// Copies all lists to the device in one copy.
    ///
    /// # Errors
    /// If there is too little device memory, or the copy fails.
    pub fn upload(self, gpu: &Gpu) -> Result<Unpacked> {
        let lists: Vec<&[u8]> = self.0.iter().map(|list| &list[..]).collect();
        Ok(Unpacked(gpu.tensors(&lists)?.into_iter().map(Some).collect()))
    }
}

impl Unpacked {
    /// # Panics
    /// If the list is of another [`Packed`].
    pub fn take<T: Pod>(&mut self, place: PackedIndex<T>) -> Tensor<T> {
        let list = self.0[place.at].take().expect("a place is taken once");
        list.retyped(place.len)
    }
}
