//! How flows begin: REQUESTs, with their limits. Whatever else belongs to no flow is answered with RST.

use super::flow::{Flow, Side};
use super::{Relay, Verdict, key};
use crate::packet::{Header, Op};
use crate::time::Instant;

impl Relay {
    /// Takes a packet between addresses that have no flow.
    pub(super) fn receive_stray(
        &mut self,
        now: Instant,
        header: &Header,
        allow: impl FnOnce() -> bool,
    ) -> Verdict {
        match header.op {
            Op::Request => self.open(now, header, allow),
            Op::Rst => Verdict::Drop,
            Op::Response
            | Op::Shutdown
            | Op::Rw
            | Op::CreditUpdate
            | Op::CreditRequest
            | Op::Invalid
            | Op::Unknown => self.stray(header),
        }
    }

    /// A guest asks for a flow.
    pub(super) fn open(
        &mut self,
        now: Instant,
        header: &Header,
        allow: impl FnOnce() -> bool,
    ) -> Verdict {
        let source = header.src.cid;
        if self.guests.flows(source) >= self.limits.max_flows_per_guest {
            self.stats.requests_over_limit += 1;
            return self.answer(header);
        }
        if self.guests.half_open(source) >= self.limits.max_half_open_per_guest {
            self.stats.requests_over_half_open_limit += 1;
            return self.answer(header);
        }
        if !allow() {
            self.stats.refused += 1;
            return self.answer(header);
        }
        let grant = self.grants.first(header, &self.limits);
        let mut flow = Flow::new(header, grant, now);
        let (forwarded, _) = flow.clamp(Side::Source, header);
        let id = self.flows.insert(flow);
        self.grants.take(header.src, header.dst, grant);
        self.table.insert(key(header), id);
        self.guests.flow_opened(source);
        self.arm(id, now.after(self.limits.half_open_timeout));
        self.stats.opened += 1;
        Verdict::Forward(forwarded)
    }

    /// A packet of no flow.
    pub(super) fn stray(&mut self, header: &Header) -> Verdict {
        self.stats.unknown_flows += u64::from(header.op != Op::Rst);
        self.answer(header)
    }

    /// Answers with RST, unless it is a RST.
    pub(super) fn answer(&mut self, header: &Header) -> Verdict {
        if let Some(reset) = header.raw().reset_reply()
            && !self.guests.reply(header.src.cid, reset, &self.limits)
        {
            self.stats.replies_dropped += 1;
        }
        Verdict::Drop
    }
}
