//! Numbers that the virtio specification (1.2) gives a socket device: queues and events (section 5.10), feature bits
//! (5.10.3 and 6).

/// Queue index of the receive queue: packets from device to driver.
pub const RX_QUEUE: usize = 0;
/// Queue index of the transmit queue: packets from driver to device.
pub const TX_QUEUE: usize = 1;
/// Queue index of the event queue: events from device to driver.
pub const EVENT_QUEUE: usize = 2;
/// Number of queues. QEMU hands over only the first two.
pub const QUEUE_COUNT: usize = 3;

/// `VIRTIO_VSOCK_EVENT_TRANSPORT_RESET`: all connections are gone, and the CID may have changed.
pub const TRANSPORT_RESET: u32 = 0;

/// `VIRTIO_VSOCK_F_SEQPACKET`: the guest may use SOCK_SEQPACKET.
pub const F_SEQPACKET: u64 = 1 << 1;
/// Datagrams, packets of type 3. Only our own driver and device know it: the specification has no such feature yet, and
/// this bit is the one that was proposed for it.
pub const F_DGRAM: u64 = 1 << 3;
/// `VIRTIO_F_INDIRECT_DESC`: descriptors may point to tables of descriptors.
pub const F_INDIRECT_DESC: u64 = 1 << 28;
/// `VIRTIO_F_EVENT_IDX`: both sides say at which index they want to be notified.
pub const F_EVENT_IDX: u64 = 1 << 29;
/// `VIRTIO_F_VERSION_1`: the device follows virtio 1.
pub const F_VERSION_1: u64 = 1 << 32;
/// `VIRTIO_F_RING_RESET`: the driver may reset one ring alone.
pub const F_RING_RESET: u64 = 1 << 40;
