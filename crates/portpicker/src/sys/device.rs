//! Which network interface a socket is bound to, by its number: SO_BINDTOIFINDEX, Linux 5.0.
//!
//! # Safety
//!
//! `setsockopt(2)` and `getsockopt(2)` are given a pointer to an `int` and its size.
#![expect(unsafe_code, reason = "an option that no crate in the tree names")]

use std::io;
use std::os::fd::{AsFd, AsRawFd};

const SO_BINDTOIFINDEX: libc::c_int = 62;

/// The loopback interface: the first one of each network namespace.
pub(crate) const LOOPBACK: u32 = 1;

/// Binds `socket` to the interface `index`, which need not exist; 0 is none.
///
/// # Errors
///
/// `EPERM`: it is bound to another one, and the caller lacks CAP_NET_RAW. `ENOPROTOOPT`: the kernel
/// is older than 5.0.
pub(crate) fn set_device(socket: impl AsFd, index: u32) -> io::Result<()> {
    let value = index as libc::c_int;
    // SAFETY: the kernel reads one `int`, which lives until the call returns.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            SO_BINDTOIFINDEX,
            (&raw const value).cast(),
            size_of_val(&value) as libc::socklen_t,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Returns the interface that `socket` is bound to, 0 for none.
pub(crate) fn device(socket: impl AsFd) -> io::Result<u32> {
    let mut value: libc::c_int = 0;
    let mut length = size_of_val(&value) as libc::socklen_t;
    // SAFETY: the kernel writes one `int`, for which there is room.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            SO_BINDTOIFINDEX,
            (&raw mut value).cast(),
            &raw mut length,
        )
    };
    if result == 0 {
        Ok(value as u32)
    } else {
        Err(io::Error::last_os_error())
    }
}
