"""The page about vLLM: its commands lead from nothing to an answer of the bundled model."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from eval.provenance import ROOT
from eval.serving.servers import free_port, wait_for
from tests.support.grid import only_by_hand

PAGE = (ROOT / "docs/serving_vllm.md").read_text()
INSTALL, SERVE, ASK = re.findall(r"```bash\n(.+?)```", PAGE.split("## From nothing")[1], flags=re.DOTALL)


def test_it_installs_what_the_tests_run_with() -> None:
    """`.ci/vllm` makes the environment of the tests; the page may not say something else."""
    script, pins = (ROOT / ".ci/vllm").read_text(), (ROOT / "constraints.txt").read_text()
    lines = [shlex.split(line) for line in INSTALL.splitlines() if line.startswith("pip install ")]
    wanted = [word for line in lines for word in line[2:] if re.match(r"[a-z]", word) and not word.startswith("https:")]
    for word in wanted:
        name, _, version = word.partition("==")
        pinned = f"{word}\n" in pins if name == "torch" else not version or word in script
        assert pinned, word
        assert re.search(rf"\b{name}\b", script), word
    patch = INSTALL[INSTALL.index("line = (") : INSTALL.index("PYTHON\npip")]
    assert patch in script
    assert "pip uninstall -y torchaudio torchcodec" in INSTALL
    assert "uninstall -q -y torchaudio torchcodec" in script


@only_by_hand
@pytest.mark.vllm
def test_it_ends_in_an_answer(tmp_path: Path) -> None:
    """All but the installation, in the environment that `.ci/vllm` made."""
    pytest.importorskip("vllm")
    port, path = str(free_port()), f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    settings = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_LOGGING_LEVEL": "ERROR"}
    places = {"PATH": path, "PYTHONPATH": str(ROOT)}

    def shell(block: str) -> subprocess.Popen[str]:
        text = block.replace("8000", port).replace("vlmprune export-vllm", "python -m vlmprune export-vllm")
        return subprocess.Popen(
            ["bash", "-ec", text], cwd=tmp_path, env={**settings, **os.environ, **places}, text=True,
            stdout=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip

    server = shell(SERVE)
    try:
        wait_for(f"http://127.0.0.1:{port}/health", server)  # type: ignore[arg-type]  # of text, not bytes
        said, _ = shell(ASK).communicate(timeout=600)
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
    rows = [line.split(maxsplit=2) for line in said.splitlines()]
    whole, quarter, few = (int(tokens) for _, tokens, _ in rows)
    assert (whole - quarter, whole - few) == (196 - 49, 196 - 20)
    assert all(answer for _, _, answer in rows)
