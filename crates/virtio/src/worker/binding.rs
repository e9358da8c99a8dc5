//! Ports for programs: a port is free as soon as the program that held it has closed its socket.
//!
//! With the kernel's sockets `close` gives the port back before it returns. Here the worker hears of it by an event, and
//! a request to bind the same port may be earlier in its round. So a conflict is looked at twice: who has hung up holds
//! nothing.

use vsock_core::{Address, BindError, Port};

use super::Worker;
use super::source::{Bound, Source};
use crate::host::client::{Client, has_hung_up};
use crate::reactor::Token;

impl Worker {
    /// Takes a port for connections; `may` tells that it may be one below 1024.
    pub(crate) fn bind_port(&mut self, address: Address, may: bool) -> Result<Bound, BindError> {
        let id = match self.ports.bind(address, may) {
            Err(BindError::InUse) if self.drop_closed(address.port) => {
                self.ports.bind(address, may)?
            }
            outcome => outcome?,
        };
        let address = self.ports.address(id).unwrap_or(address);
        Ok(Bound { id, address })
    }

    /// Lets go of those that hold a port and have closed their socket; whether there were any.
    pub(crate) fn drop_closed(&mut self, port: Port) -> bool {
        let closed: Vec<Token> = self
            .sources
            .iter()
            .filter(|(_, source)| {
                holder(source, port).is_some_and(|client| has_hung_up(&client.fd))
            })
            .map(|(token, _)| token)
            .collect();
        for &token in &closed {
            self.drop_client(token);
        }
        !closed.is_empty()
    }
}

/// The program that holds the port by this source, if it is one that could be gone.
fn holder(source: &Source, port: Port) -> Option<&Client> {
    let (client, bound) = match source {
        Source::Client(client) => (client, client.bound?),
        Source::Listener(listener) => (&listener.client, listener.bound),
        Source::Ended
        | Source::Ring(_)
        | Source::Device(..)
        | Source::Programs(..)
        | Source::HybridDoor(..)
        | Source::HybridClient(_)
        | Source::Flow(_) => return None,
    };
    (bound.address.port == port).then_some(client)
}
