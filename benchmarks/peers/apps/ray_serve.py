"""Three stages on Ray Serve, as its page on model composition tells: a deployment each."""

from __future__ import annotations

import os
import signal
import sys
import threading

import ray
from ray import serve
from ray.serve.handle import DeploymentHandle
from starlette.requests import Request

from benchmarks.peers.apps.stages import Tensor, Work

# There is more than one replica for a core, and none of them computes.
CPUS = {"num_cpus": 0.1}


@serve.deployment(ray_actor_options=CPUS)
class Encoder:
    def __init__(self, work: Work) -> None:
        self._work = work

    def __call__(self, prompt: str) -> Tensor:
        return self._work.encode(prompt)


@serve.deployment(ray_actor_options=CPUS)
class Denoiser:
    def __init__(self, work: Work) -> None:
        self._work = work

    def __call__(self, embeddings: Tensor) -> tuple[Tensor, int]:
        return self._work.make_latents(embeddings), os.getpid()


@serve.deployment(ray_actor_options=CPUS)
class Decoder:
    def __init__(self, work: Work) -> None:
        self._work = work

    def __call__(self, denoised: tuple[Tensor, int]) -> dict[str, object]:
        latents, denoiser = denoised
        return {"digest": self._work.decode(latents), "denoiser": denoiser}


@serve.deployment(ray_actor_options=CPUS)
class Pipeline:
    def __init__(
        self, encoder: DeploymentHandle, denoiser: DeploymentHandle, decoder: DeploymentHandle
    ) -> None:
        self._encoder = encoder
        self._denoiser = denoiser
        self._decoder = decoder

    async def __call__(self, request: Request) -> dict[str, object]:
        prompt = (await request.json())["prompt"]
        embeddings = self._encoder.remote(prompt)
        denoised = self._denoiser.remote(embeddings)
        reply: dict[str, object] = await self._decoder.remote(denoised)
        return reply


def main() -> None:
    """Serves until SIGTERM; then everything that Ray started is gone."""
    work, port = Work.parse(sys.argv[1:])
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda number, frame: stop.set())
    ray.init(include_dashboard=False, log_to_driver=False, _temp_dir=os.environ["RAY_FOLDER"])
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    denoiser = Denoiser.options(num_replicas=work.denoisers, max_ongoing_requests=1).bind(work)
    serve.run(Pipeline.bind(Encoder.bind(work), denoiser, Decoder.bind(work)))
    stop.wait()
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main()
