"""A decoder that is killed at each of its steps on files, one life after the other: ``FOLDER``.

For each kind of store and each ending a life has ``FOLDER/KIND-ENDING/NUMBER`` with ``videos``, the decoder's
``spool``, and ``recorded``, the job store's word, once it is written. The last life of each comes to its end.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import fsspec
import torch
from fsspec.implementations.local import LocalFileSystem
from google.protobuf import json_format

from services.media.remote_store import RemoteStore
from services.media.store import LocalStore, Store
from services.model.base import Limits
from services.model.emulated import EmulatedModel
from services.role import Role
from services.stage import MediaStage
from services.task import TaskControl
from transfer.remote_folder import RemoteFolder
from triptych_proto.control_pb2 import Generation, Run

REQUEST = Generation(prompt="p", width=32, height=32, num_frames=1, fps=8, num_inference_steps=1)
KINDS = ("local", "remote")  # a folder, a far disk
ENDINGS = ("accept", "discard")
KILLED = 9
STEPS = {"open", "os.rename", "os.remove", "os.mkdir", "os.truncate", "far.half"}


class FarDisk(LocalFileSystem):  # type: ignore[misc]
    """Shows a file while it is being written."""

    protocol = ("far",)

    def put_file(self, lpath: str, rpath: str, **kwargs: object) -> None:
        content = Path(lpath).read_bytes()
        with open(rpath, "wb") as file:
            file.write(content[: len(content) // 2])
            file.flush()
            sys.audit("far.half", rpath)
            file.write(content[len(content) // 2 :])


def job_id(number: int) -> str:
    return f"video_{number:032x}"


def store_of(kind: str, folder: Path) -> Store:
    fsspec.register_implementation("far", FarDisk, clobber=True)
    if kind == "local":
        return LocalStore(folder / "videos")
    return RemoteStore(folder / "spool", RemoteFolder(f"far://{folder}/videos"), 1.0)


def live(kind: str, ending: str, folder: Path, number: int) -> None:
    stage = MediaStage(EmulatedModel(Role.DECODER, "emulated:", Limits()), store_of(kind, folder))
    control = TaskControl(lambda step, total: None)
    run = Run(task_id=f"{job_id(number)}/decode/1a2b3c4d-1", generation=REQUEST)
    product = stage.run(run, {"latents": torch.zeros(16)}, control)
    if not product.delivered:
        stage.deliver(product, control)
    if ending == "discard":
        stage.discard(product)
        return
    assert product.file is not None
    part = folder / "part"
    part.write_text(json_format.MessageToJson(product.file))
    part.rename(folder / "recorded")
    stage.accept(product)


def main() -> None:
    for kind in KINDS:
        for ending in ENDINGS:
            root = Path(sys.argv[1], f"{kind}-{ending}")
            number = 1
            while killed(kind, ending, root / str(number), number):
                number += 1


def killed(kind: str, ending: str, folder: Path, number: int) -> bool:
    """A life that may take ``number - 1`` steps; whether it wanted to take more."""
    (folder / "videos").mkdir(parents=True)
    child = os.fork()
    if child == 0:
        left = number

        def step(event: str, args: tuple[object, ...]) -> None:
            nonlocal left
            if event in STEPS and str(args[0]).startswith(str(folder)):
                left -= 1
                if left == 0:
                    os._exit(KILLED)

        sys.addaudithook(step)
        live(kind, ending, folder, number)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, KILLED), f"{folder}: exit code {code}"
    return code == KILLED


if __name__ == "__main__":
    main()
