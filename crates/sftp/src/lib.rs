//! An SFTP server (version 3, with OpenSSH's extensions) on two streams: a process of its own for each client, which
//! may wait for a disk, and which ends with its client. Names are bytes, as Linux has them; which of them a client may
//! use is up to the kernel, and to the folder that it may be confined to.
//!
//! | module | what it is |
//! | --- | --- |
//! | `server` | one client: its requests, and what it has open |
//! | `tree` | what the paths of a client lead to |
//! | `files` | what SFTP asks of files, in the words of the kernel |
//! | `packet` | the encoding |
//! | `protocol` | the numbers and names |

#![forbid(unsafe_code)]

mod files;
mod packet;
mod protocol;
mod server;
mod tree;

pub use server::Server;
