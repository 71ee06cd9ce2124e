"""A process that writes or recovers media files: ``DIRECTORY COMMAND...``; tells in lines of JSON.

``write NAME...`` stops in the middle of each file, ``finish NAME...`` has recorded each result, ``recover``
first waits for a line and says what it took. Then it waits to be killed.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np

from services.media.claims import Claim, recover
from services.media.encoders import x264
from services.media.files import part_path
from services.media.video import VideoWriter
from triptych_proto.control_pb2 import MediaFile


def start(directory: Path, name: str) -> tuple[Claim, VideoWriter]:
    """Enough frames are on their way for some to lie on the disk."""
    claim = Claim.open(directory / f"{name}.mp4", f"task/{name}")
    writer = VideoWriter(claim.path, 64, 64, 8, encoder=x264(preset="ultrafast"))
    writer.write(np.random.default_rng(0).integers(0, 256, (60, 64, 64, 3), np.uint8))
    return claim, writer


def say(value: object) -> None:
    print(json.dumps(value), flush=True)


def main() -> None:
    directory, command, names = Path(sys.argv[1]), sys.argv[2], sys.argv[3:]
    kept: list[object] = []
    if command == "recover":
        say("ready")
        sys.stdin.readline()
        claims = recover(directory)
        kept += claims
        say({claim.path.name: [claim.task_id, claim.file.bytes] for claim in claims if claim.file})
    for name in names:
        claim, writer = start(directory, name)
        if command == "finish":
            size = writer.finish().bytes
            claim.finish(MediaFile(name=claim.path.name, bytes=size))
        else:
            while part_path(claim.path).stat().st_size == 0:
                time.sleep(0.001)
        kept += [claim, writer]
    if names:
        say("done")
    sys.stdin.read()


if __name__ == "__main__":
    main()
