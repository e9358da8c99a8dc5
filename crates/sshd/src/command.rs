//! How a command of a client is started: by the guest's shell, or, in a guest without one, by us.
//!
//! Without a shell a command is a program with arguments, quoted as a shell has it. Before it there may be the lines that
//! `vsock exec` writes for a directory and for variables. All else of a shell's language is refused.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

const SHELL: &str = "/bin/sh";

/// A program to start.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Program {
    /// Its name and its arguments; the first of them is its own name for itself.
    pub(crate) name: OsString,
    pub(crate) arguments: Vec<OsString>,
    pub(crate) variables: Vec<(OsString, OsString)>,
    pub(crate) folder: Option<PathBuf>,
}

/// The shell of this user: `$SHELL`, else /bin/sh; `None` if there is neither.
pub(crate) fn shell() -> Option<PathBuf> {
    let named = std::env::var_os("SHELL").map(PathBuf::from);
    named.into_iter().chain([PathBuf::from(SHELL)]).find(|path| path.is_absolute() && path.exists())
}

/// What `line` starts.
///
/// # Errors
/// A sentence for the user: there is no shell, and the line needs one.
pub(crate) fn program_of(shell: Option<&Path>, line: &[u8]) -> Result<Program, String> {
    let Some(shell) = shell else {
        return without_shell(line);
    };
    Ok(Program {
        name: shell.into(),
        arguments: vec!["-c".into(), OsString::from_vec(line.to_vec())],
        ..Program::default()
    })
}

fn without_shell(line: &[u8]) -> Result<Program, String> {
    let mut program = Program::default();
    let lines = lines_of(line).ok_or(
        "there is no shell in this guest, and the command needs one: give a program and its arguments",
    )?;
    for words in lines {
        if !program.name.is_empty() {
            return Err("there is no shell in this guest: give one program".to_owned());
        }
        let mut words = words.into_iter();
        let first = words.next().unwrap_or_default();
        match first.as_slice() {
            // As `vsock exec` writes them.
            b"cd" => {
                let mut rest = words.filter(|word| word != b"--");
                program.folder = rest.next().map(|folder| OsString::from_vec(folder).into());
            }
            b"export" => {
                for word in words {
                    let at = word.iter().position(|&byte| byte == b'=').unwrap_or(word.len());
                    let value = word.get(at + 1..).unwrap_or_default().to_vec();
                    let name = word[..at].to_vec();
                    program.variables.push((OsString::from_vec(name), OsString::from_vec(value)));
                }
            }
            _ => {
                let mut all = std::iter::once(first).chain(words).map(OsString::from_vec);
                let name = all.next().unwrap_or_default();
                program.name = if name == "exec" { all.next().unwrap_or_default() } else { name };
                program.arguments = all.collect();
            }
        }
    }
    if program.name.is_empty() { Err("no command".to_owned()) } else { Ok(program) }
}

/// The words of each line; `None` if they need a shell.
fn lines_of(text: &[u8]) -> Option<Vec<Vec<Vec<u8>>>> {
    let mut lines = vec![Vec::new()];
    let mut word: Option<Vec<u8>> = None;
    let mut bytes = text.iter().copied().peekable();
    while let Some(byte) = bytes.next() {
        match byte {
            b' ' | b'\t' => lines.last_mut()?.extend(word.take()),
            b'\n' => {
                lines.last_mut()?.extend(word.take());
                lines.push(Vec::new());
            }
            b'\'' => {
                let word = word.get_or_insert_default();
                loop {
                    match bytes.next()? {
                        b'\'' => break,
                        inner => word.push(inner),
                    }
                }
            }
            b'"' => {
                let word = word.get_or_insert_default();
                loop {
                    match bytes.next()? {
                        b'"' => break,
                        b'\\' if matches!(bytes.peek(), Some(b'"' | b'\\' | b'$' | b'`')) => {
                            word.push(bytes.next()?);
                        }
                        b'\\' if bytes.peek() == Some(&b'\n') => drop(bytes.next()),
                        b'$' | b'`' => return None,
                        inner => word.push(inner),
                    }
                }
            }
            // It goes on in the next line: neither of the two bytes is in a word, or between words.
            b'\\' if bytes.peek() == Some(&b'\n') => drop(bytes.next()),
            b'\\' => word.get_or_insert_default().push(bytes.next()?),
            b'|' if is_end_of_cd(lines.last()?, &word, bytes.clone()) => {
                // "cd -- FOLDER || exit": a folder that is not there ends it anyway.
                bytes.find(|&byte| byte == b'\n');
                lines.push(Vec::new());
            }
            b'|' | b'&' | b';' | b'<' | b'>' | b'(' | b')' | b'$' | b'`' | b'*' | b'?' | b'[' => {
                return None;
            }
            b'#' | b'~' if word.is_none() => return None,
            _ => word.get_or_insert_default().push(byte),
        }
    }
    lines.last_mut()?.extend(word.take());
    lines.retain(|words| !words.is_empty());
    Some(lines)
}

fn is_end_of_cd(line: &[Vec<u8>], word: &Option<Vec<u8>>, rest: impl Iterator<Item = u8>) -> bool {
    let is_cd = word.is_none() && line.first().is_some_and(|first| first == b"cd");
    is_cd && rest.take_while(|&byte| byte != b'\n').eq(*b"| exit")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        let program = without_shell(line.as_bytes()).unwrap();
        std::iter::once(program.name)
            .chain(program.arguments)
            .map(|word| word.into_string().unwrap())
            .collect()
    }

    #[test]
    fn shell_gets_the_line_as_it_is() {
        let program = program_of(Some(Path::new("/bin/sh")), b"a | b \xff").unwrap();
        assert_eq!(program.name, "/bin/sh");
        assert_eq!(program.arguments[1].clone().into_vec(), b"a | b \xff");
    }

    #[test]
    fn words_are_quoted_as_a_shell_has_it() {
        for (line, expected) in [
            ("uname -a", &["uname", "-a"][..]),
            ("exec  echo 'a  b' ''", &["echo", "a  b", ""]),
            (r#"echo 'it'"'"'s' "a \"b\" \n""#, &["echo", "it's", "a \"b\" \\n"]),
            (r"echo a\ b c#d", &["echo", "a b", "c#d"]),
            ("exec echo '*' '$HOME' '|' ';\n&'", &["echo", "*", "$HOME", "|", ";\n&"]),
        ] {
            assert_eq!(words(line), expected, "{line}");
        }
    }

    #[test]
    fn directory_and_variables_of_vsock_exec_are_understood() {
        let line = b"cd -- '/a b' || exit\nexport A='1 2'\nexport B=\nexec env -u X";
        let program = without_shell(line).unwrap();
        assert_eq!(program.folder, Some(PathBuf::from("/a b")));
        let variables = [("A", "1 2"), ("B", "")];
        assert_eq!(program.variables, variables.map(|(a, b)| (a.into(), b.into())));
        assert_eq!(program.arguments, ["-u", "X"]);
    }

    #[test]
    fn what_needs_a_shell_is_refused() {
        for line in [
            "",
            "exec",
            "a | b",
            "a; b",
            "a && b",
            "a > b",
            "echo $HOME",
            "echo \"$HOME\"",
            "echo *",
            "echo 'open",
            "a\\",
            "a\nb",
            "cd x || exit 1\na",
            "# a",
            "cd /tmp && ls",
        ] {
            assert!(without_shell(line.as_bytes()).is_err(), "{line:?}");
        }
    }

    /// Texts of these pieces, the same ones each time.
    fn texts(pieces: &[&str], count: usize) -> Vec<String> {
        let mut state = 0x5eed_u64;
        let mut next = |bound: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            usize::try_from(state % bound as u64).unwrap()
        };
        (0..count)
            .map(|_| (0..=next(12)).map(|_| pieces[next(pieces.len())]).collect::<String>())
            .collect()
    }

    #[test]
    fn line_that_is_understood_has_the_words_of_a_real_shell() {
        let pieces = [
            "a", "b", "=", "é", " ", " ", "\t", "\n", "'", "'", "\"", "\"", "\\", "\\\n", "\\\"",
            "''", "$", "`", "*", "?", "[", "]", "~", "#", "!", "%", "^", "|", "&", ";", "<", ">",
            "(", ")",
        ];
        let folder = tempfile::tempdir().unwrap();
        let mut understood = 0;
        for line in texts(&pieces, 4000) {
            // Behind a name, as the name itself may be a word of the shell's language.
            let Ok(program) = without_shell(format!("words {line}").as_bytes()) else { continue };
            understood += 1;
            let shell = std::process::Command::new(SHELL)
                .args([
                    "-c",
                    &format!(
                        "words() {{ for word; do printf '%s\\0' \"$word\"; done; }}; words {line}"
                    ),
                ])
                .current_dir(&folder)
                .output()
                .unwrap();
            let ours: Vec<u8> = program
                .arguments
                .iter()
                .flat_map(|word| [word.clone().into_vec(), vec![0]].concat())
                .collect();
            assert!(shell.stderr.is_empty(), "{line:?}: {shell:?}");
            assert_eq!(String::from_utf8(ours), String::from_utf8(shell.stdout), "{line:?}");
        }
        assert!(understood > 100, "{understood}");
    }

    #[test]
    fn words_that_are_quoted_come_back() {
        let pieces = ["a", " ", "'", "\"", "\\", "$", "\n", "*", "|", "é", "#"];
        for words in texts(&pieces, 2000) {
            let quoted = format!("'{}'", words.replace('\'', r#"'"'"'"#));
            let program = without_shell(format!("exec name {quoted}").as_bytes()).unwrap();
            assert_eq!(program.arguments, [OsString::from(words)]);
        }
    }
}
