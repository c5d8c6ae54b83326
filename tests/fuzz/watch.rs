//! What an input may take: memory by an allocator that counts, time by a thread that looks at the clock.

use rustix::time::{ClockId, clock_gettime};
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

/// The input that is being read: since when, by the clock and by the processors, and where it lies.
static NOW: Mutex<Option<(Instant, Duration, PathBuf)>> = Mutex::new(None);

/// A wait of this length is a hang, too; a process that others keep from running waits as well.
const WAIT: Duration = Duration::from_secs(60);

/// Time that the process's threads have run.
fn worked() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Ends the process when an input works longer than `most`, or does nothing for [`WAIT`].
pub fn end_hangs(most: Duration) {
    std::thread::spawn(move || {
        loop {
            std::thread::sleep(Duration::from_millis(100));
            let now = NOW.lock().unwrap().clone();
            let hangs =
                |since: &Instant, before: &Duration| worked() - *before > most || since.elapsed() > most.max(WAIT);
            if let Some((.., file)) = now.filter(|(since, before, _)| hangs(since, before)) {
                eprintln!("HANG: this input takes more than {most:?}: {}", file.display());
                std::process::exit(99);
            }
        }
    });
}

/// Time that was worked, and most bytes, of `work` on the input in `file`.
pub fn measured(file: &Path, work: impl FnOnce()) -> (Duration, usize) {
    let since = worked();
    *NOW.lock().unwrap() = Some((Instant::now(), since, file.into()));
    let before = HELD.load(Relaxed);
    PEAK.store(before, Relaxed);
    work();
    *NOW.lock().unwrap() = None;
    (worked() - since, PEAK.load(Relaxed))
}
