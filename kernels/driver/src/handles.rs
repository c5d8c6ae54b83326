//! What callers hold of the driver's objects: numbers, never used twice.

use crate::status::{INVALID_HANDLE, Status};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};

static NEXT: AtomicUsize = AtomicUsize::new(0x1000);

/// The objects of one kind.
pub struct Handles<T>(BTreeMap<usize, T>);

impl<T> Default for Handles<T> {
    fn default() -> Handles<T> {
        Handles(BTreeMap::new())
    }
}

impl<T> Handles<T> {
    pub fn insert(&mut self, object: T) -> usize {
        let handle = NEXT.fetch_add(16, Ordering::Relaxed);
        self.0.insert(handle, object);
        handle
    }

    pub fn get(&self, handle: usize) -> Result<&T, Status> {
        self.0.get(&handle).ok_or(INVALID_HANDLE)
    }

    pub fn get_mut(&mut self, handle: usize) -> Result<&mut T, Status> {
        self.0.get_mut(&handle).ok_or(INVALID_HANDLE)
    }

    pub fn remove(&mut self, handle: usize) -> Result<T, Status> {
        self.0.remove(&handle).ok_or(INVALID_HANDLE)
    }

    pub fn retain(&mut self, keep: impl Fn(&T) -> bool) {
        self.0.retain(|_, object| keep(object));
    }

    pub fn keys(&self) -> Vec<usize> {
        self.0.keys().copied().collect()
    }

    pub fn values(&self) -> impl Iterator<Item = &T> {
        self.0.values()
    }

    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.0.values_mut()
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }
}
