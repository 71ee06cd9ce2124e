"""Arenas: preallocated memory that its owner writes and that peers on the host can only read."""

import fcntl
import os

from transfer.mapping import map_readable, map_writable

_F_SEAL_FUTURE_WRITE = 0x0010  # linux/fcntl.h; the fcntl module has it from Python 3.13
_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | _F_SEAL_FUTURE_WRITE


class Arena:
    """An anonymous file in memory, wholly paged in, that can neither be resized nor be written by others.

    It has no name in any file system: the kernel frees it with the last process that maps it, however
    that process ends.
    """

    def __init__(self, name: str, nbytes: int) -> None:
        """Takes `nbytes` of memory now, so that no request pays for page faults.

        Raises OSError if the memory is not there, ValueError if `nbytes` is not positive.
        """
        if nbytes <= 0:
            raise ValueError(f"arena {name}: {nbytes} bytes is no size")
        self.name = name
        self.nbytes = nbytes
        self.fd = os.memfd_create(f"triptych-{name}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.posix_fallocate(self.fd, 0, nbytes)
            self.memory = map_writable(self.fd, nbytes)
            fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, _SEALS)
        except BaseException:
            os.close(self.fd)
            raise

    def close(self) -> None:
        """Lets go of the memory. Views of it stay valid: the pages go with the last of them."""
        os.close(self.fd)
        self.memory = memoryview(b"")


def map_readonly(fd: int, nbytes: int) -> memoryview:
    """Maps another process's arena for reading; the mapping lives as long as views of it.

    Raises ValueError if the file is not `nbytes` long or could shrink under the reader (which would
    end the reader with SIGBUS).
    """
    if os.fstat(fd).st_size != nbytes:
        raise ValueError(f"the arena has {os.fstat(fd).st_size} bytes, expected {nbytes}")
    if not fcntl.fcntl(fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK:
        raise ValueError("the arena is not sealed against shrinking")
    return map_readable(fd, nbytes)
