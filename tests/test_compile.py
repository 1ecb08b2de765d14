"""Wrapped models under torch.compile: the same logits, and no more graph breaks than two a pruned layer."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.grid import only_full

ROOT = Path(__file__).parents[1]

# A process of its own: dynamo's counters and caches belong to a process, and other tests fill them.
CODE = """
import json, sys
import torch, vlmprune
from torch._dynamo.utils import counters
from tests.support.tiny_families import build, make_inputs

method, layers, backend = sys.argv[1], int(sys.argv[2]), sys.argv[3]
model = build("llava", layers=layers)
inputs = make_inputs(model)

def run():
    torch._dynamo.reset()
    counters.clear()
    with torch.no_grad():
        wanted = model(**inputs).logits
        got = torch.compile(model, backend=backend)(**inputs).logits
    return {"breaks": sum(counters["graph_break"].values()), "off": float((got - wanted).abs().max())}

plain = run()
with vlmprune.wrap(model, method, keep=0.4, layer=1):
    wrapped = run()
print(json.dumps({"plain": plain, "wrapped": wrapped}))
"""


def compiled(method: str, layers: int, backend: str, folder: Path) -> dict[str, dict[str, float]]:
    """Graph breaks and largest difference of the logits, unwrapped and wrapped.

    Inductor gets a `folder` of its own: a compiler that was ended half way leaves a torn library in the shared one.
    """
    command = [sys.executable, "-c", CODE, method, str(layers), backend]
    own = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(folder)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=own)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@only_full
def test_graph_breaks(tmp_path: Path) -> None:
    """Counted on 8 layers, 7 of them pruned, one read; dynamo breaks alike whatever compiles the graphs."""
    found = compiled("fastv", 8, "eager", tmp_path)
    assert found["wrapped"]["off"] < 1e-4
    assert found["wrapped"]["breaks"] <= found["plain"]["breaks"] + 2 * 7


@only_full  # a minute of an idle processor: inductor starts a C++ compiler for every graph
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
def test_inductor_computes_the_same(tmp_path: Path) -> None:
    found = compiled("uniform", 2, "inductor", tmp_path)
    assert found["plain"]["off"] < 1e-4
    assert found["wrapped"]["off"] < 1e-4
