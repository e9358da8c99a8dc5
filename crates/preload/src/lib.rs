//! `libvsock_preload.so` gives unmodified programs AF_VSOCK through the switch: `LD_PRELOAD` puts its functions before
//! those of libc, and what a program does to an AF_VSOCK socket is done to a Unix socket at the switch instead.
//!
//! ```text
//!   hooks     the exported functions: ours or not? if not, on to libc's
//!     ▼
//!   calls     what socket, bind, connect, accept, … do to one of our sockets
//!     ▼
//!   settle    how a connect under way ends              node   asking the switch (client protocol)
//!     ▼                                                   ▼
//!   note  name  vm_options   what a socket is, kept in the socket itself       wire  messages    address  sockaddr_vm
//!     ▼
//!   sys       system calls        next  libc's own functions        setup  environment, the hint to the user
//! ```
//!
//! Because a socket's state is kept in the socket (`note`), there is no table of descriptors: dup, fork, exec and passed
//! descriptors need nothing, and close has nothing to forget. Because it is a real socket, poll, epoll and select
//! need nothing either.
//!
//! Three rules hold everywhere. No AF_VSOCK socket of the kernel is ever made or used: where the switch cannot help, the
//! call fails as AF_VSOCK without a transport does. Nothing allocates, panics or takes a lock that a fork could leave
//! taken, for these functions run in signal handlers, before `main` and after `vfork`. And `errno` is touched
//! only by calls that fail.

#![no_std]
#![cfg_attr(test, allow(dead_code, reason = "tests do not export the hooks, and call the parts"))]

#[cfg(not(panic = "abort"))]
extern crate std; // brings what the test harness and debug builds need; nothing here names it

mod address;
mod calls;
mod hooks;
mod name;
mod next;
mod node;
mod note;
mod settle;
mod setup;
mod suspects;
mod sys;
mod turn;
mod vm_options;

/// Nothing here panics; were something to, the program must not go on.
#[cfg(panic = "abort")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    sys::abort()
}
