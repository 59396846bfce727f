//! What the machine says of processes: their CPU time and memory (proc(5)).

use std::{collections::BTreeMap, fs, time::Duration};

use anyhow::Context;

/// What this process is called in [`cpu_by_program`].
pub(crate) const GENERATOR: &str = "generator";
const POSTGRES: &str = "postgres";
/// The clock that /proc counts by ticks every 10 ms.
const TICK: Duration = Duration::from_millis(10);

/// A line of /proc/PID/stat.
struct Stat {
    pid: u32,
    parent: u32,
    program: String,
    /// User and system, that of ended children included.
    cpu: Duration,
}

impl Stat {
    fn read(pid: u32) -> anyhow::Result<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let (head, rest) = stat.rsplit_once(')').context("no name in stat")?;
        let program = head.split_once('(').context("no name in stat")?.1.to_owned();
        let fields: Vec<&str> = rest.split_whitespace().collect();
        // Fields 14 to 17 of proc(5); the first after the name is the third.
        let ticks = fields[11..15].iter().map(|field| field.parse::<u32>()).sum::<Result<u32, _>>()?;
        Ok(Self { pid, parent: fields[1].parse()?, program, cpu: TICK * ticks })
    }
}

/// The CPU time so far of this process, of its children by their programs, and of a Postgres server.
pub(crate) fn cpu_by_program(postmaster: u32) -> anyhow::Result<BTreeMap<String, Duration>> {
    let own = std::process::id();
    let mut cpu = BTreeMap::new();
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // It may end while it is looked at.
        let Ok(stat) = Stat::read(pid) else { continue };
        let program = match (stat.pid, stat.parent) {
            (pid, _) if pid == own => GENERATOR,
            (_, parent) if parent == own => stat.program.as_str(),
            (pid, parent) if pid == postmaster || parent == postmaster => POSTGRES,
            _ => continue,
        };
        *cpu.entry(program.to_owned()).or_default() += stat.cpu;
    }
    Ok(cpu)
}

/// The CPU time that everything on this machine used so far.
pub(crate) fn cpu_of_all() -> anyhow::Result<Duration> {
    let stat = fs::read_to_string("/proc/stat")?;
    let fields: Vec<u32> = stat
        .lines()
        .next()
        .context("no line in stat")?
        .split_whitespace()
        .skip(1)
        .map(str::parse)
        .collect::<Result<_, _>>()?;
    // User, nice, system and interrupts; neither idle nor waiting for a disk.
    Ok(TICK * [0, 1, 2, 5, 6].iter().map(|field| fields[*field]).sum::<u32>())
}

/// The CPU time of this process so far.
pub(crate) fn cpu_time() -> anyhow::Result<Duration> {
    Ok(Stat::read(std::process::id())?.cpu)
}

/// The parent of a process.
pub(crate) fn parent_of(pid: u32) -> anyhow::Result<u32> {
    Ok(Stat::read(pid)?.parent)
}

/// The memory that a process has now, in bytes.
pub(crate) fn memory_of(pid: u32) -> anyhow::Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
}
