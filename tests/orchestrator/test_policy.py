"""Policies and what they know of costs."""

from __future__ import annotations

import pytest

from orchestrator.cost import CostModel, Sizes, work
from orchestrator.graph import GENERATION
from orchestrator.jobs import Job
from orchestrator.life import Life
from orchestrator.policy import LeastLoaded, LeastWork, RoundRobin
from transfer.urls import EndpointURL
from triptych_proto.control_pb2 import Generation, Hello, Model, Pool

ENCODE, DENOISE, DECODE = GENERATION.stages
SMALL = Generation(width=64, height=64, num_frames=1, num_inference_steps=10, guidance_scale=1)
LARGE = Generation(width=128, height=64, num_frames=5, num_inference_steps=20, guidance_scale=5)


def life(port: int, tasks: dict[str, float] | None = None, outbox: int = 0, largest: int = 0) -> Life:
    hello = Hello(
        role="denoiser",
        capacity=2,
        model=Model(name="m"),
        pools=[Pool(name="outbox", bytes=outbox)],
        largest_output_bytes=largest,
    )
    made = Life(EndpointURL("h", port), hello)
    made.tasks.update(tasks or {})
    return made


def test_round_robin_takes_turns_and_passes_over_those_without_room() -> None:
    a, b, c = life(1), life(2), life(3)
    policy = RoundRobin()
    order = [
        policy.choose(free, lambda _: 0.0) for free in ([a, b, c], [a, b, c], [a, b], [a, b, c], [c], [a, b])
    ]
    assert order == [a, b, a, b, c, a]


def test_least_loaded_counts_tasks() -> None:
    a, b = life(1, {"x": 0.1}), life(2)
    assert LeastLoaded().choose([a, b], lambda _: 0.0) is b


def test_least_work_prefers_the_instance_that_would_finish_first() -> None:
    long_task, short_task = life(1, {"x": 60.0}), life(2, {"y": 1.0})
    assert LeastWork().choose([long_task, short_task], lambda _: 5.0) is short_task
    idle_but_slow, busy_but_fast = life(1), life(2, {"y": 1.0})
    seconds = {idle_but_slow.url: 30.0, busy_but_fast.url: 3.0}
    assert LeastWork().choose([idle_but_slow, busy_but_fast], lambda one: seconds[one.url]) is busy_but_fast


def test_work_grows_with_steps_pixels_and_guidance() -> None:
    assert work(ENCODE, LARGE) == work(ENCODE, SMALL)
    assert work(DECODE, LARGE) == 10 * work(DECODE, SMALL)
    assert work(DENOISE, LARGE) == 10 * 2 * 2 * work(DENOISE, SMALL)


def test_costs_follow_what_was_measured_on_each_instance() -> None:
    costs, fast, slow, new = CostModel(), EndpointURL("h", 1), EndpointURL("h", 2), EndpointURL("h", 3)
    assert not costs.known(DENOISE, "m")
    for _ in range(50):
        costs.observe(DENOISE, "m", SMALL, fast, 1.0)
        costs.observe(DENOISE, "m", SMALL, slow, 4.0)
    assert costs.estimate(DENOISE, "m", SMALL, fast) == pytest.approx(1.0)
    assert costs.estimate(DENOISE, "m", LARGE, slow) == pytest.approx(160.0)
    assert 1.0 < costs.estimate(DENOISE, "m", SMALL, new) < 4.0


def test_an_outbox_takes_what_fits_by_what_was_seen_of_that_shape() -> None:
    sizes = Sizes()
    job = Job.new("m", SMALL)
    instance = life(1, outbox=100_000, largest=90_000)
    assert instance.has_room(sizes.known(DENOISE, job)), "an empty outbox always takes one"
    instance.outbox["t"] = instance.slot_bytes(20_000)
    assert not instance.has_room(sizes.known(DENOISE, job)), "unknown: the largest"
    sizes.observe(DENOISE, job, 20_000)
    assert instance.has_room(sizes.known(DENOISE, job))
    assert sizes.known(DENOISE, Job.new("m", LARGE)) is None
