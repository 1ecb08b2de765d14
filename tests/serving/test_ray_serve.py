"""Guides as replicas of Ray Serve behind one proxy: the same answers as with a guide in the proxy's process."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from typing import Any

import httpx
import pytest

from eval.serving.servers import free_port, serving
from tests.serving.support import ASKED, KEEP, chat, here, text_of
from tests.serving.tiny_engine import create
from tests.support.engines import picture
from tests.support.grid import only_by_hand
from vlmprune.serving.proxy import ProxySettings

pytestmark = pytest.mark.skipif(
    find_spec("ray") is None or find_spec("grpc") is None, reason="ray[serve] is not installed"
)


@only_by_hand  # a cluster of three replicas, which load torch each
@pytest.mark.timeout(900)
def test_two_guides_answer_as_one(pair: Any) -> None:
    import ray
    from ray import serve

    from demos.ray_serve import deployed

    expected = here(pair, "original", 0.0), here(pair, "original")
    passed = {name: os.environ[name] for name in ("OMP_NUM_THREADS", "PYTHONPATH") if name in os.environ}
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, runtime_env={"env_vars": passed})
    try:
        with serving(create()) as engine:
            serve.start(http_options={"host": "127.0.0.1", "port": (port := free_port())})
            serve.run(deployed(ProxySettings(engine), 2, None, None, KEEP), name="vlmprune")
            client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=600, trust_env=False)
            with client, ThreadPoolExecutor(8) as pool:
                bodies = [
                    chat(question, picture(number), **({"vlmprune": {"exit_at": 0.0}} if exits else {}))
                    for exits in (True, False)
                    for number, question in ASKED
                ]
                got = list(pool.map(lambda body: client.post("/v1/chat/completions", json=body), bodies))
                assert client.get("/ready").status_code == 200
                bad = client.post("/v1/chat/completions", json=chat("x", {"type": "image_url", "image_url": "x"}))
                assert bad.status_code == 400
                replicas = serve.status().applications["vlmprune"].deployments["GuideWorker"].replica_states
        assert [text_of(one) for one in got] == [text for half in expected for text, _ in half]
        assert ["x-vlmprune-exited" in one.headers for one in got] == [True] * len(ASKED) + [False] * len(ASKED)
        assert sum(replicas.values()) == 2
    finally:
        serve.shutdown()
        ray.shutdown()
