"""Three stages on mosec, as its page on concepts tells: a worker class each."""

from __future__ import annotations

import os
import sys
from typing import Any

from mosec import Server, Worker

from benchmarks.peers.apps.stages import Tensor, Work

# At the top, so that every worker has it, as mosec's page tells.
WORK, _ = Work.parse(sys.argv[1:])


class Encoder(Worker):
    def forward(self, data: dict[str, str]) -> Tensor:
        return WORK.encode(data["prompt"])


class Denoiser(Worker):
    def forward(self, data: Tensor) -> tuple[Tensor, int]:
        return WORK.make_latents(data), os.getpid()


class Decoder(Worker):
    def forward(self, data: tuple[Tensor, int]) -> dict[str, Any]:
        latents, denoiser = data
        return {"digest": WORK.decode(latents), "denoiser": denoiser}


if __name__ == "__main__":
    server = Server()
    server.append_worker(Encoder)
    server.append_worker(Denoiser, num=WORK.denoisers)
    server.append_worker(Decoder)
    server.run()
