//! The counters of an endpoint.

/// Declares the counters once: as fields, and as names in the same order.
macro_rules! counters {
    ($(#[$about:meta])* $name:ident { $($(#[$doc:meta])* $field:ident,)* }) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct $name {
            $($(#[$doc])* pub $field: u64,)*
        }

        impl $name {
            /// Every counter with its name.
            pub fn named(&self) -> impl Iterator<Item = (&'static str, u64)> + use<> {
                [$((stringify!($field), self.$field),)*].into_iter()
            }
        }
    };
}
pub(crate) use counters;

counters! {
    /// Counters of an endpoint since it was made.
    EndpointStats {
        /// Connections at this moment, in any state.
        connections,
        /// Connections that we asked for and got.
        connected,
        /// Connections that the peer asked for and got.
        accepted,
        /// Connections that the peer asked for and our user refused.
        refused,
        /// Connections that ended, for whatever reason, after they had been asked for.
        ended,
        /// RW packets received for a connection.
        packets_in,
        /// RW packets sent.
        packets_out,
        /// Payload bytes received for a connection.
        bytes_in,
        /// Payload bytes sent.
        bytes_out,
        /// Times that a user had to wait for credit.
        stalls,
        /// CREDIT_UPDATE packets sent.
        credit_updates_sent,
        /// CREDIT_REQUEST packets sent.
        credit_requests_sent,
        /// RST packets sent.
        resets_sent,
        /// RST packets received for a connection.
        resets_received,
        /// RST packets not sent, because too many replies were waiting.
        replies_dropped,
        /// Packets that belonged to no connection, RST aside.
        unknown_flows,
        /// Packets of another socket type than their connection.
        type_mismatches,
        /// Packets whose header or length could not be used.
        malformed,
        /// REQUESTs refused because of the limit on connections.
        requests_over_limit,
        /// REQUESTs refused because of the limit on unanswered ones.
        requests_over_half_open_limit,
        /// `connect` calls refused because of a limit.
        connects_over_limit,
        /// Connections that the peer had forgotten: it asked again with the same addresses.
        forgotten,
        /// Connections ended because the peer sent more than announced.
        over_credit,
        /// Connections ended because the peer broke the protocol.
        protocol_errors,
        /// `fwd_cnt` fields that claimed more than was sent.
        impossible_credit,
        /// Connections ended because an answer did not come in time.
        timeouts,
    }
}
