//! A team of threads that works through one step together.
//!
//! A step is a few hundred short parallel regions, one after the other; handing each to a general pool
//! would cost more than many of them take. Here a region is announced by one atomic number that the
//! workers watch: for a moment they spin, because the next region follows within microseconds; then they
//! park, so that an idle engine uses no processor.

use std::any::Any;
use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::simd::{Kernel, Level};

/// How long a worker watches for the next region before it parks: longer than sampling and planning
/// between two steps take, short against anything that a person would call idle.
const WATCH: Duration = Duration::from_micros(200);
/// Looks at the number between two looks at the clock, or two offers of the processor to others.
const LOOKS: u32 = 256;

/// Threads that share the work of a region. One is the caller's.
pub(super) struct Team {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

/// A region's work: called with the number of each of its tasks.
type Work<'a> = dyn Fn(usize) + Sync + 'a;

struct Shared {
    /// Counts regions; a change announces one.
    region: AtomicU32,
    /// What the region does. Written while no worker looks, read only between the announcement and
    /// the worker's sign-off.
    work: UnsafeCell<Option<(*const Work<'static>, usize)>>,
    /// The next task that nobody has taken.
    next: AtomicUsize,
    /// Workers that have not signed off from the region.
    busy: AtomicUsize,
    /// Workers that are parked or about to be.
    parked: AtomicUsize,
    stop: AtomicBool,
    panicked: Mutex<Option<Box<dyn Any + Send>>>,
}

// SAFETY: `work` is written by the one caller while `busy` is zero, and read by workers only after they
// saw `region` change, which is published after the write; they sign off before it is written again.
// What it points to is `Sync` and outlives the region, because the caller waits for all to sign off.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Team {
    /// A team of `threads`, the caller's among them; or why the system gives none.
    pub(super) fn new(threads: usize) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            region: AtomicU32::new(0),
            work: UnsafeCell::new(None),
            next: AtomicUsize::new(0),
            busy: AtomicUsize::new(0),
            parked: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            panicked: Mutex::new(None),
        });
        let mut team = Self { shared, workers: Vec::with_capacity(threads.saturating_sub(1)) };
        for i in 1..threads {
            let shared = Arc::clone(&team.shared);
            let worker = std::thread::Builder::new().name(format!("strata-cpu-{i}"));
            team.workers.push(worker.spawn(move || shared.serve())?);
        }
        Ok(team)
    }

    /// Calls `work` once for each number below `tasks`, on all threads, in no order.
    ///
    /// # Panics
    /// With what a task panicked with, after all tasks of the region are done or abandoned.
    pub(super) fn for_each(&mut self, tasks: usize, work: impl Fn(usize) + Sync) {
        if self.workers.is_empty() || tasks <= 1 {
            (0..tasks).for_each(work);
            return;
        }
        let work: &Work<'_> = &work;
        // SAFETY: only the lifetime is erased, and it is kept by the wait below.
        let erased = unsafe { std::mem::transmute::<&Work<'_>, &Work<'static>>(work) };
        // SAFETY: no worker is in a region, because each region is waited for.
        unsafe { *self.shared.work.get() = Some((std::ptr::from_ref(erased), tasks)) };
        self.shared.next.store(0, Ordering::Relaxed);
        self.shared.busy.store(self.workers.len(), Ordering::Relaxed);
        self.shared.region.fetch_add(1, Ordering::SeqCst);
        if self.shared.parked.load(Ordering::SeqCst) > 0 {
            for worker in &self.workers {
                worker.thread().unpark();
            }
        }
        self.shared.take_tasks(work, tasks);
        let mut looks = 0;
        while self.shared.busy.load(Ordering::Acquire) > 0 {
            looks += 1;
            if u32::is_multiple_of(looks, LOOKS) {
                std::thread::yield_now();
            } else {
                std::hint::spin_loop();
            }
        }
        let panicked = self.shared.panicked.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(panic) = panicked {
            resume_unwind(panic);
        }
    }
}

impl Shared {
    /// Takes tasks until none is left. A panic is kept for the caller, and ends the region early.
    fn take_tasks(&self, work: &Work<'_>, tasks: usize) {
        let result = catch_unwind(AssertUnwindSafe(|| {
            loop {
                let task = self.next.fetch_add(1, Ordering::Relaxed);
                if task >= tasks {
                    return;
                }
                work(task);
            }
        }));
        if let Err(panic) = result {
            self.next.store(tasks, Ordering::Relaxed);
            self.panicked.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(panic);
        }
    }

    /// A worker's life.
    fn serve(&self) {
        let mut seen = 0;
        while let Some(region) = self.await_region(seen) {
            seen = region;
            // SAFETY: the region was announced after this was written, and is not over before this
            // worker signs off below.
            if let Some((work, tasks)) = unsafe { *self.work.get() } {
                // SAFETY: as above: the caller keeps the work alive until then.
                self.take_tasks(unsafe { &*work }, tasks);
            }
            self.busy.fetch_sub(1, Ordering::Release);
        }
    }

    /// The next region after `seen`; none when the team is dissolved.
    fn await_region(&self, seen: u32) -> Option<u32> {
        let mut since = None;
        let mut looks: u32 = 0;
        loop {
            let region = self.region.load(Ordering::SeqCst);
            if region != seen {
                return Some(region);
            }
            if self.stop.load(Ordering::SeqCst) {
                return None;
            }
            looks = looks.wrapping_add(1);
            if !looks.is_multiple_of(LOOKS) {
                std::hint::spin_loop();
                continue;
            }
            let now = Instant::now();
            if now - *since.get_or_insert(now) < WATCH {
                // Another thread of this process may be what the next region waits for.
                std::thread::yield_now();
                continue;
            }
            self.parked.fetch_add(1, Ordering::SeqCst);
            // Announced or stopped in between: whoever did it saw `parked` or is seen here.
            if self.region.load(Ordering::SeqCst) == seen && !self.stop.load(Ordering::SeqCst) {
                std::thread::park();
            }
            self.parked.fetch_sub(1, Ordering::SeqCst);
            since = None;
        }
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            // A worker's panics are caught where they arise.
            let _ = worker.join();
        }
    }
}

/// Where kernels run: a team, and the instruction set that they are compiled for.
pub(super) struct Machine {
    pub(super) level: Level,
    team: Team,
}

impl Machine {
    pub(super) fn new(level: Level, threads: usize) -> std::io::Result<Self> {
        Ok(Self { level, team: Team::new(threads)? })
    }

    /// Threads that share the work.
    pub(super) fn threads(&self) -> usize {
        self.team.workers.len() + 1
    }

    /// Runs a kernel on this thread.
    #[inline]
    pub(super) fn run<K: Kernel>(&self, kernel: K) -> K::Output {
        self.level.run(kernel)
    }

    /// Calls `work` once for each number below `tasks`, on all threads.
    pub(super) fn for_each(&mut self, tasks: usize, work: impl Fn(Level, usize) + Sync) {
        let level = self.level;
        self.team.for_each(tasks, |task| work(level, task));
    }

    /// Calls `work` with the ranges of `len` cut into pieces of at least `least`, about as many as keep
    /// all threads busy.
    pub(super) fn for_ranges(
        &mut self,
        len: usize,
        least: usize,
        work: impl Fn(Level, std::ops::Range<usize>) + Sync,
    ) {
        let piece = len.div_ceil(4 * self.threads()).max(least);
        self.for_each(len.div_ceil(piece), |level, i| work(level, i * piece..len.min((i + 1) * piece)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once_in_every_region() {
        for threads in [1, 2, 5] {
            let mut team = Team::new(threads).unwrap();
            for tasks in [0, 1, 2, 7, 300] {
                let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                for _ in 0..50 {
                    team.for_each(tasks, |i| {
                        counts[i].fetch_add(1, Ordering::Relaxed);
                    });
                }
                assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 50), "{threads} threads, {tasks}");
            }
        }
    }

    #[test]
    fn a_parked_team_wakes_and_ends() {
        let mut team = Team::new(3).unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        while team.shared.parked.load(Ordering::SeqCst) < 2 {
            assert!(Instant::now() < deadline, "workers park when there is nothing to do");
            std::thread::yield_now();
        }
        let sum = AtomicUsize::new(0);
        team.for_each(100, |i| {
            sum.fetch_add(i, Ordering::Relaxed);
        });
        assert_eq!(sum.load(Ordering::Relaxed), 4950);
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_team_goes_on() {
        let mut team = Team::new(2).unwrap();
        for _ in 0..20 {
            let result = catch_unwind(AssertUnwindSafe(|| {
                team.for_each(8, |i| assert!(i != 5, "task five"));
            }));
            assert!(result.is_err());
        }
        let ran = AtomicUsize::new(0);
        team.for_each(8, |_| {
            ran.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(ran.load(Ordering::Relaxed), 8);
    }
}
