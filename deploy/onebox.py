"""``triptych up``: orchestrator and roles as separate processes on this machine, in the foreground."""

from __future__ import annotations

import argparse
import ctypes
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO

from deploy.ports import free_port
from services import model_source

DEMO_MODEL = Path(__file__).parent / "demo_model"  # tiny, and trained: it draws what the prompt says
ROLES = ("encoder", "denoiser", "decoder")
STOP_SECONDS = 5.0  # between SIGTERM and SIGKILL; what was running is taken up again at the next start
POLL_SECONDS = 0.1
PR_SET_PDEATHSIG = 1
TRANSFER = "shm"  # all roles are on this host; with another engine beside it they would hash every output


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        default=str(DEMO_MODEL),
        metavar="DIR",
        help="a diffusers model folder, or the id of one on a hub (default: the demo model, see"
        " docs/demo-model.md)",
    )
    for role in ROLES:
        text = f"number of {role}s (default: %(default)s)"
        parser.add_argument(f"--{role}s", type=int, choices=range(1, 65), default=1, metavar="N", help=text)
    roles = (*_role_options(), _encoder_options(), _batch_options())
    for add_options in (_server_options(), *roles, _security_options()):
        add_options(parser)
    parser.set_defaults(transfer=TRANSFER)
    levels = ("debug", "info", "warning", "error")
    parser.add_argument("--log-level", default="info", choices=levels, help="(default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    """Runs until Ctrl-C or SIGTERM (exit code 0) or until a process ends by itself (1). 2: no such model."""
    if reason := model_source.problem(args.model):
        print(f"triptych up: {reason}", file=sys.stderr)
        return 2
    stop_requested = False

    def request_stop(number: int, frame: object) -> None:
        nonlocal stop_requested
        stop_requested = True

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, request_stop)
    with OneBox.from_arguments(args) as box:
        ready = False
        while not stop_requested:
            dead = box.dead()
            if dead is not None:
                print(
                    f"triptych: {dead.name} ended with exit code {dead.returncode}; stopping", file=sys.stderr
                )
                return 1
            if not ready and box.ready():
                ready = True
                print(f"triptych: ready at {box.url} (Ctrl-C stops)", file=sys.stderr)
            time.sleep(POLL_SECONDS)
        print("triptych: stopping", file=sys.stderr)
    return 0


class Process(subprocess.Popen[bytes]):
    """A process of the system, with the name people know it by. It does not outlive its parent."""

    def __init__(self, name: str, arguments: Sequence[str], log: IO[bytes] | None) -> None:
        self.name = name
        command = [sys.executable, "-m", "triptych", *arguments]
        # Its own session: Ctrl-C reaches the launcher alone, which then stops the others in order.
        super().__init__(command, stdout=log, stderr=log, start_new_session=True, preexec_fn=die_with_parent)


class OneBox:
    """The whole system on this machine; a context manager that leaves no process behind."""

    def __init__(
        self,
        model: str,
        *,
        counts: dict[str, int] | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
        data_dir: Path,
        server_arguments: Sequence[str] = (),
        role_arguments: Sequence[str] = (),
        decoder_arguments: Sequence[str] = (),
        encoder_arguments: Sequence[str] = (),
        denoiser_arguments: Sequence[str] = (),
        log: IO[bytes] | None = None,
    ) -> None:
        """``role_arguments`` are for every role. ``port`` 0 takes a free one; ``log`` receives what all
        processes print (None: as this one's).
        """
        self.port = port or free_port()
        self.url = f"http://{host}:{self.port}"
        self.data_dir = data_dir
        self.role_urls = {
            role: [f"grpc://127.0.0.1:{free_port()}" for _ in range((counts or {}).get(role, 1))]
            for role in ROLES
        }
        self.processes: list[Process] = []
        self._model = model
        self._role_arguments = list(role_arguments)
        self._decoder_arguments = list(decoder_arguments)
        self._denoiser_arguments = list(denoiser_arguments)
        if "--transfer" not in role_arguments:
            self._role_arguments += ["--transfer", TRANSFER]
        if "--threads" not in role_arguments:
            # Roles that all take every core slow each other down by far more than they gain.
            roles = sum(map(len, self.role_urls.values()))
            self._role_arguments += ["--threads", str(max(1, (os.cpu_count() or 1) // roles))]
        self._server_arguments = ["--host", host, "--port", str(self.port), "--data-dir", str(data_dir)]
        self._server_arguments += server_arguments
        self._encoder_arguments = list(encoder_arguments)
        self._log = log

    @staticmethod
    def from_arguments(args: argparse.Namespace) -> OneBox:
        log_level = ["--log-level", args.log_level]
        role_arguments = ["--transfer", args.transfer]  # the roles have another default
        for options in _role_options():
            role_arguments += _given(options, args, without=("transfer",))
        server_arguments = _given(_server_options(), args, without=("host", "port", "data_dir"))
        security = _given(_security_options(), args)  # the same for the orchestrator and for roles
        decoder_arguments = ["--output", args.output[0]] if args.output else []
        if args.output_options is not None:
            decoder_arguments += ["--output-options", str(args.output_options)]
        return OneBox(
            args.model,
            counts={role: getattr(args, f"{role}s") for role in ROLES},
            host=args.host,
            port=args.port,
            data_dir=args.data_dir,
            server_arguments=server_arguments + security + log_level,
            role_arguments=role_arguments + security + log_level,
            decoder_arguments=decoder_arguments,
            encoder_arguments=_given(_encoder_options(), args),
            denoiser_arguments=_given(_batch_options(), args),
        )

    def __enter__(self) -> OneBox:
        try:
            self.start_orchestrator()
            for role, urls in self.role_urls.items():
                for url in urls:
                    self.start_role(role, url)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start_orchestrator(self) -> Process:
        arguments = ["orchestrator", *self._server_arguments]
        for role, urls in self.role_urls.items():
            arguments += [f"--{role}-urls", *urls]
        return self._start("orchestrator", arguments)

    def start_role(self, role: str, url: str) -> Process:
        arguments = [role, "--model", self._model, "--url", url, *self._role_arguments]
        if role == "encoder":
            arguments += self._encoder_arguments
        if role == "decoder":
            # Of an option that is there twice the second counts.
            arguments += ["--output", str(self.data_dir / "videos"), *self._decoder_arguments]
            arguments += ["--spool-dir", str(self.data_dir / "spool")]
        if role == "denoiser":
            arguments += self._denoiser_arguments
        return self._start(f"{role} {url}", arguments)

    def dead(self) -> Process | None:
        """A process that has ended."""
        return next((process for process in self.processes if process.poll() is not None), None)

    def ready(self) -> bool:
        """Every role has introduced itself to the orchestrator."""
        try:
            with urllib.request.urlopen(f"{self.url}/readyz", timeout=5.0):
                return True
        except (urllib.error.URLError, OSError):
            return False

    def wait_ready(self, seconds: float) -> None:
        """Returns when requests can be served; RuntimeError if a process ends or the time does."""
        deadline = time.monotonic() + seconds
        while not self.ready():
            dead = self.dead()
            if dead is not None:
                raise RuntimeError(f"{dead.name} ended with exit code {dead.returncode}")
            if time.monotonic() > deadline:
                raise RuntimeError(f"the system was not ready after {seconds:.0f} s")
            time.sleep(POLL_SECONDS)

    def stop(self) -> None:
        """SIGTERM to all, the orchestrator first: it gives no more work; SIGKILL to those that hang."""
        for process in self.processes:
            if process.poll() is None:
                process.terminate()
        deadline = time.monotonic() + STOP_SECONDS
        for process in self.processes:
            try:
                process.wait(max(deadline - time.monotonic(), 0.0))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.processes.clear()

    def _start(self, name: str, arguments: Sequence[str]) -> Process:
        process = Process(name, arguments, self._log)
        self.processes.append(process)
        return process


AddOptions = Callable[[argparse.ArgumentParser], None]


def _server_options() -> AddOptions:
    from orchestrator.main import add_server_arguments

    return add_server_arguments


def _role_options() -> tuple[AddOptions, ...]:
    from services.options import add_model_arguments, add_worker_arguments

    return add_model_arguments, add_worker_arguments


def _encoder_options() -> AddOptions:
    from services.options import add_encoder_arguments

    return add_encoder_arguments


def _batch_options() -> AddOptions:
    from services.options import add_batch_arguments

    return add_batch_arguments


def _security_options() -> AddOptions:
    from orchestrator.credentials import add_arguments

    return add_arguments


def _given(add_options: AddOptions, args: argparse.Namespace, without: Sequence[str] = ()) -> list[str]:
    """The options of ``add_options`` that differ from their defaults, as words for another command line."""
    parser = argparse.ArgumentParser(add_help=False)
    add_options(parser)
    words: list[str] = []
    for action in parser._actions:
        value = getattr(args, action.dest)
        if action.dest not in without and value != action.default:
            option = action.option_strings[0]
            if action.nargs == 0:
                words.append(option)
            else:  # an option that can be repeated has a list
                words += [word for item in _items(value) for word in (option, str(item))]
    return words


def _items(value: object) -> list[object]:
    return value if isinstance(value, list) else [value]


def die_with_parent() -> None:
    """In the child, before exec: even a SIGKILL of the launcher leaves no orphans (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
