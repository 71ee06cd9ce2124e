"""``triptych encoder|denoiser|decoder``: one role process, from its options to its exit."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import secrets
import signal
import sys

from services.announce import announce
from services.heap import keep_freed
from services.media.encoders import X264, NoEncoder, VideoEncoder, choose
from services.model.base import ModelError, RoleModel
from services.options import RoleOptions
from services.role import Role
from services.server import RoleServer
from services.stage import MediaStage, Stage, TensorStage
from services.task import WorkerLimits
from services.worker import Worker
from transfer.endpoint import TransferEndpoint
from transfer.pool import arena_bytes
from transfer.urls import is_loopback

log = logging.getLogger(__name__)

SLOTS_SPARE = 2  # outputs that may wait for their consumers beside those in the making


def run(role: Role, args: argparse.Namespace) -> int:
    """The process's exit code: 0 after a drain, 1 when its device is lost, 2 when it could not start."""
    try:
        options = RoleOptions.from_arguments(role, args)
    except (OSError, ValueError) as error:
        print(f"triptych {role.value}: {error}", file=sys.stderr)
        return 2
    logging.basicConfig(
        level=options.log_level.upper(),
        format=f"%(asctime)s %(levelname)s {role.value} {options.url.port} %(name)s: %(message)s",
        stream=sys.stderr,
    )
    keep_freed()
    try:
        asyncio.run(_serve(options))
    except (ModelError, NoEncoder, OSError) as error:
        print(f"triptych {role.value}: {error}", file=sys.stderr)
        return 2
    return 0


async def _serve(options: RoleOptions) -> None:
    from services.model import open_model

    role = options.role
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()

    def stop() -> None:
        if stopping.is_set():
            os._exit(1)  # asked twice: at once
        stopping.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)

    incarnation = secrets.token_hex(8)
    server = RoleServer(role, incarnation, options.credentials)
    await server.listen(options.listen)
    _warn_if_open(options)
    log.info("incarnation %s of the %s at %s", incarnation, role.value, options.url)
    endpoint: TransferEndpoint | None = None
    worker: Worker | None = None
    announcing: asyncio.Task[None] | None = None
    try:
        encoder = X264
        if role is Role.DECODER:
            encoder = await asyncio.to_thread(choose, options.video_encoder, options.model_options["device"])
        loading = asyncio.create_task(
            asyncio.to_thread(open_model, role, options.model, **options.model_options)
        )
        interrupted = asyncio.create_task(stopping.wait())
        await asyncio.wait({loading, interrupted}, return_when=asyncio.FIRST_COMPLETED)
        if stopping.is_set():
            os._exit(0)  # nothing runs yet, and loading cannot be interrupted
        model = loading.result()
        slots = options.capacity + SLOTS_SPARE
        endpoint = await TransferEndpoint.start(
            options.url,
            incarnation,
            outbox_bytes=options.outbox_bytes or arena_bytes(slots, model.largest_output_bytes()),
            inbox_bytes=options.inbox_bytes or arena_bytes(slots, model.largest_input_bytes()),
            engines=options.engines,
            host=options.transfer_listen,
            advertise=options.url.host,
            mooncake=options.mooncake,
            keys=options.transfer_keys,
            device=model.device,
        )
        directory = None if options.output is None else options.output.directory
        worker = Worker(_stage(model, options, encoder), endpoint, _limits(options, model))
        await worker.recover()
        await server.open_for_work(model, worker, endpoint, directory)
        log.info("ready: %s, pools %s", model.facts.name, [(p.name, p.stats().bytes) for p in endpoint.pools])
        if options.orchestrators:
            announcing = asyncio.create_task(
                announce(
                    options.url,
                    role,
                    options.orchestrators,
                    options.credentials.token,
                    lambda: server.attached,
                )
            )
        if await _ended_by_loss(worker, stopping):
            # The orchestrator sees an instance go, and takes its tasks elsewhere. Libraries may hang if they
            # are left to clean up on a device that fails every call.
            os._exit(1)
        await _drain(server, worker, options.drain_seconds)
    finally:
        if announcing is not None:
            announcing.cancel()
        await server.stop()
        if worker is not None:
            await worker.close()
        if endpoint is not None:
            await endpoint.close()
    log.info("stopped")


def _stage(model: RoleModel, options: RoleOptions, encoder: VideoEncoder) -> Stage:
    if options.output is None:
        return TensorStage(model, options.max_reference_pixels)
    return MediaStage(model, options.output.open(), encoder)


def _warn_if_open(options: RoleOptions) -> None:
    if options.credentials or is_loopback(options.listen.rpartition(":")[0]):
        return
    log.warning(
        "%s is open to the network: whoever reaches it can give this role work, and read and delete the media"
        " files it wrote (--cluster-token-file, --tls-cert; --transfer-keys for its tensors)",
        options.listen,
    )


def _limits(options: RoleOptions, model: RoleModel) -> WorkerLimits:
    return WorkerLimits(
        capacity=options.capacity,
        read_seconds=options.read_seconds,
        pool_seconds=options.pool_seconds,
        hold_seconds=options.hold_seconds,
        max_images=model.facts.max_images if options.role is Role.ENCODER else 0,
        max_batch=options.max_batch,
    )


async def _ended_by_loss(worker: Worker, stopping: asyncio.Event) -> bool:
    """Waits for the end of work: this process cannot go on, or else it was told to stop."""
    ends = [asyncio.create_task(event.wait()) for event in (worker.lost, stopping)]
    await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    for end in ends:
        end.cancel()
    return worker.lost.is_set()


async def _drain(server: RoleServer, worker: Worker, seconds: float) -> None:
    """Finishes what was taken and waits until its outputs have been fetched."""
    await server.drain()
    if worker.tasks or worker.outputs:
        log.info("draining: %d tasks, %d outputs", len(worker.tasks), len(worker.outputs))
    try:
        await asyncio.wait_for(worker.idle.wait(), seconds)
    except asyncio.TimeoutError:
        log.warning("gave up draining after %.0f s: %d tasks are cut off", seconds, len(worker.tasks))
