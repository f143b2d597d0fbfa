//! The resources of the process and of its machine.

use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::statvfs;
use sysinfo::{ProcessRefreshKind, ProcessesToUpdate};

/// How long a measurement is reused. The processor load is an average over at least this time.
const FRESH: Duration = Duration::from_secs(1);

/// The free space of a file system below which it is almost full, in bytes and as a share.
const SCARCE: u64 = 512 << 20;
const SCARCE_SHARE: u64 = 20;

/// The resources that the process uses.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Resources {
    /// The processor load in percent of one processor.
    pub(crate) cpu_percent: f64,
    /// The resident memory in bytes.
    pub(crate) memory: u64,
    /// The memory that the process may use, in bytes: that of the machine, or of its container.
    pub(crate) memory_total: u64,
    /// The number of open file descriptors; `None` if the system does not report it.
    pub(crate) open_files: Option<u64>,
    /// The maximum number of open file descriptors.
    pub(crate) open_files_limit: Option<u64>,
}

/// The free space of a file system, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Space {
    /// The free space.
    pub free: u64,
    /// The size of the file system.
    pub total: u64,
}

impl Space {
    /// Whether the file system is almost full: less than 512 MiB and less than a twentieth is free.
    pub fn is_scarce(self) -> bool {
        self.free < SCARCE.min(self.total / SCARCE_SHARE)
    }
}

/// Measures the process. Measurements are cached.
#[derive(Default)]
pub(crate) struct System(Mutex<Measured>);

#[derive(Default)]
struct Measured {
    system: Option<sysinfo::System>,
    last: Option<(Instant, Resources)>,
}

impl System {
    /// Returns the resources of this process. Reads files of `/proc` at most once a second.
    pub(crate) fn resources(&self) -> Resources {
        let mut measured = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match measured.last {
            Some((at, resources)) if at.elapsed() < FRESH => resources,
            _ => {
                let resources = measured.measure().unwrap_or_default();
                measured.last = Some((Instant::now(), resources));
                resources
            }
        }
    }
}

impl Measured {
    fn measure(&mut self) -> Option<Resources> {
        let pid = sysinfo::get_current_pid().ok()?;
        let system = match &mut self.system {
            Some(system) => system,
            missing => missing.insert(sysinfo::System::new().ok()?),
        };
        system.refresh_memory();
        system.refresh_processes_specifics(
            ProcessesToUpdate::Some(&[pid]),
            false,
            ProcessRefreshKind::nothing().with_cpu().with_memory(),
        );
        let group = system.cgroup_limits().map(|limits| limits.total_memory);
        let process = system.process(pid)?;
        let number = |files: usize| u64::try_from(files).unwrap_or(u64::MAX);
        Some(Resources {
            cpu_percent: f64::from(process.cpu_usage()),
            memory: process.memory(),
            memory_total: system.total_memory().min(group.unwrap_or(u64::MAX)),
            open_files: process.open_files().map(number),
            open_files_limit: process.open_files_limit().map(number),
        })
    }
}

/// Returns the maximum number of open files of this process.
pub fn open_files_limit() -> Option<usize> {
    sysinfo::System::open_files_limit().ok()
}

/// Returns the space of the file system that contains this folder; `None` if it cannot be determined. Blocks if the file
/// system does not respond.
pub fn space(folder: &Path) -> Option<Space> {
    let system = statvfs(folder).ok()?;
    Some(Space {
        free: system.f_bavail.saturating_mul(system.f_frsize),
        total: system.f_blocks.saturating_mul(system.f_frsize),
    })
}
