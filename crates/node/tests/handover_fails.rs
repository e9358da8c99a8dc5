//! A node that cannot be given away goes on, and nobody has seen anything. Alone in its process, whose descriptors it takes.

#![allow(clippy::unwrap_used)] // helpers of tests panic as tests do

mod node_support;

use std::fs::File;

use node_support::{Lab, Listener, connect, node_counter, pattern, transfer};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use vsock_node::node::{Node, SaveError};

#[test]
fn node_without_descriptors_for_the_list_goes_on() {
    let mut lab = Lab::new(2);
    let mut listener = Listener::new(&lab.path("b"), 5000, 8);
    let open = [
        (connect(&lab.path("host"), 4, 5000).unwrap(), listener.accept()),
        (connect(&lab.path("a"), 4, 5000).unwrap(), listener.accept()),
    ];
    let (saved, fds) = lab.switch.save().unwrap();
    let needed = fds.len();
    lab.switch = Node::restore(saved, fds).unwrap();
    let limit = getrlimit(Resource::Nofile);
    // First the control threads' descriptors find no room, at last only those of the worker.
    for spare in [0, needed / 2, needed - 1] {
        setrlimit(Resource::Nofile, Rlimit { current: Some(1000), ..limit }).unwrap();
        let mut taken: Vec<_> = std::iter::from_fn(|| File::open("/dev/null").ok()).collect();
        taken.truncate(taken.len() - spare);
        let error = lab.switch.save().err();
        drop(taken);
        setrlimit(Resource::Nofile, limit).unwrap();
        assert!(matches!(error, Some(SaveError::Io(_))), "{spare}: {error:?}");
        assert_eq!(lab.switch.snapshot().unwrap().guests.len(), 3);
    }
    for (seed, (ours, theirs)) in (0..).zip(open) {
        transfer(ours.try_clone().unwrap(), theirs.try_clone().unwrap(), pattern(1_000_000, seed));
        lab.hand_over();
        transfer(theirs, ours, pattern(1_000_000, seed + 9));
    }
    assert_eq!(node_counter(&lab.switch, "disconnected"), 0);
}
