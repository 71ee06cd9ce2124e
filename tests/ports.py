"""Endpoint URLs of roles that are started, killed, and come back."""

from __future__ import annotations

from deploy.ports import free_port


def role_urls(counts: dict[str, int]) -> dict[str, list[str]]:
    """For so many roles of each kind."""
    return {role: [f"grpc://127.0.0.1:{free_port()}" for _ in range(count)] for role, count in counts.items()}
