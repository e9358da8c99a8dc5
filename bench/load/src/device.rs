//! Our own device as its own process, without the daemon around it: what a change of the data plane is tuned with.
//!
//! `vsock-load device DIRECTORY CID,SOCKET,HYBRID...` serves programs in DIRECTORY until its standard input ends.

use std::io::Read;
use std::path::Path;

use vsock_node::node::{GuestOptions, Node};

use crate::Result;

/// Runs the device.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    let (directory, guests) = arguments.split_first().ok_or("device DIRECTORY GUEST...")?;
    let node = Node::start(2, Path::new(directory))?;
    for guest in guests {
        let parts: Vec<&str> = guest.splitn(3, ',').collect();
        let [cid, socket, hybrid] = parts[..] else { return Err("CID,SOCKET,HYBRID".into()) };
        node.add_guest(GuestOptions {
            name: format!("g{cid}"),
            cid: cid.parse()?,
            socket: socket.into(),
            hybrid: Some(hybrid.into()),
            groups: vec!["all".to_owned()],
            ..GuestOptions::default()
        })?;
    }
    let mut rest = Vec::new();
    std::io::stdin().read_to_end(&mut rest)?;
    Ok(())
}
