//! CPU time and resident memory of processes, and the model of the processor, read from `/proc`. On a small machine,
//! CPU time varies less between runs than any other figure. The functions for a process return `None` if the process
//! does not exist, or on a system other than Linux. The tables show `None` as `–`.
//!
//! The CPU time of a process includes all of its threads, ended threads included. A PostgreSQL server consists of its
//! postmaster, its background processes, and one process per connection. The postmaster accumulates the CPU time of
//! children that it has waited for, so the time of closed connections is counted too.
use std::{fs, path::Path, time::Duration};

/// Clock ticks per second in `/proc` (`USER_HZ`), on every architecture that Rust supports on Linux.
const TICKS_PER_SECOND: u64 = 100;

/// The parent and the CPU times of a process, from `/proc/PID/stat`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stat {
    parent: u32,
    /// User and system time of the process itself, in clock ticks.
    own: u64,
    /// Time of ended children that the process has waited for, in clock ticks.
    ended_children: u64,
}

fn parse(stat: &str) -> Option<Stat> {
    // The name is in parentheses and may contain spaces and parentheses. The other fields follow the last closing
    // parenthesis.
    let (_, fields) = stat.rsplit_once(") ")?;
    let fields: Vec<&str> = fields.split_ascii_whitespace().collect();
    // `field` is a field number of proc(5), which counts from 1. `fields` begins with the state, which is field 3.
    let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
    Some(Stat {
        parent: number(4)?.try_into().ok()?,
        own: number(14)? + number(15)?,
        ended_children: number(16)? + number(17)?,
    })
}

fn stat(pid: u32) -> Option<Stat> {
    parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

fn time(ticks: u64) -> Duration {
    Duration::from_millis(ticks * 1_000 / TICKS_PER_SECOND)
}

/// Returns the CPU time of a process since its start.
pub fn of_process(pid: u32) -> Option<Duration> {
    Some(time(stat(pid)?.own))
}

/// Returns the CPU time of all processes of a PostgreSQL server since its start.
pub fn of_server(postmaster: u32) -> Option<Duration> {
    let server = stat(postmaster)?;
    let processes =
        fs::read_dir("/proc").ok()?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    let children = processes.filter_map(stat).filter(|process| process.parent == postmaster);
    Some(time(server.own + server.ended_children + children.map(|child| child.own).sum::<u64>()))
}

/// Returns the current resident memory of a process, in MiB.
pub fn resident_mib(pid: u32) -> Option<f64> {
    parse_resident(&fs::read_to_string(format!("/proc/{pid}/status")).ok()?)
}

fn parse_resident(status: &str) -> Option<f64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u32 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    Some(f64::from(kib) / 1024.0)
}

/// Returns the processor's model name and the number of processors.
pub fn machine() -> String {
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let information = fs::read_to_string(Path::new("/proc/cpuinfo")).unwrap_or_default();
    let name = information.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let name = name.map_or("processors of an unknown model", |(_, name)| name.trim());
    format!("{cores} × {name}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_name_with_parentheses_is_parsed() {
        let stat = "4711 (a) S 1 (b) R 42 4711 1 0 -1 4194560 100 200 3 4 70 30 11 9 20 0 5 0 123 456 789";
        assert_eq!(parse(stat), Some(Stat { parent: 42, own: 100, ended_children: 20 }));
        assert_eq!(parse("4711 (cut off) R 42"), None);
        assert_eq!(parse(""), None);
    }

    #[test]
    fn memory_is_read_in_mib() {
        assert_eq!(parse_resident("VmHWM:\t   4096 kB\nVmRSS:\t   2560 kB\n"), Some(2.5));
        assert_eq!(parse_resident("VmHWM:\t   4096 kB\n"), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_process_uses_time_and_memory() {
        let (pid, before) = (std::process::id(), of_process(std::process::id()).unwrap());
        let mut sum = 0_u64;
        while of_process(pid).unwrap() <= before {
            sum = std::hint::black_box((0..1_000_000).fold(sum, u64::wrapping_add));
        }
        assert!(resident_mib(pid).unwrap() > 0.5);
    }
}
