//! How much memory there is to take.

/// Bytes that this process could still take: the machine's available memory, or what its control
/// group leaves, whichever is less. `None` where neither is told.
pub(crate) fn available() -> Option<u64> {
    let machine = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| machine_available(&text));
    let number =
        |file: &str| std::fs::read_to_string(format!("/sys/fs/cgroup/{file}")).ok()?.trim().parse().ok();
    let group =
        number("memory.max").map(|max: u64| max.saturating_sub(number("memory.current").unwrap_or(0)));
    machine.into_iter().chain(group).min()
}

/// Bytes that this process could have if it were alone: the machine's memory, or its control group's,
/// whichever is less. `None` where neither is told.
pub(crate) fn total() -> Option<u64> {
    let read = |file: &str| std::fs::read_to_string(file).ok();
    let machine = read("/proc/meminfo").and_then(|text| kibibytes(&text, "MemTotal:"));
    let group = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"]
        .into_iter()
        .find_map(|file| read(file)?.trim().parse().ok());
    machine.into_iter().chain(group).min()
}

fn machine_available(meminfo: &str) -> Option<u64> {
    kibibytes(meminfo, "MemAvailable:")
}

fn kibibytes(meminfo: &str, name: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|l| l.strip_prefix(name))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    #[test]
    fn meminfo_is_in_kibibytes() {
        let text = "MemTotal:       24000000 kB\nMemAvailable:   20000000 kB\n";
        assert_eq!(super::machine_available(text), Some(20_000_000 * 1024));
        assert_eq!(super::machine_available("MemTotal: 1 kB"), None);
        assert_eq!(super::kibibytes(text, "MemTotal:"), Some(24_000_000 * 1024));
    }
}
