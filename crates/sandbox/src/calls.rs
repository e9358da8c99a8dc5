//! The system calls of each profile, with the reason beside each.
//!
//! A list has what the code of a thread calls, what Rust's library and the C library call on its behalf, and nothing that
//! reaches another process, a file by its name, or the network. `strace -f -Y` on the test suites shows what a thread
//! calls; paths that they do not take (a panic, a repair after SIGBUS, a full mailbox) are here by reading.

use std::iter;

use libc::{c_int, c_long};

use crate::Profile;

/// A system call, and which of its uses are meant.
#[derive(Clone, Copy)]
pub(crate) struct Call {
    pub(crate) number: c_long,
    pub(crate) which: Which,
}

/// Uses of a call, told apart by one argument, counted from 0. Arguments are compared as the 32-bit numbers that they are.
#[derive(Clone, Copy)]
pub(crate) enum Which {
    /// All.
    All,
    /// The argument is one of these.
    OneOf(u8, &'static [c_int]),
    /// The argument is anything but this.
    Not(u8, c_int),
    /// All these bits are set.
    With(u8, c_int),
    /// None of these bits is set.
    Without(u8, c_int),
    /// The argument is the number of this process.
    OwnProcess(u8),
}

const fn all(number: c_long) -> Call {
    Call { number, which: Which::All }
}

const fn some(number: c_long, which: Which) -> Call {
    Call { number, which }
}

/// What a thread of `profile` may call.
pub(crate) fn allowed(profile: Profile) -> impl Iterator<Item = Call> {
    let own: &[&[Call]] = match profile {
        Profile::Worker => &[WORKER],
        Profile::Control => &[CONTROL, THREADS],
        Profile::Helper => &[HELPER, THREADS],
    };
    iter::once(&EVERY).chain(own).flat_map(|list| list.iter().copied())
}

/// Calls that end the process: no thread of ours makes one, nor a C library, of today or tomorrow, on its behalf. So whoever
/// makes one has taken the thread over.
pub(crate) const FATAL: &[Call] = &[
    // Other programs.
    all(libc::SYS_execve),
    all(libc::SYS_execveat),
    // Other processes.
    all(libc::SYS_ptrace),
    all(libc::SYS_process_vm_readv),
    all(libc::SYS_process_vm_writev),
    all(libc::SYS_pidfd_getfd),
    // Sockets to other machines, and those of the kernel itself. AF_VSOCK is among them.
    some(libc::SYS_socket, Which::Not(0, libc::AF_UNIX)),
    // The kernel: code in it, and what is used to attack it.
    all(libc::SYS_bpf),
    all(libc::SYS_init_module),
    all(libc::SYS_finit_module),
    all(libc::SYS_delete_module),
    all(libc::SYS_kexec_load),
    all(libc::SYS_perf_event_open),
    all(libc::SYS_userfaultfd),
    all(libc::SYS_add_key),
    all(libc::SYS_request_key),
    all(libc::SYS_keyctl),
    all(libc::SYS_reboot),
    // The file systems and namespaces of the machine.
    all(libc::SYS_mount),
    all(libc::SYS_umount2),
    all(libc::SYS_move_mount),
    all(libc::SYS_open_tree),
    all(libc::SYS_fsopen),
    all(libc::SYS_fsmount),
    all(libc::SYS_pivot_root),
    all(libc::SYS_chroot),
    all(libc::SYS_setns),
    all(libc::SYS_unshare),
    all(libc::SYS_open_by_handle_at),
];

/// The same of a process with one thread that serves files, after `FATAL`.
pub(crate) const BESIDES_FILES: &[Call] = &[
    // Sockets of any kind; those that are open already are read and written.
    all(libc::SYS_socket),
    all(libc::SYS_socketpair),
    all(libc::SYS_connect),
    all(libc::SYS_bind),
    all(libc::SYS_listen),
    // All of these and more, past the filter.
    all(libc::SYS_io_uring_setup),
    // Processes and threads.
    all(libc::SYS_clone),
    all(libc::SYS_clone3),
    #[cfg(target_arch = "x86_64")]
    all(libc::SYS_fork),
    #[cfg(target_arch = "x86_64")]
    all(libc::SYS_vfork),
    all(libc::SYS_kill),
    all(libc::SYS_pidfd_send_signal),
    // Owners, attributes by name, and devices.
    all(libc::SYS_fchown),
    all(libc::SYS_fchownat),
    #[cfg(target_arch = "x86_64")]
    all(libc::SYS_chown),
    #[cfg(target_arch = "x86_64")]
    all(libc::SYS_lchown),
    all(libc::SYS_setxattr),
    all(libc::SYS_lsetxattr),
    all(libc::SYS_fsetxattr),
    all(SETXATTRAT),
    all(libc::SYS_removexattr),
    all(libc::SYS_lremovexattr),
    all(libc::SYS_fremovexattr),
    all(REMOVEXATTRAT),
    all(libc::SYS_mknodat),
    #[cfg(target_arch = "x86_64")]
    all(libc::SYS_mknod),
];

/// The same of one that only reads files.
pub(crate) const CHANGES: &[Call] = &[
    // Modes, times and sizes.
    all(libc::SYS_fchmod),
    all(libc::SYS_fchmodat),
    all(FCHMODAT2),
    all(libc::SYS_utimensat),
    all(libc::SYS_truncate),
    all(libc::SYS_ftruncate),
    all(libc::SYS_fallocate),
    // Names.
    all(libc::SYS_unlinkat),
    all(libc::SYS_renameat2),
    all(libc::SYS_mkdirat),
    all(libc::SYS_symlinkat),
    all(libc::SYS_linkat),
    #[cfg(not(target_arch = "riscv64"))]
    all(libc::SYS_renameat),
    // The same by their older names.
    #[cfg(target_arch = "x86_64")]
    all(libc::SYS_chmod),
    #[cfg(target_arch = "x86_64")]
    all(libc::SYS_utime),
    #[cfg(target_arch = "x86_64")]
    all(libc::SYS_utimes),
    #[cfg(target_arch = "x86_64")]
    all(libc::SYS_futimesat),
    #[cfg(target_arch = "x86_64")]
    all(libc::SYS_unlink),
    #[cfg(target_arch = "x86_64")]
    all(libc::SYS_rmdir),
    #[cfg(target_arch = "x86_64")]
    all(libc::SYS_rename),
    #[cfg(target_arch = "x86_64")]
    all(libc::SYS_mkdir),
    #[cfg(target_arch = "x86_64")]
    all(libc::SYS_symlink),
    #[cfg(target_arch = "x86_64")]
    all(libc::SYS_link),
];

// Not in every C library's list; newer numbers are the same on all kinds of processors.
const FCHMODAT2: c_long = 452;
const SETXATTRAT: c_long = 463;
const REMOVEXATTRAT: c_long = 466;

/// What every thread needs.
const EVERY: &[Call] = &[
    // Memory: the allocator, stacks, guest memory that goes, and zeros in place of guest memory that is gone (SIGBUS).
    // Nothing new can be executed.
    some(libc::SYS_mmap, Which::Without(2, libc::PROT_EXEC)),
    some(libc::SYS_mprotect, Which::Without(2, libc::PROT_EXEC)),
    all(libc::SYS_munmap),
    all(libc::SYS_mremap),
    all(libc::SYS_madvise),
    all(libc::SYS_brk),
    // Locks, channels, and the processor.
    all(libc::SYS_futex),
    all(libc::SYS_sched_yield),
    // How many arenas the allocator may make.
    all(libc::SYS_sched_getaffinity),
    // Time, where the vDSO does not tell it.
    all(libc::SYS_clock_gettime),
    all(libc::SYS_gettimeofday),
    all(libc::SYS_clock_nanosleep),
    // The seed of a hash table.
    all(libc::SYS_getrandom),
    // Signals: the handler of SIGBUS, and whatever handlers the program has. abort() sends SIGABRT to its own thread.
    all(libc::SYS_rt_sigreturn),
    all(libc::SYS_rt_sigprocmask),
    all(libc::SYS_rt_sigaction),
    all(libc::SYS_sigaltstack),
    all(libc::SYS_getpid),
    all(libc::SYS_gettid),
    // Whose files are our own. rustix takes whatever this returns for a number.
    all(libc::SYS_geteuid),
    some(libc::SYS_tgkill, Which::OwnProcess(0)),
    // A wait goes on after the process was stopped and continued.
    all(libc::SYS_restart_syscall),
    // The end of a thread, and of a process that aborts.
    all(libc::SYS_exit),
    all(libc::SYS_exit_group),
    // Messages on standard error, wakers, journals.
    all(libc::SYS_read),
    all(libc::SYS_write),
    all(libc::SYS_writev),
    all(libc::SYS_close),
    // F_GETFD: Rust's checks in a debug build. The others are of descriptors; F_SETOWN, which sends signals, is not here.
    some(
        libc::SYS_fcntl,
        Which::OneOf(
            1,
            &[
                libc::F_DUPFD_CLOEXEC,
                libc::F_GETFD,
                libc::F_SETFD,
                libc::F_GETFL,
                libc::F_SETFL,
                libc::F_GET_SEALS,
                libc::F_ADD_SEALS,
            ],
        ),
    ),
    all(libc::SYS_ppoll),
    #[cfg(target_arch = "x86_64")]
    all(libc::SYS_poll),
    // A program that drops its privileges: the C library makes each thread do that, and ends the process if one cannot.
    all(libc::SYS_setuid),
    all(libc::SYS_setgid),
    all(libc::SYS_setreuid),
    all(libc::SYS_setregid),
    all(libc::SYS_setresuid),
    all(libc::SYS_setresgid),
    all(libc::SYS_setgroups),
];

/// The worker: epoll, programs on Unix sockets, bytes between those and guest memory.
const WORKER: &[Call] = &[
    // What happened.
    all(libc::SYS_epoll_ctl),
    all(libc::SYS_epoll_pwait),
    all(libc::SYS_epoll_pwait2),
    // Programs that come, and their bytes.
    all(libc::SYS_accept4),
    all(libc::SYS_recvfrom),
    all(libc::SYS_recvmsg),
    all(libc::SYS_readv),
    all(libc::SYS_sendto),
    all(libc::SYS_sendmsg),
    all(libc::SYS_shutdown),
    // Who a program is (SO_PEERCRED, SO_PEERPIDFD, SO_COOKIE), and how much it may leave unread.
    all(libc::SYS_getsockopt),
    all(libc::SYS_setsockopt),
    some(
        libc::SYS_ioctl,
        Which::OneOf(
            1,
            &[request(libc::FIONBIO), request(libc::FIONREAD), request(libc::TIOCOUTQ)],
        ),
    ),
    // A connection for a program that listens: one end for it, one for us.
    some(libc::SYS_socketpair, Which::OneOf(0, &[libc::AF_UNIX])),
    // Signals to guests.
    all(libc::SYS_io_setup),
    all(libc::SYS_io_submit),
    all(libc::SYS_io_getevents),
    all(libc::SYS_io_destroy),
    all(libc::SYS_eventfd2),
    // The file that such a signal reads nothing from; the memory of the link to ourselves, when that is made anew.
    all(libc::SYS_memfd_create),
    all(libc::SYS_ftruncate),
    all(libc::SYS_fstat),
    all(libc::SYS_fstatfs),
];

/// The control thread of a guest: the messages of its front end, and the guest's memory.
const CONTROL: &[Call] = &[
    // Front ends.
    all(libc::SYS_accept4),
    all(libc::SYS_recvfrom),
    all(libc::SYS_recvmsg),
    all(libc::SYS_sendto),
    all(libc::SYS_sendmsg),
    all(libc::SYS_shutdown),
    // Who a front end is; which files it sent: their type, their file system, and whether they are eventfds (readlink(2) of
    // /proc/self/fd/N).
    all(libc::SYS_getsockopt),
    all(libc::SYS_fstat),
    all(libc::SYS_fstatfs),
    all(libc::SYS_readlinkat),
    some(libc::SYS_ioctl, Which::OneOf(1, &[request(libc::FIONBIO)])),
    // Signals that go by way of this thread.
    all(libc::SYS_eventfd2),
];

/// What starts threads: they are in the sandbox of the one that starts them.
const THREADS: &[Call] = &[
    // Threads alone, no processes. What clone3(2) is asked for is in memory, where a filter cannot look; without it the C
    // library makes do with clone(2).
    some(libc::SYS_clone, Which::With(0, libc::CLONE_THREAD | libc::CLONE_VM)),
    all(libc::SYS_set_robust_list),
    all(libc::SYS_rseq),
    some(libc::SYS_prctl, Which::OneOf(0, &[libc::PR_SET_NAME])),
];

/// Helper threads.
const HELPER: &[Call] = &[
    // What a program may do: files of /proc, to read (Landlock sees to it that there are no others), and whether a number is
    // still that program's.
    some(libc::SYS_openat, Which::Without(2, libc::O_ACCMODE | libc::O_CREAT | libc::O_TRUNC)),
    all(libc::SYS_fstat),
    all(libc::SYS_statx),
    all(libc::SYS_lseek),
    all(libc::SYS_pidfd_open),
    // A program at the path of a hybrid socket.
    some(libc::SYS_socket, Which::OneOf(0, &[libc::AF_UNIX])),
    all(libc::SYS_connect),
    // That it can send no descriptors (SO_PASSRIGHTS).
    all(libc::SYS_getsockopt),
    all(libc::SYS_setsockopt),
    // The device of a userspace guest. A second thread shuts the socket down if there is no answer in time.
    all(libc::SYS_sendmsg),
    all(libc::SYS_recvmsg),
    all(libc::SYS_shutdown),
];

/// The number of an ioctl(2), of which the kernel takes 32 bits.
#[expect(clippy::cast_possible_truncation, reason = "the kernel takes no more")]
const fn request(number: libc::Ioctl) -> c_int {
    number as c_int
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    /// The later of two would count.
    #[test]
    fn call_is_in_one_list_of_a_profile_at_most() {
        for profile in Profile::ALL {
            let mut numbers = HashSet::new();
            for call in allowed(profile) {
                assert!(numbers.insert(call.number), "{} in {profile:?}", call.number);
            }
        }
    }

    /// A call that is fatal whatever its arguments would be allowed for nothing.
    #[test]
    fn allowed_call_is_not_fatal() {
        let fatal = FATAL.iter().filter(|call| matches!(call.which, Which::All));
        let fatal: HashSet<_> = fatal.map(|call| call.number).collect();
        for profile in Profile::ALL {
            assert!(allowed(profile).all(|call| !fatal.contains(&call.number)), "{profile:?}");
        }
    }
}
