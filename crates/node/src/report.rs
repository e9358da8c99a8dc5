//! A node's answer to "how are you": one snapshot, copied between two rounds.

use vsock_core::Instant;

use crate::fabric::Fabric;
use crate::flows::{Flow, FlowId, Flows};
use crate::links::{Entry, Forwarder, Links};
use crate::snapshot::{FlowInfo, GuestInfo, GuestState, Snapshot};
use vsock_virtio::link::Link;
use vsock_virtio::spec::{RX_QUEUE, TX_QUEUE};

/// Everything as it is now.
pub(crate) fn snapshot(fabric: &Fabric) -> Snapshot {
    let Fabric { cx, links, forwarder, flows, programs, .. } = fabric;
    let mut guests: Vec<_> = links.iter().filter_map(|(_, entry)| guest_info(entry)).collect();
    guests.sort_by_key(|guest| guest.cid);
    let relayed = relayed_flows(forwarder, cx.now);
    let mut infos: Vec<_> = local_flows(flows, links, cx.now).chain(relayed).collect();
    infos.sort_by_key(|flow| flow.id);
    let mut counters: Vec<_> = programs.counters().chain(flows.counters()).collect();
    counters.extend(links.detach_reasons());
    counters.extend(cx.admission.refusals().named());
    counters.extend(forwarder.relay().stats().named());
    let (listeners, datagrams) = (programs.listener_infos(), programs.datagram_infos());
    // What the worker has given up, it does not know itself.
    let sandbox = String::new();
    Snapshot { guests, listeners, datagrams, flows: infos, sandbox, counters }
}

fn local_flows(flows: &Flows, links: &Links, now: Instant) -> impl Iterator<Item = FlowInfo> {
    flows.iter().map(move |(id, flow)| flow_info(id, flow, links, now))
}

fn flow_info(id: FlowId, flow: &Flow, links: &Links, now: Instant) -> FlowInfo {
    let interface = links.get(flow.link).and_then(Entry::interface);
    let info = interface.and_then(|it| it.endpoint().info(flow.connection));
    let (source, destination) = flow.parties.source_and_destination();
    let (sent, received, opened) =
        info.as_ref().map_or((0, 0, now), |info| (info.bytes_out, info.bytes_in, info.opened_at));
    let (bytes_out, bytes_in) =
        if flow.parties.is_outgoing { (sent, received) } else { (received, sent) };
    FlowInfo {
        id: id.to_bits(),
        kind: flow.parties.kind,
        source,
        destination,
        state: info.map_or("draining", |info| info.state),
        bytes_out,
        bytes_in,
        age: now.since(opened),
        pid: flow.parties.peer.pid,
    }
}

fn relayed_flows(forwarder: &Forwarder, now: Instant) -> impl Iterator<Item = FlowInfo> {
    forwarder.relay().flows().map(move |flow| FlowInfo {
        // Numbers of relayed flows have the top bit, so that the two kinds never meet.
        id: flow.id.to_bits() | 1 << 63,
        kind: flow.kind,
        source: flow.source,
        destination: flow.destination,
        state: flow.state,
        bytes_out: flow.bytes_out,
        bytes_in: flow.bytes_in,
        age: now.since(flow.opened_at),
        pid: 0,
    })
}

fn guest_info(entry: &Entry) -> Option<GuestInfo> {
    let cid = entry.guest()?.0;
    let interface = entry.interface()?;
    let Link::Device(device) = interface.link() else { return None };
    let state = if device.is_running(RX_QUEUE) && device.is_running(TX_QUEUE) {
        GuestState::Running
    } else if entry.is_attached() {
        GuestState::Attached
    } else {
        GuestState::Waiting
    };
    let (traffic, drops) = (interface.traffic(), interface.drops());
    let stats = interface.link().stats();
    let mut counters = vec![
        ("packets_in", traffic.packets_in),
        ("packets_out", traffic.packets_out),
        ("bytes_in", traffic.bytes_in),
        ("bytes_out", traffic.bytes_out),
        ("malformed", drops.malformed),
        ("spoofed", drops.spoofed),
        ("late", drops.late),
        ("unroutable", drops.unroutable),
        ("overflows", drops.overflows),
        ("faults", entry.faults()),
        ("driver_starts", entry.driver_starts()),
        ("waiting_bytes", interface.stored_bytes() as u64),
        ("skipped_buffers", stats.skipped),
        ("signals", stats.signals),
    ];
    let endpoint = interface.endpoint().stats();
    // The link's own counts include what goes to other guests; the core's of the same name would hide them.
    let links: Vec<_> = counters.iter().map(|&(name, _)| name).collect();
    counters.extend(endpoint.named().filter(|(name, _)| !links.contains(name)));
    Some(GuestInfo {
        cid,
        options: entry.options().clone(),
        state,
        front_end_pid: entry.front_end_pid(),
        features: entry.features(),
        connections: endpoint.connections,
        bytes_in: traffic.bytes_in,
        bytes_out: traffic.bytes_out,
        packets_in: traffic.packets_in,
        packets_out: traffic.packets_out,
        errors: drops.malformed + drops.spoofed + drops.overflows + entry.faults(),
        counters,
    })
}
