//! What a thread has given up, tried from inside a thread of each profile.

#![allow(clippy::unwrap_used, reason = "a test fails by panic")]

mod support;

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};

use libc::{c_int, c_long};
use support::{Outcome, errno, has_landlock, outcome_in};
use vsock_sandbox::{Profile, Sandbox, State};

/// A call with whatever arguments: what matters comes before the kernel looks at them.
fn call(number: c_long, arguments: [c_long; 4]) -> Result<(), i32> {
    let [a, b, c, d] = arguments;
    // SAFETY: the pointers among the arguments are null or to constants, for which the kernel has its own checks.
    errno(unsafe { libc::syscall(number, a, b, c, d) })
}

/// The address of a constant path, as an argument.
fn path(path: &'static std::ffi::CStr) -> c_long {
    path.as_ptr().expose_provenance().cast_signed() as c_long
}

const NONE: [c_long; 4] = [0; 4];

fn socket(domain: c_int) -> [c_long; 4] {
    [domain.into(), libc::SOCK_STREAM.into(), 0, 0]
}

#[test]
fn call_that_only_an_intruder_makes_ends_the_process() {
    let fatal: &[(&str, c_long, [c_long; 4])] = &[
        ("execve", libc::SYS_execve, [path(c"/bin/true"), 0, 0, 0]),
        ("execveat", libc::SYS_execveat, [libc::AT_FDCWD.into(), path(c"/bin/true"), 0, 0]),
        ("ptrace", libc::SYS_ptrace, [libc::PTRACE_TRACEME.into(), 0, 0, 0]),
        ("process_vm_readv", libc::SYS_process_vm_readv, NONE),
        ("process_vm_writev", libc::SYS_process_vm_writev, NONE),
        ("socket(AF_INET)", libc::SYS_socket, socket(libc::AF_INET)),
        ("socket(AF_INET6)", libc::SYS_socket, socket(libc::AF_INET6)),
        ("socket(AF_NETLINK)", libc::SYS_socket, socket(libc::AF_NETLINK)),
        ("socket(AF_VSOCK)", libc::SYS_socket, socket(libc::AF_VSOCK)),
        ("bpf", libc::SYS_bpf, NONE),
        ("finit_module", libc::SYS_finit_module, [-1, 0, 0, 0]),
        ("perf_event_open", libc::SYS_perf_event_open, NONE),
        ("userfaultfd", libc::SYS_userfaultfd, NONE),
        ("keyctl", libc::SYS_keyctl, NONE),
        ("mount", libc::SYS_mount, NONE),
        ("pivot_root", libc::SYS_pivot_root, NONE),
        ("unshare", libc::SYS_unshare, NONE),
        ("setns", libc::SYS_setns, [-1, 0, 0, 0]),
    ];
    for profile in Profile::ALL {
        for &(name, number, arguments) in fatal {
            let outcome = outcome_in(profile, || call(number, arguments));
            assert_eq!(outcome, Outcome::Killed(libc::SIGSYS), "{name} in {profile:?}");
        }
    }
}

#[test]
fn call_that_no_list_has_fails_as_on_an_older_kernel() {
    let here: c_long = libc::AT_FDCWD.into();
    let fork = [libc::SIGCHLD.into(), 0, 0, 0];
    let to_write = (libc::O_WRONLY | libc::O_CREAT).into();
    let executable = (libc::PROT_READ | libc::PROT_EXEC).into();
    let refused: &[(&str, c_long, [c_long; 4])] = &[
        ("open to write", libc::SYS_openat, [here, path(c"/tmp/vsock-forbidden"), to_write, 0o600]),
        ("unlinkat", libc::SYS_unlinkat, [here, path(c"/tmp/vsock-forbidden"), 0, 0]),
        ("renameat2", libc::SYS_renameat2, NONE),
        ("kill", libc::SYS_kill, [std::process::id().into(), 0, 0, 0]),
        ("tgkill of another process", libc::SYS_tgkill, [1, 1, 0, 0]),
        ("pidfd_send_signal", libc::SYS_pidfd_send_signal, [-1, 0, 0, 0]),
        ("fork", libc::SYS_clone, fork),
        ("clone3", libc::SYS_clone3, NONE),
        ("io_uring_setup", libc::SYS_io_uring_setup, NONE),
        ("bind", libc::SYS_bind, NONE),
        ("listen", libc::SYS_listen, NONE),
        ("executable memory", libc::SYS_mmap, [0, 4096, executable, libc::MAP_SHARED.into()]),
        ("memory made executable", libc::SYS_mprotect, [0, 4096, executable, 0]),
        ("fcntl(F_SETOWN)", libc::SYS_fcntl, [0, libc::F_SETOWN.into(), 1, 0]),
        ("ioctl(TIOCSTI)", libc::SYS_ioctl, [0, libc::TIOCSTI.cast_signed(), 0, 0]),
        ("chmod", libc::SYS_fchmodat, NONE),
    ];
    for profile in Profile::ALL {
        // All in one process: the error is the place of the first that is not refused.
        let outcome = outcome_in(profile, || {
            let is_not_refused =
                |&(_, number, arguments): &_| call(number, arguments) != Err(libc::ENOSYS);
            match (1..).zip(refused).find(|(_, one)| is_not_refused(one)) {
                Some((at, _)) => Err(at),
                None => Ok(()),
            }
        });
        let names: Vec<_> = refused.iter().map(|(name, ..)| name).collect();
        assert_eq!(outcome, Outcome::Done, "1 is the first of {names:?}, in {profile:?}");
    }
}

#[test]
fn call_of_one_thread_is_not_another_s() {
    let here: c_long = libc::AT_FDCWD.into();
    let only: &[(&str, c_long, [c_long; 4], &[Profile])] = &[
        (
            "open to read",
            libc::SYS_openat,
            [here, path(c"/proc/self/status"), 0, 0],
            &[Profile::Helper],
        ),
        ("socket(AF_UNIX)", libc::SYS_socket, socket(libc::AF_UNIX), &[Profile::Helper]),
        (
            "readlink",
            libc::SYS_readlinkat,
            [here, path(c"/proc/self/exe"), 0, 0],
            &[Profile::Control],
        ),
        ("memfd_create", libc::SYS_memfd_create, [path(c"test"), 0, 0, 0], &[Profile::Worker]),
    ];
    for profile in Profile::ALL {
        for &(name, number, arguments, profiles) in only {
            let outcome = outcome_in(profile, || call(number, arguments));
            let is_refused = outcome == Outcome::Failed(libc::ENOSYS);
            assert_eq!(
                is_refused,
                !profiles.contains(&profile),
                "{name} in {profile:?}: {outcome:?}"
            );
        }
    }
}

#[test]
fn file_outside_proc_is_not_read_where_files_can_be() {
    if !has_landlock() {
        eprintln!("this kernel has no Landlock");
        return;
    }
    let open = |path: &'static std::ffi::CStr| {
        call(libc::SYS_openat, [libc::AT_FDCWD.into(), self::path(path), 0, 0])
    };
    assert_eq!(outcome_in(Profile::Helper, || open(c"/proc/self/uid_map")), Outcome::Done);
    for file in [c"/etc/passwd", c"/dev/null", c"/sys/kernel/mm/transparent_hugepage/enabled"] {
        let outcome = outcome_in(Profile::Helper, || open(file));
        assert_eq!(outcome, Outcome::Failed(libc::EACCES), "{file:?}");
    }
}

#[test]
fn socket_with_a_path_is_connected_to_and_one_with_an_abstract_name_is_not() {
    let directory = std::env::temp_dir().join(format!("vsock-sandbox-{}", std::process::id()));
    std::fs::create_dir(&directory).unwrap();
    let named = directory.join("named");
    let _named = UnixListener::bind(&named).unwrap();
    let address = SocketAddr::from_abstract_name(directory.as_os_str().as_encoded_bytes()).unwrap();
    let _hidden = UnixListener::bind_addr(&address).unwrap();
    let error = |outcome: std::io::Result<UnixStream>| {
        outcome.map(drop).map_err(|error| error.raw_os_error().unwrap())
    };
    let by_path = outcome_in(Profile::Helper, || error(UnixStream::connect(&named)));
    let hidden = outcome_in(Profile::Helper, || error(UnixStream::connect_addr(&address)));
    std::fs::remove_dir_all(&directory).unwrap();
    assert_eq!(by_path, Outcome::Done);
    if has_landlock() && is_newer_than_6_11() {
        assert_eq!(hidden, Outcome::Failed(libc::EPERM));
    }
}

/// Whether Landlock keeps threads from abstract Unix sockets.
fn is_newer_than_6_11() -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split('.').map(|number| number.parse::<u32>().unwrap_or(0));
    (numbers.next().unwrap(), numbers.next().unwrap()) >= (6, 12)
}

#[test]
fn thread_beside_a_restricted_one_keeps_all_it_has() {
    let status = |of: &str| {
        let text = std::fs::read_to_string(of).unwrap();
        ["Seccomp:", "NoNewPrivs:"].map(|name| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            line.trim().to_owned()
        })
    };
    let before = status("/proc/thread-self/status");
    let restricted = std::thread::spawn(move || {
        let is_on = Sandbox::Enforced.enter(Profile::Helper) != State::Disabled;
        (is_on, status("/proc/thread-self/status"))
    });
    assert_eq!(restricted.join().unwrap(), (true, ["2", "1"].map(str::to_owned)));
    assert_eq!(status("/proc/thread-self/status"), before);
    assert_eq!(Sandbox::Disabled.enter(Profile::Worker), State::Disabled);
    assert_eq!(status("/proc/thread-self/status"), before);
}
