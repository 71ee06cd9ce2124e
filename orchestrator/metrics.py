"""Prometheus metrics of the orchestrator. No request ids and no prompts as labels."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram

SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 60, 120, 300, 600, 1800)


class Metrics:
    """Counters and histograms, filled as things happen."""

    def __init__(self) -> None:
        self.registry = at = CollectorRegistry()
        self.requests = Counter(
            "triptych_requests_total",
            "Finished requests by model and status.",
            ("model", "status"),
            registry=at,
        )
        self.request_seconds = Histogram(
            "triptych_request_duration_seconds",
            "From acceptance to the end.",
            ("model",),
            buckets=SECONDS,
            registry=at,
        )
        self.queue_seconds = Histogram(
            "triptych_queue_duration_seconds",
            "Waiting for instances, all stages.",
            ("model",),
            buckets=SECONDS,
            registry=at,
        )
        self.stage_seconds = Histogram(
            "triptych_stage_duration_seconds",
            "Computing, by stage.",
            ("stage",),
            buckets=SECONDS,
            registry=at,
        )
        self.batch_size = Histogram(
            "triptych_batch_size",
            "Tasks that shared a loop, as each of them counts them.",
            ("stage",),
            buckets=(1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64),
            registry=at,
        )
        self.transfer_bytes = Counter(
            "triptych_transfer_bytes_total", "Tensor bytes read from peers.", ("edge", "backend"), registry=at
        )
        self.transfer_seconds = Histogram(
            "triptych_transfer_duration_seconds",
            "One read from a peer.",
            ("edge", "backend"),
            buckets=(0.0003, 0.001, 0.003, *SECONDS),
            registry=at,
        )
        self.retries = Counter(
            "triptych_stage_retries_total",
            "Stages that had to run again, by reason.",
            ("stage", "reason"),
            registry=at,
        )
