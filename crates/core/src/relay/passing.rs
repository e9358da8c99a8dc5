//! What becomes of the packets of a flow, in either direction.

use super::flow::{Excess, Side};
use super::{FlowId, Relay, Verdict};
use crate::address::SocketType;
use crate::packet::{EOM, Header, Op, Shutdown};
use crate::time::Instant;

impl Relay {
    /// Takes a packet between addresses that have a flow.
    pub(super) fn receive_of_flow(
        &mut self,
        now: Instant,
        id: FlowId,
        header: &Header,
        allow: impl FnOnce() -> bool,
    ) -> Verdict {
        let Some(flow) = self.flows.get_mut(id) else { return Verdict::Drop };
        if flow.kind != header.kind {
            self.stats.type_mismatches += 1;
            return self.answer(header);
        }
        let side = flow.side_of(header.src);
        // The source may have given its attempt up in silence and repeat it (see `state.rs`).
        let is_repeated =
            side == Side::Source && !flow.is_source_heard && !flow.shut(side).is_both();
        let is_proof = header.op == Op::Rw || header.fwd_cnt != 0;
        flow.is_source_heard |= side == Side::Source && is_proof;
        match header.op {
            Op::Request if is_repeated => self.pass(id, side, header),
            Op::Request => {
                self.forget(id, side);
                self.open(now, header, allow)
            }
            Op::Rst => {
                self.remove(id);
                Verdict::Forward(*header)
            }
            Op::Response => self.pass_response(id, side, header),
            Op::Shutdown => self.pass_shutdown(now, id, side, header),
            Op::Rw => self.pass_payload(id, side, header),
            Op::CreditUpdate | Op::CreditRequest => self.pass(id, side, header),
            Op::Invalid | Op::Unknown => Verdict::Drop,
        }
    }

    fn pass_response(&mut self, id: FlowId, side: Side, header: &Header) -> Verdict {
        let Some(flow) = self.flows.get_mut(id) else { return Verdict::Drop };
        if flow.is_answered || side == Side::Source {
            // The destination has made a second connection; the two must not mix.
            return self.broken(id);
        }
        flow.is_answered = true;
        if !flow.shut(Side::Source).is_both() {
            flow.deadline = None;
        }
        self.guests.flow_answered(flow.source.cid);
        self.pass(id, side, header)
    }

    fn pass_shutdown(&mut self, now: Instant, id: FlowId, side: Side, header: &Header) -> Verdict {
        let flags = Shutdown::from_flags(header.flags);
        let Some(flow) = self.flows.get_mut(id) else { return Verdict::Drop };
        let had_all = flow.shut(side).is_both();
        if flow.shut_down(side, flags).is_both() && !had_all && flow.is_answered {
            self.arm(id, now.after(self.limits.close_timeout));
        }
        self.pass(id, side, &Header { flags: flags.flags(), ..*header })
    }

    fn pass_payload(&mut self, id: FlowId, side: Side, header: &Header) -> Verdict {
        let Some(flow) = self.flows.get_mut(id) else { return Verdict::Drop };
        let ends_message = flow.kind == SocketType::SeqPacket && header.flags & EOM != 0;
        if !flow.is_answered || flow.shut(side).contains(Shutdown::SEND) {
            return self.broken(id);
        }
        if header.len == 0 && !ends_message {
            return Verdict::Drop;
        }
        match flow.send(side, header.len) {
            Ok(()) => {}
            Err(excess) => {
                match excess {
                    Excess::Bytes => self.stats.over_credit += 1,
                    Excess::Packets => self.stats.over_packets += 1,
                }
                self.reset_both(id);
                return Verdict::Drop;
            }
        }
        let to = flow.address(side.other()).cid;
        if let Some(question) = flow.question(side) {
            self.notify(to, question);
        }
        self.stats.packets += 1;
        self.stats.bytes += u64::from(header.len);
        self.pass(id, side, header)
    }

    /// Passes a packet on with clamped credit.
    fn pass(&mut self, id: FlowId, side: Side, header: &Header) -> Verdict {
        let Some(flow) = self.flows.get_mut(id) else { return Verdict::Drop };
        if !flow.is_answered && side == Side::Destination {
            // Anything before RESPONSE would end the attempt with EPROTO.
            return self.broken(id);
        }
        if header.buf_alloc > flow.grant && matches!(header.op, Op::Response | Op::CreditUpdate) {
            self.raise_grant(id, header);
        }
        let Some(flow) = self.flows.get_mut(id) else { return Verdict::Drop };
        let (forwarded, is_possible) = flow.clamp(side, header);
        self.stats.impossible_credit += u64::from(!is_possible);
        Verdict::Forward(forwarded)
    }

    /// A guest announces its buffer: the flow's credit follows, as far as the budget goes.
    fn raise_grant(&mut self, id: FlowId, header: &Header) {
        let Some(flow) = self.flows.get_mut(id) else { return };
        let more = self.grants.more(flow.grant, header, &self.limits);
        flow.grant += more;
        self.grants.take(header.src, header.dst, more);
    }
}
