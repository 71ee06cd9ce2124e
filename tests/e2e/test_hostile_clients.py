"""Clients that vanish or hang, against real processes: descriptors, files, jobs, places, slots come back."""

from __future__ import annotations

import asyncio
import os
import re
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from deploy.onebox import OneBox
from orchestrator.client import VideoClient
from tests.e2e.system import SECONDS, System, until

CLIENTS = 3  # of each kind
MODEL = "emulated:denoise=1.5,grain=1"
BIG = {"size": "640x480", "num_frames": 41, "num_inference_steps": 40}  # its file is larger than sockets hold
PATIENCE = {"header": 1.0, "body": 1.0, "linger": 0.5, "keepalive": 2.0, "download": 3.0, "send": 2.0}

FORM = b"Content-Type: multipart/form-data; boundary=b\r\n"
HALF_FORM = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n' + b"x" * 200_000
UPLOAD = b"POST /v1/videos HTTP/1.1\r\nHost: x\r\n" + FORM + b"Content-Length: 500000\r\n\r\n" + HALF_FORM
FIELDS = b'{"prompt": "of a client that leaves", "num_inference_steps": 40}'
SYNC = (
    b"POST /v1/videos/sync HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\n\r\n%s" % (len(FIELDS), FIELDS)
)


class Hosts:
    """The system, whose decoder's folder the orchestrator cannot see, and two finished videos."""

    def __init__(self, system: System, directory: Path) -> None:
        self.system = system
        self.temporary = directory / "temporary"
        self.log = directory / "log"
        self.visible = directory / "orchestrator" / "videos"
        self.local = ""  # its file is there for the orchestrator too
        self.remote = ""  # its file is read from the decoder
        self.idle: dict[str, object] = {}  # what is open when nobody asks for anything
        self.clients: list[Client] = []

    async def fill(self) -> None:
        async with VideoClient(self.system.box.url) as client:
            videos = [await client.create(prompt="kept", seed=seed, **BIG) for seed in range(2)]
            for video in videos:
                assert (await client.wait(video["id"], timeout=SECONDS))["status"] == "completed"
            self.local, self.remote = (video["id"] for video in videos)
            (file,) = self._written().glob(f"{self.local}*.mp4")
            self.visible.mkdir(parents=True, exist_ok=True)
            (self.visible / file.name).hardlink_to(file)
            for video in videos:  # whatever is opened once and kept is there from now on
                await client.download(video["id"], self.visible.parent / "played.mp4", timeout=SECONDS)
            await self.system.at_rest(client)
        await until(lambda: answer(not connections(self.system.box.port)))
        self.idle = self.traces()

    def _written(self) -> Path:
        return self.system.box.data_dir / "videos"

    def traces(self) -> dict[str, object]:
        """What is open or lies about; ``socket:[1]`` and so on count as one kind."""
        found: dict[str, object] = {
            name: open_files(self.system.process(name).pid) for name in ("orchestrator", "decoder")
        }
        found["temporary"] = sorted(os.listdir(self.temporary))
        found["videos"] = sorted(os.listdir(self._written()))
        return found

    async def videos(self) -> list[str]:
        async with VideoClient(self.system.box.url) as client:
            return [video["id"] for video in (await client._json("GET", "/videos"))["data"]]

    async def as_before(self) -> None:
        """At rest, with the two videos alone, and nothing open that was not."""
        async with VideoClient(self.system.box.url) as client:
            await self.system.at_rest(client)
        try:
            await until(lambda: answer(self.traces() == self.idle))
        except AssertionError:
            raise AssertionError(f"left behind: {self.idle} has become {self.traces()}") from None
        log = self.log.read_text()
        assert "Traceback" not in log and " ERROR " not in log


async def answer(value: bool) -> bool:
    return value


def connections(port: int) -> int:
    """Those that this port has, and that the other side has not ended alone."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(row[1].endswith(f":{port:04X}") and row[3] in ("01", "08") for row in rows)


def open_files(pid: int) -> Counter[str]:
    found: Counter[str] = Counter()
    for name in os.listdir(f"/proc/{pid}/fd"):
        try:
            found[re.sub(r":\[\d+\]$", "", os.readlink(f"/proc/{pid}/fd/{name}"))] += 1
        except FileNotFoundError:
            continue  # closed since
    return found


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    directory = tmp_path_factory.mktemp("box")
    (directory / "temporary").mkdir()
    server = ["--data-dir", str(directory / "orchestrator")]
    for name, seconds in PATIENCE.items():
        server += [f"--{name}-timeout", str(seconds)]
    with (directory / "log").open("wb") as log, pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(directory / "temporary"))
        box = OneBox(MODEL, data_dir=directory / "data", server_arguments=server, log=log)
        with box:
            box.wait_ready(SECONDS)
            hosts = Hosts(System(box, directory / "log"), directory)
            asyncio.run(hosts.fill())
            yield hosts
    print((directory / "log").read_text())


@pytest.fixture
def clients(hosts: Hosts) -> Iterator[list[Client]]:
    """All that a test connects; closed at its end, whatever that is."""
    hosts.clients = []
    yield hosts.clients
    for client in hosts.clients:
        client.close()


class Client:
    """A bare socket with next to no buffer."""

    def __init__(self, port: int) -> None:
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self._socket.connect(("127.0.0.1", port))
        self._socket.setblocking(False)

    async def send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self._socket, data)

    async def receive(self, count: int = 4096) -> bytes:
        """Nothing, when the server has hung up in whatever way."""
        try:
            return await asyncio.wait_for(asyncio.get_running_loop().sock_recv(self._socket, count), SECONDS)
        except ConnectionError:
            return b""

    async def starts(self, expected: bytes) -> None:
        assert (await self.receive(200)).startswith(expected)

    async def hung_up(self, pause: float = 0.0) -> int:
        """Reads until the server hangs up, slowly if there is a pause; returns how much came."""
        count = 0
        while data := await self.receive():
            count += len(data)
            await asyncio.sleep(pause)
        return count

    def vanish(self) -> None:
        """As when a process is killed: no goodbye, a reset."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self._socket.close()

    def close(self) -> None:
        self._socket.close()


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()


async def connected(hosts: Hosts, *requests: bytes) -> list[Client]:
    """Some clients for each request, which they have sent."""
    clients = []
    for request in requests:
        for _ in range(CLIENTS):
            client = Client(hosts.system.box.port)
            await client.send(request)
            clients.append(client)
    hosts.clients += clients
    return clients


async def taken_in(hosts: Hosts, count: int) -> None:
    """So many more connections are open at the orchestrator."""
    pid = hosts.system.process("orchestrator").pid
    idle = hosts.idle["orchestrator"]
    assert isinstance(idle, Counter)
    await until(lambda: answer(open_files(pid)["socket"] >= idle["socket"] + count))


async def vanishing_uploads(hosts: Hosts) -> list[Client]:
    clients = await connected(hosts, UPLOAD, b"POST /v1/vid", b"")
    await taken_in(hosts, len(clients))
    return clients


async def vanishing_downloads(hosts: Hosts) -> list[Client]:
    clients = await connected(
        hosts, get(f"/v1/videos/{hosts.local}/content"), get(f"/v1/videos/{hosts.remote}/content")
    )
    for client in clients:
        await client.starts(b"HTTP/1.1 200")
    # From here on neither side can go on: the files are open, here and at the decoder.
    opened = hosts.traces()
    names = {"orchestrator": hosts.local, "decoder": hosts.remote}
    for name, video in names.items():
        files = opened[name]
        assert isinstance(files, Counter)
        assert sum(count for path, count in files.items() if video in path) == CLIENTS
    return clients


async def vanishing_waits(hosts: Hosts) -> list[Client]:
    clients = await connected(hosts, SYNC)
    async with VideoClient(hosts.system.box.url) as client:
        await hosts.system.busy(client, "denoiser")
    await until(lambda: has_videos(hosts, 2 + CLIENTS))
    return clients


async def vanishing_listeners(hosts: Hosts) -> list[Client]:
    async with VideoClient(hosts.system.box.url) as client:
        video = await client.create(prompt="watched", num_inference_steps=40)
        clients = await connected(hosts, get(f"/v1/videos/{video['id']}/events"))
        for listener in clients:
            await listener.starts(b"HTTP/1.1 200")
        return clients


async def has_videos(hosts: Hosts, count: int) -> bool:
    return len(await hosts.videos()) == count


Vanishing = Callable[[Hosts], Awaitable[list[Client]]]


@pytest.mark.parametrize(
    "vanishing", [vanishing_uploads, vanishing_downloads, vanishing_waits, vanishing_listeners]
)
async def test_vanished(hosts: Hosts, clients: list[Client], vanishing: Vanishing) -> None:
    for client in await vanishing(hosts):
        client.vanish()
    async with VideoClient(hosts.system.box.url) as operator:
        for video_id in set(await hosts.videos()) - {hosts.local, hosts.remote}:
            if vanishing is vanishing_listeners:  # who listens takes nothing along
                assert (await operator.wait(video_id, timeout=SECONDS))["status"] == "completed"
                await operator.delete(video_id)
    await until(lambda: has_videos(hosts, 2))
    await hosts.as_before()


async def test_held_open(hosts: Hosts, clients: list[Client]) -> None:
    """The other side of a connection is there, and does nothing any more; or next to nothing."""
    content = [get(f"/v1/videos/{video}/content") for video in (hosts.local, hosts.remote)]
    silent = await connected(hosts, b"", b"GET /livez HT", get("/livez"), UPLOAD)
    stuck = await connected(hosts, *content, SYNC)
    stuck += await connected(hosts, b"")
    lists = get("/v1/videos") * 20_000  # whose answers are more than sockets hold
    asking = [asyncio.create_task(client.send(lists)) for client in stuck[-CLIENTS:]]
    slow = await connected(hosts, *content)
    _, received = await asyncio.gather(
        asyncio.gather(*(client.hung_up() for client in silent)),
        asyncio.gather(*(client.hung_up(pause=0.05) for client in slow)),
    )
    assert all(0 < count < 2 << 20 for count in received)
    listened = await connected(hosts, get(f"/v1/videos/{hosts.local}/events"))
    for client in listened:
        await client.starts(b"HTTP/1.1 200")
    async with VideoClient(hosts.system.box.url) as operator:
        for video_id in set(await hosts.videos()) - {hosts.local, hosts.remote}:
            assert (await operator.wait(video_id, timeout=SECONDS))["status"] == "completed"
            await operator.delete(video_id)
    await hosts.as_before()  # while all of them still hold their ends
    assert all(task.done() for task in asking)
    await asyncio.gather(*asking, return_exceptions=True)
