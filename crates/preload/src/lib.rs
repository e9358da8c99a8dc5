//! `libvsock_preload.so` gives unmodified programs AF_VSOCK through the switch: `LD_PRELOAD` puts its functions before
//! those of libc, and what a program does to an AF_VSOCK socket is done to a Unix socket at the switch instead.
//!
//! ```text
//!   hooks       the exported functions: ours or not? if not, on to libc's
//!     ▼
//!   calls       what socket, bind, accept, … do to one of our sockets: carries out what vsock-client says
//!     ▼
//!   connecting  connect: begins, waits, finishes      node   asking the switch (client protocol)
//!     ▼
//!   state       what is kept in the socket itself      send_buffer  while a connect is under way
//!     ▼
//!   sys         system calls      address  sockaddr_vm       lock  fd_hints  real_libc  setup
//! ```
//!
//! Because a socket's state is kept in the socket (`state`), there is no table of descriptors: dup, fork, exec and passed
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
mod connecting;
mod fd_hints;
mod hooks;
mod lock;
mod node;
mod real_libc;
mod send_buffer;
mod setup;
mod state;
mod sys;

/// Nothing here panics; were something to, the program must not go on.
#[cfg(panic = "abort")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    sys::abort()
}
