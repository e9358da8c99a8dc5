//! All that a worker has, as plain data. Saved between two orders, when no owner is in the middle of something.
//!
//! Timers are not saved: owners know when what is due. Nor is what helper threads do: it is begun anew.

use std::collections::HashMap;

use vsock_core::admission::{RefusalCounts, SavedRefusals};
use vsock_core::relay::SavedRelay;
use vsock_core::saved::{Unfit, check};
use vsock_core::{Event, Instant};

use super::{Due, Fabric};
use crate::context::Context;
use crate::flows::{Flows, SavedFlows};
use crate::host::socket::Sockets;
use crate::journal::Journal;
use crate::links::{Entry, Forwarder, LinkId, Links, Quantum, SavedLinks, Scratch};
use crate::options::NodeOptions;
use crate::programs::{Asked, Programs, SavedPrograms};
use crate::reactor::{Claims, SavedSources, Sources};
use crate::saved::{RestoredGuest, Restoring};
use crate::timers::Timers;
use vsock_virtio::saved::{Fds, SavedFds};
use vsock_virtio::starter::Starter;

/// The latest time at which a clock may go on: far from where instants end.
const LATEST: Instant = Instant(u64::MAX / 4);

/// A [`Fabric`] as plain data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedFabric {
    /// What time it was, so that ages are what they were.
    pub now: Instant,
    /// To whom descriptors belong.
    pub sources: SavedSources,
    /// How often each reason to refuse was given.
    pub refusals: SavedRefusals,
    /// The links.
    pub links: SavedLinks,
    /// Flows between guests.
    pub relay: SavedRelay,
    /// Flows of programs.
    pub flows: SavedFlows,
    /// Programs.
    pub programs: SavedPrograms,
}

impl Fabric {
    /// As plain data.
    pub(crate) fn save<'a>(&'a self, fds: &mut SavedFds<'a>) -> SavedFabric {
        let Self { cx, links, forwarder, flows, programs, .. } = self;
        let now = cx.now;
        SavedFabric {
            now,
            sources: cx.sources.save(),
            refusals: cx.admission.refusals().save(),
            links: links.save(now, fds),
            relay: forwarder.save(now),
            flows: flows.save(now, fds),
            programs: programs.save(fds),
        }
    }

    /// What goes on where another was. `sources` are new; `seed` must be unknown to guests.
    pub(crate) fn restore(
        saved: SavedFabric,
        guests: &HashMap<LinkId, RestoredGuest>,
        fds: Fds,
        (sources, journal, starter): (Sources, Journal, Starter),
        seed: u64,
    ) -> Result<Self, Unfit> {
        let SavedFabric { now, sources: saved_sources, refusals, links, relay, flows, programs } =
            saved;
        check(now <= LATEST, Unfit::State)?;
        let sockets = Sockets::new(sources.reaper(), NodeOptions::default());
        let sources = Claims::new(sources, saved_sources)?;
        let mut restoring = Restoring { fds, sources, now, sockets };
        let mut admission = vsock_core::Admission::default();
        admission.set_refusals(RefusalCounts::restore(&refusals)?);
        let links = Links::restore(links, guests, &mut admission, &mut restoring)?;
        let forwarder = Forwarder::restore(relay, seed, now)?;
        let flows = Flows::restore(flows, &links, &mut restoring)?;
        let programs = Programs::restore(programs, &links, &flows, &mut restoring)?;
        let Restoring { fds, sources, sockets, .. } = restoring;
        fds.finish()?;
        let at = (sources.finish(), journal, starter);
        let cx = Context::going_on(at, sockets, admission, now);
        let mut fabric = Self {
            cx,
            links,
            forwarder,
            flows,
            programs,
            timers: Timers::default(),
            quantum: Quantum::default(),
            scratch: Scratch::default(),
            #[cfg(test)]
            panics_at: None,
        };
        fabric.go_on();
        Ok(fabric)
    }

    /// Sets timers, and asks again what helpers were asked. All links are active: those of a link are set at its first turn.
    fn go_on(&mut self) {
        let Self { cx, links, flows, programs, timers, .. } = self;
        for (id, at) in flows.lingering() {
            timers.set(Due::Linger(id), Some(at));
        }
        programs.ask_again(cx, links, flows);
        for asked in self.unanswered() {
            self.with(asked.link, |turn, interface, _| {
                turn.programs.offered(turn.cx, turn.links, turn.flows, interface, asked);
            });
        }
        self.follow_up();
    }

    /// Connections that guests have asked for, which waited for a helper.
    fn unanswered(&self) -> Vec<Asked> {
        let of = |(link, entry): (LinkId, &Entry)| -> Vec<Asked> {
            let Some(interface) = entry.interface() else { return Vec::new() };
            let endpoint = interface.endpoint();
            let is_coming = |asked| {
                let is_it = |it: &Event| matches!(it, Event::Offered { id, .. } if *id == asked);
                endpoint.coming_events().any(is_it)
            };
            let offered = endpoint.connections().filter(|it| it.is_offered() && !is_coming(it.id));
            let asked =
                offered.map(|it| Asked { link, connection: it.id, key: it.key, kind: it.kind });
            asked.collect()
        };
        self.links.iter().flat_map(of).collect()
    }
}
