"""Between the data plane's own types and the wire contract's messages."""

from __future__ import annotations

from dataclasses import asdict

from services.model.base import CacheStats
from transfer.endpoint import TransferEndpoint
from transfer.engines.base import EngineAddress
from transfer.pool import SlotLocation
from triptych_proto.control_pb2 import Cache, Input, Pool, Slot
from triptych_proto.control_pb2 import Choice as ChoiceMessage
from triptych_proto.control_pb2 import Traffic as TrafficMessage
from triptych_proto.control_pb2 import TransferEndpoint as EndpointMessage


def slot_message(location: SlotLocation) -> Slot:
    return Slot(
        arena=location.arena,
        offset=location.offset,
        length=location.length,
        generation=location.generation,
        checksum=location.checksum,
        manifest=location.manifest,
    )


def slot_location(slot: Slot) -> SlotLocation:
    return SlotLocation(slot.arena, slot.offset, slot.length, slot.generation, slot.checksum, slot.manifest)


def endpoint_messages(endpoint: TransferEndpoint) -> list[EndpointMessage]:
    return [EndpointMessage(engine=a.engine, address=a.address, scope=a.scope) for a in endpoint.addresses]


def engine_addresses(source: Input) -> tuple[EngineAddress, ...]:
    return tuple(EngineAddress(e.engine, e.address, e.scope) for e in source.endpoints)


def traffic_messages(endpoint: TransferEndpoint) -> list[TrafficMessage]:
    return [TrafficMessage(**asdict(total)) for total in endpoint.traffic]


def choice_messages(endpoint: TransferEndpoint) -> list[ChoiceMessage]:
    return [
        ChoiceMessage(url=str(url), engine=choice.engine, reason=choice.reason)
        for url, choice in endpoint.choices.items()
    ]


def cache_message(stats: CacheStats | None) -> Cache | None:
    return Cache(**asdict(stats)) if stats is not None else None


def pool_messages(endpoint: TransferEndpoint) -> list[Pool]:
    messages = []
    for pool in endpoint.pools:
        stats = pool.stats()
        messages.append(
            Pool(
                name=pool.name,
                bytes=stats.bytes,
                free_bytes=stats.free_bytes,
                slots_in_use=stats.slots_in_use,
                waiting=stats.waiting,
            )
        )
    return messages
