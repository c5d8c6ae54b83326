//! What is on the heap at most, counted: of all cosines of per-sample gradients, and of training steps.

mod common;

use common::planned::{expect_as_planned, learner, planned, two_steps, variants};
use common::tokens;
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use uncouple::bench::shape;
use uncouple::coupling::{Grams, StateAction};
use uncouple::device::Dtype;
use uncouple::model::{Model, Params, SavedActivations};
use uncouple::train::memory::Placement;

struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

#[global_allocator]
static HEAP: Counting = Counting;

// SAFETY: the system's allocator does everything; sizes are only counted.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        MOST.fetch_max(NOW.fetch_add(layout.size(), Relaxed) + layout.size(), Relaxed);
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Relaxed);
        unsafe { System.dealloc(at, layout) }
    }
}

/// The heap is one: a test that counts is alone.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Most bytes on the heap at once during `f`, beyond those before it.
fn most(f: impl FnOnce()) -> usize {
    let before = NOW.load(Relaxed);
    MOST.store(before, Relaxed);
    f();
    MOST.load(Relaxed) - before
}

#[test]
fn cosines_take_less_than_the_gradients() {
    let _alone = alone();
    // The benchmarks' model and size.
    let shape = shape();
    let model = Model::new(shape.clone(), Params::random(&shape, 0));
    let samples: Vec<StateAction> = (0..16).map(|i| StateAction { tokens: tokens(i, 256, 2048), action: 1 }).collect();
    let gradients = samples.len() * size_of_val(&model.params.flat[..]);
    for (keep, times) in [(SavedActivations::LayerInputs, 1.0), (SavedActivations::All, 2.0)] {
        let bytes = most(|| drop(Grams::new(&model, &samples, keep).unwrap()));
        println!("{keep:?}: {} MB; 16 gradients: {} MB", bytes >> 20, gradients >> 20);
        assert!((bytes as f64) < times * gradients as f64, "{keep:?}: {bytes} bytes, the gradients {gradients}");
    }
    // What is measured is there at all.
    assert!(most(|| drop(vec![0u8; 1 << 20])) >= 1 << 20);
}

#[test]
fn a_training_step_holds_what_the_plan_says() {
    let _alone = alone();
    for (name, mut config) in variants(4) {
        for dtype in [Dtype::F32, Dtype::Bf16] {
            config.model.dtype = dtype;
            // Nothing is sampled here: in f32 no weights are packed.
            let but = if dtype == Dtype::F32 { &["KV cache", "packed weights"][..] } else { &["KV cache"] };
            let held = most(|| two_steps(&config, &mut learner(&config)));
            expect_as_planned(&format!("{name}, {dtype:?}"), held as u64, planned(&config, Placement::Cpu, but));
        }
    }
}
