//! `cargo dev doctor`: lists the programs that this machine lacks for `cargo dev`, `cargo test` and other commands, and
//! how to install these programs.
use std::{env, path::Path, time::Duration};

use crate::{postgres, process::Launch};

/// A program that some commands need.
struct Tool {
    name: &'static str,
    check: Check,
    packages: Packages,
    needed_by: &'static [Use],
}

/// The check whether a tool is installed.
enum Check {
    /// All of these programs are in `PATH`.
    Program(&'static [&'static str]),
    /// This command succeeds.
    Command(&'static str, &'static [&'static str]),
}

/// The names of a tool's packages.
struct Packages {
    apt: &'static str,
    dnf: &'static str,
    brew: &'static str,
}

/// A command that needs tools.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Use {
    Dev,
    Test,
    Ci,
    Stack,
}

const USES: [(Use, &str); 4] = [
    (Use::Dev, "cargo dev"),
    (Use::Test, "cargo test"),
    (Use::Ci, ".ci/run"),
    (Use::Stack, "docker compose up"),
];

const TOOLS: [Tool; 9] = [
    Tool {
        name: "a C compiler",
        check: Check::Program(&["cc"]),
        packages: Packages { apt: "build-essential", dnf: "gcc", brew: "gcc" },
        needed_by: &[Use::Dev, Use::Test, Use::Ci],
    },
    // With curl, tests run the commands that `cargo dev` prints. With ps, tests check that `cargo dev` leaves no
    // process behind.
    Tool {
        name: "curl",
        check: Check::Program(&["curl"]),
        packages: Packages { apt: "curl", dnf: "curl", brew: "curl" },
        needed_by: &[Use::Test, Use::Ci],
    },
    Tool {
        name: "ps",
        check: Check::Program(&["ps"]),
        packages: Packages { apt: "procps", dnf: "procps-ng", brew: "procps" },
        needed_by: &[Use::Test, Use::Ci],
    },
    Tool {
        name: "Git",
        check: Check::Program(&["git"]),
        packages: Packages { apt: "git", dnf: "git", brew: "git" },
        needed_by: &[Use::Ci],
    },
    Tool {
        name: "Go",
        check: Check::Program(&["go"]),
        packages: Packages { apt: "golang-go", dnf: "golang", brew: "go" },
        needed_by: &[Use::Ci],
    },
    Tool {
        name: "Python's venv",
        check: Check::Command("python3", &["-c", "import ensurepip, venv"]),
        packages: Packages { apt: "python3-venv", dnf: "python3", brew: "python3" },
        needed_by: &[Use::Ci],
    },
    Tool {
        name: "Chromium and its driver",
        check: Check::Program(&["chromium", "chromedriver"]),
        packages: Packages {
            apt: "chromium chromium-driver",
            dnf: "chromium chromedriver",
            brew: "chromium",
        },
        needed_by: &[Use::Ci],
    },
    Tool {
        name: "Valgrind",
        check: Check::Program(&["valgrind"]),
        packages: Packages { apt: "valgrind", dnf: "valgrind", brew: "valgrind" },
        needed_by: &[Use::Ci],
    },
    Tool {
        name: "Docker with compose",
        check: Check::Command("docker", &["compose", "version"]),
        packages: Packages {
            apt: "docker.io docker-compose-v2",
            dnf: "moby-engine docker-compose",
            brew: "docker",
        },
        needed_by: &[Use::Stack],
    },
];

/// Prints a line for each command, and a line for PostgreSQL. Returns whether `cargo dev` and `cargo test` have all
/// their programs, apart from PostgreSQL, which both commands can download.
pub async fn run(print: &dyn Fn(&str)) -> bool {
    let mut missing = Vec::new();
    for tool in TOOLS {
        if !tool.check.succeeds().await {
            missing.push(tool);
        }
    }
    let mut can_run = true;
    for (used, command) in USES {
        let missing: Vec<_> = missing.iter().filter(|tool| tool.needed_by.contains(&used)).collect();
        if missing.is_empty() {
            print(&format!("{command:<18} has all programs"));
            continue;
        }
        can_run &= ![Use::Dev, Use::Test].contains(&used);
        let names: Vec<_> = missing.iter().map(|tool| tool.name).collect();
        let packages: Vec<_> = missing.iter().map(|tool| &tool.packages).collect();
        print(&format!("{command:<18} lacks {}: {}", names.join(", "), install_command(&packages)));
    }
    print(&format!("{:<18} {}", "PostgreSQL", postgres::installation().await));
    can_run
}

impl Check {
    async fn succeeds(&self) -> bool {
        match self {
            Self::Program(names) => names.iter().all(|name| is_in_path(name)),
            Self::Command(program, arguments) => {
                let Ok(child) = Launch::new(*program).args(*arguments).start() else { return false };
                child.wait(Duration::from_secs(20)).await.is_ok_and(|status| status.success())
            }
        }
    }
}

fn is_in_path(program: &str) -> bool {
    env::var_os("PATH")
        .is_some_and(|path| env::split_paths(&path).any(|directory| directory.join(program).is_file()))
}

/// Returns the command that installs these packages on this platform.
fn install_command(packages: &[&Packages]) -> String {
    let list = |name: fn(&Packages) -> &'static str| {
        packages.iter().map(|package| name(package)).collect::<Vec<_>>()
    };
    if cfg!(target_os = "macos") {
        return format!("brew install {}", list(|package| package.brew).join(" "));
    }
    if Path::new("/usr/bin/dnf").exists() {
        return format!("dnf install {}", list(|package| package.dnf).join(" "));
    }
    format!("apt-get install {}", list(|package| package.apt).join(" "))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by a panic")]
mod tests {
    use super::*;

    #[test]
    fn every_package_of_the_pipeline_is_known() {
        let script =
            std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../.ci/run")).unwrap();
        let known: Vec<_> = TOOLS.iter().flat_map(|tool| tool.packages.apt.split(' ')).collect();
        let needs = script.lines().filter(|line| line.starts_with("need '"));
        let installed: Vec<_> =
            needs.flat_map(|line| line.rsplit('\'').next().unwrap_or_default().split_whitespace()).collect();
        assert!(installed.len() > 4, "{installed:?}");
        let unknown: Vec<_> = installed
            .into_iter()
            .filter(|package| *package != "postgresql" && !known.contains(package))
            .collect();
        assert!(unknown.is_empty(), "`cargo dev doctor` does not list {unknown:?}");
    }
}
