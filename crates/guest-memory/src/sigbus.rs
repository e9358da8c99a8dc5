//! Survives guest memory that loses its backing.
//!
//! A front end can shrink the file it gave us as memory; the next access then raises SIGBUS, which would end
//! the whole switch because of one guest. So every mapping of guest memory is registered here, and a handler
//! looks the faulting address up: if it lies in a registered range, private zero pages are mapped over the
//! whole range, the range is marked *dead*, and the access is repeated. Whoever uses the memory asks for the
//! mark once per batch and ends that attachment. A fault anywhere else goes to the handler that was there
//! before us (Python's faulthandler, Rust's stack overflow report, or the default, which ends the process).
//!
//! **What a signal handler may do** is little: no locks, no allocation. The registry is therefore a list of
//! fixed chunks of slots that is only ever extended and never freed. A slot is guarded by a version counter:
//! odd while it is being written, and changed by every write. The handler reads the version, the range and
//! the version again; a slot that changed meanwhile cannot be the faulting one, because a range that is in
//! use (it just faulted) stays registered until its user lets go of the mapping. Only writers take a lock.
//!
//! This is not for errors of our own: an address outside registered memory stays a crash.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering, fence};
use std::sync::{Mutex, MutexGuard, PoisonError};

const SLOTS_PER_CHUNK: usize = 64;

/// One registered range.
struct Slot {
    version: AtomicUsize,
    start: AtomicUsize,
    end: AtomicUsize,
    dead: AtomicBool,
}

/// Slots that live for ever, and the way to the next ones.
struct Chunk {
    slots: [Slot; SLOTS_PER_CHUNK],
    next: AtomicPtr<Chunk>,
}

impl Chunk {
    const fn new() -> Self {
        Self {
            slots: [const { Slot::new() }; SLOTS_PER_CHUNK],
            next: AtomicPtr::new(std::ptr::null_mut()),
        }
    }

    fn next(&self) -> Option<&'static Self> {
        // SAFETY: the pointer is null or a leaked chunk, which is never freed and only has atomics in it.
        unsafe { self.next.load(Ordering::Acquire).as_ref() }
    }
}

static FIRST: Chunk = Chunk::new();
/// Held by whoever registers, unregisters or installs; never by the handler.
static WRITER: Mutex<()> = Mutex::new(());
/// What SIGBUS did before us; leaked, so that the handler may read it at any time.
static PREVIOUS: AtomicPtr<libc::sigaction> = AtomicPtr::new(std::ptr::null_mut());
/// A fault is being handed on: a handler that calls us in turn must not make a circle.
static HANDING_ON: AtomicBool = AtomicBool::new(false);
/// A fault was handed on at some time. A handler that came after us takes us for its predecessor: it puts us back
/// and sends the signal again (Python's faulthandler does), which must end the process then and not go round.
static HANDED_ON: AtomicBool = AtomicBool::new(false);

fn writer() -> MutexGuard<'static, ()> {
    // Nothing behind this lock can be left half done by a panic: slots carry their own version.
    WRITER.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Slot {
    const fn new() -> Self {
        Self {
            version: AtomicUsize::new(0),
            start: AtomicUsize::new(0),
            end: AtomicUsize::new(0),
            dead: AtomicBool::new(false),
        }
    }

    /// Changes the range, so that a reader never believes a half-written one.
    fn write(&self, start: usize, end: usize) {
        let version = self.version.load(Ordering::Relaxed);
        self.version.store(version.wrapping_add(1), Ordering::Relaxed);
        fence(Ordering::Release);
        self.start.store(start, Ordering::Relaxed);
        self.end.store(end, Ordering::Relaxed);
        self.version.store(version.wrapping_add(2), Ordering::Release);
    }

    /// The range, or none while it is being written.
    fn read(&self) -> Option<(usize, usize)> {
        let version = self.version.load(Ordering::Acquire);
        let range = (self.start.load(Ordering::Relaxed), self.end.load(Ordering::Relaxed));
        fence(Ordering::Acquire);
        (version.is_multiple_of(2) && self.version.load(Ordering::Relaxed) == version)
            .then_some(range)
    }

    fn is_free(&self) -> bool {
        self.end.load(Ordering::Relaxed) == 0
    }
}

/// A registered range; leaves the registry when dropped, which must be before the range is unmapped.
pub(crate) struct Registration(&'static Slot);

impl Registration {
    /// Puts `len` bytes at `start` (whole pages) under the handler's care.
    ///
    /// # Errors
    /// The handler could not be installed.
    pub(crate) fn new(start: *mut u8, len: usize) -> io::Result<Self> {
        let _writer = writer();
        install()?;
        let slot = free_slot();
        slot.dead.store(false, Ordering::Relaxed);
        slot.write(start.addr(), start.addr() + len);
        Ok(Self(slot))
    }

    /// True once an access found the range without its backing.
    pub(crate) fn is_dead(&self) -> bool {
        self.0.dead.load(Ordering::Relaxed)
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let _writer = writer();
        self.0.write(0, 0);
    }
}

/// A slot nobody uses; the list grows when there is none. Called with the writer lock held.
fn free_slot() -> &'static Slot {
    let mut chunk = &FIRST;
    loop {
        if let Some(slot) = chunk.slots.iter().find(|slot| slot.is_free()) {
            return slot;
        }
        chunk = match chunk.next() {
            Some(next) => next,
            None => {
                let new: &'static mut Chunk = Box::leak(Box::new(Chunk::new()));
                let new: *mut Chunk = new;
                chunk.next.store(new, Ordering::Release);
                // SAFETY: just leaked, and only shared references are made from here on.
                unsafe { &*new }
            }
        };
    }
}

/// The slot whose range holds `address`. Safe in a signal handler.
fn find(address: usize) -> Option<(&'static Slot, usize, usize)> {
    let mut chunk = Some(&FIRST);
    while let Some(current) = chunk {
        for slot in &current.slots {
            if let Some((start, end)) = slot.read()
                && (start..end).contains(&address)
            {
                return Some((slot, start, end));
            }
        }
        chunk = current.next();
    }
    None
}

/// Makes `handle` the process's SIGBUS handler unless it already is (another library may have come since).
fn install() -> io::Result<()> {
    let ours = handle as extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void);
    // SAFETY: all-zero is a valid `sigaction`; both calls get valid pointers; `handle` keeps to what a
    // handler may do, and PREVIOUS is set before the handler can run.
    unsafe {
        let mut current: libc::sigaction = std::mem::zeroed();
        if libc::sigaction(libc::SIGBUS, std::ptr::null(), &raw mut current) != 0 {
            return Err(io::Error::last_os_error());
        }
        if current.sa_sigaction == ours as libc::sighandler_t {
            return Ok(());
        }
        PREVIOUS.store(Box::into_raw(Box::new(current)), Ordering::Release);
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = ours as libc::sighandler_t;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        if libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut()) != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// The SIGBUS handler.
extern "C" fn handle(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel gives a valid `info`; errno belongs to this thread and is put back, because the
    // interrupted code may be about to read it.
    unsafe {
        let errno = *libc::__errno_location();
        // A positive code means a fault; anything else is a signal that somebody sent, without an address.
        let repaired = (*info).si_code > 0 && repair((*info).si_addr().addr());
        if !repaired {
            hand_on(signal, info, context);
        }
        *libc::__errno_location() = errno;
    }
}

/// Maps zero pages over the registered range round `address`; false when there is none.
fn repair(address: usize) -> bool {
    let Some((slot, start, end)) = find(address) else { return false };
    slot.dead.store(true, Ordering::Relaxed);
    // SAFETY: the range is a mapping of guest memory that its owner keeps (it was just accessed), so what is
    // replaced is ours; mmap is a plain system call.
    let mapped = unsafe {
        libc::mmap(
            std::ptr::with_exposed_provenance_mut(start),
            end - start,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED,
            -1,
            0,
        )
    };
    mapped != libc::MAP_FAILED
}

/// Does what SIGBUS did before we came.
///
/// # Safety
/// Only from the signal handler, with what the kernel gave it.
unsafe fn hand_on(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel gives a valid `info`.
    let sent = unsafe { (*info).si_code <= 0 };
    let nested = HANDING_ON.swap(true, Ordering::Relaxed);
    let handed_on = if sent {
        HANDED_ON.load(Ordering::Relaxed)
    } else {
        HANDED_ON.store(true, Ordering::Relaxed);
        false
    };
    let circle = nested || handed_on;
    // SAFETY: PREVIOUS is null or a leaked action. Its handler is called with the signature that its flags
    // promise. The default action is restored and the signal sent again, so that the process ends of it.
    unsafe {
        let previous = PREVIOUS.load(Ordering::Acquire).as_ref();
        match previous {
            Some(action) if !circle && action.sa_sigaction > libc::SIG_IGN => {
                if action.sa_flags & libc::SA_SIGINFO != 0 {
                    let call: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) =
                        std::mem::transmute(action.sa_sigaction);
                    call(signal, info, context);
                } else {
                    let call: extern "C" fn(libc::c_int) = std::mem::transmute(action.sa_sigaction);
                    call(signal);
                }
            }
            Some(action) if action.sa_sigaction == libc::SIG_IGN && sent => {}
            Some(_) | None => {
                libc::signal(signal, libc::SIG_DFL);
                libc::raise(signal);
            }
        }
    }
    HANDING_ON.store(nested, Ordering::Relaxed);
}
