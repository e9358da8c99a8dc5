//! S8: the directory of a hybrid socket belongs to a user who may be anybody, and the switch may have more rights.

#![allow(clippy::unwrap_used)] // tests panic

mod node_support;

use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;

use node_support::{Lab, connect, node_counter, pattern, transfer};

const ECONNRESET: u16 = 104;

/// A connection of guest a to this port is refused, and counted as one that met a file of somebody else's.
fn is_refused(lab: &Lab, port: u32) {
    let before = node_counter(&lab.switch, "refused_foreign_socket");
    assert_eq!(connect(&lab.path("a"), 2, port).unwrap_err(), ECONNRESET);
    assert_eq!(node_counter(&lab.switch, "refused_foreign_socket"), before + 1);
}

#[test]
fn links_beside_a_hybrid_socket_are_refused_and_counted_also_after_a_hand_over() {
    let mut lab = Lab::new(1);
    let service = lab.directory.sub("service").join("socket");
    let listener = UnixListener::bind(&service).unwrap();
    listener.set_nonblocking(true).unwrap();
    symlink(&service, lab.path("a.vsock_5000")).unwrap();
    std::fs::hard_link(&service, lab.path("a.vsock_5001")).unwrap();
    std::fs::write(lab.path("a.vsock_5002"), "").unwrap();
    for port in 5000..5003 {
        is_refused(&lab, port);
    }
    lab.hand_over();
    is_refused(&lab, 5000);
    assert_eq!(listener.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    let program = UnixListener::bind(lab.path("a.vsock_5003")).unwrap();
    let ours = connect(&lab.path("a"), 2, 5003).unwrap();
    transfer(ours, program.accept().unwrap().0, pattern(10_000, 1));
}

#[test]
fn directory_that_takes_the_place_of_a_hybrid_sockets_own_is_not_looked_in() {
    let mut lab = Lab::new(1);
    let place = lab.directory.sub("place");
    let options = lab.switch.snapshot().unwrap().guests[0].options.clone();
    let hybrid = Some(place.join("vm.vsock"));
    lab.switch.change_guest(3, vsock_node::node::GuestOptions { hybrid, ..options }).unwrap();
    let own = UnixListener::bind(place.join("vm.vsock_5000")).unwrap();
    std::fs::rename(&place, lab.path("aside")).unwrap();
    let other = UnixListener::bind(lab.directory.sub("place").join("vm.vsock_5000")).unwrap();
    other.set_nonblocking(true).unwrap();
    for seed in 0..2 {
        let ours = connect(&lab.path("a"), 2, 5000).unwrap();
        transfer(ours, own.accept().unwrap().0, pattern(10_000, seed));
        lab.hand_over();
    }
    assert_eq!(other.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
}
