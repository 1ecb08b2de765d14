"""Many guides behind one proxy, on Ray Serve: `python -m demos.ray_serve --engine http://127.0.0.1:8000 --guides 4`.

One replica is the proxy with the large model's vision tower; guides are replicas of their own, each on a GPU where
there are GPUs, and take what waits as a batch. `--model` and `--guide` are directories or ids that every machine can
read; without them the bundled pair is served. Needs `pip install 'vlmprune[vllm]' 'ray[serve]'`; `RAY_ADDRESS` names a
cluster.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import ray
import torch
from ray import serve

from vlmprune.harness.models import load_models, make
from vlmprune.serving import Encoder
from vlmprune.serving.chat import Chat, Limits
from vlmprune.serving.encoded import Ranking
from vlmprune.serving.proxy import ProxySettings, create_app


def encoder(model: str | None, guide: str | None, keep: float) -> Encoder:
    """Tower, guide and method, read by the process that calls it."""
    pair = load_models(None, guide, trust_remote_code=False)
    method = make("sgl", pair, keep=keep)
    return Encoder(pair.model, method, processor=pair.processor) if model is None else Encoder(model, method)


class GuideWorker:
    """One guide."""

    def __init__(self, *models: Any) -> None:
        self.encoder, self.limits = encoder(*models), Limits()

    @serve.batch(max_batch_size=8, batch_wait_timeout_s=0.0)
    async def rank(self, chats: list[Chat], longest: list[int], exits: list[bool]) -> list[Ranking]:
        """Of every conversation; those of a batch that differ in how they are to be answered are asked apart."""
        found: dict[int, Ranking] = {}
        for kind in set(zip(longest, exits, strict=True)):
            rows = [row for row, own in enumerate(zip(longest, exits, strict=True)) if own == kind]
            talks = [chats[row].talk(self.limits.pixels) for row in rows]
            inputs = self.encoder.inputs(talks, guide=True)
            made = self.encoder.rank_inputs(inputs, max_new_tokens=kind[0], exits=kind[1])
            found |= dict(zip(rows, made, strict=True))
        return [found[row] for row in range(len(chats))]


@serve.ingress()
class GuidedProxy:
    """The proxy, whose guides are replicas behind a handle."""

    def __init__(self, guides: Any, settings: ProxySettings, *models: Any) -> None:
        self.guides, self.settings, self.models = guides, settings, models

    def __serve_build_asgi_app__(self) -> Any:  # in the replica: locks and the engine's client do not travel
        async def rank(chat: Chat, longest: int, exits: bool) -> Ranking:
            ranking: Ranking = await self.guides.rank.remote(chat, longest, exits)
            return ranking

        return create_app(encoder(*self.models), self.settings, rank=rank)


def deployed(settings: ProxySettings, guides: int, *models: Any) -> Any:
    """What `serve.run` takes: the proxy, bound to so many guides."""
    gpu = int(torch.cuda.is_available())
    own = {"num_cpus": 1, "num_gpus": gpu}
    workers: Any = serve.deployment(num_replicas=guides, max_ongoing_requests=32, ray_actor_options=own)(GuideWorker)
    proxy: Any = serve.deployment(max_ongoing_requests=settings.limits.requests, ray_actor_options=own)(GuidedProxy)
    return proxy.bind(workers.bind(*models), settings, *models)


def main() -> None:
    """Serve until Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", required=True)
    parser.add_argument("--model")
    parser.add_argument("--guide")
    parser.add_argument("--guides", type=int, default=2)
    parser.add_argument("--keep", type=float, default=0.25)
    parser.add_argument("--exit-at", type=float)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8001)
    given = parser.parse_args()
    if not ray.is_initialized():
        ray.init(include_dashboard=False)
    serve.start(http_options={"host": given.host, "port": given.port})
    settings = ProxySettings(given.engine, exit_at=given.exit_at)
    serve.run(deployed(settings, given.guides, given.model, given.guide, given.keep), name="vlmprune")
    print(f"listening on http://{given.host}:{given.port}/v1")
    while True:
        time.sleep(3600)


if __name__ == "__main__":
    main()
