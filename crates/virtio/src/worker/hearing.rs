//! What epoll says goes to whom it is about; and how entries for that come, change and end.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::Worker;
use super::source::{Flow, Source};
use crate::reactor::{BELL, Readiness, Token};

impl Worker {
    /// Serves what happened at one entry. A fault in our own code, met on behalf of one program, must not end the others.
    pub(super) fn hear_safely(&mut self, ready: Readiness) {
        if catch_unwind(AssertUnwindSafe(|| self.hear(ready))).is_err() {
            self.journal.write("failed", u32::MAX, "internal error while serving a program");
            self.end_flow(ready.token);
            self.end_source(ready.token);
        }
    }

    fn hear(&mut self, ready: Readiness) {
        if ready.token == BELL {
            return;
        }
        let Some(source) = self.sources.get_mut(ready.token) else { return };
        match source {
            Source::Ended => {}
            Source::Ring(link) => {
                let link = *link;
                self.activate(link);
            }
            Source::Device(link, _) => {
                let link = *link;
                if ready.read_closed {
                    self.device_left(link);
                }
            }
            Source::Programs(..) => self.accept_programs(ready.token),
            Source::HybridDoor(..) => self.accept_hybrid(ready.token),
            Source::Client(_) => self.hear_client(ready.token, ready.read_closed),
            Source::HybridClient(_) => self.hear_hybrid(ready),
            Source::Listener(_) => self.hear_listener(ready.token, ready.read_closed),
            Source::Flow(flow) => {
                if !flow.stream.note(ready) {
                    self.look_for_refusal(ready.token);
                }
                self.wake_flow(ready.token);
            }
        }
    }

    /// Makes an entry for a descriptor, and hears of it from now on.
    pub(super) fn watch(&mut self, source: Source) -> io::Result<Token> {
        let entry = self.sources.vacant_entry();
        let token = entry.key();
        match &source {
            Source::Ring(_) | Source::Ended => {}
            Source::Device(_, fd) => self.reactor.watch(fd, token)?,
            Source::Programs(listener, _) | Source::HybridDoor(listener, _) => {
                self.reactor.watch_input(listener, token)?;
            }
            Source::Client(client) => self.reactor.watch(&client.fd, token)?,
            Source::HybridClient(client) => self.reactor.watch(&client.fd, token)?,
            Source::Listener(listener) => self.reactor.watch(&listener.client.fd, token)?,
            Source::Flow(flow) => self.reactor.watch(flow.stream.fd(), token)?,
        }
        entry.insert(source);
        Ok(token)
    }

    /// What epoll said of a program's socket was said to what the entry was before: asks for it once more.
    pub(super) fn renew(&self, token: Token) {
        match self.sources.get(token) {
            Some(Source::Client(client)) => self.reactor.renew(&client.fd, token),
            Some(Source::Listener(listener)) => self.reactor.renew(&listener.client.fd, token),
            Some(Source::Flow(flow)) => self.reactor.renew(flow.stream.fd(), token),
            Some(_) | None => {}
        }
    }

    /// The entry is done with; its descriptor closes now, its index is free after this round.
    pub(super) fn end_source(&mut self, token: Token) {
        if let Some(source) = self.sources.get_mut(token)
            && !matches!(source, Source::Ended)
        {
            *source = Source::Ended;
            self.ended.push(token);
        }
    }

    /// The flow at this entry, if it is one.
    #[inline]
    pub(super) fn flow(&mut self, token: Token) -> Option<&mut Flow> {
        match self.sources.get_mut(token) {
            Some(Source::Flow(flow)) => Some(flow),
            _ => None,
        }
    }
}
