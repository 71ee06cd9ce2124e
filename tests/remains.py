"""What a run of the system may leave behind and must not: processes, sockets, shared memory, files."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path

PROC = Path("/proc")
MARKER = ".triptych-owner"  # says whose folder of videos this is
_SOCKET = re.compile(r"@triptych-([0-9a-f]{16})$")
_ARENA = "/memfd:triptych-"
_NAMED = "/dev/shm/"  # the system's shared memory has no names


def handles(pid: int, number: int) -> bool:
    """Whether the process has a handler for the signal; one that is starting has none yet."""
    return number in _signals(pid, "SigCgt:")


def pending(pid: int, number: int) -> bool:
    """Whether the process has not taken notice of the signal yet."""
    return number in _signals(pid, "ShdPnd:")


def started(pid: int) -> str:
    """When the process began, in the kernel's ticks: with its number that names it for good."""
    return _stat(pid)[19]


def processes(leaders: Mapping[int, str], words: Iterable[str]) -> list[str]:
    """Live processes of the sessions that ``leaders`` began (number -> ``started``), or that have one of
    ``words`` on their command line.
    """
    wanted = tuple(words)
    found = []
    for pid, command in _commands():
        try:
            state, _, _, session = _stat(pid)[:4]
        except OSError:
            continue
        mine = _led(int(session), leaders) or any(word in command for word in wanted)
        if mine and pid != os.getpid() and state != "Z":
            found.append(f"process {pid}: {command}")
    return found


def sockets(incarnations: Collection[str]) -> list[str]:
    """Abstract sockets by which the processes of these incarnations hand out their memory."""
    lines = (PROC / "net/unix").read_text().splitlines()
    matches = [match[1] for line in lines if (match := _SOCKET.search(line))]
    return sorted(set(matches) & set(incarnations))


def dead_memory(pids: Collection[int]) -> list[str]:
    """Arenas that one of these processes can read and none of them owns, and any named shared memory."""
    owned, read, named = set(), set(), []
    for pid in pids:
        try:
            lines = (PROC / str(pid) / "maps").read_text().splitlines()
        except OSError:
            continue  # it ended meanwhile
        for line in lines:
            _, rights, _, _, inode, *path = line.split(maxsplit=5)
            if path and path[0].startswith(_ARENA):
                if "w" in rights:
                    owned.add(inode)
                else:
                    read.add((inode, pid))
            elif path and path[0].startswith(_NAMED):
                named.append(f"process {pid} maps {path[0]}")
    return [
        f"process {pid} keeps the arena of a dead peer" for inode, pid in read if inode not in owned
    ] + named


def files(directory: Path, completed: Collection[str]) -> list[str]:
    """What is wrong with a folder that should hold one file of each of the completed jobs, and no other."""
    names = sorted({path.name for path in directory.iterdir()} - {MARKER})
    jobs = Counter(name.partition("-")[0] for name in names if name.endswith(".mp4"))
    wrong = [f"{name} is there" for name in names if not name.endswith(".mp4")]
    wrong += [f"{count} files of {job}" for job, count in jobs.items() if count != 1 or job not in completed]
    return wrong + [f"no file of {job}" for job in completed if job not in jobs]


def _commands() -> Iterator[tuple[int, str]]:
    for entry in PROC.iterdir():
        if entry.name.isdigit():
            try:
                yield (
                    int(entry.name),
                    (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"),
                )
            except OSError:
                continue


def _led(session: int, leaders: Mapping[int, str]) -> bool:
    """A number that was given to a new process is the session of that one, and none of ours."""
    if session not in leaders:
        return False
    try:
        return started(session) == leaders[session]
    except OSError:
        return True  # the leader has ended; as long as others are of its session, its number stays its own


def _stat(pid: int) -> list[str]:
    """State, parent, group, session and so on; the command's name in front may hold anything."""
    return (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()


def _signals(pid: int, kind: str) -> set[int]:
    """One of the sets of signals that the kernel keeps of a process; empty if there is no such process."""
    try:
        status = (PROC / str(pid) / "status").read_text()
    except OSError:
        return set()
    mask = next(int(line.split()[1], 16) for line in status.splitlines() if line.startswith(kind))
    return {number for number in range(1, 65) if mask >> (number - 1) & 1}
