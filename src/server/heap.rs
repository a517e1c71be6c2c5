//! How the allocator treats freed memory.

/// Blocks of this size and more have a separate mapping, which ends when they are freed. It is glibc's default.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const LARGE_BYTES: i32 = 128 * 1024;

/// Makes the allocator return each large block to the system when it is freed. For a process that only serves, because
/// other processes may depend on the faster reuse.
///
/// glibc raises its threshold when such a block is freed (`mallopt(3)`), so that large messages are allocated from
/// heaps, which do not shrink. Under attack, a server that buffered 0.5 GiB grew to 2.0 GiB. With a fixed threshold it
/// stays at 0.5 GiB.
pub fn return_large_blocks() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: `mallopt` has no preconditions, takes the lock of the allocator, and this value is in its range.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE_BYTES);
    }
}
