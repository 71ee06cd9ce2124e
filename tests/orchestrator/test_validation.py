"""The door of a control stream: what an honest role says passes, every breach is named on one line."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from orchestrator import validation
from orchestrator.media import CONTENT_TYPES
from orchestrator.validation import ContractBroken, one_line
from services.media.formats import FORMATS
from services.options import ENGINES
from tests.orchestrator.fake_role import hello
from triptych_proto import control_pb2 as pb

TASK = "video_1/denoise/e-1"
MADE = "video_1/decode/e-1"
SLOT = pb.Slot(arena="outbox", length=100)
FILE = pb.MediaFile(name="video_1-decode-e-1.mp4", bytes=100, content_type="video/mp4", fps=8)


def told(*events: pb.Event, role: str = "denoiser", opening: bool = False) -> list[pb.Event]:
    return validation.events(pb.Events(events=events), role, opening)


def changed(message: pb.Hello, change: Callable[[pb.Hello], object]) -> pb.Event:
    change(message)
    return pb.Event(hello=message)


HONEST = [
    pb.Event(accepted=pb.Accepted(task_id=TASK)),
    pb.Event(
        input_ready=pb.InputReady(
            task_id=TASK, transfers=[pb.Transfer(from_task_id=TASK, engine="shm", bytes=5, seconds=0.1)]
        )
    ),
    pb.Event(progress=pb.Progress(task_id=TASK, step=7, total=5)),
    pb.Event(done=pb.Done(task_id=TASK, slot=SLOT, timing=pb.Timing(compute=1.0))),
    pb.Event(failed=pb.Failed(task_id=TASK, reason=pb.Failed.GONE, message="it is gone")),
    pb.Event(stats=pb.Stats(traffic=[pb.Traffic(engine="copy", direction="out", bytes=1 << 60)])),
    pb.Event(stats=pb.Stats(embedding_cache=pb.Cache(hits=9, entries=1, bytes=5, limit_bytes=5))),
    pb.Event(stats=pb.Stats(embedding_cache=pb.Cache())),
    pb.Event(orphans=pb.Orphans(task_ids=[TASK])),
    pb.Event(places=pb.Places(taken_by_others=2**32 - 1)),
    pb.Event(),  # of a later version
]


def test_an_honest_role_is_heard() -> None:
    events = [pb.Event(hello=hello()), *HONEST]
    assert told(*events, opening=True) == events
    assert told(*HONEST) == HONEST
    assert told(pb.Event(done=pb.Done(task_id=MADE, file=FILE)), role="decoder")


HELLOS: list[tuple[Callable[[pb.Hello], object], str]] = [
    (lambda h: setattr(h, "capacity", 2**32 - 1), "Hello.capacity"),
    (lambda h: setattr(h, "capacity", 0), "Hello.capacity"),
    (lambda h: setattr(h, "incarnation", ""), "Hello.incarnation"),
    (lambda h: setattr(h, "incarnation", "x" * 10**6), "Hello.incarnation"),
    (lambda h: setattr(h, "role", "de\nnoiser"), "Hello.role"),
    (lambda h: setattr(h.model, "name", ""), "Model.name"),
    (lambda h: setattr(h.model, "name", "a\nb"), "Model.name"),
    (lambda h: setattr(h.model, "name", "x" * 10**6), "Model.name"),
    (lambda h: setattr(h.model, "spatial_multiple", 2**32 - 1), "Model.spatial_multiple"),
    (lambda h: setattr(h.model, "output", "smell"), "Model.output"),
    (lambda h: h.model.formats.append("a\nb"), "Model.formats"),
    (lambda h: h.model.formats.extend(["mp4"] * 1000), "Model.formats"),
    (lambda h: setattr(h.model.defaults, "prompt", "x" * 10**6), "Model.defaults.prompt"),
    (lambda h: setattr(h.model.defaults, "width", 0), "Model.defaults.width"),
    (lambda h: setattr(h.model.defaults, "fps", math.nan), "Model.defaults"),
    (lambda h: setattr(h.model.defaults, "guidance_scale", math.inf), "Model.defaults.guidance_scale"),
    (lambda h: setattr(h.model.defaults, "flow_shift", math.nan), "Model.defaults.flow_shift"),
    (lambda h: setattr(h.model, "output", "sculpture"), "Model.output"),
    (lambda h: setattr(h.model, "min_images", 1), "Model.min_images"),
    (lambda h: setattr(h.model, "max_images", 17), "Model.min_images and max_images"),
    (lambda h: h.model.options.append("a b"), "Model.options"),
    (lambda h: h.model.formats.extend(["mp4"] * 65), "Model.formats"),
    (lambda h: h.pools.add(name="outbox"), "pools"),
    (lambda h: h.pools.add(name="in box"), "Pool.name"),
    (lambda h: h.pools.add(name="a", bytes=2**64 - 1), "Pool.bytes"),
    (lambda h: h.pools.add(name="a", bytes=1, free_bytes=2), "Pool.free_bytes"),
    (lambda h: h.pools.extend([pb.Pool()] * 1000), "1001 pools"),
    (lambda h: h.endpoints.extend([pb.TransferEndpoint()] * 1000), "Hello.endpoints"),
    (lambda h: h.endpoints.add(engine="shm", address="x" * 2000), "TransferEndpoint.address"),
    (lambda h: h.orphans.task_ids.append("x" * 201), "Orphans.task_ids"),
    (lambda h: h.orphans.task_ids.append("a b"), "Orphans.task_ids"),
    (lambda h: setattr(h, "largest_output_bytes", 2**64 - 1), "Hello.largest_output_bytes"),
]


@pytest.mark.parametrize(("change", "named"), HELLOS)
def test_a_hello_that_breaks_the_contract(change: Callable[[pb.Hello], object], named: str) -> None:
    with pytest.raises(ContractBroken, match=named) as raised:
        told(changed(hello(), change), opening=True)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 300


BREACHES = [
    (pb.Event(hello=hello()), "Hello has come before"),
    (pb.Event(accepted=pb.Accepted()), "Accepted.task_id"),
    (pb.Event(progress=pb.Progress(task_id="x\n")), "Progress.task_id"),
    (pb.Event(done=pb.Done(task_id=TASK)), "Done.output is None, expected slot"),
    (pb.Event(done=pb.Done(task_id=TASK, file=FILE)), "Done.output is file, expected slot"),
    (pb.Event(done=pb.Done(task_id=TASK, slot=pb.Slot(arena="o", length=2**64 - 1))), "Slot.length"),
    (pb.Event(done=pb.Done(task_id=TASK, slot=SLOT, timing=pb.Timing(compute=math.nan))), "Timing.compute"),
    (pb.Event(done=pb.Done(task_id=TASK, slot=SLOT, timing=pb.Timing(waiting=-1))), "Timing.waiting"),
    (pb.Event(done=pb.Done(task_id=TASK, slot=SLOT, timing=pb.Timing(batch=2**32 - 1))), "Timing.batch"),
    (pb.Event(done=pb.Done(task_id=TASK, slot=SLOT, timing=pb.Timing(saving=math.inf))), "Timing.saving"),
    (pb.Event(done=pb.Done(task_id=TASK, slot=SLOT, peak_memory_bytes=2**64 - 1)), "Done.peak_memory"),
    (pb.Event(failed=pb.Failed(task_id=TASK, reason=99)), "Failed.reason is 99"),  # type: ignore[arg-type]
    (pb.Event(failed=pb.Failed(task_id=TASK, lost_inputs=["a"] * 1000)), "Failed.lost_inputs"),
    (pb.Event(input_ready=pb.InputReady(task_id=TASK, transfers=[pb.Transfer()])), "Transfer.from_task_id"),
    (
        pb.Event(
            input_ready=pb.InputReady(
                task_id=TASK, transfers=[pb.Transfer(from_task_id="a", engine="new", seconds=1)]
            )
        ),
        "Transfer.engine",
    ),
    (
        pb.Event(stats=pb.Stats(traffic=[pb.Traffic(engine="a", direction="in", seconds=-1)])),
        "Traffic.seconds",
    ),
    (pb.Event(stats=pb.Stats(traffic=[pb.Traffic(engine="a", direction="in")] * 2)), "Stats.traffic"),
    (pb.Event(stats=pb.Stats(choices=[pb.Choice()] * 2000)), "Stats.choices"),
    (pb.Event(stats=pb.Stats(resident_bytes=2**63)), "Stats.resident_bytes"),
    (
        pb.Event(stats=pb.Stats(embedding_cache=pb.Cache(bytes=2, limit_bytes=1))),
        "Cache.bytes is 2 of 1",
    ),
    *(
        (pb.Event(stats=pb.Stats(embedding_cache=pb.Cache(**{name: 2**64 - 1}))), f"Cache.{name}")
        for name in ("hits", "misses", "evictions", "entries", "limit_bytes")
    ),
    (pb.Event(orphans=pb.Orphans(task_ids=[""])), "Orphans.task_ids"),
]


@pytest.mark.parametrize(("event", "named"), BREACHES)
def test_an_event_that_breaks_the_contract(event: pb.Event, named: str) -> None:
    with pytest.raises(ContractBroken, match=named) as raised:
        told(HONEST[0], event)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 300


@pytest.mark.parametrize(
    "file",
    [
        pb.MediaFile(name="video_2-decode-e-1.mp4", content_type="video/mp4"),  # of another job
        pb.MediaFile(name="video_12.mp4", content_type="video/mp4"),
        pb.MediaFile(name="../video_1.mp4", content_type="video/mp4"),
        pb.MediaFile(name="video_1/../../x.mp4", content_type="video/mp4"),
        pb.MediaFile(name="..", content_type="video/mp4"),
        pb.MediaFile(name="", content_type="video/mp4"),
        pb.MediaFile(name="video_1.html", content_type="video/mp4"),
        pb.MediaFile(name="video_1.mp4.part", content_type="video/mp4"),
        pb.MediaFile(name="video_1.x.mp4", content_type="video/mp4"),
        pb.MediaFile(name="video_1.mp4", content_type="text/html"),
        pb.MediaFile(name="video_1.mp4", content_type="image/png"),
        pb.MediaFile(name="video_1.png", content_type=""),
        pb.MediaFile(name="video_1.mp4", content_type="video/mp4", audio_rate=2**32 - 1),
        pb.MediaFile(name="video_1.mp4", content_type="video/mp4", store="s3://a\n"),
        pb.MediaFile(name="video_1.mp4", content_type="video/mp4\r\nSet-Cookie: a=b"),
        pb.MediaFile(name="video_1.mp4", content_type="video/mp4", fps=math.nan),
        pb.MediaFile(name="video_1.mp4", content_type="video/mp4", bytes=2**64 - 1),
    ],
)
def test_a_decoder_can_only_name_files_of_its_job(file: pb.MediaFile) -> None:
    with pytest.raises(ContractBroken, match="MediaFile"):
        told(pb.Event(done=pb.Done(task_id=MADE, file=file)), role="decoder")


def test_every_format_is_known() -> None:
    told_of = {format.suffix: format.content_type for format in FORMATS.values()}
    assert told_of == CONTENT_TYPES
    for suffix, content_type in CONTENT_TYPES.items():
        file = pb.MediaFile(name=f"video_1-decode-e-1{suffix}", content_type=content_type, fps=8, bytes=1)
        told(pb.Event(done=pb.Done(task_id=MADE, file=file)), role="decoder")


def test_the_first_event_is_hello() -> None:
    for events in ([], [HONEST[0]], [HONEST[0], pb.Event(hello=hello())]):
        with pytest.raises(ContractBroken, match="not Hello"):
            told(*events, opening=True)
    with pytest.raises(ContractBroken, match="come before"):
        told(pb.Event(hello=hello()), pb.Event(hello=hello()), opening=True)


def test_frames() -> None:
    assert validation.parse(b"\xff\xff\xff") is None
    with pytest.raises(ContractBroken, match="not an Events message"):
        validation.events(validation.parse(b"\xff\xff\xff"), "encoder")
    with pytest.raises(ContractBroken, match="5000 events"):
        told(*[pb.Event()] * 5000)


def test_texts_are_cut_and_stay_on_their_line() -> None:
    message = "first\nsecond\r\x1b[31m\x00\u2028" + "x" * 10**6
    (event,) = told(pb.Event(failed=pb.Failed(task_id=TASK, message=message)))
    assert event.failed.message.startswith(r"first\nsecond\r\x1b[31m\x00\u2028xxx")
    assert event.failed.message.isprintable() and len(event.failed.message) == 500
    (event,) = told(
        pb.Event(stats=pb.Stats(choices=[pb.Choice(url=message, engine=message, reason=message)]))
    )
    assert all(len(text) == 500 for _, text in event.stats.choices[0].ListFields())
    assert one_line("schön 🎬") == "schön 🎬"


def test_orphans_beyond_the_limit_wait() -> None:
    event = pb.Event(orphans=pb.Orphans(task_ids=[f"video_{n}/decode/e-1" for n in range(100_000)]))
    (heard,) = told(event)
    assert len(heard.orphans.task_ids) == validation.MAX_ORPHANS


def test_every_engine_is_known() -> None:
    assert {engine for engines in ENGINES.values() for engine in engines} == validation.ENGINES
