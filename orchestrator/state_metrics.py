"""Prometheus metrics of the present state, read when somebody asks: they are never out of date."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from orchestrator.graph import GENERATION
from orchestrator.peers import Peers, State
from orchestrator.scheduler import Scheduler

Row = tuple[str, str, dict[str, str], float]  # name, help text, labels, value

POOLS = (
    ("bytes", "Size of a slot pool."),
    ("free_bytes", "Free bytes of a slot pool."),
    ("slots_in_use", "Slots of a pool that are taken."),
    ("waiting", "Tasks that wait for room in a pool."),
)
TRAFFIC = (
    ("bytes", "Tensor bytes moved by a role, read from peers (in) or put into slots (out)."),
    ("seconds", "Time that took."),
    ("count", "Reads or puts that succeeded."),
    ("failures", "Reads or puts that failed."),
)
CACHE = (
    ("hits_total", "hits", "Texts that a text encoder of this role need not encode again."),
    ("misses_total", "misses", "Texts that a text encoder of this role encoded."),
    ("evictions_total", "evictions", "Entries that made room for others."),
    ("entries", "entries", "Outputs of text encoders that are kept."),
    ("bytes", "bytes", "Memory they take up."),
    ("limit_bytes", "limit_bytes", "Memory they may take up."),
)


class StateCollector(Collector):
    """Rows of one name have equal label names; names that end in ``_total`` are counters."""

    def __init__(self, scheduler: Scheduler, peers: Peers) -> None:
        self._scheduler = scheduler
        self._peers = peers

    def collect(self) -> Iterable[Metric]:
        families: dict[str, GaugeMetricFamily | CounterMetricFamily] = {}
        for name, text, labels, value in self._rows():
            family = families.get(name)
            if family is None:
                kind = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
                family = families[name] = kind(name, text, labels=list(labels))
            family.add_metric(list(labels.values()), value)
        return families.values()

    def _rows(self) -> Iterator[Row]:
        yield "triptych_requests_in_flight", "Accepted and not over.", {}, len(self._scheduler.active)
        yield from self._stages()
        yield from self._workers()
        yield from self._data_plane()

    def _stages(self) -> Iterator[Row]:
        queued: Counter[str] = Counter()
        for (role, _), depth in self._scheduler.dispatcher.depths():
            queued[role] += depth
        running: Counter[str] = Counter()
        for life in self._peers.lives():
            running[life.role] += len(life.tasks)
        for stage in GENERATION.stages:
            labels = {"stage": stage.name}
            yield "triptych_stage_queue_depth", "Ready and waiting for room.", labels, queued[stage.role]
            yield "triptych_stage_running", "Given to an instance.", labels, running[stage.role]

    def _workers(self) -> Iterator[Row]:
        found = Counter((peer.role, peer.state) for peer in self._peers.values())
        for role in GENERATION.roles:
            for state in State:
                labels = {"role": role, "state": state.value}
                yield "triptych_workers", "Configured roles by state.", labels, found[role, state]

    def _data_plane(self) -> Iterator[Row]:
        for life in self._peers.lives():
            who = {"role": life.role, "url": str(life.url)}
            for pool in life.pools:
                for name, text in POOLS:
                    yield f"triptych_pool_{name}", text, {**who, "pool": pool.name}, getattr(pool, name)
            for traffic in life.traffic:
                labels = {**who, "engine": traffic.engine, "direction": traffic.direction}
                for name, text in TRAFFIC:
                    yield f"triptych_role_transfer_{name}_total", text, labels, getattr(traffic, name)
            if life.embedding_cache is not None:
                for name, field, text in CACHE:
                    value = getattr(life.embedding_cache, field)
                    yield f"triptych_embedding_cache_{name}", text, who, value
            yield "triptych_peak_memory_bytes", "Largest resident memory of a role.", who, life.resident_bytes
