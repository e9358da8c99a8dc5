//! One userspace guest: our driver, our protocol core, and payload that goes nowhere.
//!
//! Payload is neither made nor looked at (unless contents are checked): what is measured is the device, and a guest's
//! own copy between its programs and its kernel is not the device's affair. Packets are the product's to move
//! (`vsock_node::links::Interface`), as in the device at the other end.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use vsock_core::{
    Address, Admission, Cid, Event, FlowKey, Instant, Limits, Port, Refusal, Shutdown, SocketType,
};
use vsock_node::links::{Budget, Drained, Interface, Role, Scratch, Sends, Update};
use vsock_virtio::link::Link;
use vsock_virtio::vhost_user::Attached;

use super::Plan;
use super::flow::{Flow, Tally};
use super::job::Job;
use super::users::Users;
use crate::Result;
use crate::clock::{self, Durations};
use crate::joining::join;
use crate::service::{self, Service};

/// Bytes taken in, and sent, before the other direction has its turn and the device hears of it.
const BYTES_PER_TURN: usize = 256 * 1024;

/// First port of connections that we open.
const FIRST_PORT: u32 = 0x4000_0000;

/// One guest.
pub(super) struct Machine {
    interface: Interface,
    /// Counts what nobody here serves.
    admission: Admission,
    users: Users,
    scratch: Scratch,
    attached: Attached,
    cid: Cid,
    next_port: u32,
}

impl Machine {
    /// Joins the device behind `socket`.
    pub(super) fn join(socket: &Path, plan: &Plan) -> Result<Self> {
        let (link, attached) = join(socket, &plan.options)?;
        let limits = Limits {
            buf_alloc: plan.buffer,
            max_connections: 1 << 20,
            max_half_open: 1 << 12,
            ..Limits::default()
        };
        let cid = Cid(attached.cid);
        Ok(Self {
            interface: Interface::new(Link::Driver(link), Role::Uplink, cid, limits, 1),
            admission: Admission::default(),
            users: Users::new(plan.checks),
            scratch: Scratch::default(),
            attached,
            cid,
            next_port: FIRST_PORT,
        })
    }

    pub(super) fn cid(&self) -> u32 {
        self.cid.0
    }

    /// What to wait on: the device's signals, and its end.
    pub(super) fn fds(&self) -> Vec<BorrowedFd<'_>> {
        let mut fds = self.interface.link().notify_fds();
        fds.push(self.attached.as_fd());
        fds
    }

    pub(super) fn open(&self) -> usize {
        self.users.flows.values().filter(|flow| flow.is_open).count()
    }

    pub(super) fn signals(&self) -> u64 {
        self.interface.link().stats().signals
    }

    /// What came in over each flow of a group.
    pub(super) fn tally(&self, group: Result<u32>) -> Result<Vec<Tally>> {
        let group = group?;
        let flows = self.users.flows.values().filter(|flow| flow.group == group);
        Ok(flows.map(|flow| flow.tally).collect())
    }

    pub(super) fn reset(&mut self, group: u32) {
        for flow in self.users.flows.values_mut().filter(|flow| flow.group == group) {
            flow.tally = Tally::default();
        }
    }

    pub(super) fn arm(&mut self) -> bool {
        self.interface.arm()
    }

    /// When [`Machine::pump`] has something to do even if nothing comes.
    pub(super) fn deadline(&self) -> Option<u64> {
        let end = self.users.job.as_ref().and_then(Job::end);
        let timer = self.interface.endpoint().deadline().map(|at| at.0);
        end.into_iter().chain(timer).min()
    }

    /// Opens a connection to another guest, or the host.
    pub(super) fn dial(&mut self, cid: u32, port: u32, group: u32) -> Result<()> {
        let ours = Address { cid: self.cid, port: Port(self.next_port) };
        self.next_port += 1;
        let key = FlowKey { ours, theirs: Address { cid: Cid(cid), port: Port(port) } };
        let now = Instant(clock::now());
        let endpoint = self.interface.endpoint_mut();
        let id = endpoint
            .connect(now, key, SocketType::Stream, None)
            .map_err(|error| format!("dial: {error:?}"))?;
        if let Some((_, Service::Wide)) = service::of_port(port) {
            // Linux sends no more than its own buffer would hold.
            endpoint.set_buf_alloc(id, service::WIDE);
        }
        self.users.flows.insert(id, Flow::new(id, group, Service::Source));
        Ok(())
    }

    pub(super) fn begin(&mut self, job: Job) {
        self.users.job = Some(job);
        let now = Instant(clock::now());
        for flow in self.users.flows.values().filter(|flow| flow.is_open) {
            self.interface.update(now, flow.id, Update::sends(Sends::More));
        }
    }

    pub(super) fn begin_ping(&mut self, group: u32, size: usize, seconds: f64) -> Result<()> {
        let is_meant = |flow: &&mut Flow| flow.group == group && flow.is_open;
        let flow = self.users.flows.values_mut().find(is_meant);
        let flow = flow.ok_or("ping: there is no such flow")?;
        flow.pending.resize(size, 0);
        let (id, start) = (flow.id, clock::now());
        let end = start + clock::nanoseconds(seconds);
        let times = Durations::default();
        self.begin(Job::Ping { id, size, start, end, sent_at: start, back: 0, times });
        Ok(())
    }

    pub(super) fn drop_group(&mut self, group: u32) {
        let now = Instant(clock::now());
        for flow in self.users.flows.values_mut().filter(|flow| flow.group == group) {
            flow.is_open = false;
            self.interface.endpoint_mut().close(now, flow.id);
        }
    }

    /// The answer to the order under way, once it is carried out.
    pub(super) fn finished(&mut self) -> Option<String> {
        let now = clock::now();
        let flows = &self.users.flows;
        let open_in =
            |group| flows.values().filter(|flow| flow.group == group && flow.is_open).count();
        if !self.users.job.as_ref()?.is_over(now, open_in) {
            return None;
        }
        Some(self.users.job.take()?.answer(now))
    }

    /// One turn of everything; false when there was nothing to do.
    pub(super) fn pump(&mut self) -> Result<bool> {
        let now = Instant(clock::now());
        let before = self.interface.traffic().packets();
        self.interface.disarm();
        if self.interface.endpoint().deadline().is_some_and(|at| at <= now) {
            self.interface.endpoint_mut().expire(now);
        }
        if self.interface.take_link_events()? {
            return Err("the device reset all connections".into());
        }
        let mut budget = Budget::new(BYTES_PER_TURN);
        loop {
            let Self { interface, users, scratch, .. } = self;
            let drained = interface.receive(now, &mut budget, scratch, users)?;
            self.settle(now)?;
            if drained != Drained::Event {
                break;
            }
        }
        let Self { interface, users, scratch, .. } = self;
        interface.transmit(now, &mut Budget::new(BYTES_PER_TURN), scratch, users)?;
        interface.publish()?;
        self.settle(now)?;
        Ok(self.interface.traffic().packets() != before)
    }

    fn settle(&mut self, now: Instant) -> Result<()> {
        while let Some(event) = self.interface.next_event() {
            match event {
                Event::Offered { id, key, .. } => match service::of_port(key.ours.port.0) {
                    Some((group, service)) => self.welcome(now, Flow::new(id, group, service)),
                    None => {
                        let refused = self.admission.refuse(Refusal::NoListener);
                        self.interface.endpoint_mut().refuse(id, refused);
                    }
                },
                Event::Connected { id } => {
                    if let Some(flow) = self.users.flows.get_mut(id) {
                        flow.is_open = true;
                        self.interface.update(now, id, Update::sends(Sends::More));
                    }
                }
                Event::Writable { id } => {
                    self.interface.update(now, id, Update::sends(Sends::More));
                }
                Event::TheirsShutDown { id, flags } => {
                    if flags.contains(Shutdown::SEND) {
                        self.interface.endpoint_mut().close(now, id);
                    }
                }
                Event::Closed { id, reason } => {
                    let flow = self.users.flows.remove(id);
                    let job = self.users.job.as_ref();
                    let is_needed = |flow: Flow| job.is_some_and(|job| job.needs(&flow));
                    if flow.is_some_and(|flow| flow.is_open && is_needed(flow)) {
                        return Err(format!("a flow in use ended: {reason:?}").into());
                    }
                }
            }
        }
        Ok(())
    }

    fn welcome(&mut self, now: Instant, mut flow: Flow) {
        flow.is_open = true;
        if flow.service == Service::Wide {
            self.interface.endpoint_mut().set_buf_alloc(flow.id, service::WIDE);
        }
        self.interface.endpoint_mut().accept(flow.id);
        if flow.service == Service::Greet {
            flow.pending.push(b'!');
        }
        self.interface.update(now, flow.id, Update::sends(Sends::More));
        self.users.flows.insert(flow.id, flow);
    }
}
