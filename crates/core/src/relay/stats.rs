//! The counters of a relay.

use crate::endpoint::stats::counters;

counters! {
    /// Counters of a relay since it was made.
    RelayStats {
        /// Flows at this moment, in any state.
        flows,
        /// REQUESTs passed on.
        opened,
        /// REQUESTs refused because the caller did not allow them.
        refused,
        /// REQUESTs refused because of the limit on flows.
        requests_over_limit,
        /// REQUESTs refused because of the limit on unanswered ones.
        requests_over_half_open_limit,
        /// RW packets passed on.
        packets,
        /// Payload bytes passed on.
        bytes,
        /// RSTs and other packets of ours that were sent.
        packets_sent,
        /// Packets of ours not sent, because too many were waiting.
        replies_dropped,
        /// Packets that belonged to no flow, RST aside.
        unknown_flows,
        /// Packets of another socket type than their flow.
        type_mismatches,
        /// Flows ended because their sender had forgotten them: it asked again.
        forgotten,
        /// Flows ended because a guest sent more bytes than announced.
        over_credit,
        /// Flows ended because a guest sent too many small packets.
        over_packets,
        /// Flows ended because a guest broke the protocol.
        protocol_errors,
        /// `fwd_cnt` fields that claimed more than was sent.
        impossible_credit,
        /// Flows ended because an answer did not come in time.
        timeouts,
        /// Flows ended by [`Relay::reset_flow`](super::Relay::reset_flow).
        given_up,
    }
}
