//! Converts the options of a guest from a Python mapping and to a dictionary, field by field.

use pyo3::prelude::*;
use vsock_node::node::GuestOptions;

macro_rules! keywords {
    ($($(#[$doc:meta])* $field:ident: $kind:ty,)*) => {
        /// The options of a guest.
        #[derive(Clone, FromPyObject, IntoPyObject)]
        #[pyo3(from_item_all)]
        pub(crate) struct Options {
            $($field: $kind,)*
        }

        impl From<Options> for GuestOptions {
            fn from(Options { $($field,)* }: Options) -> Self {
                Self { $($field,)* }
            }
        }

        impl From<GuestOptions> for Options {
            fn from(GuestOptions { $($field,)* }: GuestOptions) -> Self {
                Self { $($field,)* }
            }
        }
    };
}
vsock_node::guest_options!(keywords);
