//! The keys: who is let in, and by which key this guest is known.
//!
//! Keys that are let in come from the host: in a file of the initramfs or image, or as the system credential
//! `ssh.authorized_keys.root` (systemd.system-credentials(7)) on the kernel's command line or in the firmware's
//! strings. All of them are read at each login.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use russh::keys::ssh_key::{LineEnding, authorized_keys::Entry};
use russh::keys::{Algorithm, PrivateKey, PublicKey};

use crate::{limits, log};

/// The credential whose lines are keys.
const CREDENTIAL: &str = "ssh.authorized_keys.root";

const COMMAND_LINE: &str = "/proc/cmdline";

/// The strings of the firmware (SMBIOS type 11), of which each file has one table.
const FIRMWARE: &str = "/sys/firmware/dmi/entries";

/// The keys that are let in now: those of `file`, and those of the credential.
pub(crate) fn authorized(file: &Path) -> Vec<PublicKey> {
    let mut texts = vec![text_of(file)];
    texts.extend(command_line_credentials(&text_of(Path::new(COMMAND_LINE))));
    for entry in fs::read_dir(FIRMWARE).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with("11-") {
            texts.extend(firmware_credentials(&text_of(&entry.path().join("raw"))));
        }
    }
    texts.iter().flat_map(|text| keys_in(text)).collect()
}

/// What a file has. That it cannot be read is said, or a key that is refused because of it would be a riddle; that it
/// is missing is nothing unusual.
fn text_of(file: &Path) -> Vec<u8> {
    read(file).unwrap_or_else(|error| {
        if error.kind() != io::ErrorKind::NotFound {
            log::say(format_args!("keys of {}: {error}", file.display()));
        }
        Vec::new()
    })
}

/// The keys of a text as authorized_keys has it. A line with options is passed over: each of them would be a
/// restriction, and none is known here.
fn keys_in(text: &[u8]) -> Vec<PublicKey> {
    text.split(|&byte| byte == b'\n')
        .filter_map(|line| std::str::from_utf8(line).ok()?.trim().parse::<Entry>().ok())
        .filter(|entry| entry.config_opts().is_empty())
        .map(|entry| entry.public_key().clone())
        .collect()
}

/// What `systemd.set_credential=` and `systemd.set_credential_binary=` on a kernel's command line say.
fn command_line_credentials(line: &[u8]) -> Vec<Vec<u8>> {
    let line = String::from_utf8_lossy(line);
    words(line.trim_end())
        .iter()
        .filter_map(|word| {
            let (option, value) = word.split_once('=')?;
            let value = value.strip_prefix(CREDENTIAL)?.strip_prefix(':')?;
            match option {
                "systemd.set_credential" => Some(value.as_bytes().to_vec()),
                "systemd.set_credential_binary" => base64(value),
                _ => None,
            }
        })
        .collect()
}

/// The words of a kernel's command line, in which double quotes keep spaces.
fn words(line: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut is_quoted = false;
    for letter in line.chars() {
        match letter {
            '"' => is_quoted = !is_quoted,
            ' ' if !is_quoted => words.push(String::new()),
            _ => words.last_mut().into_iter().for_each(|word| word.push(letter)),
        }
    }
    words
}

/// What the strings of a table say, as `io.systemd.credential:` and `io.systemd.credential.binary:`.
fn firmware_credentials(table: &[u8]) -> Vec<Vec<u8>> {
    // The strings follow the table's head, whose length is its second byte.
    let head = table.get(1).copied().map_or(0, usize::from);
    table
        .get(head..)
        .unwrap_or_default()
        .split(|&byte| byte == 0)
        .filter_map(|string| {
            let string = std::str::from_utf8(string).ok()?;
            let setting = string.strip_prefix("io.systemd.credential")?;
            let (name, value) = setting.split_once('=')?;
            match name.split_once(':')? {
                ("", CREDENTIAL) => Some(value.as_bytes().to_vec()),
                (".binary", CREDENTIAL) => base64(value),
                _ => None,
            }
        })
        .collect()
}

fn base64(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    let mut bits = 0u32;
    let mut count = 0;
    for letter in text.trim_end_matches('=').bytes() {
        let value = match letter {
            b'A'..=b'Z' => letter - b'A',
            b'a'..=b'z' => letter - b'a' + 26,
            b'0'..=b'9' => letter - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count & 0xff) as u8);
        }
    }
    Some(bytes)
}

/// The host key: of `file`, or a new one, which is kept there if that can be.
///
/// # Errors
/// The file has no key that can be read, which should not be replaced behind its owner's back.
pub(crate) fn host_key(file: &Path) -> io::Result<PrivateKey> {
    match read(file) {
        Ok(text) => {
            return PrivateKey::from_openssh(text).map_err(|error| {
                io::Error::new(io::ErrorKind::InvalidData, format!("{}: {error}", file.display()))
            });
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let key = PrivateKey::random(&mut rand::rng(), Algorithm::Ed25519).map_err(io::Error::other)?;
    if let Err(error) = keep(file, &key) {
        log::say(format_args!(
            "the host key lives until this process ends: {}: {error}",
            file.display()
        ));
    }
    Ok(key)
}

fn keep(file: &Path, key: &PrivateKey) -> io::Result<()> {
    let text = key.to_openssh(LineEnding::LF).map_err(io::Error::other)?;
    if let Some(folder) = file.parent() {
        fs::create_dir_all(folder)?;
    }
    let partial = file.with_extension("new");
    let mut out = OpenOptions::new();
    let mut out = out.write(true).create(true).truncate(true).mode(0o600).open(&partial)?;
    out.write_all(text.as_bytes())?;
    out.sync_all()?;
    fs::rename(partial, file)
}

fn read(file: &Path) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    File::open(file)?.take(limits::KEY_FILE_BYTES).read_to_end(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHUnBmjzXpNYYbuAEvCLWUCPOPuHgZWbTRYJMzRBNZ1w vsock";

    #[test]
    fn keys_are_found_among_other_lines() {
        let text = format!("# mine\n\n{KEY}\nno key\nfrom=\"1.2.3.4\" {KEY}\n\u{ff}\n  {KEY}\r\n");
        let found = keys_in(text.as_bytes());
        assert_eq!(found.len(), 2, "{found:?}");
    }

    #[test]
    fn command_line_has_credentials_as_text_and_as_base64() {
        let line = format!(
            "quiet \"systemd.set_credential={CREDENTIAL}:{KEY}\" systemd.set_credential=other:x \
             systemd.set_credential_binary={CREDENTIAL}:aGkK systemd.set_credential_binary={CREDENTIAL}:?\n"
        );
        let found = command_line_credentials(line.as_bytes());
        assert_eq!(found, [KEY.as_bytes(), b"hi\n"]);
    }

    #[test]
    fn firmware_has_credentials_behind_the_head_of_a_table() {
        let table = format!(
            "\x0b\x05\x00\x0b\x03io.systemd.credential:{CREDENTIAL}={KEY}\0\
             io.systemd.credential.binary:{CREDENTIAL}=aGkK\0io.systemd.credential:x=y\0\
             vendor's io.systemd.credential:{CREDENTIAL}={KEY}\0\0"
        );
        let found = firmware_credentials(table.as_bytes());
        assert_eq!(found, [KEY.as_bytes(), b"hi\n"]);
        assert!(firmware_credentials(b"").is_empty());
        assert!(firmware_credentials(b"\x0b\xff").is_empty());
    }

    #[test]
    fn odd_texts_are_no_keys_and_no_faults() {
        let whole = format!("\"systemd.set_credential={CREDENTIAL}:");
        let words: [&[u8]; 12] = [
            KEY.as_bytes(),
            whole.as_bytes(),
            CREDENTIAL.as_bytes(),
            b"systemd.set_credential_binary=",
            b"io.systemd.credential",
            b".binary:",
            b":",
            b"=",
            b"\"",
            b" ",
            b"\0",
            b"\xff\n",
        ];
        // Numbers of a linear congruence: the same in every run.
        let mut state = 1u64;
        let mut next = |below: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            usize::try_from(state >> 33).unwrap() % below
        };
        let mut found = 0;
        for _ in 0..20_000 {
            let mut text: Vec<u8> = (0..next(9)).flat_map(|_| words[next(12)].to_vec()).collect();
            text.truncate(next(text.len() + 40));
            let credentials = [command_line_credentials(&text), firmware_credentials(&text)];
            found += credentials.iter().flatten().map(|it| keys_in(it).len()).sum::<usize>();
            assert!(keys_in(&text).len() <= 1 + text.iter().filter(|byte| **byte == b'\n').count());
        }
        assert!(found > 0, "the words make credentials, too");
    }

    #[test]
    fn host_key_is_made_once_and_kept() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("etc/host_key");
        let made = host_key(&file).unwrap();
        assert_eq!(host_key(&file).unwrap().public_key(), made.public_key());
        fs::write(&file, "no key").unwrap();
        assert!(host_key(&file).unwrap_err().to_string().contains("host_key"));
    }

    #[test]
    fn host_key_that_cannot_be_kept_is_made_all_the_same() {
        assert!(host_key(Path::new("/proc/none/host_key")).is_ok());
    }
}
