//! One userspace guest: our driver, our protocol core, and payload that goes nowhere.
//!
//! Payload is neither made nor looked at (unless contents are checked): what is measured is the device, and a guest's
//! own copy between its programs and its kernel is not the device's affair.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::time::Duration;

use vsock_core::connection::Connection;
use vsock_core::{
    Address, Cid, ConnectionId, Endpoint, Event, FlowKey, Instant, Limits, Port, RawHeader,
    Received, SecondaryMap, Shutdown, SocketType,
};
use vsock_virtio::driver::DriverLink;
use vsock_virtio::link::{Inbound, Link, QUEUE_COUNT, TRANSPORT_RESET};
use vsock_virtio::slice::{self, Slices};
use vsock_virtio::vhost_user::{Attached, F_EVENT_IDX, FrontendOptions, attach};

use super::Plan;
use super::flow::{Flow, Tally};
use super::job::Job;
use crate::Result;
use crate::clock::{self, Durations};
use crate::pattern;
use crate::service::{self, Service};

/// Packets taken in, and sent, before the other direction has its turn and the device hears of it.
const PACKETS_PER_TURN: usize = 64;
const BYTES_PER_TURN: usize = 256 * 1024;

/// First port of connections that we open.
const FIRST_PORT: u32 = 0x4000_0000;

/// One guest.
pub(super) struct Machine {
    link: Link,
    attached: Attached,
    endpoint: Endpoint,
    cid: Cid,
    flows: SecondaryMap<Connection, Flow>,
    /// Flows that a source may use, in the order of their turns.
    sources: Vec<ConnectionId>,
    /// Flows with something pending.
    speakers: Vec<ConnectionId>,
    job: Option<Job>,
    /// Where the next turn of a source begins, so that all flows have theirs.
    turn: usize,
    next_port: u32,
    checks: bool,
    slices: Slices,
    scratch: Vec<u8>,
}

impl Machine {
    /// Joins the device behind `socket`.
    pub(super) fn join(socket: &Path, plan: &Plan) -> Result<Self> {
        let mut link = DriverLink::new(&plan.options)?;
        let rings: Vec<_> = (0..QUEUE_COUNT).filter_map(|queue| link.ring_config(queue)).collect();
        let front_end =
            FrontendOptions { timeout: Duration::from_secs(20), ..FrontendOptions::default() };
        let mut attached = attach(socket, link.region(), &rings, front_end)?;
        link.set_event_idx(attached.features & F_EVENT_IDX != 0);
        for (queue, signals) in attached.rings.drain(..).enumerate() {
            link.connect(queue, signals.kick, signals.call)?;
        }
        let limits = Limits {
            buf_alloc: plan.buffer,
            max_connections: 1 << 20,
            max_half_open: 1 << 12,
            ..Limits::default()
        };
        Ok(Self {
            link: Link::Driver(link),
            cid: Cid(attached.cid),
            attached,
            endpoint: Endpoint::new(limits, 1),
            flows: SecondaryMap::new(),
            sources: Vec::new(),
            speakers: Vec::new(),
            job: None,
            turn: 0,
            next_port: FIRST_PORT,
            checks: plan.checks,
            slices: Slices::new(),
            scratch: Vec::new(),
        })
    }

    pub(super) fn cid(&self) -> u32 {
        self.cid.0
    }

    /// What to wait on: the device's signals, and its end.
    pub(super) fn fds(&self) -> Vec<BorrowedFd<'_>> {
        let mut fds = self.link.notify_fds();
        fds.push(self.attached.as_fd());
        fds
    }

    pub(super) fn open(&self) -> usize {
        self.flows.values().filter(|flow| flow.is_open).count()
    }

    pub(super) fn signals(&self) -> u64 {
        self.link.stats().signals
    }

    /// What came in over each flow of a group.
    pub(super) fn tally(&self, group: Result<u32>) -> Result<Vec<Tally>> {
        let group = group?;
        let flows = self.flows.values().filter(|flow| flow.group == group);
        Ok(flows.map(|flow| flow.tally).collect())
    }

    pub(super) fn reset(&mut self, group: u32) {
        for flow in self.flows.values_mut().filter(|flow| flow.group == group) {
            flow.tally = Tally::default();
        }
    }

    pub(super) fn arm(&mut self) -> bool {
        self.link.arm()
    }

    /// When [`Machine::pump`] has something to do even if nothing comes.
    pub(super) fn deadline(&self) -> Option<u64> {
        let end = self.job.as_ref().and_then(Job::end);
        let timer = self.endpoint.deadline().map(|at| at.0);
        end.into_iter().chain(timer).min()
    }

    /// Opens a connection to another guest, or the host.
    pub(super) fn dial(&mut self, cid: u32, port: u32, group: u32) -> Result<()> {
        let ours = Address { cid: self.cid, port: Port(self.next_port) };
        self.next_port += 1;
        let key = FlowKey { ours, theirs: Address { cid: Cid(cid), port: Port(port) } };
        let now = Instant(clock::now());
        let id = self
            .endpoint
            .connect(now, key, SocketType::Stream, None)
            .map_err(|error| format!("dial: {error:?}"))?;
        if let Some((_, Service::Wide)) = service::of_port(port) {
            // Linux sends no more than its own buffer would hold.
            self.endpoint.set_buf_alloc(id, service::WIDE);
        }
        self.keep(Flow::new(id, group, Service::Source));
        Ok(())
    }

    pub(super) fn begin(&mut self, job: Job) {
        self.job = Some(job);
    }

    pub(super) fn begin_ping(&mut self, group: u32, size: usize, seconds: f64) -> Result<()> {
        let flow = self.flows.values_mut().find(|flow| flow.group == group && flow.is_open);
        let flow = flow.ok_or("ping: there is no such flow")?;
        flow.pending.resize(size, 0);
        let (id, start) = (flow.id, clock::now());
        self.speakers.push(id);
        let end = start + clock::nanoseconds(seconds);
        let times = Durations::default();
        self.job = Some(Job::Ping { id, size, start, end, sent_at: start, back: 0, times });
        Ok(())
    }

    pub(super) fn drop_group(&mut self, group: u32) {
        let now = Instant(clock::now());
        for flow in self.flows.values_mut().filter(|flow| flow.group == group) {
            flow.is_open = false;
            self.endpoint.close(now, flow.id);
        }
    }

    /// The answer to the order under way, once it is carried out.
    pub(super) fn finished(&mut self) -> Option<String> {
        let now = clock::now();
        let open_in =
            |group| self.flows.values().filter(|flow| flow.group == group && flow.is_open).count();
        if !self.job.as_ref()?.is_over(now, open_in) {
            return None;
        }
        Some(self.job.take()?.answer(now))
    }

    /// One turn of everything; false when there was nothing to do.
    pub(super) fn pump(&mut self) -> Result<bool> {
        let now = clock::now();
        self.link.disarm();
        if self.endpoint.deadline().is_some_and(|at| at.0 <= now) {
            self.endpoint.expire(Instant(now));
        }
        let mut is_busy = self.take_device_events()?;
        for _ in 0..PACKETS_PER_TURN {
            self.slices.clear();
            let Some(inbound) = self.link.next_inbound(&mut self.slices)? else { break };
            self.receive(now, &inbound);
            self.link.finish_inbound(inbound.token);
            is_busy = true;
        }
        self.settle(now)?;
        is_busy |= self.send_control()?;
        is_busy |= self.send_pending(now)?;
        is_busy |= self.send_source(now)?;
        self.link.publish()?;
        Ok(is_busy)
    }

    fn take_device_events(&mut self) -> Result<bool> {
        let Link::Driver(driver) = &mut self.link else { return Ok(false) };
        match driver.next_event()? {
            Some(TRANSPORT_RESET) => Err("the device reset all connections".into()),
            Some(_) => Ok(true),
            None => Ok(false),
        }
    }

    fn receive(&mut self, now: u64, inbound: &Inbound) {
        let raw = RawHeader::parse(&inbound.header);
        let header = match raw.check() {
            Ok(header) if header.len <= inbound.payload_len => header,
            Ok(_) | Err(_) => return self.endpoint.reject(&raw),
        };
        let Received::Data(id) = self.endpoint.receive(Instant(now), &header) else { return };
        let Some(flow) = self.flows.get_mut(id) else { return };
        let mut is_wrong = false;
        if self.checks || flow.service == Service::Echo {
            self.scratch.resize(header.len as usize, 0);
            slice::copy_out(&self.slices[inbound.payload.clone()], &mut self.scratch);
            is_wrong = self.checks && !pattern::matches(&self.scratch, flow.received);
        }
        flow.received += u64::from(header.len);
        flow.tally.note(now, header.len.into(), is_wrong);
        if flow.service == Service::Echo {
            if flow.pending.is_empty() {
                self.speakers.push(id);
            }
            flow.pending.extend_from_slice(&self.scratch);
        }
        self.endpoint.consumed(id, header.len, 1);
        self.note_echo(id, header.len as usize);
    }

    /// A part of a ping has come back; the whole of it brings the next.
    fn note_echo(&mut self, of: ConnectionId, len: usize) {
        let Some(Job::Ping { id, size, end, sent_at, back, times, .. }) = &mut self.job else {
            return;
        };
        if *id != of {
            return;
        }
        *back += len;
        let at = clock::now();
        if *back >= *size {
            times.note(at - *sent_at);
            if at < *end {
                (*back, *sent_at) = (0, at);
                if let Some(flow) = self.flows.get_mut(of) {
                    flow.pending.resize(*size, 0);
                    self.speakers.push(of);
                }
            }
        }
    }

    fn keep(&mut self, flow: Flow) {
        if flow.service == Service::Source {
            if self.sources.len() > 64 + 2 * self.flows.len() {
                self.sources.retain(|id| self.flows.get(*id).is_some());
            }
            self.sources.push(flow.id);
        }
        self.flows.insert(flow.id, flow);
    }

    fn settle(&mut self, now: u64) -> Result<()> {
        while let Some(event) = self.endpoint.next_event() {
            match event {
                Event::Offered { id, key, .. } => match service::of_port(key.ours.port.0) {
                    Some((group, service)) => self.welcome(Flow::new(id, group, service)),
                    None => self.endpoint.refuse(id),
                },
                Event::Connected { id } => {
                    if let Some(flow) = self.flows.get_mut(id) {
                        flow.is_open = true;
                    }
                }
                Event::Writable { id } => {
                    if let Some(flow) = self.flows.get_mut(id) {
                        flow.is_stalled = false;
                        if !flow.pending.is_empty() {
                            self.speakers.push(id);
                        }
                    }
                }
                Event::TheirsShutDown { id, flags } => {
                    if flags.contains(Shutdown::SEND) {
                        self.endpoint.close(Instant(now), id);
                    }
                }
                Event::Closed { id, reason } => {
                    let flow = self.flows.remove(id);
                    if flow.is_some_and(|flow| {
                        flow.is_open && self.job.is_some() && flow.service != Service::Greet
                    }) {
                        return Err(format!("a flow in use ended: {reason:?}").into());
                    }
                }
            }
        }
        Ok(())
    }

    fn welcome(&mut self, mut flow: Flow) {
        flow.is_open = true;
        if flow.service == Service::Wide {
            self.endpoint.set_buf_alloc(flow.id, service::WIDE);
        }
        self.endpoint.accept(flow.id);
        if flow.service == Service::Greet {
            flow.pending.push(b'!');
            self.speakers.push(flow.id);
        }
        self.keep(flow);
    }

    fn send_control(&mut self) -> Result<bool> {
        let mut is_busy = false;
        while self.endpoint.has_packet() {
            self.slices.clear();
            let Some(space) = self.link.next_space(&mut self.slices)? else { break };
            let Some(packet) = self.endpoint.next_packet() else {
                self.link.return_spaces(1);
                break;
            };
            self.link.send(&space, &self.slices, &packet.encode(), 0);
            is_busy = true;
        }
        Ok(is_busy)
    }

    /// Echoes and greetings.
    fn send_pending(&mut self, now: u64) -> Result<bool> {
        let mut is_busy = false;
        while let Some(&id) = self.speakers.last() {
            let Some(flow) = self.flows.get_mut(id).filter(|flow| !flow.pending.is_empty()) else {
                self.speakers.pop();
                continue;
            };
            let window = self.endpoint.window(id);
            if window.bytes == 0 || window.packets == 0 {
                // `Writable` puts it back.
                self.endpoint.wants_to_send(Instant(now), id);
                self.speakers.pop();
                continue;
            }
            self.slices.clear();
            let Some(space) = self.link.next_space(&mut self.slices)? else { break };
            let len = narrow(flow.pending.len()).min(window.bytes).min(space.capacity);
            let Some(header) = self.endpoint.data_header(id, len, 0) else {
                self.link.return_spaces(1);
                break;
            };
            slice::copy_in(&self.slices[space.payload.clone()], &flow.pending[..len as usize]);
            self.link.send(&space, &self.slices, &header.encode(), len);
            flow.pending.drain(..len as usize);
            is_busy = true;
        }
        Ok(is_busy)
    }

    /// One turn of the source under way.
    fn send_source(&mut self, now: u64) -> Result<bool> {
        let Some(Job::Source { group, size, end, .. }) = self.job else { return Ok(false) };
        if now >= end {
            return Ok(false);
        }
        let (mut packets, mut sent, mut idle) = (0, 0, 0);
        while packets < PACKETS_PER_TURN && sent < BYTES_PER_TURN && idle < self.sources.len() {
            self.turn = (self.turn + 1) % self.sources.len();
            match self.send_piece(now, self.sources[self.turn], group, size)? {
                Some(0) => idle += 1,
                Some(len) => (packets, sent, idle) = (packets + 1, sent + len, 0),
                None => break,
            }
        }
        if let Some(Job::Source { bytes, .. }) = &mut self.job {
            *bytes += sent as u64;
        }
        Ok(sent > 0)
    }

    /// Sends one operation of a flow; 0 when it cannot, `None` when the ring is full.
    fn send_piece(
        &mut self,
        now: u64,
        id: ConnectionId,
        group: u32,
        size: usize,
    ) -> Result<Option<usize>> {
        let Some(flow) = self.flows.get_mut(id) else { return Ok(Some(0)) };
        if flow.group != group
            || flow.service != Service::Source
            || !flow.is_open
            || flow.is_stalled
        {
            return Ok(Some(0));
        }
        let window = self.endpoint.window(flow.id);
        if window.bytes == 0 || window.packets == 0 {
            flow.is_stalled = true;
            self.endpoint.wants_to_send(Instant(now), flow.id);
            return Ok(Some(0));
        }
        self.slices.clear();
        let Some(space) = self.link.next_space(&mut self.slices)? else { return Ok(None) };
        let len = narrow(size).min(window.bytes).min(space.capacity);
        let Some(header) = self.endpoint.data_header(flow.id, len, 0) else {
            self.link.return_spaces(1);
            return Ok(Some(0));
        };
        if self.checks {
            self.scratch.resize(len as usize, 0);
            pattern::fill(&mut self.scratch, flow.sent);
            slice::copy_in(&self.slices[space.payload.clone()], &self.scratch);
        }
        flow.sent += u64::from(len);
        self.link.send(&space, &self.slices, &header.encode(), len);
        Ok(Some(len as usize))
    }
}

fn narrow(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}
