"""Starting and ending the demo."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from .conftest import Served, need, start
from .support import SETTINGS, questions
from .visitor import Visitor

TIMED = os.environ.get("VLMPRUNE_TIMED") == "1"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "vlmprune", "demo", *arguments], capture_output=True, text=True, timeout=120, check=False
    )


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


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
        (("--port", "0"), "--port 0 is no port"),
        (("--port", "70000"), "--port 70000 is no port"),
        (("--model", "/nowhere"), "'/nowhere' is no directory"),
        (("--host", "300.1.1.1"), "300.1.1.1"),
    ],
)
def test_bad_options_are_one_line(arguments: tuple[str, ...], says: str) -> None:
    need("gradio")
    done = run(*arguments)
    assert done.returncode == 2
    assert says in done.stderr
    assert done.stderr.count("\n") == 1


def test_without_gradio_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    from vlmprune import VlmpruneError
    from vlmprune.demo.app import check_gradio

    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(VlmpruneError, match=r"pip install 'vlmprune\[demo\]'"):
        check_gradio()


def test_nothing_imports_gradio_before_the_demo() -> None:
    code = "import sys, vlmprune.cli; sys.exit('gradio' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.skipif(not TIMED, reason="seconds say nothing beside other tests; .ci/run sets VLMPRUNE_TIMED=1")
def test_cold_start_and_an_answer_take_no_longer_than_promised(browser: Any, tmp_path: Path) -> None:
    began = time.monotonic()
    served = start(tmp_path)
    try:
        page = browser.new_context().new_page()
        page.goto(served.url)
        page.wait_for_selector("#ask-go")
        visitor = Visitor(page)
        visitor.ask(questions()[0][1])
        first = time.monotonic() - began
        visitor.set_up(SETTINGS["fastv"])
        took = []
        for _, question in questions()[1:]:
            start_of_one = time.monotonic()
            visitor.ask(question)
            took.append(time.monotonic() - start_of_one)
    finally:
        served.stop()
    print(f"cold start to first answer {first:.1f} s (up after {served.seconds:.1f} s); answers {sorted(took)}")
    assert first <= 15
    assert sorted(took)[len(took) // 2] <= 2
