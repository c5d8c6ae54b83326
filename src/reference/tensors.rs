//! Named tensors of a golden set, in f32, f64 or i64.

use super::ReferenceError;
use crate::files;
use safetensors::tensor::{Dtype, SafeTensors, View};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

/// Gradients of a model with billions of parameters would be more.
const MOST_BYTES: u64 = 16 << 30;

/// The values of one tensor, in the type it is stored in.
#[derive(Debug, Clone, PartialEq)]
pub enum Data {
    F32(Vec<f32>),
    F64(Vec<f64>),
    I64(Vec<i64>),
}

/// Row-major values with their shape.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    pub shape: Vec<usize>,
    pub data: Data,
}

impl Tensor {
    /// The values, each exact in f64 (integers here are token ids and masks).
    pub fn to_f64(&self) -> Vec<f64> {
        match &self.data {
            Data::F32(v) => v.iter().map(|x| f64::from(*x)).collect(),
            Data::F64(v) => v.clone(),
            Data::I64(v) => v.iter().map(|x| *x as f64).collect(),
        }
    }
}

/// The content of one safetensors file.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Tensors(pub BTreeMap<String, Tensor>);

impl Tensors {
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.0.get(name)
    }

    pub fn insert_f32(&mut self, name: impl Into<String>, shape: &[usize], values: Vec<f32>) {
        self.0.insert(name.into(), Tensor { shape: shape.to_vec(), data: Data::F32(values) });
    }

    pub fn insert_f64(&mut self, name: impl Into<String>, shape: &[usize], values: Vec<f64>) {
        self.0.insert(name.into(), Tensor { shape: shape.to_vec(), data: Data::F64(values) });
    }

    pub fn insert_i64(&mut self, name: impl Into<String>, shape: &[usize], values: Vec<i64>) {
        self.0.insert(name.into(), Tensor { shape: shape.to_vec(), data: Data::I64(values) });
    }

    pub fn read(file: &Path) -> Result<Tensors, ReferenceError> {
        let bytes =
            files::read(file, MOST_BYTES).map_err(|source| ReferenceError::Read { file: file.into(), source })?;
        let corrupt = |reason: String| ReferenceError::Corrupt { file: file.into(), reason };
        let all = SafeTensors::deserialize(&bytes).map_err(|e| corrupt(e.to_string()))?;
        let mut tensors = Tensors::default();
        for (name, view) in all.tensors() {
            let b = view.data();
            let data = match view.dtype() {
                Dtype::F32 => Data::F32(b.as_chunks().0.iter().map(|c| f32::from_le_bytes(*c)).collect()),
                Dtype::F64 => Data::F64(b.as_chunks().0.iter().map(|c| f64::from_le_bytes(*c)).collect()),
                Dtype::I64 => Data::I64(b.as_chunks().0.iter().map(|c| i64::from_le_bytes(*c)).collect()),
                other => return Err(corrupt(format!("tensor `{name}` is {other:?}, expected F32, F64 or I64"))),
            };
            tensors.0.insert(name, Tensor { shape: view.shape().to_vec(), data });
        }
        Ok(tensors)
    }

    pub fn write(&self, file: &Path) -> Result<(), ReferenceError> {
        safetensors::serialize_to_file(self.0.iter(), None, file)
            .map_err(|e| ReferenceError::Write { file: file.into(), source: std::io::Error::other(e) })
    }
}

impl View for &Tensor {
    fn dtype(&self) -> Dtype {
        match self.data {
            Data::F32(_) => Dtype::F32,
            Data::F64(_) => Dtype::F64,
            Data::I64(_) => Dtype::I64,
        }
    }
    fn shape(&self) -> &[usize] {
        &self.shape
    }
    fn data(&self) -> Cow<'_, [u8]> {
        match &self.data {
            Data::F32(v) => v.iter().flat_map(|x| x.to_le_bytes()).collect(),
            Data::F64(v) => v.iter().flat_map(|x| x.to_le_bytes()).collect(),
            Data::I64(v) => v.iter().flat_map(|x| x.to_le_bytes()).collect(),
        }
    }
    fn data_len(&self) -> usize {
        self.shape.iter().product::<usize>() * self.dtype().bitsize() / 8
    }
}
