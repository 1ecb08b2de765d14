"""Runs the groups of a stage in processes and hands on what they emit, until the stage's deadline.

This process must never touch the GPU: forked ones could not use it then. They come with everything imported.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from .stage import CUT, FAILED, GpuStage, Point, StageSetting, short

DONE = {"done": True}  # the last line of a group that came to its end


@dataclass
class _Running:
    group: str
    process: int
    buffer: bytes = b""
    done: bool = field(default=False)


def run_stage(stage: GpuStage, setting: StageSetting, take: Callable[[Point], None]) -> None:
    """Run all groups; `take` gets every point, those that were cut too."""
    waiting, running = list(stage.groups(setting.tiny)), dict[int, _Running]()
    try:
        while waiting or running:
            while waiting and len(running) < stage.side_by_side and setting.left() > 0:
                group = waiting.pop(0)
                process, pipe = _start(stage, group, setting)
                running[pipe] = _Running(group, process)
            if setting.left() <= 0:
                break
            for pipe in select.select(list(running), [], [], min(1.0, max(0.0, setting.left())))[0]:
                own = running[pipe]
                data = os.read(pipe, 1 << 16)
                own.buffer += data
                *lines, own.buffer = own.buffer.split(b"\n")
                for line in map(json.loads, lines):
                    own.done |= line == DONE
                    if line != DONE:
                        take({"group": own.group, **line})
                if own.done or not data:
                    status = _end(pipe, running.pop(pipe), hurry=own.done)
                    if not own.done:
                        said = f"the process ended by signal {-status}" if status < 0 else f"it exited with {status}"
                        take({"group": own.group, "point": "end of the group", "status": FAILED, "error": said})
        for group in [*(own.group for own in running.values()), *waiting]:
            take({"group": group, "point": "end of the group", "status": CUT, "error": "the stage's time was over"})
    finally:
        for pipe, own in running.items():
            _end(pipe, own, hurry=True)


def _start(stage: GpuStage, group: str, setting: StageSetting) -> tuple[int, int]:
    """Fork a process for a group: its id, and the pipe from which its points come."""
    source, sink = os.pipe()
    sys.stdout.flush()
    process = os.fork()
    if process:
        os.close(sink)
        return process, source
    status = 1
    try:
        os.setsid()  # whatever it starts ends with it
        os.close(source)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        _become(stage, group, setting, sink)
        run_group(stage, group, setting, sink)
        status = 0
    except BaseException:  # nothing else would say it
        traceback.print_exc()
    finally:
        os._exit(status)


def _become(stage: GpuStage, group: str, setting: StageSetting, sink: int) -> None:
    """A fork that cannot use the GPU, because something imported has looked for one, restarts Python."""
    if setting.device == "cpu" or not getattr(torch.cuda, "_is_in_bad_fork", lambda: False)():
        return
    os.set_inheritable(sink, True)
    order = json.dumps({"stage": stage.name, "group": group, "setting": asdict(setting), "sink": sink})
    os.execv(sys.executable, [sys.executable, "-m", "eval.gpu", "--order", order])


def run_group(stage: GpuStage, group: str, setting: StageSetting, sink: int) -> None:
    """Do a group's work in this process and write its points, a line of JSON each, to the pipe `sink`."""

    def emit(point: Any) -> None:
        data = (json.dumps(point) + "\n").encode()
        while data:
            data = data[os.write(sink, data) :]

    torch.set_num_threads(1)  # groups run side by side
    try:
        stage.run(group, setting, emit)
    except Exception as error:  # the record says what it was
        emit({"point": "end of the group", "status": FAILED, "error": short(error)})
    emit(DONE)


def _end(pipe: int, own: _Running, *, hurry: bool) -> int:
    """Close a group's pipe, end its process (at once where it is done) and all it started; its exit status."""
    os.close(pipe)
    if not hurry:
        for _ in range(50):
            done, status = os.waitpid(own.process, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.1)
    try:
        os.killpg(own.process, signal.SIGKILL)
    except ProcessLookupError:  # killed before it had a group of its own
        os.kill(own.process, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(own.process, 0)[1])
