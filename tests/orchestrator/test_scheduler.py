"""Decisions of the scheduler: order, room, tries, orphans, deadlines; without a network."""

from __future__ import annotations

import time

import pytest

from orchestrator.jobs import Status
from orchestrator.scheduler import Fate
from tests.orchestrator.bench import Bench
from triptych_proto import control_pb2 as pb


def test_a_job_goes_through_its_stages_and_every_output_is_released() -> None:
    bench = Bench()
    encoder, denoiser, decoder = (bench.join(role) for role in ("encoder", "denoiser", "decoder"))
    job = bench.submit("a")
    (encode,) = encoder.read()
    encoder.done()
    (denoise,) = denoiser.read()
    assert denoiser.inputs[denoise] == [encode]
    denoiser.inputs_read()
    encoder.read()
    assert encoder.released == [encode]
    denoiser.done()
    decoder.read()
    decoder.inputs_read()
    decoder.done(seconds=0.5)
    denoiser.read()
    assert denoiser.released == [denoise]
    assert bench.finished == [job] and job.status is Status.COMPLETED and job.progress == 100
    assert [attempt.outcome for attempt in job.attempts] == ["done"] * 3
    assert [phase.name for phase in job.phases] == ["queue", "encode", "denoise", "decode", "save"]
    bench.scheduler.accepted(job)
    decoder.read()
    assert decoder.accepted == [job.attempts[-1].task_id]
    assert not any(instance.life.outbox or instance.life.jobs for instance in bench.instances)


def test_one_that_stops_leaves_what_ends_then_to_the_next() -> None:
    bench = Bench()
    encoder, _ = bench.join("encoder"), bench.join("denoiser")
    bench.submit("a")
    encoder.read()
    bench.scheduler.stop()
    encoder.done()
    encoder.read()
    assert not encoder.released and not encoder.cancelled


def test_a_request_of_a_batch_counts_as_its_share_of_the_work() -> None:
    bench = Bench()
    encoder, denoiser = bench.join("encoder", capacity=4), bench.join("denoiser", capacity=4)
    jobs = [bench.submit(name) for name in ("a", "b")]
    for task in list(encoder.read()):
        encoder.done(task)
    for task in list(denoiser.read()):
        denoiser.done(task, seconds=3.0, batch=2)
    (stage,) = (
        run.stage
        for run in bench.scheduler.active["a"].execution.runs.values()
        if run.stage.name == "denoise"
    )
    for job in jobs:
        assert (job.attempts[1].compute, job.attempts[1].batch, job.attempts[0].batch) == (3.0, 2, 1)
        estimate = bench.scheduler.costs.estimate(stage, job.model, job.generation, denoiser.life.url)
        assert estimate == pytest.approx(1.5)


async def test_first_come_first_served_at_every_stage() -> None:
    bench = Bench()
    encoder = bench.join("encoder", capacity=1)
    for number in range(5):
        bench.submit(str(number), age=10 - number)
    order = []
    for _ in range(5):
        order += encoder.stages()
        encoder.done()
    assert order == ["0", "1", "2", "3", "4"]
    # What has to run again is as old as its job: it goes before younger ones.
    bench = Bench()
    encoder = bench.join("encoder", capacity=1)
    bench.submit("old", age=10)
    bench.submit("young")
    encoder.failed(pb.Failed.INTERNAL)
    assert encoder.stages() == ["old"]


async def test_higher_priority_goes_first_and_nothing_starves() -> None:
    bench = Bench(priority_seconds=60.0)
    encoder = bench.join("encoder", capacity=1)
    bench.submit("running")
    bench.submit("plain", age=30)
    bench.submit("low", age=300, priority=-3)
    bench.submit("lower", age=1, priority=-3)
    bench.submit("high", priority=2)
    order = []
    for _ in range(5):
        order += encoder.stages()
        encoder.done()
    # "low" has waited for longer than its lower priority is worth.
    assert order == ["running", "low", "high", "plain", "lower"]


def test_an_encoder_does_not_run_ahead_of_its_outbox() -> None:
    bench = Bench()
    encoder = bench.join("encoder", capacity=2, outbox=3 * 4096)
    for number in range(10):
        bench.submit(str(number), age=10 - number)
    for _ in range(3):
        encoder.done(nbytes=2000)
    assert encoder.read() == [], "three outputs wait for a denoiser: the outbox is full"
    denoiser = bench.join("denoiser", capacity=1)
    denoiser.read()
    denoiser.inputs_read()
    assert len(encoder.read()) == 1, "one was read: there is room for one more"


def test_an_outbox_smaller_than_the_largest_output_still_takes_one_at_a_time() -> None:
    bench = Bench()
    encoder = bench.join("encoder", capacity=2, outbox=100)
    bench.submit("a")
    bench.submit("b")
    assert len(encoder.read()) == 1


async def test_what_an_instance_hands_back_does_not_count_as_a_try() -> None:
    bench = Bench(max_tries=2)
    encoder = bench.join("encoder")
    job = bench.submit("a")
    for _ in range(5):
        encoder.failed(pb.Failed.REFUSED)
        assert encoder.read() == [], "it has just refused"
        encoder.life.refusing_until = 0.0
        bench.scheduler.dispatch()
    assert job.status is Status.IN_PROGRESS
    other = bench.join("encoder", capacity=8)
    encoder.failed(pb.Failed.REFUSED)
    assert other.stages() == ["a"], "another takes it at once"


def test_tries_are_bounded() -> None:
    bench = Bench(max_tries=3)
    encoder = bench.join("encoder")
    job = bench.submit("a")
    for _ in range(3):
        assert job.status is not Status.FAILED
        encoder.failed(pb.Failed.INTERNAL)
    assert job.status is Status.FAILED and job.error is not None
    assert job.error.code == "stage_failed" and "3 times" in job.error.message
    assert [attempt.outcome for attempt in job.attempts] == ["failed"] * 3
    assert not encoder.life.tasks and not encoder.life.outbox


def test_a_stage_that_failed_somewhere_is_tried_elsewhere() -> None:
    bench = Bench()
    first, second = bench.join("encoder"), bench.join("encoder")
    bench.submit("a")
    ran, other = (first, second) if first.read() else (second, first)
    ran.failed(pb.Failed.INTERNAL)
    assert other.stages() == ["a"] and ran.read() == []


def test_a_request_that_kills_instances_takes_no_other_along() -> None:
    """Two are on the instance whenever it dies; the innocent one must not be blamed for all its deaths."""
    bench = Bench(max_tries=4)
    poison = bench.submit("poison", age=10)
    innocent = bench.submit("innocent", age=5)
    bystander = bench.submit("bystander")
    deaths = 0
    while poison.status is not Status.FAILED:
        encoder = bench.join("encoder", port=7)
        while "poison" not in encoder.stages() and poison.status is not Status.FAILED:
            assert encoder.read(), "somebody is always served"
            encoder.done()
        if poison.status is not Status.FAILED:
            if deaths >= 2:
                assert encoder.stages() == ["poison"], "a suspect runs by itself"
            encoder.die()
            deaths += 1
    assert deaths == 4
    encoder = bench.join("encoder", port=7)
    while encoder.read():
        encoder.done()
    for job in (innocent, bystander):
        assert job.status is Status.IN_PROGRESS
        assert any(attempt.outcome == "done" for attempt in job.attempts)


def test_a_suspect_waits_for_one_instance_while_the_others_go_on() -> None:
    bench = Bench()
    suspect = bench.submit("suspect", age=10)
    for _ in range(2):
        encoder = bench.join("encoder")
        assert "suspect" in encoder.stages()
        encoder.die()
    first, second = bench.join("encoder", 1), bench.join("encoder", 2)
    assert first.stages() == ["suspect"]
    for number in range(6):
        bench.submit(str(number), age=5 - number)
    assert first.stages() == ["suspect"] and second.stages() == ["0", "1"]
    first.done()
    assert first.stages() == ["2", "3"], "it takes others again"
    assert suspect.status is Status.IN_PROGRESS


def test_an_instance_that_is_to_serve_a_suspect_dies_too() -> None:
    bench = Bench()
    bench.submit("suspect", age=10)
    for _ in range(2):
        encoder = bench.join("encoder")
        encoder.read()
        encoder.die()
    busy = bench.join("encoder", 1)
    assert busy.stages() == ["suspect"]
    busy.die()
    assert bench.join("encoder", 2).stages() == ["suspect"]


def test_a_draining_instance_gets_nothing() -> None:
    bench = Bench()
    encoder = bench.join("encoder")
    encoder.send(stats=pb.Stats(draining=True))
    bench.submit("a")
    assert encoder.read() == []
    assert bench.join("encoder").stages() == ["a"]


def test_places_that_others_have_taken_are_not_given_away() -> None:
    bench = Bench()
    encoder = bench.join("encoder", capacity=2)
    encoder.send(places=pb.Places(taken_by_others=2))
    bench.submit("a")
    assert encoder.read() == []
    encoder.send(places=pb.Places(taken_by_others=1))
    assert encoder.stages() == ["a"]


def test_a_lost_input_is_made_again() -> None:
    bench = Bench()
    encoder, denoiser = bench.join("encoder"), bench.join("denoiser")
    bench.submit("a")
    (encode,) = encoder.read()
    encoder.done()
    denoiser.read()
    denoiser.failed(pb.Failed.INPUT_LOST, lost=[encode])
    encoder.read()
    assert encoder.released == [encode] and encoder.stages() == ["a"]
    encoder.done()
    assert denoiser.stages() == ["a"]


def test_late_results_of_a_life_that_is_over_change_nothing() -> None:
    bench = Bench()
    first = bench.join("encoder", 1)
    job = bench.submit("a")
    (task,) = first.read()
    first.die()
    second = bench.join("encoder", 2)
    assert second.stages() == ["a"]
    first.done(task)
    assert first.read() == [] and first.released == [task], "its slot comes back, its result is not used"
    assert [attempt.outcome for attempt in job.attempts] == ["lost", "running"]
    second.done()
    bench.join("denoiser")
    assert job.attempts[-1].stage == "denoise"


@pytest.mark.parametrize("deadline", [0.0, -5.0])
def test_a_job_past_its_deadline_fails_wherever_it_is(deadline: float) -> None:
    bench = Bench()
    encoder = bench.join("encoder", capacity=1)
    running, queued = bench.submit("running", age=1), bench.submit("queued")
    later = bench.submit("later")
    for job in (running, queued):
        bench.scheduler.remove(job.id)
        job.deadline = time.time() + deadline
        bench.scheduler.add(job)
    bench.scheduler.expire()
    for job in (running, queued):
        assert job.error is not None and job.error.code == "timeout"
    encoder.read()
    assert later.status is not Status.FAILED
    assert encoder.cancelled, "the compute is stopped"


def test_a_cancelled_task_keeps_its_place_until_the_instance_has_stopped() -> None:
    bench = Bench()
    encoder = bench.join("encoder", capacity=1)
    bench.submit("a")
    (task,) = encoder.read()
    bench.scheduler.remove("a")
    bench.submit("b")
    encoder.read()
    assert encoder.cancelled == [task] and encoder.tasks == [task]
    encoder.failed(pb.Failed.CANCELLED)
    assert encoder.stages() == ["b"]


def test_jobs_wait_for_a_missing_role_and_then_fail_with_that_reason() -> None:
    bench = Bench(absence_seconds=0.0)
    encoder = bench.join("encoder")
    waiting = bench.submit("a")
    encoder.done()
    time.sleep(0.001)  # so that any time at all has passed
    assert bench.scheduler.hopeless("m") in ("denoiser", "decoder")
    bench.scheduler.expire()
    assert waiting.error is not None and waiting.error.code == "no_instance"
    assert "denoiser" in waiting.error.message
    encoder.read()
    assert encoder.released, "its output is not held for nobody"
    bench.join("denoiser")
    bench.join("decoder")
    assert bench.scheduler.hopeless("m") == ""


# ---- orphans


def test_nothing_is_repeated_while_the_roles_have_not_said_what_they_run() -> None:
    bench = Bench()
    bench.scheduler.hold()
    job = bench.submit("a")
    encoder = bench.join("encoder")
    denoiser = bench.join("denoiser", orphans=["a/denoise/e1-1"])
    bench.scheduler.resume()
    assert encoder.read() == [] and denoiser.read() == []
    assert denoiser.adopted == ["a/denoise/e1-1"]
    denoiser.inputs_read("a/denoise/e1-1")
    denoiser.done("a/denoise/e1-1")
    assert bench.join("decoder").stages() == ["a"]
    assert job.attempts[0].outcome == "done"


def test_an_orphan_that_is_gone_is_made_again() -> None:
    bench = Bench()
    bench.scheduler.hold()
    bench.submit("a")
    denoiser = bench.join("denoiser", orphans=["a/denoise/e1-1"])
    denoiser.read()
    denoiser.send(failed=pb.Failed(task_id="a/denoise/e1-1", reason=pb.Failed.GONE))
    bench.scheduler.resume()
    assert bench.join("encoder").stages() == ["a"]


def test_orphans_of_a_stream_that_broke_while_another_lives() -> None:
    bench = Bench()
    bench.fate = Fate.LEAVE
    encoder = bench.join("encoder")
    encoder.send(orphans=pb.Orphans(task_ids=["b/encode/e0-1"]))
    encoder.read()
    assert encoder.adopted == encoder.cancelled == [], "its job is another orchestrator's"
    bench.submit("b")  # which has died
    encoder.read()
    assert encoder.adopted == ["b/encode/e0-1"] and encoder.tasks == []


def test_an_orphan_that_is_offered_twice_is_adopted_once_and_never_dropped() -> None:
    """An earlier stream of the same role may end after a new one began: what it ran is offered again."""
    bench = Bench()
    bench.scheduler.hold()
    job = bench.submit("a")
    decoder = bench.join("decoder", orphans=["a/decode/e1-1"])
    decoder.send(orphans=pb.Orphans(task_ids=["a/decode/e1-1"]))
    decoder.read()
    assert decoder.adopted == ["a/decode/e1-1"] and decoder.cancelled == []
    decoder.done("a/decode/e1-1")
    bench.fate = Fate.LEAVE  # as long as the end of the job is not recorded
    decoder.send(orphans=pb.Orphans(task_ids=["a/decode/e1-1"]))
    decoder.read()
    assert job.status is Status.COMPLETED and decoder.cancelled == decoder.released == []
    bench.fate = Fate.ACCEPT
    bench.scheduler.accepted(job)
    decoder.read()
    assert set(decoder.accepted) == {"a/decode/e1-1"} and decoder.cancelled == []


def test_the_result_is_accepted_though_earlier_stages_ran_again_meanwhile() -> None:
    """The decoder was cut off and came back with the file, when its inputs were being made anew."""
    bench = Bench()
    encoder, denoiser = bench.join("encoder"), bench.join("denoiser")
    decoder = bench.join("decoder", 1)
    job = bench.submit("a")
    encoder.done(seconds=1.0)
    denoiser.read()
    denoiser.inputs_read()
    denoiser.done(seconds=2.0)
    (task,) = decoder.read()
    decoder.inputs_read()
    decoder.die()
    encoder.done(seconds=3.0)
    again = bench.join("decoder", 1, orphans=[task])
    again.done(task, seconds=4.0)
    assert job.status is Status.COMPLETED and job.result is not None
    assert job.result.task_id == task
    assert [(p.name, p.seconds) for p in job.phases[1:]] == [
        ("encode", 1.0),
        ("denoise", 2.0),
        ("decode", 4.0),
        ("save", 0.0),
    ]
    bench.scheduler.accepted(job)
    again.read()
    assert again.accepted == [task]


def test_a_held_output_that_is_offered_twice_is_kept() -> None:
    bench = Bench()
    bench.scheduler.hold()
    bench.submit("a")
    encoder = bench.join("encoder", orphans=["a/encode/e1-1"])
    encoder.done("a/encode/e1-1")
    encoder.send(orphans=pb.Orphans(task_ids=["a/encode/e1-1"]))
    encoder.read()
    assert encoder.cancelled == encoder.released == []
    bench.scheduler.resume()
    denoiser = bench.join("denoiser")
    assert denoiser.stages() == ["a"]


def test_a_result_that_another_instance_found_is_taken_when_its_maker_is_gone() -> None:
    bench = Bench()
    encoder, denoiser, first = (bench.join(role) for role in ("encoder", "denoiser", "decoder"))
    job = bench.submit("a")
    encoder.done()
    denoiser.done()
    (task,) = first.read()
    second = bench.join("decoder", orphans=[task])
    second.read()
    assert second.adopted == second.cancelled == []
    first.die()
    second.read()
    assert second.adopted == [task]
    second.done(task)
    assert job.status is Status.COMPLETED and job.file_url == str(second.life.url)


@pytest.mark.parametrize("fate", list(Fate))
def test_orphans_without_a_job_here(fate: Fate) -> None:
    bench = Bench()
    bench.fate = fate
    decoder = bench.join("decoder", orphans=["x/decode/e1-1"])
    decoder.read()
    assert decoder.accepted == (["x/decode/e1-1"] if fate is Fate.ACCEPT else [])
    assert decoder.cancelled == (["x/decode/e1-1"] if fate is Fate.DROP else [])


def test_progress_gives_a_pace_and_never_goes_back() -> None:
    bench = Bench()
    encoder, denoiser = bench.join("encoder"), bench.join("denoiser")
    job = bench.submit("a")
    encoder.done()
    (task,) = denoiser.read()
    denoiser.send(progress=pb.Progress(task_id=task, step=1, total=4))
    assert job.pace is not None and (job.pace.step, job.pace.steps, job.pace.steps_per_second) == (1, 4, None)
    time.sleep(0.001)  # a rate needs two moments
    denoiser.send(progress=pb.Progress(task_id=task, step=3, total=4))
    assert job.pace.steps_per_second is not None and job.pace.steps_per_second > 0
    assert job.pace.seconds_left == pytest.approx(1 / job.pace.steps_per_second)
    shown = job.progress
    assert 60 < shown < 80
    denoiser.failed(pb.Failed.INTERNAL)
    denoiser.send(progress=pb.Progress(task_id=denoiser.read()[0], step=1, total=4))
    assert job.progress == shown
