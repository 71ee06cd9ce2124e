"""Fetches reference images that requests name by URL: from hosts that the operator allows, within limits."""

from __future__ import annotations

import asyncio

import aiohttp

from orchestrator.http.body import image_type
from orchestrator.http.errors import ApiError
from orchestrator.http.references import TYPES
from orchestrator.reference_memory import Share
from orchestrator.targets import TargetResolver, Targets

MAX_AT_ONCE = 16
ANY_TYPES = ("application/octet-stream", "binary/octet-stream")  # object stores say so of anything
CHUNK_BYTES = 64 << 10


class ReferenceFetcher:
    """For all requests of a server. Connections are made to the very addresses that were checked."""

    def __init__(self, targets: Targets | None, seconds: float) -> None:
        """``targets``: None: no request may name a URL. ``seconds`` are for one fetch, waiting included."""
        self._targets = targets
        self._seconds = seconds
        self._places = asyncio.Semaphore(MAX_AT_ONCE)

    async def fetch(self, name: str, url: str, max_bytes: int, share: Share) -> bytes:
        """The image at ``url``, which the field ``name`` has; ``share`` grows with it.

        Raises ApiError: 400 for a URL that is not allowed or has no image of at most ``max_bytes``, 429 when
        there is no memory for it.
        """
        if self._targets is None:
            message = f"{name}: URLs are not supported: this server was started without --reference-allow"
            raise ApiError(400, message, code="unsupported_field", param=name)
        try:
            self._targets.check(url)
            return await asyncio.wait_for(self._fetch(url, max_bytes, share), self._seconds)
        except asyncio.TimeoutError:
            reason = f"it was not there within {self._seconds:g} s"
        except aiohttp.ClientConnectorDNSError as error:
            reason = str(error.os_error)
        except (aiohttp.ClientError, OSError) as error:
            reason = f"{type(error).__name__}: {ascii(str(error))[:200]}"  # it may quote the other side
        except ValueError as error:
            reason = str(error)
        message = f"{name}: the image cannot be fetched: {reason}"
        raise ApiError(400, message, code="reference_unavailable", param=name)

    async def _fetch(self, url: str, max_bytes: int, share: Share) -> bytes:
        """Raises ValueError that says what is wrong with the reply."""
        assert self._targets is not None
        connector = aiohttp.TCPConnector(resolver=TargetResolver(self._targets), force_close=True)
        headers = {"User-Agent": "triptych", "Accept": ", ".join(TYPES), "Accept-Encoding": "identity"}
        async with (
            self._places,
            aiohttp.ClientSession(connector=connector, auto_decompress=False) as session,
            session.get(self._targets.check(url), headers=headers, allow_redirects=False) as reply,
        ):
            if reply.status in range(300, 400):
                raise ValueError(f"{reply.url.host} answered {reply.status}; redirects are not followed")
            if reply.status != 200:
                raise ValueError(f"{reply.url.host} answered {reply.status}")
            if "Content-Type" in reply.headers and reply.content_type not in (*TYPES, *ANY_TYPES):
                raise ValueError(f"its type is {ascii(reply.content_type)[:64]}, expected {', '.join(TYPES)}")
            if (reply.content_length or 0) > max_bytes:
                raise ValueError(f"it has more than {max_bytes} bytes")
            data = bytearray()
            async for piece in reply.content.iter_chunked(CHUNK_BYTES):
                if len(data) + len(piece) > max_bytes:
                    raise ValueError(f"it has more than {max_bytes} bytes")
                share.grow(len(piece))
                data += piece
                if len(data) >= 12 and image_type(data) is None:
                    break
        if image_type(data) is None:
            raise ValueError("it is not a PNG, JPEG or WebP file")
        return bytes(data)
