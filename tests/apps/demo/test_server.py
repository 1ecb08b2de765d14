"""Starting and ending the demo."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from eval.serving.servers import free_port
from tests.support.commands import refused
from tests.support.grid import only_by_hand, only_full

from .conftest import PATIENCE, ROOT, Served, need, start


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "vlmprune", "demo", *arguments], capture_output=True, text=True, check=False
    )


@only_full
def test_it_listens_on_loopback_alone_and_ctrl_c_ends_it(tmp_path: Path) -> None:
    need("gradio")
    port = free_port()
    served = start(tmp_path, "--port", str(port))
    assert served.url == f"http://127.0.0.1:{port}/"
    listening = [
        line.split()[1]
        for line in Path(f"/proc/{served.process.pid}/net/tcp").read_text().splitlines()[1:]
        if line.split()[3] == "0A" and line.split()[1].endswith(f":{port:04X}")
    ]
    assert listening == [f"0100007F:{port:04X}"]
    assert [one for one in tmp_path.iterdir() if one.name.startswith("vlmprune-demo-")], "uploads lie in TMPDIR"
    assert served.stop() == 0
    said = served.log.read_text()
    assert said.endswith("vlmprune: stopped\n")
    assert "Traceback" not in said
    assert not [one for one in tmp_path.iterdir() if one.name.startswith("vlmprune-demo-")]
    with socket.socket() as one:
        assert one.connect_ex(("127.0.0.1", port)) != 0


@only_by_hand
def test_the_script_of_hosts_listens_where_it_is_told(tmp_path: Path) -> None:
    """`demos/app.py`, as a host of Gradio apps starts and ends it."""
    need("gradio")
    port = free_port()
    told = {"GRADIO_SERVER_NAME": "0.0.0.0", "GRADIO_SERVER_PORT": str(port), "TMPDIR": str(tmp_path)}
    process = subprocess.Popen(
        [sys.executable, ROOT / "demos" / "app.py"],
        env={**os.environ, "PYTHONPATH": str(ROOT), **told},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert f":{port}/" in process.stdout.readline()
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=PATIENCE) as response:
            assert response.status == 200
        process.terminate()
        assert process.wait(timeout=PATIENCE) == 0
    finally:
        process.kill()


@only_full
def test_a_taken_port_is_one_line(demo: Served) -> None:
    taken = demo.url.rstrip("/").rpartition(":")[2]
    done = run("--port", taken)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert f"port {taken}" in done.stderr
    assert "choose another --host or --port" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--port", "0"), "'--port': must be a number from 1 to 65,535, got '0'"),
        (("--port", "70000"), "'--port': must be a number from 1 to 65,535, got '70000'"),
        (("--model", "/nowhere"), "got '/nowhere'"),
        (("--host", "300.1.1.1"), "300.1.1.1"),
    ],
)
def test_bad_options_are_one_line(arguments: tuple[str, ...], says: str) -> None:
    need("gradio")
    assert says in refused("demo", *arguments)


def test_without_gradio_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    from vlmprune import VlmpruneError
    from vlmprune.apps.demo.app import check_gradio

    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(VlmpruneError, match=r"pip install 'vlmprune\[demo\]'"):
        check_gradio()
