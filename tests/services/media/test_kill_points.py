"""Killed at any point, a decoder leaves no orphan, and what is wanted stays: after the orchestrator's sweep,
whether the decoder has come back or not.
"""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from google.protobuf import json_format

from orchestrator.jobs import Job, JobError, Status
from orchestrator.places import MARKER, LocalPlace, Place, RemotePlace
from orchestrator.store import JobStore
from orchestrator.sweep import Sweep
from services.media.claims import Claim
from services.task import TaskControl
from tests.services.media.kill_points import ENDINGS, KINDS, job_id, store_of
from transfer.remote_folder import RemoteFolder
from triptych_proto.control_pb2 import Generation, MediaFile

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def lives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all lives, as ``kill_points`` describes it."""
    folder = tmp_path_factory.mktemp("lives")
    command = [sys.executable, "-m", "tests.services.media.kill_points", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, timeout=300)
    return folder


def come_back(kind: str, folder: Path, recorded: MediaFile | None) -> None:
    """The next life of the decoder, which is told what became of the job."""
    store = store_of(kind, folder)
    for claim in store.recover():
        assert isinstance(claim, Claim) and claim.file is not None
        store.deliver(claim, claim.file, TaskControl(lambda step, total: None))
        if recorded is None:
            store.discard(claim)
        else:
            assert claim.file == recorded
            store.accept(claim)


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("kind", KINDS)
async def test_killed_at_any_point(kind: str, ending: str, lives: Path, tmp_path: Path) -> None:
    root = lives / f"{kind}-{ending}"
    count = len(list(root.iterdir()))
    assert count > (4 if kind == "local" else 8)
    jobs = JobStore(f"sqlite:///{tmp_path}/jobs.sqlite")
    await jobs.open()
    identity = await jobs.identity()
    outcomes: set[bool] = set()
    for number in range(1, count + 1):
        job = Job.new("m", Generation())
        job.id, job.completed_at = job_id(number), time.time()
        found = root / str(number) / "recorded"
        recorded = json_format.Parse(found.read_text(), MediaFile()) if found.exists() else None
        outcomes.add(recorded is not None)
        job.status, job.file = Status.COMPLETED, recorded
        if recorded is None:
            job.status, job.error = Status.FAILED, JobError("no_luck", "no further decoder was there")
        if recorded is not None or number % 2:  # else it was deleted
            await jobs.add(job)
        for back in (False, True):
            # Under the same name: the store's URL is in what is recorded.
            folder = root / str(number)
            if not back:
                shutil.copytree(folder, tmp_path / "kept" / str(number))
            else:
                shutil.rmtree(folder)
                shutil.copytree(tmp_path / "kept" / str(number), folder)
                come_back(kind, folder, recorded)
                assert not (folder / "spool").exists() or list((folder / "spool").iterdir()) == []
            place: Place = LocalPlace(folder / "videos")
            if kind == "remote":
                place = RemotePlace(RemoteFolder(f"far://{folder}/videos"))
            place.claim(identity)
            sweep = Sweep([place], jobs, {}, 0.0)
            await asyncio.sleep(0.01)  # the kernel's clock for files is that coarse
            await sweep.sweep(place)
            sweep.close()
            left = {path.name: path.stat().st_size for path in (folder / "videos").iterdir()}
            del left[MARKER]
            # Of what is wanted only its decoder takes the claim away.
            left = {
                name: size
                for name, size in left.items()
                if back or not name.endswith(".claim") or not recorded
            }
            assert left == ({recorded.name: recorded.bytes} if recorded else {}), (number, back)
    await jobs.close()
    assert outcomes == ({False, True} if ending == "accept" else {False})
