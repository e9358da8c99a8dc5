//! A worker's answer to "how are you": one snapshot, copied between two rounds.

use vsock_core::FlowKey;

use super::Worker;
use super::link_slot::LinkSlot;
use super::source::{Flow, Source};
use crate::link::{Link, RX_QUEUE, TX_QUEUE};
use crate::snapshot::{DatagramInfo, FlowInfo, GuestInfo, GuestState, ListenerInfo, Snapshot};

impl Worker {
    /// Everything as it is now.
    pub(crate) fn snapshot(&self) -> Snapshot {
        let mut guests: Vec<_> =
            self.links.iter().filter_map(|(_, slot)| guest_info(slot)).collect();
        guests.sort_by_key(|guest| guest.cid);
        let mut flows: Vec<_> = self.local_flows().chain(self.relayed_flows()).collect();
        flows.sort_by_key(|flow| flow.id);
        let listeners = self.ports.listeners().map(|listener| {
            let program = self.listeners.get(&listener.binding).and_then(|&token| {
                match self.sources.get(token) {
                    Some(Source::Listener(listener)) => Some(listener.client.peer),
                    _ => None,
                }
            });
            ListenerInfo {
                address: listener.address,
                kind: listener.kind,
                backlog: listener.backlog,
                waiting: listener.waiting,
                pid: program.map_or(0, |peer| peer.pid),
                uid: program.map_or(0, |peer| peer.uid),
            }
        });
        let mut counters =
            vec![("bad_requests", self.bad_requests), ("buffers_cut", self.buffers_cut)];
        counters.push(("linger_timeouts", self.linger.timeouts()));
        counters.extend(self.detach_reasons.iter().map(|(&name, &count)| (name, count)));
        counters.extend([
            ("datagrams_sent", self.datagrams.sent),
            ("datagrams_received", self.datagrams.received),
            ("datagrams_dropped", self.datagrams.dropped),
        ]);
        counters.extend(self.relay.stats().named());
        let listeners = listeners.collect();
        let datagrams = self.datagram_sockets().collect();
        Snapshot { guests, listeners, datagrams, flows, counters }
    }

    fn datagram_sockets(&self) -> impl Iterator<Item = DatagramInfo> + '_ {
        self.datagram_sockets.values().filter_map(|socket| {
            let Some(Source::Client(client)) = self.sources.get(socket.token) else { return None };
            Some(DatagramInfo {
                address: client.bound?.address,
                sent: socket.sent,
                received: socket.received,
                dropped: socket.dropped,
                pid: client.peer.pid,
                uid: client.peer.uid,
            })
        })
    }

    fn local_flows(&self) -> impl Iterator<Item = FlowInfo> + '_ {
        self.sources.iter().filter_map(|(_, source)| {
            if let Source::Flow(flow) = source { Some(self.flow_info(flow)) } else { None }
        })
    }

    fn flow_info(&self, flow: &Flow) -> FlowInfo {
        let info = self.links.get(flow.link).and_then(|slot| slot.endpoint.info(flow.id));
        let key = FlowKey { ours: flow.ours, theirs: flow.theirs };
        let (source, destination) =
            if flow.is_outgoing { (key.ours, key.theirs) } else { (key.theirs, key.ours) };
        let (sent, received, opened) = info
            .as_ref()
            .map_or((0, 0, self.now), |info| (info.bytes_out, info.bytes_in, info.opened_at));
        let (bytes_out, bytes_in) =
            if flow.is_outgoing { (sent, received) } else { (received, sent) };
        FlowInfo {
            id: flow.number,
            kind: flow.kind,
            source,
            destination,
            state: info.map_or("draining", |info| info.state),
            bytes_out,
            bytes_in,
            age: self.now.since(opened),
            pid: flow.peer.pid,
        }
    }

    fn relayed_flows(&self) -> impl Iterator<Item = FlowInfo> + '_ {
        self.relay.flows().map(|flow| FlowInfo {
            // Numbers of relayed flows have the top bit, so that the two kinds never meet.
            id: flow.id.to_bits() | 1 << 63,
            kind: flow.kind,
            source: flow.source,
            destination: flow.destination,
            state: flow.state,
            bytes_out: flow.bytes_out,
            bytes_in: flow.bytes_in,
            age: self.now.since(flow.opened_at),
            pid: 0,
        })
    }
}

fn guest_info(slot: &LinkSlot) -> Option<GuestInfo> {
    let cid = slot.guest()?.0;
    let Link::Device(device) = &slot.link else { return None };
    let state = if device.is_running(RX_QUEUE) && device.is_running(TX_QUEUE) {
        GuestState::Running
    } else if slot.front_end.is_some() {
        GuestState::Attached
    } else {
        GuestState::Waiting
    };
    let traffic = slot.traffic;
    let stats = slot.link.stats();
    let mut counters = vec![
        ("packets_in", traffic.packets_in),
        ("packets_out", traffic.packets_out),
        ("bytes_in", traffic.bytes_in),
        ("bytes_out", traffic.bytes_out),
        ("malformed", traffic.malformed),
        ("spoofed", traffic.spoofed),
        ("late", traffic.late),
        ("unroutable", traffic.unroutable),
        ("overflows", traffic.overflows),
        ("faults", traffic.faults),
        ("waiting_bytes", slot.store.bytes() as u64),
        ("skipped_buffers", stats.skipped),
        ("signals", stats.signals),
    ];
    let endpoint = slot.endpoint.stats();
    // The link's own counts include what goes to other guests; the core's of the same name would hide them.
    let links: Vec<_> = counters.iter().map(|&(name, _)| name).collect();
    counters.extend(endpoint.named().filter(|(name, _)| !links.contains(name)));
    Some(GuestInfo {
        cid,
        options: slot.options.clone(),
        state,
        front_end_pid: slot.front_end.map_or(0, |peer| peer.pid),
        features: slot.features,
        connections: endpoint.connections,
        bytes_in: traffic.bytes_in,
        bytes_out: traffic.bytes_out,
        packets_in: traffic.packets_in,
        packets_out: traffic.packets_out,
        errors: traffic.malformed + traffic.spoofed + traffic.overflows + traffic.faults,
        counters,
    })
}
