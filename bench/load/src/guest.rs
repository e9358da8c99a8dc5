//! Userspace guests: one process, one thread, one or many machines.
//!
//! `vsock-load guest [--check] [--rx COUNT,PAYLOAD] [--tx COUNT,PAYLOAD] [--buffer BYTES] SOCKET...` joins the device
//! behind each socket. Its orders are in [`Guests::obey`]. The loop sleeps like a guest that waits for interrupts: it asks
//! for notifications on every link and looks once more before it waits. As KVM does for a virtual processor that has
//! nothing to do (`halt_poll_ns`), it looks for up to 200 µs before that.

mod flow;
mod job;
mod machine;
mod users;

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use rustix::event::{Timespec, epoll};
use rustix::fs::OFlags;
use vsock_node::polling::Polling;
use vsock_virtio::link::driver::DriverOptions;

use crate::Result;
use crate::clock;
use crate::orders::{Lines, Order, answer, answer_error};
pub(crate) use flow::Tally;
use job::Job;
use machine::Machine;

const STDIN: u64 = u64::MAX;

/// KVM's default.
const HALT_POLL: Duration = Duration::from_micros(200);

/// All machines of the process.
struct Guests {
    machines: Vec<Machine>,
    epoll: rustix::fd::OwnedFd,
    /// Machines that may have work.
    awake: BTreeSet<usize>,
    /// When one of them last had some.
    worked_at: u64,
    polling: Polling,
    /// The machine that carries out an order that takes time.
    busy: Option<usize>,
}

/// Runs the role.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    let plan = parse(arguments)?;
    let mut guests = Guests {
        machines: Vec::new(),
        epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
        awake: BTreeSet::new(),
        worked_at: 0,
        polling: Polling::up_to(HALT_POLL),
        busy: None,
    };
    for socket in &plan.sockets {
        guests.machines.push(Machine::join(Path::new(socket), &plan)?);
    }
    guests.watch()?;
    let cids: Vec<String> =
        guests.machines.iter().map(|machine| machine.cid().to_string()).collect();
    answer(&format!("\"ready\": true, \"cids\": [{}]", cids.join(", ")));
    guests.serve()
}

/// What the arguments say.
struct Plan {
    options: DriverOptions,
    /// Receive buffer of every connection: what Linux gives by default, and the most it gives without being asked.
    buffer: u32,
    checks: bool,
    sockets: Vec<String>,
}

fn parse(arguments: &[String]) -> Result<Plan> {
    let options = DriverOptions::default();
    let mut plan = Plan { options, buffer: 256 * 1024, checks: false, sockets: Vec::new() };
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        let mut pair = || -> Result<(u16, u32)> {
            let text = words.next().ok_or("COUNT,PAYLOAD is missing")?;
            let (count, payload) = text.split_once(',').ok_or("not COUNT,PAYLOAD")?;
            Ok((count.parse()?, payload.parse()?))
        };
        match word.as_str() {
            "--check" => plan.checks = true,
            "--rx" => (plan.options.rx_buffers, plan.options.rx_payload) = pair()?,
            "--tx" => (plan.options.tx_buffers, plan.options.tx_payload) = pair()?,
            "--buffer" => plan.buffer = words.next().ok_or("BYTES is missing")?.parse()?,
            socket => plan.sockets.push(socket.to_owned()),
        }
    }
    Ok(plan)
}

impl Guests {
    fn watch(&mut self) -> Result<()> {
        let edge = epoll::EventFlags::IN | epoll::EventFlags::ET;
        for (index, machine) in self.machines.iter().enumerate() {
            for fd in machine.fds() {
                epoll::add(&self.epoll, fd, epoll::EventData::new_u64(index as u64), edge)?;
            }
            self.awake.insert(index);
        }
        let stdin = rustix::stdio::stdin();
        let flags = rustix::fs::fcntl_getfl(stdin)?;
        rustix::fs::fcntl_setfl(stdin, flags & !OFlags::NONBLOCK)?;
        let data = epoll::EventData::new_u64(STDIN);
        epoll::add(&self.epoll, stdin, data, epoll::EventFlags::IN)?;
        Ok(())
    }

    fn serve(&mut self) -> Result<()> {
        let mut lines = Lines::default();
        let mut events: Vec<epoll::Event> = Vec::with_capacity(256);
        loop {
            let had_work = self.pump()?;
            if self.busy.is_none()
                && let Some(order) = lines.next()
            {
                self.obey(&order).unwrap_or_else(|error| answer_error(&error));
                continue;
            }
            events.clear();
            self.wait(had_work, &mut events)?;
            for event in &events {
                match event.data.u64() {
                    STDIN => {
                        if !lines.read()? {
                            return Ok(());
                        }
                    }
                    index => {
                        self.awake.insert(usize::try_from(index)?);
                    }
                }
            }
        }
    }

    fn wait(&mut self, had_work: bool, events: &mut Vec<epoll::Event>) -> Result<()> {
        let (timeout, sleeps) = (self.timeout(), self.awake.is_empty());
        if !had_work && !sleeps {
            self.polling.give_way();
        }
        let before = clock::now();
        match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(events), timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        if sleeps {
            self.polling.slept(Duration::from_nanos(clock::now() - before));
        }
        Ok(())
    }

    /// Lets every machine that may have work do some; those that had none for a while ask for notifications. True when
    /// there was any.
    fn pump(&mut self) -> Result<bool> {
        let mut asleep = Vec::new();
        let mut had_work = false;
        for &index in &self.awake {
            let machine = &mut self.machines[index];
            if machine.pump()? {
                had_work = true;
                self.worked_at = clock::now();
            } else if Duration::from_nanos(clock::now() - self.worked_at) >= self.polling.window()
                && !machine.arm()
            {
                asleep.push(index);
            }
            if self.busy == Some(index)
                && let Some(members) = machine.finished()
            {
                self.busy = None;
                answer(&members);
            }
        }
        for index in asleep {
            self.awake.remove(&index);
        }
        Ok(had_work)
    }

    /// How long to wait: not while a machine is awake, not beyond a deadline.
    fn timeout(&mut self) -> Option<Timespec> {
        let now = clock::now();
        let mut soonest: Option<u64> = if self.awake.is_empty() { None } else { Some(now) };
        for (index, machine) in self.machines.iter().enumerate() {
            let Some(at) = machine.deadline() else { continue };
            if at <= now {
                self.awake.insert(index);
            }
            soonest = Some(soonest.map_or(at, |other| other.min(at)));
        }
        let wait = soonest?.saturating_sub(now);
        let nanoseconds = i64::try_from(wait).unwrap_or(i64::MAX);
        Some(Timespec { tv_sec: nanoseconds / 1_000_000_000, tv_nsec: nanoseconds % 1_000_000_000 })
    }

    /// Carries out one order of:
    ///
    /// | order | answer |
    /// | --- | --- |
    /// | `dial CID PORT GROUP COUNT` | connects as a member of GROUP, from the first machine |
    /// | `source GROUP SIZE SECONDS` | bytes and seconds, when the time is over |
    /// | `ping GROUP SIZE SECONDS` | round trips on the group's first flow |
    /// | `counts GROUP` | what came in since `reset GROUP` |
    /// | `drop GROUP` | closes the flows of the group |
    /// | `status` | connections, signals |
    fn obey(&mut self, order: &Order) -> Result<()> {
        match order.verb() {
            "status" => {
                let open: usize = self.machines.iter().map(Machine::open).sum();
                let signals: u64 = self.machines.iter().map(Machine::signals).sum();
                answer(&format!("\"open\": {open}, \"signals\": {signals}"));
                return Ok(());
            }
            "counts" => {
                let tallies = self.machines.iter().map(|machine| machine.tally(order.number(1)));
                let tallies = tallies.collect::<Result<Vec<_>>>()?;
                answer(&Tally::json(tallies));
                return Ok(());
            }
            "reset" => {
                let group = order.number(1)?;
                self.machines.iter_mut().for_each(|machine| machine.reset(group));
                answer("\"reset\": true");
                return Ok(());
            }
            _ => {}
        }
        let machine = self.machines.first_mut().ok_or("there is no machine")?;
        match order.verb() {
            "dial" => {
                let count = order.number(4)?;
                for _ in 0..count {
                    machine.dial(order.number(1)?, order.number(2)?, order.number(3)?)?;
                }
                machine.begin(Job::Dial { group: order.number(3)?, count });
            }
            "source" => machine.begin(Job::source(order)?),
            "ping" => machine.begin_ping(order.number(1)?, order.number(2)?, order.number(3)?)?,
            "drop" => {
                machine.drop_group(order.number(1)?);
                answer("\"dropped\": true");
                self.awake.insert(0);
                return Ok(());
            }
            verb => return Err(format!("no such order: {verb}").into()),
        }
        self.busy = Some(0);
        self.awake.insert(0);
        Ok(())
    }
}
