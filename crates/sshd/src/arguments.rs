//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;

/// What `--help` prints.
pub(crate) const USAGE: &str = "\
usage: vsock-sshd [--port PORT | --listen unix:PATH] [--authorized-keys FILE] [--host-key FILE] [--without-keys]
       vsock-sshd --init [the same options] [--run COMMAND [ARGUMENT]... | -- COMMAND [ARGUMENT]...]
       vsock-sshd --sftp [--folder DIR [--writable]]

  --port PORT             the vsock port to listen on (22); only CID 2, the host, is served
  --listen unix:PATH      a Unix socket instead: whoever can connect to it counts as the host
  --authorized-keys FILE  the keys that are let in (/etc/vsock-sshd/authorized_keys)
  --host-key FILE         the host key, made if it is missing (/etc/vsock-sshd/host_key)
  --without-keys          listen on vsock also if no key is let in yet: keys are read at each login. It is refused
                          otherwise, as this may be another machine than the guest that it is for
  --init                  be the first process of a guest: mount /proc, /sys, /dev and so on, load the modules
                          in /usr/lib/vsock/modules, keep a server running, reap children, start COMMAND;
                          the server has --without-keys
  --sftp                  serve SFTP on the standard streams
  --folder DIR            of the files in DIR alone, to a client that may be hostile; no link leads to DIR
  --writable              it may change them, too
  --version, --help";

/// The option that `--init` gives its server.
pub(crate) const WITHOUT_KEYS: &str = "--without-keys";

/// Where the files are if no option says so.
const FOLDER: &str = "/etc/vsock-sshd";

/// What this process is to be.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub(crate) enum Role {
    Server,
    Init,
    Sftp,
    Version,
    Help,
}

/// Where the server listens.
#[derive(Debug, PartialEq, Eq, Clone)]
pub(crate) enum Place {
    Vsock(u32),
    Unix(PathBuf),
}

/// The command line, read.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Arguments {
    pub(crate) role: Role,
    pub(crate) place: Place,
    pub(crate) authorized_keys: PathBuf,
    pub(crate) host_key: PathBuf,
    /// Whether to listen on vsock if no key is let in.
    pub(crate) without_keys: bool,
    /// With `--sftp`: the only files that are served.
    pub(crate) folder: Option<PathBuf>,
    /// With `--folder`: whether they may be changed.
    pub(crate) writable: bool,
    /// With `--init`: what to start beside the server; empty for nothing.
    pub(crate) command: Vec<OsString>,
    /// The options that concern the server, as they were given.
    pub(crate) of_server: Vec<OsString>,
}

impl Arguments {
    /// What no arguments mean, for a role.
    pub(crate) fn defaults(role: Role) -> Arguments {
        Arguments {
            role,
            place: Place::Vsock(22),
            authorized_keys: PathBuf::from(FOLDER).join("authorized_keys"),
            host_key: PathBuf::from(FOLDER).join("host_key"),
            without_keys: false,
            folder: None,
            writable: false,
            command: Vec::new(),
            of_server: Vec::new(),
        }
    }

    /// Reads the words behind the program's name. An error is a sentence for the user.
    pub(crate) fn parse(words: impl Iterator<Item = OsString>) -> Result<Arguments, String> {
        let mut read = Arguments::defaults(Role::Server);
        let mut words = words.peekable();
        // A kernel gives the words of its command line that it does not know to the first process.
        let is_first = std::process::id() == 1;
        while let Some(word) = words.next() {
            match word.to_str() {
                // A kernel keeps the words behind its own `--` for the first process, but no second `--` among them.
                Some("--" | "--run") => {
                    read.command = words.by_ref().collect();
                    break;
                }
                Some("--init") => read.role = Role::Init,
                Some("--sftp") => read.role = Role::Sftp,
                Some("--writable") => read.writable = true,
                Some("--folder") => {
                    let value = words.next().ok_or("--folder needs a value".to_owned())?;
                    read.folder = Some(PathBuf::from(value));
                }
                Some("--version") => read.role = Role::Version,
                Some("--help" | "-h") => read.role = Role::Help,
                Some(WITHOUT_KEYS) => read.without_keys = true,
                Some(option @ ("--port" | "--listen" | "--authorized-keys" | "--host-key")) => {
                    let value = words.next().ok_or(format!("{option} needs a value"))?;
                    read.set(option, &value)?;
                    read.of_server.extend([word, value]);
                }
                _ if is_first => {}
                _ => return Err(format!("unknown argument {word:?}")),
            }
        }
        if is_first && read.role == Role::Server {
            read.role = Role::Init;
        }
        if read.folder.is_some() && read.role != Role::Sftp {
            return Err("--folder is for --sftp".to_owned());
        }
        if read.writable && read.folder.is_none() {
            return Err("--writable is for --folder".to_owned());
        }
        if read.role != Role::Init && !read.command.is_empty() {
            return Err("COMMAND is for --init".to_owned());
        }
        Ok(read)
    }

    fn set(&mut self, option: &str, value: &OsString) -> Result<(), String> {
        match option {
            "--port" => {
                let port = value.to_str().and_then(|text| text.parse().ok());
                // u32::MAX is VMADDR_PORT_ANY.
                let port = port.filter(|&port| port != u32::MAX);
                self.place = Place::Vsock(port.ok_or(format!("{value:?} is no vsock port"))?);
            }
            "--listen" => {
                let path = value.to_str().and_then(|text| text.strip_prefix("unix:"));
                let path = path.ok_or(format!("{value:?}: write unix:PATH"))?;
                self.place = Place::Unix(PathBuf::from(path));
            }
            "--authorized-keys" => self.authorized_keys = PathBuf::from(value),
            _ => self.host_key = PathBuf::from(value),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Result<Arguments, String> {
        Arguments::parse(words.iter().map(OsString::from))
    }

    #[test]
    fn no_arguments_mean_port_22_of_vsock() {
        let read = parse(&[]).unwrap();
        assert_eq!((read.role, read.place), (Role::Server, Place::Vsock(22)));
    }

    #[test]
    fn listening_without_keys_is_an_option() {
        assert!(!parse(&["--port", "23"]).unwrap().without_keys);
        assert!(parse(&[WITHOUT_KEYS]).unwrap().without_keys);
    }

    #[test]
    fn folder_is_not_writable_by_default() {
        let read = parse(&["--sftp", "--folder", "/srv"]).unwrap();
        assert_eq!((read.role, read.writable), (Role::Sftp, false));
        assert_eq!(read.folder, Some(PathBuf::from("/srv")));
    }

    #[test]
    fn init_keeps_the_options_of_its_server() {
        let read = parse(&["--init", "--port", "23", "--", "sleep", "--port"]).unwrap();
        assert_eq!(read.role, Role::Init);
        assert_eq!(read.of_server, ["--port", "23"]);
        assert_eq!(read.command, ["sleep", "--port"]);
        assert_eq!(parse(&["--init", "--run", "a", "--", "b"]).unwrap().command, ["a", "--", "b"]);
    }

    #[test]
    fn wrong_words_are_named() {
        for (words, said) in [
            (&["--port"][..], "needs a value"),
            (&["--port", "-1"], "no vsock port"),
            (&["--port", "4294967295"], "no vsock port"),
            (&["--listen", "/run/x"], "unix:PATH"),
            (&["start"], "unknown argument"),
            (&["--", "true"], "for --init"),
            (&["--folder", "/srv"], "for --sftp"),
            (&["--sftp", "--writable"], "for --folder"),
            (&["--sftp", "--folder"], "needs a value"),
        ] {
            assert!(parse(words).unwrap_err().contains(said), "{words:?}");
        }
    }
}
