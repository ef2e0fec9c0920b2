//! Being asked before another process's `bind` and `listen`: seccomp's user notification.
//!
//! A filter in the other process lets every system call pass but these two, for which the kernel
//! asks us, and the caller sleeps until we answer: with a result, as if the call had been made, or
//! with the word to go on and make it. The filter stays in all of the process's descendants, and the
//! descriptor that we are asked through hangs up when the last of them has gone.
//!
//! # Safety
//!
//! Five kinds of calls here have no safe wrapper.
//!
//! - `seccomp(2)` with a filter: a structure that points to a constant program. It changes nothing
//!   but which calls of the calling thread are answered by us.
//! - `ioctl(2)` on the listener, which takes a number, or reads or writes one structure of the type
//!   that its number names. [`Room`] is larger than what any kernel writes for it.
//! - `process_vm_readv(2)`, which writes at most as many bytes as the buffer that it is given has.
//! - `kcmp(2)`, which takes numbers, and compares.
//! - [`CommandExt::pre_exec`], whose closure runs in a forked child of a program that may have
//!   threads. [`install`] allocates nothing, takes no lock, and calls only the kernel.
#![expect(
    unsafe_code,
    reason = "system calls that no crate in the tree wraps; see the module's documentation"
)]

use std::fs;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::{self, MaybeUninit};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::thread;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use rustix::process::{PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use rustix::thread::{CapabilitySet, capabilities};

/// What `seccomp_data.arch` is for programs of this architecture: `AUDIT_ARCH_*` in linux/audit.h.
const ARCHITECTURE: Option<u32> = if cfg!(target_arch = "x86_64") {
    Some(0xc000_003e)
} else if cfg!(target_arch = "aarch64") {
    Some(0xc000_00b7)
} else {
    None
};

/// Linux 5.19: a signal does not make the caller ask a second time while it is being answered.
const WAIT_KILLABLE: libc::c_ulong = if cfg!(portpicker_force = "interruptible") {
    0
} else {
    libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV
};

/// `SECCOMP_IOCTL_NOTIF_SET_FLAGS` and `SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP` in linux/seccomp.h, since
/// Linux 6.6.
const SET_FLAGS: libc::Ioctl = 0x4008_2104_u32 as libc::Ioctl;
const SYNC_WAKE_UP: libc::c_ulong = 1;

/// Asks for the calls of a command that is about to be started, and of all its descendants.
#[derive(Debug)]
pub(crate) struct Request {
    ours: OwnedFd,
    /// Open until the command has been started: it inherits a copy.
    theirs: Option<OwnedFd>,
}

impl Request {
    /// Prepares `command` to start with the filter.
    pub(crate) fn prepare(command: &mut Command) -> io::Result<Self> {
        let (request, theirs) = Self::elsewhere()?;
        let socket = theirs.as_raw_fd();
        let before_exec = move || {
            // SAFETY: open in the parent until it has started us, so it is in us.
            begin(unsafe { BorrowedFd::borrow_raw(socket) })
        };
        // SAFETY: the closure allocates nothing, takes no lock, and calls only the kernel.
        unsafe { command.pre_exec(before_exec) };
        Ok(Self {
            theirs: Some(theirs),
            ..request
        })
    }

    /// Returns a request, and the socket that [`begin`] needs in the process that is to be asked for.
    pub(crate) fn elsewhere() -> io::Result<(Self, OwnedFd)> {
        let (ours, theirs) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        Ok((Self { ours, theirs: None }, theirs))
    }

    /// Returns where the command's calls are asked about, after it has been started.
    pub(crate) fn listener(self) -> io::Result<Listener> {
        drop(self.theirs);
        let listener = Listener(receive(self.ours.as_fd())?);
        listener.hasten();
        Ok(listener)
    }
}

/// Installs the filter, and sends the listener to whoever has the other end of `socket`.
pub(crate) fn begin(socket: BorrowedFd<'_>) -> io::Result<()> {
    let listener = install()?;
    send(socket, listener.as_fd())
}

/// Tells whether this process may ask for the calls of its children.
///
/// # Errors
///
/// `EBUSY`: somebody is asked for this process's own calls, a container's runtime for example.
/// `ENOSYS` or `EINVAL`: the kernel is older than 5.0, or the architecture is unknown here.
/// `EPERM` or `EACCES`: a sandbox forbids it.
pub(crate) fn is_permitted() -> io::Result<()> {
    // The filter is its thread's only, and ends with it.
    thread::Builder::new()
        .spawn(|| install().map(drop))?
        .join()
        .unwrap_or_else(|_| Err(Errno::NOSYS.into()))
}

/// Installs the filter in the calling thread and what that starts from now on.
fn install() -> io::Result<OwnedFd> {
    let architecture = ARCHITECTURE.ok_or(Errno::NOSYS)?;
    // Without it, an unprivileged process may not filter its calls: it could fool a set-uid program.
    rustix::thread::set_no_new_privs(true)?;

    let load = |offset: usize| statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset as u32);
    let skip_unless = |value: u32, count: u8| jump(value, 0, count);
    let program = [
        load(mem::offset_of!(libc::seccomp_data, arch)),
        skip_unless(architecture, 4),
        load(mem::offset_of!(libc::seccomp_data, nr)),
        jump(libc::SYS_bind as u32, 1, 0),
        skip_unless(libc::SYS_listen as u32, 1),
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_USER_NOTIF),
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW),
    ];
    let filter = libc::sock_fprog {
        len: program.len() as u16,
        filter: program.as_ptr().cast_mut(),
    };
    let listen = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER;
    let set = |flags: libc::c_ulong| {
        // SAFETY: `filter` and the program it points to live until the call returns, and are only
        // read.
        let result = unsafe {
            libc::syscall(
                libc::SYS_seccomp,
                libc::SECCOMP_SET_MODE_FILTER,
                flags,
                &raw const filter,
            )
        };
        match result {
            -1 => Err(io::Error::last_os_error()),
            fd => Ok(fd as RawFd),
        }
    };
    let fd = match set(listen | WAIT_KILLABLE) {
        Err(err) if err.raw_os_error() == Some(libc::EINVAL) => set(listen)?,
        result => result?,
    };
    // SAFETY: the kernel has just given it to us. It is close-on-exec.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn statement(code: u32, value: u32) -> libc::sock_filter {
    libc::sock_filter {
        code: code as u16,
        jt: 0,
        jf: 0,
        k: value,
    }
}

/// Skips `equal` instructions if what was loaded is `value`, else `other` of them.
fn jump(value: u32, equal: u8, other: u8) -> libc::sock_filter {
    libc::sock_filter {
        code: (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16,
        jt: equal,
        jf: other,
        k: value,
    }
}

fn send(socket: BorrowedFd<'_>, fd: BorrowedFd<'_>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut message = SendAncillaryBuffer::new(&mut space);
    let fds = [fd];
    message.push(SendAncillaryMessage::ScmRights(&fds));
    sendmsg(
        socket,
        &[IoSlice::new(b"!")],
        &mut message,
        SendFlags::NOSIGNAL,
    )?;
    Ok(())
}

fn receive(socket: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut message = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut byte)],
        &mut message,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    message
        .drain()
        .find_map(|part| match part {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        })
        .ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

/// Where the calls of a command and its descendants are asked about.
///
/// Readable when a call waits; hung up when none of the processes is left.
#[derive(Debug)]
pub(crate) struct Listener(OwnedFd);

/// A call that waits for its answer.
#[derive(Debug)]
pub(crate) struct Call {
    id: u64,
    /// The thread that made it.
    caller: u32,
    pub(crate) kind: CallKind,
}

/// Which call it is, with what it was given.
#[derive(Clone, Copy, Debug)]
pub(crate) enum CallKind {
    /// `bind(fd, address, length)`; the address is in the caller's memory.
    Bind {
        /// The socket, as the caller numbers it.
        fd: RawFd,
        /// Where the socket address is in the caller's memory.
        address: u64,
        /// How long the caller says it is.
        length: u32,
    },
    /// `listen(fd, backlog)`.
    Listen {
        /// The socket, as the caller numbers it.
        fd: RawFd,
        /// As given.
        backlog: i32,
    },
}

/// What the caller is told.
#[derive(Debug)]
pub(crate) enum Verdict {
    /// Make the call.
    Continue,
    /// It has been made, and this came of it.
    Made(Result<(), Errno>),
}

/// The most bytes of a socket address that are read: one more than the kernel takes, so that it shows
/// if there are more.
const MAX_ADDRESS: usize = size_of::<libc::sockaddr_storage>() + 1;

impl Listener {
    /// Returns the next call, waiting for one. `None` if it is gone already: its caller was killed.
    pub(crate) fn next(&self) -> io::Result<Option<Call>> {
        let mut room = Room::<libc::seccomp_notif>::new();
        match self.ioctl(libc::SECCOMP_IOCTL_NOTIF_RECV, &mut room) {
            Ok(()) => {}
            Err(err) if matches!(err.raw_os_error(), Some(libc::ENOENT | libc::EINTR)) => {
                return Ok(None);
            }
            Err(err) => return Err(err),
        }
        let notification = room.value;
        let [fd, second, third, ..] = notification.data.args;
        // As the kernel reads them: ints.
        let fd = fd as RawFd;
        let kind = if i64::from(notification.data.nr) == libc::SYS_bind {
            CallKind::Bind {
                fd,
                address: second,
                length: third as u32,
            }
        } else {
            CallKind::Listen {
                fd,
                backlog: second as i32,
            }
        };
        Ok(Some(Call {
            id: notification.id,
            caller: notification.pid,
            kind,
        }))
    }

    /// Has callers and us run on the same processor by turns, if the kernel can.
    ///
    /// Each waits for the other, and to wake up another processor would take ten times as long as
    /// the rest of it.
    fn hasten(&self) {
        // SAFETY: the argument is a number, and not the address of anything.
        _ = unsafe { libc::ioctl(self.0.as_raw_fd(), SET_FLAGS, SYNC_WAKE_UP) };
    }

    /// Tells whether none of the processes is left.
    pub(crate) fn has_hung_up(&self) -> bool {
        let mut fds = [PollFd::new(&self.0, PollFlags::empty())];
        poll(&mut fds, Some(&Timespec::default())) == Ok(1)
    }

    /// Tells whether the caller still waits. If so, what was found by its number is its own.
    pub(crate) fn is_waiting(&self, call: &Call) -> bool {
        let mut room = Room::<u64>::new();
        room.value = call.id;
        self.ioctl(libc::SECCOMP_IOCTL_NOTIF_ID_VALID, &mut room)
            .is_ok()
    }

    /// Answers `call`. Returns whether the caller was still there to be told.
    pub(crate) fn answer(&self, call: &Call, verdict: &Verdict) -> io::Result<bool> {
        let mut room = Room::<libc::seccomp_notif_resp>::new();
        room.value.id = call.id;
        match verdict {
            Verdict::Continue => room.value.flags = libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32,
            Verdict::Made(Ok(())) => {}
            Verdict::Made(Err(errno)) => room.value.error = -errno.raw_os_error(),
        }
        match self.ioctl(libc::SECCOMP_IOCTL_NOTIF_SEND, &mut room) {
            Ok(()) => Ok(true),
            Err(err) if err.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(err) => Err(err),
        }
    }

    fn ioctl<T>(&self, request: libc::Ioctl, room: &mut Room<T>) -> io::Result<()> {
        // SAFETY: `request` reads or writes a structure of the type in `room`, or of one that a
        // newer kernel has made longer, for which there is room.
        match unsafe { libc::ioctl(self.0.as_raw_fd(), request, &raw mut *room) } {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Call {
    /// Returns a copy of the caller's descriptor `fd`.
    ///
    /// # Errors
    ///
    /// `EBADF` if it has none. `EPERM`: we may not look into the caller, since it runs for another
    /// user, a sandbox forbids it, or Linux is older than 6.9 and the caller is a thread whose
    /// descriptors are its own, or whose process's first thread has ended. `ESRCH`: it is gone.
    pub(crate) fn descriptor(&self, fd: RawFd) -> Result<OwnedFd, Errno> {
        if fd < 0 {
            // rustix would panic in a debug build.
            return Err(Errno::BADF);
        }
        let caller = match open_pidfd(self.caller, THREAD) {
            // Linux before 6.9: only the descriptors of its process's first thread can be had.
            Err(Errno::INVAL) if self.has_first_threads_descriptors()? => self.process()?,
            Err(Errno::INVAL) => return Err(Errno::PERM),
            result => result?,
        };
        pidfd_getfd(caller, fd, PidfdGetfdFlags::empty())
    }

    /// Returns the caller's bytes at `address`, `length` of them.
    ///
    /// # Errors
    ///
    /// `EINVAL` if no address is so long. `EFAULT` if not all of them are its memory. `EPERM` or
    /// `ESRCH` as for a [`descriptor`](Self::descriptor).
    pub(crate) fn memory(&self, address: u64, length: u32) -> Result<Vec<u8>, Errno> {
        if length as usize > MAX_ADDRESS {
            return Err(Errno::INVAL);
        }
        let mut bytes = vec![0; length as usize];
        let local = libc::iovec {
            iov_base: bytes.as_mut_ptr().cast(),
            iov_len: bytes.len(),
        };
        let remote = libc::iovec {
            iov_base: address as *mut libc::c_void,
            iov_len: bytes.len(),
        };
        // SAFETY: the kernel writes at most `iov_len` bytes to `bytes`, which lives on. `remote` is
        // not ours and only read.
        let read = unsafe {
            libc::process_vm_readv(
                self.caller as libc::pid_t,
                &raw const local,
                1,
                &raw const remote,
                1,
                0,
            )
        };
        match usize::try_from(read) {
            Ok(read) if read == bytes.len() => Ok(bytes),
            Ok(_) => Err(Errno::FAULT),
            Err(_) => Err(Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO)),
        }
    }

    /// Tells whether the caller shares its descriptors with its process's first thread.
    ///
    /// Where that cannot be learned it is taken to: nearly every thread does.
    fn has_first_threads_descriptors(&self) -> Result<bool, Errno> {
        /// `KCMP_FILES` in linux/kcmp.h. An ended thread has none, which are nobody else's.
        const FILES: libc::c_int = 2;
        let first = process_of(self.caller)?;
        if first == self.caller {
            return Ok(true);
        }
        // SAFETY: two threads' numbers and what is compared; the last two arguments are not used.
        let order = unsafe { libc::syscall(libc::SYS_kcmp, first, self.caller, FILES, 0, 0) };
        Ok(matches!(order, 0 | -1))
    }

    /// Returns a pidfd of the caller's process.
    pub(crate) fn process(&self) -> Result<OwnedFd, Errno> {
        match open_pidfd(self.caller, PidfdFlags::empty()) {
            // A thread that is not its process's first: EINVAL up to Linux 6.15, ENOENT since.
            Err(Errno::INVAL | Errno::NOENT) => {
                open_pidfd(process_of(self.caller)?, PidfdFlags::empty())
            }
            result => result,
        }
    }
}

/// `PIDFD_THREAD` in linux/pidfd.h: not its process, but the thread itself.
const THREAD: PidfdFlags = PidfdFlags::from_bits_retain(libc::O_EXCL as u32);

fn open_pidfd(pid: u32, flags: PidfdFlags) -> Result<OwnedFd, Errno> {
    let pid = rustix::process::Pid::from_raw(pid as i32).ok_or(Errno::SRCH)?;
    pidfd_open(pid, flags)
}

/// Returns the process that a thread belongs to.
fn process_of(thread: u32) -> Result<u32, Errno> {
    let status = fs::read_to_string(format!("/proc/{thread}/status"))
        .map_err(|err| Errno::from_io_error(&err).unwrap_or(Errno::SRCH))?;
    parse_process(&status).ok_or(Errno::SRCH)
}

/// Reads the process from `/proc/TID/status`.
pub(crate) fn parse_process(status: &str) -> Option<u32> {
    status
        .lines()
        .find_map(|line| line.strip_prefix("Tgid:")?.trim().parse().ok())
}

/// Tells whether this process may look into others at all, by looking into itself: whether it may take
/// copies of descriptors, and read memory.
pub(crate) fn may_look_into_others() -> io::Result<()> {
    let ourselves = Call {
        id: 0,
        caller: rustix::process::getpid().as_raw_nonzero().get() as u32,
        kind: CallKind::Listen { fd: 0, backlog: 0 },
    };
    let byte = 0_u8;
    ourselves.memory((&raw const byte).addr() as u64, 1)?;
    let pidfd = ourselves.process()?;
    pidfd_getfd(&pidfd, pidfd.as_raw_fd(), PidfdGetfdFlags::empty())?;
    // Who looks into itself is never refused by Yama.
    let scope = fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope").unwrap_or_default();
    let own = capabilities(None)?.effective;
    if does_yama_forbid(&scope, own.contains(CapabilitySet::SYS_PTRACE)) {
        let reason = "kernel.yama.ptrace_scope forbids it";
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, reason));
    }
    Ok(())
}

/// Tells whether the setting `kernel.yama.ptrace_scope` keeps even a process's ancestors from looking
/// into it. (1 keeps all others.)
fn does_yama_forbid(scope: &str, has_sys_ptrace: bool) -> bool {
    match scope.trim() {
        "2" => !has_sys_ptrace,
        "3" => true,
        _ => false,
    }
}

/// A structure that the kernel fills, and room for what later kernels add to it. All zero at first,
/// as the kernel wants it.
#[repr(C)]
struct Room<T> {
    value: T,
    more: [u8; 512],
}

/// What may be all zero.
trait Plain {}
impl Plain for libc::seccomp_notif {}
impl Plain for libc::seccomp_notif_resp {}
impl Plain for u64 {}

impl<T: Plain> Room<T> {
    fn new() -> Self {
        Self {
            // SAFETY: numbers only, for which zero is a value.
            value: unsafe { mem::zeroed() },
            more: [0; 512],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn yama_forbids_what_its_documentation_says() {
        for (scope, has_sys_ptrace, is_forbidden) in [
            ("", false, false), // Without Yama, there is no such file.
            ("0\n", false, false),
            ("1\n", false, false),
            ("2\n", false, true),
            ("2\n", true, false),
            ("3\n", false, true),
            ("3\n", true, true),
        ] {
            let answer = does_yama_forbid(scope, has_sys_ptrace);
            assert_eq!(answer, is_forbidden, "{scope:?} {has_sys_ptrace}");
        }
    }
}
