"""What the proxy counts, for Prometheus; a registry of its own, so that several proxies of a process do not mix."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_MILLISECONDS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 30_000)


class Metrics:
    """Counters and histograms of one proxy."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter("vlmprune_requests", "Requests by HTTP status", ["status"], registry=registry)
        self.exits = Counter("vlmprune_exits", "Requests that the guide answered alone", registry=registry)
        self.tokens_in = Counter("vlmprune_visual_tokens_in", "Visual tokens before pruning", registry=registry)
        self.tokens_kept = Counter("vlmprune_visual_tokens_kept", "Visual tokens sent on", registry=registry)
        self.in_flight = Gauge("vlmprune_requests_in_flight", "Requests in the house", registry=registry)
        self.guide = Histogram(
            "vlmprune_guide_milliseconds", "Guide, its queue included", buckets=_MILLISECONDS, registry=registry
        )
        self.vision = Histogram(
            "vlmprune_vision_milliseconds",
            "Vision tower, its queue included",
            buckets=_MILLISECONDS,
            registry=registry,
        )
        self.broken_streams = Counter(
            "vlmprune_broken_streams", "Streams that the engine or the client ended early", ["by"], registry=registry
        )

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return bytes(generate_latest(self.registry))
