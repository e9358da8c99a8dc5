//! What guests and limits serve, by port: `group * 10 + service`, so that rows can be measured alternately.

/// What the serving side does with a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Service {
    /// Takes everything and counts it.
    Discard,
    /// Sends when ordered.
    Source,
    /// Sends back what comes.
    Echo,
    /// Sends one byte at once.
    Greet,
    /// Takes everything and counts it, with a receive buffer of [`WIDE`] (a guest only).
    Wide,
}

/// As a program asks for that wants to receive as fast as can be (SO_VM_SOCKETS_BUFFER_SIZE).
pub(crate) const WIDE: u32 = 4 << 20;

/// Groups that a Unix or TCP server listens for.
pub(crate) const GROUPS: std::ops::Range<u32> = 100..104;

/// All services with their last digit.
pub(crate) const SERVICES: [(u32, Service); 5] = [
    (1, Service::Discard),
    (2, Service::Source),
    (3, Service::Echo),
    (4, Service::Greet),
    (5, Service::Wide),
];

/// Group and service of a port, if it has one.
pub(crate) fn of_port(port: u32) -> Option<(u32, Service)> {
    let (_, service) = SERVICES.into_iter().find(|(digit, _)| *digit == port % 10)?;
    Some((port / 10, service))
}
