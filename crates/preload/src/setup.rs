//! Reads the environment once, when the library is loaded: where the switch is, and whether to explain failures.
//!
//! Later is too late: programs change or empty their environment, and reading it while another thread writes can crash.

use core::cell::UnsafeCell;
use core::ffi::{CStr, c_char};
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::sys;

/// sun_path of unix(7), less the final NUL.
pub(crate) const LONGEST_PATH: usize = 107;

struct Directory {
    bytes: UnsafeCell<[u8; LONGEST_PATH]>,
    len: AtomicUsize,
}

// SAFETY: written once, before `len` is set with release; read only up to a `len` read with acquire.
unsafe impl Sync for Directory {}

static DIRECTORY: Directory =
    Directory { bytes: UnsafeCell::new([0; LONGEST_PATH]), len: AtomicUsize::new(0) };
static IS_READ: AtomicBool = AtomicBool::new(false);
static IS_VERBOSE: AtomicBool = AtomicBool::new(false);

#[cfg_attr(not(test), unsafe(link_section = ".init_array"))]
#[cfg_attr(not(test), used)]
#[cfg_attr(test, allow(dead_code))]
static AT_LOAD: extern "C" fn() = at_load;

extern "C" fn at_load() {
    read_environment();
    crate::real_libc::find_all();
}

/// The runtime directory; empty if its path is too long for a Unix socket below it.
pub(crate) fn directory() -> &'static [u8] {
    if !IS_READ.load(Ordering::Acquire) {
        read_environment(); // a constructor of another library was before ours
    }
    let len = DIRECTORY.len.load(Ordering::Acquire);
    // SAFETY: the first `len` bytes were written before `len` was, and are not written again.
    unsafe { core::slice::from_raw_parts(DIRECTORY.bytes.get().cast::<u8>(), len) }
}

fn read_environment() {
    if IS_READ.swap(true, Ordering::AcqRel) {
        return;
    }
    IS_VERBOSE.store(!variable(c"VSOCK_PRELOAD_VERBOSE").is_empty(), Ordering::Relaxed);
    let (chosen, session) = (variable(c"VSOCK_RUNTIME_DIR"), variable(c"XDG_RUNTIME_DIR"));
    let (first, second): (&[u8], &[u8]) = match (chosen, session) {
        ([], []) => (b"/run/vsock", b""),
        ([], session) => (session, b"/vsock"),
        (chosen, _) => (chosen, b""),
    };
    let len = first.len() + second.len();
    if len > LONGEST_PATH {
        return;
    }
    // SAFETY: only the caller that found IS_READ unset writes, and nobody reads before `len` is set.
    let bytes = unsafe { &mut *DIRECTORY.bytes.get() };
    for (to, from) in bytes.iter_mut().zip(first.iter().chain(second)) {
        *to = *from;
    }
    DIRECTORY.len.store(len, Ordering::Release);
}

fn variable(name: &CStr) -> &'static [u8] {
    // SAFETY: the name ends with NUL. What comes back lies in the environment, and is copied at once.
    let value: *const c_char = unsafe { libc::getenv(name.as_ptr()) };
    if value.is_null() {
        return b"";
    }
    // SAFETY: strings of the environment end with NUL.
    unsafe { CStr::from_ptr(value) }.to_bytes()
}

/// Tells the user once why AF_VSOCK does not work, if VSOCK_PRELOAD_VERBOSE is set.
pub(crate) fn explain(reason: &[u8]) {
    if IS_VERBOSE.swap(false, Ordering::Relaxed) {
        let mut line = [0; 256];
        let parts: [&[u8]; 5] =
            [b"vsock preload: ", reason, b" (runtime directory ", directory(), b")\n"];
        let mut len = 0;
        for (to, from) in line.iter_mut().zip(parts.iter().copied().flatten()) {
            *to = *from;
            len += 1;
        }
        sys::write_stderr(line.get(..len).unwrap_or(b""));
    }
}
