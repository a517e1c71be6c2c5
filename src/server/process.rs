//! `process_*`: the resources that this process uses, from `/proc`. On other systems than Linux, these metrics do not
//! exist.

use std::fs::{read_dir, read_to_string};

use crate::exposition::Page;

/// The content of `/proc/self/stat`, in the units of the metrics.
#[derive(Debug, PartialEq)]
struct Usage {
    cpu_seconds: f64,
    /// Seconds since the machine booted.
    began_seconds: f64,
    virtual_bytes: u64,
}

pub(super) fn write(page: &mut Page) {
    let Ok(stat) = read_to_string("/proc/self/stat") else { return };
    let Some(usage) = usage(&stat, ticks_per_second()) else { return };
    page.counter(
        "process_cpu_seconds_total",
        "Total user and system CPU time in seconds.",
        usage.cpu_seconds,
    );
    page.gauge("process_virtual_memory_bytes", "Virtual memory size in bytes.", usage.virtual_bytes);
    if let Some(bytes) = read_to_string("/proc/self/status").ok().and_then(|text| resident_bytes(&text)) {
        page.gauge("process_resident_memory_bytes", "Resident memory size in bytes.", bytes);
    }
    if let Some(booted) = read_to_string("/proc/stat").ok().and_then(|text| boot_seconds(&text)) {
        page.gauge(
            "process_start_time_seconds",
            "Start time of the process since the Unix epoch in seconds.",
            booted + usage.began_seconds,
        );
    }
    if let Ok(files) = read_dir("/proc/self/fd") {
        // One of these descriptors is that of the listing itself.
        page.gauge("process_open_fds", "Number of open file descriptors.", files.count().saturating_sub(1));
    }
    if let Some(limit) = read_to_string("/proc/self/limits").ok().and_then(|text| file_limit(&text)) {
        page.gauge("process_max_fds", "Maximum number of open file descriptors.", limit);
    }
}

fn ticks_per_second() -> f64 {
    // SAFETY: the function takes a number and returns one.
    let ticks = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    u32::try_from(ticks).map_or(100.0, f64::from)
}

/// Fields 14, 15, 22 and 23 of `proc_pid_stat(5)`.
fn usage(stat: &str, ticks_per_second: f64) -> Option<Usage> {
    // The command's name is the second field. It may contain spaces and brackets.
    let (_, rest) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let seconds = |number: usize| Some(fields.get(number - 3)?.parse::<f64>().ok()? / ticks_per_second);
    Some(Usage {
        cpu_seconds: seconds(14)? + seconds(15)?,
        began_seconds: seconds(22)?,
        virtual_bytes: fields.get(23 - 3)?.parse().ok()?,
    })
}

fn resident_bytes(status: &str) -> Option<u64> {
    let kilobytes = after(status, "VmRSS:")?.split_whitespace().next()?;
    Some(kilobytes.parse::<u64>().ok()? * 1024)
}

fn boot_seconds(stat: &str) -> Option<f64> {
    after(stat, "btime ")?.trim().parse().ok()
}

/// The soft limit; `None` if there is none.
fn file_limit(limits: &str) -> Option<u64> {
    after(limits, "Max open files")?.split_whitespace().next()?.parse().ok()
}

/// The remainder of the line that begins with this text.
fn after<'a>(text: &'a str, begin: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(begin))
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAT: &str = "42 (a) b (c)) S 1 42 42 0 -1 4194560 1500 0 3 0 250 150 0 0 20 0 5 0 9000 73400320 2048 18446744073709551615";

    #[test]
    fn fields_are_counted_from_the_end_of_the_name() {
        let wanted = Usage { cpu_seconds: 4.0, began_seconds: 90.0, virtual_bytes: 73_400_320 };
        assert_eq!(usage(STAT, 100.0), Some(wanted));
        for cut in ["", "42 (name", "42 (name) S 1 2"] {
            assert_eq!(usage(cut, 100.0), None, "{cut}");
        }
    }

    #[test]
    fn each_file_has_its_line() {
        assert_eq!(resident_bytes("Name:\ta\nVmRSS:\t    2048 kB\nThreads:\t3\n"), Some(2_097_152));
        assert_eq!(boot_seconds("cpu  1 2 3\nbtime 1700000000\nprocesses 9\n"), Some(1_700_000_000.0));
        let limits = "Limit                     Soft Limit           Hard Limit           Units     \n\
                      Max open files            1024                 524288               files     \n";
        assert_eq!(file_limit(limits), Some(1024));
        assert_eq!(
            file_limit("Max open files            unlimited            unlimited            files"),
            None
        );
        assert_eq!(resident_bytes("Name:\ta\n"), None);
    }
}
