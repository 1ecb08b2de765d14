"""What the proxy counts, for Prometheus; a registry of its own, so that several proxies of a process do not mix."""

from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_MILLISECONDS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 30_000)


class Metrics:
    """Counters and histograms of one proxy."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        counter = partial(Counter, registry=self.registry)
        timer = partial(Histogram, buckets=_MILLISECONDS, registry=self.registry)
        self.requests = counter("vlmprune_requests", "Requests by HTTP status", ["status"])
        self.exits = counter("vlmprune_exits", "Requests that the guide answered alone")
        self.tokens_in = counter("vlmprune_visual_tokens_in", "Visual tokens before pruning")
        self.tokens_kept = counter("vlmprune_visual_tokens_kept", "Visual tokens sent on")
        self.kept_choices = counter("vlmprune_kept_choices", "Images sent on as in an earlier turn")
        self.remembered = Gauge("vlmprune_remembered_bytes", "Of images and choices", registry=self.registry)
        self.broken_streams = counter("vlmprune_broken_streams", "Streams that engine or client ended early", ["by"])
        self.in_flight = Gauge("vlmprune_requests_in_flight", "Open requests", registry=self.registry)
        self.guide = timer("vlmprune_guide_milliseconds", "Guide, its queue included")
        self.vision = timer("vlmprune_vision_milliseconds", "Vision tower, its queue included")
