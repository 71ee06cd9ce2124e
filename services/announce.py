"""A role that says to its orchestrators that it is there, instead of being listed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

import aiohttp

from services.role import Role
from transfer.urls import EndpointURL

log = logging.getLogger(__name__)

ALONE_SECONDS = 1.0  # between two announcements while no orchestrator is attached
ATTACHED_SECONDS = 10.0  # while one is: only one that has restarted, or further ones, need to hear of us
REPLY_SECONDS = 5.0


async def announce(
    url: EndpointURL,
    role: Role,
    orchestrators: Sequence[str],
    token: str | None,
    attached: Callable[[], bool],
) -> None:
    """Posts to each orchestrator's ``/v1/peers``, for ever; says in the log what changes."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    timeout = aiohttp.ClientTimeout(total=REPLY_SECONDS)
    outcomes: dict[str, str] = {}
    async with aiohttp.ClientSession(timeout=timeout, headers=headers) as session:
        while True:
            replies = [_post(session, orchestrator, url, role) for orchestrator in orchestrators]
            for orchestrator, outcome in zip(orchestrators, await asyncio.gather(*replies), strict=True):
                if outcomes.get(orchestrator) != outcome:
                    level = logging.WARNING if outcome else logging.INFO
                    log.log(level, "announcing %s to %s: %s", url, orchestrator, outcome or "heard")
                outcomes[orchestrator] = outcome
            await asyncio.sleep(ATTACHED_SECONDS if attached() else ALONE_SECONDS)


async def _post(session: aiohttp.ClientSession, orchestrator: str, url: EndpointURL, role: Role) -> str:
    """Why it was not heard, or nothing."""
    body = {"url": str(url), "role": role.value}
    try:
        async with session.post(f"{orchestrator.rstrip('/')}/v1/peers", json=body) as reply:
            if reply.status == 200:
                return ""
            return f"status {reply.status}: {(await reply.text())[:300]}"
    except (aiohttp.ClientError, asyncio.TimeoutError, ValueError) as error:
        return f"not reachable: {error or type(error).__name__}"
