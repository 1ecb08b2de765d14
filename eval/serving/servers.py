"""vLLM's own server of a model, and an application in a thread, while a block runs: for benchmarks and tests."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from eval.provenance import ROOT

if TYPE_CHECKING:
    from fastapi import FastAPI

Process = subprocess.Popen[bytes]


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def wait_for(url: str, process: Process | None = None, seconds: float = 900) -> None:
    """Until a server answers, which takes minutes where the machine is busy.

    Raises:
        RuntimeError: its process ended, or the time is up.
    """
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if process is not None and process.poll() is not None:
            raise RuntimeError(f"the server of {url} ended with {process.returncode}")
        try:
            if httpx.get(url, timeout=60, trust_env=False).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.1)
    raise RuntimeError(f"{url} did not answer in {seconds} seconds")


@contextmanager
def serving(app: FastAPI) -> Iterator[str]:
    """The address of an application that a thread of this process serves."""
    import uvicorn

    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="warning", timeout_graceful_shutdown=5))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    end = time.monotonic() + 600
    while not server.started:
        if not thread.is_alive() or time.monotonic() > end:
            raise RuntimeError("the server did not start")
        time.sleep(0.02)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


@contextmanager
def vllm_server(folder: Path, *arguments: str, log: Path | None = None) -> Iterator[tuple[str, Process]]:
    """The address and process of vLLM's own server of a model; `log`: where its output goes, all of it."""
    port = free_port()
    quiet = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    quiet |= {} if log else {"VLLM_LOGGING_LEVEL": "ERROR"}
    # `vllm serve` of the CPU build looks for a distribution named vllm, which that one is not.
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder), "--port", str(port),
        "--served-model-name", "tiny", "--dtype", "float32", "--enforce-eager", "--max-model-len", "2048",
        "--max-num-seqs", "16", "--block-size", "32", *arguments,
    ]  # fmt: skip
    more: dict[str, Any] = {"cwd": ROOT, "env": {**quiet, **os.environ}, "start_new_session": True}
    if log is not None:
        with log.open("w") as out:
            process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, **more)
    else:
        process = subprocess.Popen(command, **more)
    try:
        wait_for(f"http://127.0.0.1:{port}/health", process)
        yield f"http://127.0.0.1:{port}", process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)  # a session of its own: the server and its workers
        process.wait()
