//! Who else may bind a socket's address: `SO_EXCLUSIVEADDRUSE` on Windows, `SO_REUSEPORT` elsewhere.
//!
//! On Windows, without the former, a socket with `SO_REUSEADDR` takes over a port in use there. Elsewhere
//! that is what a bind without options does, and there is nothing to set.
#![cfg_attr(
    windows,
    expect(unsafe_code, reason = "no safe wrapper has this option")
)]

use std::io;

use socket2::SockRef;

#[cfg(windows)]
pub(crate) fn set_exclusive(socket: &SockRef<'_>) -> io::Result<()> {
    use std::os::windows::io::AsRawSocket;
    use windows_sys::Win32::Networking::WinSock;

    let on: i32 = 1;
    // SAFETY: the pointer and the length describe `on`, which outlives the call, and `socket`
    // keeps the handle open.
    let result = unsafe {
        WinSock::setsockopt(
            socket.as_raw_socket() as WinSock::SOCKET,
            WinSock::SOL_SOCKET,
            WinSock::SO_EXCLUSIVEADDRUSE,
            (&raw const on).cast(),
            size_of_val(&on) as i32,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(not(windows))]
pub(crate) fn set_exclusive(_socket: &SockRef<'_>) -> io::Result<()> {
    Ok(())
}

/// Tells whether others that set SO_REUSEPORT may share the socket's port.
#[cfg(unix)]
pub(crate) fn has_reuse_port(socket: &SockRef<'_>) -> bool {
    // Not every system has the option; without it, nobody can share.
    socket.reuse_port().unwrap_or(false)
}

#[cfg(not(unix))]
pub(crate) fn has_reuse_port(_socket: &SockRef<'_>) -> bool {
    false
}
