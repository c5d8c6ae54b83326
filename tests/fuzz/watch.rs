//! What an input may take: memory by an allocator that counts, time by a thread that looks at the clock.

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// Most bytes at once: what goes beyond is refused, which ends the process.
const MOST: usize = 4 << 30;

static HELD: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

struct Counting;

fn take(size: usize) -> bool {
    let held = HELD.fetch_add(size, Relaxed) + size;
    PEAK.fetch_max(held, Relaxed);
    if held > MOST {
        HELD.fetch_sub(size, Relaxed);
    }
    held <= MOST
}

// SAFETY: memory comes from the system's allocator and goes back to it as it came; a null pointer is how an allocator refuses.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if take(layout.size()) { unsafe { System.alloc(layout) } } else { std::ptr::null_mut() }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if take(layout.size()) { unsafe { System.alloc_zeroed(layout) } } else { std::ptr::null_mut() }
    }
    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Relaxed);
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The input that is being read: since when, and where it lies.
static NOW: Mutex<Option<(Instant, PathBuf)>> = Mutex::new(None);

/// Ends the process when an input takes longer than `most`.
pub fn end_hangs(most: Duration) {
    std::thread::spawn(move || {
        loop {
            std::thread::sleep(Duration::from_millis(100));
            let now = NOW.lock().unwrap().clone();
            if let Some((_, file)) = now.filter(|(since, _)| since.elapsed() > most) {
                eprintln!("HANG: this input takes more than {most:?}: {}", file.display());
                std::process::exit(99);
            }
        }
    });
}

/// Time and most bytes of `work` on the input in `file`.
pub fn measured(file: &Path, work: impl FnOnce()) -> (Duration, usize) {
    let since = Instant::now();
    *NOW.lock().unwrap() = Some((since, file.into()));
    let before = HELD.load(Relaxed);
    PEAK.store(before, Relaxed);
    work();
    *NOW.lock().unwrap() = None;
    (since.elapsed(), PEAK.load(Relaxed))
}
