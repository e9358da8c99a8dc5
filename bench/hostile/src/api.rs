//! A host program that may use the switch, by the control API.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use vsock_load::Result;

use crate::bounds::Bounds;
use crate::stage::{Attack, Stage};

pub(crate) const ATTACKS: &[Attack] = &[
    Attack { name: "api-silent", play: |s, b| hold(s, b, "") },
    Attack { name: "api-half", play: |s, b| hold(s, b, "GET /v1/switch HTTP/1.1\r\nHost: ") },
    Attack { name: "api-slow", play: slow },
    Attack { name: "api-body", play: body },
    Attack { name: "api-connect-close", play: connect_close },
    Attack { name: "api-lists", play: lists },
    Attack { name: "api-garbage", play: garbage },
];

/// The one address that is asked for in requests that are in order.
const LIST: &str = "GET /v1/flows HTTP/1.1\r\nHost: v\r\nConnection: close\r\n\r\n";

fn connect(stage: &Stage) -> Result<UnixStream> {
    let stream = UnixStream::connect(stage.run.join("control.sock"))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.set_write_timeout(Some(Duration::from_secs(5)))?;
    Ok(stream)
}

fn clients(stage: &Stage, usual: u32, words: &str) -> Result<Vec<UnixStream>> {
    let mut clients = Vec::new();
    for _ in 0..stage.number_or(usual) {
        let mut client = connect(stage)?;
        client.write_all(words.as_bytes())?;
        clients.push(client);
    }
    Ok(clients)
}

/// Clients that say this much and no more.
fn hold(stage: &Stage, bounds: &mut Bounds, words: &str) -> Result<()> {
    let _clients = clients(stage, 400, words)?;
    Bounds::ready();
    bounds.hold();
    Ok(())
}

/// Clients that say a byte at a time.
fn slow(stage: &Stage, bounds: &mut Bounds) -> Result<()> {
    let mut clients = clients(stage, 400, "GET /v1/switch HTTP/1.1\r\nX: ")?;
    Bounds::ready();
    while bounds.another() {
        for client in &mut clients {
            // One that was hung up on is as well.
            let _ = client.write_all(b"x");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// A body of 256 MiB, as fast as it is taken.
fn body(stage: &Stage, bounds: &mut Bounds) -> Result<()> {
    const LEN: usize = 256 << 20;
    Bounds::ready();
    while bounds.another() {
        let mut client = connect(stage)?;
        let head = "POST /v1/guests HTTP/1.1\r\nHost: v\r\nContent-Type: application/json\r\n";
        client.write_all(format!("{head}Content-Length: {LEN}\r\n\r\n").as_bytes())?;
        for _ in 0..LEN >> 16 {
            if !bounds.another() || client.write_all(&[b' '; 1 << 16]).is_err() {
                break;
            }
        }
    }
    Ok(())
}

fn connect_close(stage: &Stage, bounds: &mut Bounds) -> Result<()> {
    Bounds::ready();
    while bounds.another() {
        drop(connect(stage)?);
    }
    Ok(())
}

/// The list of flows, again and again.
fn lists(stage: &Stage, bounds: &mut Bounds) -> Result<()> {
    Bounds::ready();
    while bounds.another() {
        let mut client = connect(stage)?;
        client.write_all(LIST.as_bytes())?;
        // What it says, and whether it ends well, is not the attack's affair.
        let _ = client.read_to_end(&mut Vec::new());
    }
    Ok(())
}

fn garbage(stage: &Stage, bounds: &mut Bounds) -> Result<()> {
    Bounds::ready();
    while bounds.another() {
        let mut client = connect(stage)?;
        client.write_all(b"\x00\xff GET / HTTP/9.9\r\n\r\n")?;
        let _ = client.read(&mut [0; 512]);
    }
    Ok(())
}
