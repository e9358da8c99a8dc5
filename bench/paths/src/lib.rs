//! What happens to one packet, and to one decision about a connection, taken out of their surroundings.
//!
//! Each path does the same work in every step, so that its instructions can be counted exactly (`src/main.rs` under
//! callgrind, compared with `bench/instructions.json` by `make bench-instructions`) and its time estimated
//! (`benches/paths.rs`, with Criterion). A step is [`PACKETS`] packets, because what is done once per batch, such as
//! publishing an index, is part of the cost.

mod admission_paths;
mod core_paths;
mod interface_paths;
mod ring_paths;

/// Packets of one step.
pub const PACKETS: usize = 16;

/// Work on packets that can be repeated for ever.
pub trait Path {
    /// Does it for [`PACKETS`] packets.
    fn step(&mut self);
}

/// Makes a path.
pub type Make = fn() -> Box<dyn Path>;

/// All paths by name.
pub const ALL: [(&str, Make); 10] = [
    ("endpoint-receive", || Box::new(core_paths::Receive::new())),
    ("endpoint-send", || Box::new(core_paths::Send::new())),
    ("relay-forward", || Box::new(core_paths::Forward::new())),
    ("admission-10-rules", || Box::new(admission_paths::Decide::new(10))),
    ("admission-10000-rules", || Box::new(admission_paths::Decide::new(10_000))),
    ("ring-round", || Box::new(ring_paths::Ring::new())),
    ("link-to-device", || Box::new(ring_paths::Links::new(true))),
    ("link-to-driver", || Box::new(ring_paths::Links::new(false))),
    ("interface-to-device", || Box::new(interface_paths::Interfaces::new(true))),
    ("interface-to-driver", || Box::new(interface_paths::Interfaces::new(false))),
];

/// Ends the process: a path that does not do its work measures nothing.
fn broken(what: &str) -> ! {
    eprintln!("vsock-paths: {what}");
    std::process::exit(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_goes_round_its_rings_and_counters() {
        for (_, make) in ALL {
            let mut path = make();
            for _ in 0..70_000 / PACKETS {
                path.step();
            }
        }
    }
}
