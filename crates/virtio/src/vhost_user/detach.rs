//! Why an attachment ended: each reason with a text for people and a name for a counter.

/// Why a front end is no longer attached.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Detach {
    /// The front end closed its socket between two messages.
    #[error("the front end disconnected")]
    Disconnected,
    /// The guest was removed, or the switch is stopping.
    #[error("the guest's socket was closed by the switch")]
    Stopped,
    /// The front end sent RESET_DEVICE or RESET_OWNER; it stays connected.
    #[error("the front end reset the device")]
    Reset,
    /// The socket failed.
    #[error("the front end's socket failed: {0}")]
    Socket(std::io::ErrorKind),
    /// Replies pile up in the socket.
    #[error("the front end does not read the replies it asked for")]
    NotReading,
    /// The socket ended inside a message.
    #[error("the front end disconnected in the middle of a message")]
    Truncated,
    /// A header or body that does not follow the specification.
    #[error("malformed message (request {request}): {fault}")]
    Malformed {
        /// The request's number.
        request: u32,
        /// What is wrong with it.
        fault: &'static str,
    },
    /// A request this device does not serve, or whose feature it does not offer.
    #[error("request {0} is not supported")]
    Unsupported(u32),
    /// Missing, surplus or wrong file descriptors.
    #[error("request {request}: {fault}")]
    WrongFds {
        /// The request's number.
        request: u32,
        /// What is wrong with them.
        fault: &'static str,
    },
    /// A feature bit that was not offered.
    #[error("not offered, and taken all the same: {}", feature_names(*.0))]
    UnofferedFeatures(u64),
    /// A memory region that cannot be used.
    #[error("guest memory cannot be used: {0}")]
    Memory(String),
    /// A ring this device does not have.
    #[error("ring {0} does not exist")]
    RingIndex(u32),
    /// A ring size of zero, not a power of two, or too large.
    #[error("ring {index} cannot have {size} entries")]
    RingSize {
        /// The ring.
        index: usize,
        /// The size asked for.
        size: u32,
    },
    /// A ring's layout was changed while it runs.
    #[error("ring {0} was changed while it runs")]
    RingRunning(usize),
    /// A ring that is not in guest memory, crosses regions, or is not aligned.
    #[error("ring {0} does not lie in guest memory as it should")]
    RingOutsideMemory(usize),
    /// Found by the data plane: what the driver wrote into a ring makes no sense.
    #[error("ring {index} is broken: {fault}")]
    RingBroken {
        /// The ring.
        index: usize,
        /// What is wrong with it.
        fault: String,
    },
    /// Found by the data plane: the file behind guest memory was made shorter.
    #[error("guest memory is gone: the file behind it was truncated")]
    MemoryDead,
    /// A fault of ours; only this attachment is ended.
    #[error("internal error while serving the front end")]
    Internal,
}

impl Detach {
    /// The name of the counter for this reason: lower case, words joined by `_`, stable.
    pub fn counter(&self) -> &'static str {
        match self {
            Self::Disconnected => "disconnected",
            Self::Stopped => "stopped",
            Self::Reset => "reset",
            Self::Socket(_) => "socket_error",
            Self::NotReading => "not_reading",
            Self::Truncated => "truncated_message",
            Self::Malformed { .. } => "malformed_message",
            Self::Unsupported(_) => "unsupported_request",
            Self::WrongFds { .. } => "wrong_fds",
            Self::UnofferedFeatures(_) => "unoffered_features",
            Self::Memory(_) => "bad_memory",
            Self::RingIndex(_) => "ring_index",
            Self::RingSize { .. } => "ring_size",
            Self::RingRunning(_) => "ring_running",
            Self::RingOutsideMemory(_) => "ring_outside_memory",
            Self::RingBroken { .. } => "ring_broken",
            Self::MemoryDead => "memory_dead",
            Self::Internal => "internal",
        }
    }

    /// The counter of this name, as [`counter`](Self::counter) gives it.
    pub fn counter_named(name: &str) -> Option<&'static str> {
        COUNTERS.into_iter().find(|counter| *counter == name)
    }

    /// Whether the front end did something wrong, as opposed to going away or being sent away.
    pub fn is_fault(&self) -> bool {
        !matches!(self, Self::Disconnected | Self::Stopped | Self::Reset)
    }
}

/// What [`Detach::counter`] gives.
const COUNTERS: [&str; 18] = [
    "disconnected",
    "stopped",
    "reset",
    "socket_error",
    "not_reading",
    "truncated_message",
    "malformed_message",
    "unsupported_request",
    "wrong_fds",
    "unoffered_features",
    "bad_memory",
    "ring_index",
    "ring_size",
    "ring_running",
    "ring_outside_memory",
    "ring_broken",
    "memory_dead",
    "internal",
];

/// Features by the names that the virtio specification gives them, with what turns them on in a VMM.
fn feature_names(features: u64) -> String {
    let name = |bit: u32| match bit {
        33 => "VIRTIO_F_ACCESS_PLATFORM (a virtual IOMMU)".to_owned(),
        34 => "VIRTIO_F_RING_PACKED (packed=on)".to_owned(),
        _ => format!("feature bit {bit}"),
    };
    let taken = (0..u64::BITS).filter(|bit| features & 1 << bit != 0);
    taken.map(name).collect::<Vec<_>>().join(", ")
}

impl From<std::io::Error> for Detach {
    fn from(error: std::io::Error) -> Self {
        Self::Socket(error.kind())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counter_of_every_reason_is_found_by_its_name() {
        let (fault, index) = (String::new(), 0);
        let reasons = [
            Detach::Disconnected,
            Detach::Stopped,
            Detach::Reset,
            Detach::Socket(std::io::ErrorKind::BrokenPipe),
            Detach::NotReading,
            Detach::Truncated,
            Detach::Malformed { request: 1, fault: "" },
            Detach::Unsupported(1),
            Detach::WrongFds { request: 1, fault: "" },
            Detach::UnofferedFeatures(1),
            Detach::Memory(fault.clone()),
            Detach::RingIndex(9),
            Detach::RingSize { index, size: 3 },
            Detach::RingRunning(index),
            Detach::RingOutsideMemory(index),
            Detach::RingBroken { index, fault },
            Detach::MemoryDead,
            Detach::Internal,
        ];
        assert_eq!(reasons.each_ref().map(Detach::counter), COUNTERS);
        assert_eq!(Detach::counter_named("ring_size"), Some("ring_size"));
        assert_eq!(Detach::counter_named("nothing"), None);
    }

    /// F9: a user who gave QEMU `packed=on` looks for that word.
    #[test]
    fn unoffered_features_are_named() {
        let text = Detach::UnofferedFeatures(1 << 34 | 1 << 33 | 1 << 16).to_string();
        let names = "feature bit 16, VIRTIO_F_ACCESS_PLATFORM (a virtual IOMMU), VIRTIO_F_RING_PACKED (packed=on)";
        assert_eq!(text, format!("not offered, and taken all the same: {names}"));
    }
}
