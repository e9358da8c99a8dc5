//! `Node`: a running switch or userspace guest, as Python holds it.

use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use vsock_node::node::{self, NodeOptions};
use vsock_sandbox::Sandbox;

use crate::errors::to_python;
use crate::options::Options;
use crate::records::{Event, Snapshot};

/// A running node; see the stub.
#[pyclass(frozen, module = "vsock._native")]
pub(crate) struct Node {
    node: node::Node,
    cid: AtomicU32,
}

#[pymethods]
impl Node {
    #[new]
    #[pyo3(signature = (*, cid, socket_dir, sandbox))]
    fn new(py: Python<'_>, cid: u32, socket_dir: PathBuf, sandbox: bool) -> PyResult<Self> {
        let sandbox = if sandbox { Sandbox::Enforced } else { Sandbox::Disabled };
        let options = NodeOptions { sandbox, ..NodeOptions::default() };
        let started = py.detach(|| node::Node::start_with(cid, &socket_dir, options));
        let node = started.map_err(|error| to_python(&error))?;
        Ok(Self { node, cid: AtomicU32::new(cid) })
    }

    #[getter]
    fn cid(&self) -> u32 {
        self.cid.load(Ordering::Relaxed)
    }

    fn set_polling(&self, py: Python<'_>, microseconds: u32) -> PyResult<()> {
        let most = Duration::from_micros(microseconds.into());
        py.detach(|| self.node.set_polling(most)).map_err(|error| to_python(&error))
    }

    fn set_linger_timeout(&self, py: Python<'_>, seconds: f64) -> PyResult<()> {
        let most = duration("seconds", seconds)?;
        py.detach(|| self.node.set_linger_timeout(most)).map_err(|error| to_python(&error))
    }

    fn add_guest(&self, py: Python<'_>, options: Options) -> PyResult<()> {
        py.detach(|| self.node.add_guest(options.into())).map_err(|error| to_python(&error))
    }

    fn change_guest(&self, py: Python<'_>, cid: u32, options: Options) -> PyResult<()> {
        py.detach(|| self.node.change_guest(cid, options.into())).map_err(|error| to_python(&error))
    }

    fn remove_guest(&self, py: Python<'_>, cid: u32) -> PyResult<()> {
        py.detach(|| self.node.remove_guest(cid)).map_err(|error| to_python(&error))
    }

    fn wait_told(&self, py: Python<'_>, cid: u32, timeout: f64) -> PyResult<bool> {
        let most = duration("timeout", timeout)?;
        py.detach(|| self.node.wait_told(cid, most)).map_err(|error| to_python(&error))
    }

    #[pyo3(signature = (socket, *, cid=None, timeout=10.0))]
    fn join(
        &self,
        py: Python<'_>,
        socket: PathBuf,
        cid: Option<u32>,
        timeout: f64,
    ) -> PyResult<u32> {
        let timeout = duration("timeout", timeout)?;
        let joined = py
            .detach(|| self.node.join(&socket, cid, timeout))
            .map_err(|error| to_python(&error))?;
        self.cid.store(joined, Ordering::Relaxed);
        Ok(joined)
    }

    fn explain(
        &self,
        py: Python<'_>,
        source: u32,
        destination: u32,
    ) -> PyResult<(bool, String, String)> {
        let explained = py.detach(|| self.node.explain(source, destination));
        let node::Verdict { is_allowed, rule, reason } =
            explained.map_err(|error| to_python(&error))?;
        Ok((is_allowed, rule, reason))
    }

    fn driver_starts(&self, py: Python<'_>, cid: u32) -> PyResult<u64> {
        py.detach(|| self.node.driver_starts(cid)).map_err(|error| to_python(&error))
    }

    fn snapshot(&self, py: Python<'_>) -> PyResult<Snapshot> {
        py.detach(|| self.node.snapshot()).map(Snapshot::from).map_err(|error| to_python(&error))
    }

    fn set_wants_flows(&self, wanted: bool) {
        self.node.set_wants_flows(wanted);
    }

    fn event_fd(&self) -> i32 {
        self.node.journal().as_fd().as_raw_fd()
    }

    fn events(&self) -> Vec<Event> {
        self.node.events().into_iter().map(Event::from).collect()
    }

    fn stop(&self, py: Python<'_>) {
        py.detach(|| self.node.stop());
    }
}

fn duration(name: &str, seconds: f64) -> PyResult<Duration> {
    Duration::try_from_secs_f64(seconds)
        .map_err(|error| PyValueError::new_err(format!("{name}: {error}")))
}
