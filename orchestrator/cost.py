"""What a stage will cost: seconds and bytes, from what earlier runs took."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from orchestrator.graph import Stage, Work
from orchestrator.jobs import Job
from transfer.urls import EndpointURL
from triptych_proto.control_pb2 import Generation

NEWEST = 0.3  # weight of the newest measurement
MAX_RATES = 4096  # instances come and go; the rates measured last are kept
MAX_SHAPES = 4096


def work(stage: Stage, generation: Generation) -> float:
    """Of one run of ``stage``, in units that mean something only beside each other."""
    if stage.work is Work.CONSTANT:
        return 1.0
    pixels = float(generation.width * generation.height * max(generation.num_frames, 1))
    if stage.work is Work.PIXELS:
        return pixels
    guided = 2 if generation.guidance_scale > 1 else 1  # two passes a step
    return pixels * generation.num_inference_steps * guided


class CostModel:
    """Seconds per unit of work, averaged over what was measured, for each instance and for all.

    Before the first measurement a unit counts as one second: wrong, but in proportion.
    """

    def __init__(self) -> None:
        self._rates: OrderedDict[tuple[str, str, EndpointURL | None], float] = OrderedDict()

    def estimate(self, stage: Stage, model: str, generation: Generation, url: EndpointURL) -> float:
        """Seconds that one run of ``stage`` will compute on the instance at ``url``."""
        return self.estimator(stage, model, generation)(url)

    def estimator(self, stage: Stage, model: str, generation: Generation) -> Callable[[EndpointURL], float]:
        """``estimate`` for many instances, as things are now."""
        units, rates = work(stage, generation), self._rates
        common = rates.get((stage.name, model, None), 1.0)
        return lambda url: units * rates.get((stage.name, model, url), common)

    def known(self, stage: Stage, model: str) -> bool:
        return (stage.name, model, None) in self._rates

    def typical(self, stage: Stage, model: str, generation: Generation) -> float:
        """Seconds of compute on an instance of which nothing else is known."""
        return work(stage, generation) * self._rates.get((stage.name, model, None), 1.0)

    def observe(
        self, stage: Stage, model: str, generation: Generation, url: EndpointURL, seconds: float
    ) -> None:
        rate = seconds / work(stage, generation)
        for key in ((stage.name, model, url), (stage.name, model, None)):
            known = self._rates.pop(key, rate)
            self._rates[key] = known + NEWEST * (rate - known)
        while len(self._rates) > MAX_RATES:
            self._rates.popitem(last=False)


class Sizes:
    """Payload bytes of outputs, as they were last seen for requests of the same shape."""

    def __init__(self) -> None:
        self._seen: OrderedDict[tuple[str, str, int, int, int], int] = OrderedDict()

    def known(self, stage: Stage, job: Job) -> int | None:
        return self._seen.get(self._key(stage, job))

    def observe(self, stage: Stage, job: Job, nbytes: int) -> None:
        key = self._key(stage, job)
        self._seen.pop(key, None)
        self._seen[key] = nbytes
        if len(self._seen) > MAX_SHAPES:
            self._seen.popitem(last=False)

    @staticmethod
    def _key(stage: Stage, job: Job) -> tuple[str, str, int, int, int]:
        shape = job.generation
        return stage.name, job.model, shape.width, shape.height, shape.num_frames
