"""The files of finished jobs, wherever they are: on a disk that is seen here, in a store, with a decoder."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator
from pathlib import Path

import grpc

from orchestrator.call_errors import reason
from orchestrator.copies import Copies
from orchestrator.http.errors import ApiError
from orchestrator.jobs import Job
from orchestrator.outputs import Outputs
from orchestrator.peers import Peer, Peers
from orchestrator.previews import Previews
from transfer.urls import EndpointURL

log = logging.getLogger(__name__)


class FinishedFiles:
    """Finds, reads and removes them, with what was made of them."""

    def __init__(
        self,
        output_dir: Path,
        data_dir: Path,
        outputs: Outputs,
        peers: Peers,
        preview_bytes: int,
        max_remembered: int,
    ) -> None:
        """``output_dir`` is where decoders on this host, or on a shared disk, write; ``data_dir`` is for
        copies and previews; ``max_remembered`` files are still deleted when their decoder comes back.
        """
        self._output_dir = output_dir
        self._outputs = outputs
        self._peers = peers
        self._max_remembered = max_remembered
        self._to_delete: dict[str, Job] = {}  # of deleted jobs, whose decoder was not there
        # Not where decoders write: one of them may have the very folder, and removes what was copied; and the
        # names there are theirs to choose.
        self.copies = Copies(data_dir / "copies")
        self.previews = Previews(data_dir / "previews", preview_bytes, self.path, self.read)

    async def close(self) -> None:
        await self.previews.close()
        self._outputs.close()

    def path(self, job: Job) -> Path | None:
        """The finished file, if this host sees the disk it was written to, which it asks: not on the loop."""
        if job.file is None or job.file.store:
            return None
        path = self._output_dir / Path(job.file.name).name
        if job.file.hand_over:
            path = self.copies.path(job.file)
        try:
            return path if path.stat().st_size == job.file.bytes else None
        except OSError:
            return None

    async def read(self, job: Job, offset: int, length: int) -> AsyncGenerator[bytes, None]:
        """The file's bytes from its store or the decoder that wrote it. ApiError 503 when that is away, 404
        when the store has it no more.
        """
        if job.file is not None and job.file.store:
            async with contextlib.aclosing(self._outputs.read(job.file, offset, length)) as chunks:
                async for data in chunks:
                    yield data
            return
        if job.file is not None and job.file.hand_over:
            message = f"the file is with the orchestrator {job.owner}, whose data directory is not seen here"
            raise ApiError(503, message, code="file_unavailable")
        peer = self._decoder(job)
        if peer is None or job.file is None:
            message = f"the decoder {job.file_url} that holds the file is unknown here"
            raise ApiError(503, message, code="file_unavailable")
        try:
            async with contextlib.aclosing(peer.read_file(job.file.name, offset, length)) as chunks:
                async for data in chunks:
                    yield data
        except grpc.aio.AioRpcError as error:
            message = f"the decoder {job.file_url} that holds the file: {reason(error)}"
            raise ApiError(503, message, code="file_unavailable") from error

    async def link(self, job: Job, file_name: str) -> str | None:
        """Where a client gets it under that name from its store, if links are given."""
        return None if job.file is None else await self._outputs.link(job.file, file_name)

    async def delete(self, job: Job) -> None:
        """Its file and its previews. What cannot be reached now is deleted when its decoder is back."""
        await self.previews.discard(job.id)
        if job.file is not None and job.file.store:
            await self._outputs.remove(job.file)
            return
        path = await asyncio.to_thread(self.path, job)
        peer = self._decoder(job)
        try:
            if path is not None:
                await asyncio.to_thread(path.unlink, missing_ok=True)
            elif job.file is not None and not job.file.hand_over and peer is not None:
                await peer.delete_file(job.file.name)
        except (OSError, grpc.aio.AioRpcError) as error:
            why = reason(error) if isinstance(error, grpc.aio.AioRpcError) else error
            log.warning("job=%s: its file is to be deleted when %s is back: %s", job.id, job.file_url, why)
            if len(self._to_delete) < self._max_remembered:
                self._to_delete[job.id] = job

    async def decoder_is_back(self, url: EndpointURL) -> None:
        """Deletes what could not be deleted while it was away."""
        for job in [job for job in self._to_delete.values() if job.file_url == str(url)]:
            if self._to_delete.pop(job.id, None) is not None:  # it may have come back twice meanwhile
                await self.delete(job)

    async def tidy(self, jobs: dict[str, Job]) -> None:
        """Removes previews and copies of jobs that an earlier life, or another orchestrator, has removed."""
        await self.previews.keep(jobs.keys())
        await self.copies.tidy(lambda name: _has_copy(jobs, name))

    def _decoder(self, job: Job) -> Peer | None:
        try:
            return self._peers.get(EndpointURL.parse(job.file_url))
        except ValueError:
            return None


def _has_copy(jobs: dict[str, Job], name: str) -> bool:
    """Whether a copy of this name is, or may become, that of one of the jobs."""
    job = jobs.get(name.partition("-")[0])
    if job is None or not job.status.final:
        return job is not None
    return job.file is not None and job.file.name == name
