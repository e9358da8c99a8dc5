//! `vsock-paths NAME STEPS`: does one path so often, for callgrind to count. Without a name, lists them.

use vsock_paths::{ALL, PACKETS};

fn main() -> std::process::ExitCode {
    let mut words = std::env::args().skip(1);
    let Some(name) = words.next() else {
        for (name, _) in ALL {
            println!("{name} {PACKETS}");
        }
        return std::process::ExitCode::SUCCESS;
    };
    let steps = words.next().and_then(|word| word.parse::<u32>().ok());
    let make = ALL.iter().find(|(known, _)| *known == name).map(|(_, make)| make);
    let (Some(steps), Some(make)) = (steps, make) else {
        eprintln!("vsock-paths NAME STEPS");
        return std::process::ExitCode::FAILURE;
    };
    let mut path = make();
    for _ in 0..steps {
        path.step();
    }
    std::process::ExitCode::SUCCESS
}
