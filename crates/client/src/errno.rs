//! The error numbers of Linux that the socket calls of AF_VSOCK give.

/// An error number of Linux.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Errno(pub i32);

macro_rules! errors {
    ($($name:ident = $number:literal, $text:literal;)*) => {
        impl Errno {
            $(
                #[doc = $text]
                pub const $name: Self = Self($number);
            )*

            /// All errors that have a name here, with it.
            pub const NAMED: &[(&'static str, Self)] =
                &[$((concat!("E", stringify!($name)), Self::$name)),*];
        }
    };
}

errors! {
    BADF = 9, "The descriptor is not open.";
    AGAIN = 11, "Nothing to receive, or no room to send.";
    NOMEM = 12, "A receive waits for more than the buffer holds.";
    NODEV = 19, "No such guest, no way to it, or no switch.";
    INVAL = 22, "An invalid argument, or a call that the socket's state does not allow.";
    NOTTY = 25, "An ioctl that this descriptor does not have.";
    RANGE = 34, "A timeout that is no time.";
    PROTO = 71, "The other side does not keep to the protocol.";
    MSGSIZE = 90, "A message longer than a receive buffer of either side.";
    NOPROTOOPT = 92, "An unknown option.";
    PROTONOSUPPORT = 93, "An unknown protocol number.";
    SOCKTNOSUPPORT = 94, "A socket type that AF_VSOCK does not have.";
    OPNOTSUPP = 95, "A flag or call that AF_VSOCK does not have.";
    ADDRNOTAVAIL = 99, "The CID is not ours.";
    CONNRESET = 104, "The connection was refused or reset.";
    ISCONN = 106, "The socket is connected.";
    NOTCONN = 107, "The socket is not connected.";
    TIMEDOUT = 110, "The other side did not answer in time.";
    ALREADY = 114, "A connect is under way.";
    INPROGRESS = 115, "A connect has begun.";
}
