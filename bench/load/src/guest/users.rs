//! The connections of a machine and what is done on them: payload that comes from nowhere and goes nowhere.

use vsock_core::connection::Connection;
use vsock_core::{ConnectionId, Endpoint, SecondaryMap};
use vsock_guest_memory::slice::{self, Slice};
use vsock_node::links::{Filled, MemoryDead, Offer, Payload, Sends, Sink, Source, Update};

use super::flow::Flow;
use super::job::Job;
use crate::clock;
use crate::pattern;
use crate::service::Service;

/// The users of all connections of a machine.
pub(super) struct Users {
    pub(super) flows: SecondaryMap<Connection, Flow>,
    /// The order under way, if it takes time.
    pub(super) job: Option<Job>,
    checks: bool,
    scratch: Vec<u8>,
}

impl Users {
    pub(super) fn new(checks: bool) -> Self {
        Self { flows: SecondaryMap::new(), job: None, checks, scratch: Vec::new() }
    }

    /// A part of a ping has come back; the whole of it brings the next. True: it is to be sent.
    fn note_echo(&mut self, of: ConnectionId, len: usize) -> bool {
        let Some(Job::Ping { id, size, end, sent_at, back, times, .. }) = &mut self.job else {
            return false;
        };
        if *id != of {
            return false;
        }
        *back += len;
        let at = clock::now();
        if *back < *size {
            return false;
        }
        times.note(at - *sent_at);
        if at >= *end {
            return false;
        }
        (*back, *sent_at) = (0, at);
        if let Some(flow) = self.flows.get_mut(of) {
            flow.pending.resize(*size, 0);
        }
        true
    }

    /// How much a flow is to send in one operation of the order under way.
    fn operation(&self, flow: &Flow) -> Option<usize> {
        let Some(Job::Source { group, size, end, .. }) = self.job else { return None };
        let is_source = flow.group == group && flow.service == Service::Source;
        (is_source && clock::now() < end).then_some(size)
    }
}

impl Sink for Users {
    fn payload(&mut self, id: ConnectionId, payload: Payload<'_>) -> Result<Update, MemoryDead> {
        let len = slice::total(payload.pieces);
        let bytes = u32::try_from(len).unwrap_or(u32::MAX);
        let mut update = Update { bytes, packets: payload.packets, ..Update::default() };
        let Some(flow) = self.flows.get_mut(id) else { return Ok(update) };
        let mut is_wrong = false;
        if self.checks || flow.service == Service::Echo {
            self.scratch.resize(len, 0);
            slice::copy_out(payload.pieces, &mut self.scratch);
            is_wrong = self.checks && !pattern::matches(&self.scratch, flow.received);
        }
        flow.received += len as u64;
        flow.tally.note(clock::now(), len as u64, payload.packets, is_wrong);
        if flow.service == Service::Echo {
            flow.pending.extend_from_slice(&self.scratch);
            update.sends = Sends::More;
        }
        if self.note_echo(id, len) {
            update.sends = Sends::More;
        }
        Ok(update)
    }
}

impl Source for Users {
    fn next(&mut self, id: ConnectionId, _: &Endpoint) -> Offer {
        let flow = self.flows.get(id).filter(|flow| flow.is_open);
        // What goes out in one packet if it fits: an echo, a greeting, an operation of a source.
        let len = flow.and_then(|flow| match flow.pending.len() {
            0 => self.operation(flow),
            len => Some(len),
        });
        len.map_or(Offer::Nothing(Update::default()), |len| Offer::Message { len, flags: 0 })
    }

    fn fill(&mut self, id: ConnectionId, pieces: &[Slice]) -> Result<Filled, MemoryDead> {
        let bytes = slice::total(pieces);
        let Some(flow) = self.flows.get_mut(id) else { return Ok(Filled::default()) };
        if !flow.pending.is_empty() {
            slice::copy_in(pieces, &flow.pending);
            flow.pending.drain(..bytes);
        } else if let Some(Job::Source { bytes: sent, .. }) = &mut self.job {
            *sent += bytes as u64;
            if self.checks {
                self.scratch.resize(bytes, 0);
                pattern::fill(&mut self.scratch, flow.sent);
                slice::copy_in(pieces, &self.scratch);
            }
            flow.sent += bytes as u64;
        }
        Ok(Filled { bytes, update: Update::default() })
    }

    fn stalled(&mut self, _: ConnectionId) -> Update {
        Update::default()
    }
}
