"""One call at a time through a model: concurrent calls wait, they are never mixed up."""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import Any

from torch import nn
from torch.utils.weak import WeakIdKeyDictionary

BASE, MODEL, GENERATE = range(3)  # how much of a call holds it: a forward of the base model, of the model, all steps
_MODULE_CODE = nn.Module._call_impl.__code__.co_filename


class CallLock:
    """Held for a whole `generate`, or for a single forward outside of one; threads enter in the order they came in.

    Not a plain lock: a forward enters and leaves through two hooks, and Ctrl-C between them runs no second hook. The
    same thread may therefore enter again; a thread that is gone holds nothing, nor does one whose forward is no longer
    on its stack.
    """

    def __init__(self) -> None:
        self.sessions: list[Any] = []  # what is on the model, in the order in which it came
        self._changed = threading.Condition()
        self._waiting: deque[object] = deque()
        self._owner: threading.Thread | None = None
        self._level = BASE
        self._frame: int | None = None  # of the forward that holds it, where that is known

    def enter(self, level: int = BASE) -> None:
        """Wait until no other thread is inside; inside a longer call of this thread, which goes on holding it, pass."""
        me = threading.current_thread()
        if self._owner is me and level < self._level and self._holds(me):
            return
        ticket = object()
        with self._changed:
            self._waiting.append(ticket)
            try:
                while not self._free(me) or (self._owner is not me and self._waiting[0] is not ticket):
                    # A second, because nobody tells that a thread has died.
                    self._changed.wait(timeout=1.0)
                self._owner, self._level, self._frame = me, level, _forward_of(sys._getframe(), level)
            finally:
                self._waiting.remove(ticket)
                self._changed.notify_all()

    def leave(self, level: int = BASE) -> None:
        """End a call; inside a longer one of this thread the lock stays held."""
        with self._changed:
            if self._owner is threading.current_thread() and self._level == level:
                self._owner, self._frame = None, None
                self._changed.notify_all()

    def _free(self, me: threading.Thread) -> bool:
        return self._owner is None or self._owner is me or not self._holds(self._owner)

    def _holds(self, owner: threading.Thread) -> bool:
        """Whether the call that entered is still running."""
        if not owner.is_alive():
            return False
        if self._frame is None:
            return True
        frame = sys._current_frames().get(owner.ident or 0)
        while frame is not None:
            if id(frame) == self._frame:
                return True
            frame = frame.f_back
        return False

    @contextmanager
    def generating(self) -> Iterator[None]:
        """Held within the block, which may lie inside any other call of this thread."""
        me = threading.current_thread()
        if self._owner is me and self._holds(me):
            outer = self._level, self._frame
            self._level, self._frame = GENERATE, None
            try:
                yield
            finally:
                self._level, self._frame = outer
            return
        self.enter(GENERATE)
        try:
            yield
        finally:
            self.leave(GENERATE)


def _forward_of(frame: FrameType | None, level: int) -> int | None:
    """Identity of the frame in which the module that a hook belongs to is called; a `generate` needs none."""
    while frame is not None and level != GENERATE:
        if frame.f_code.co_filename == _MODULE_CODE and frame.f_code.co_name == "_call_impl":
            return id(frame)
        frame = frame.f_back
    return None


_locks: Any = WeakIdKeyDictionary()
_guard = threading.Lock()


def call_lock_of(model: nn.Module) -> CallLock:
    """The one of a model: all that is put on it shares it, so that two sessions never wait for each other."""
    with _guard:
        if model not in _locks:
            _locks[model] = CallLock()
        found: CallLock = _locks[model]
        return found


@contextmanager
def bare(model: nn.Module) -> Iterator[None]:
    """Within the block a model, wrapped or not, is plain for this thread; other threads' calls wait."""
    lock = call_lock_of(model)
    with lock.generating(), ExitStack() as stack:
        for session in lock.sessions:
            stack.enter_context(session.calls.bypass())
        yield


@contextmanager
def attached(session: Any) -> Iterator[None]:
    """Within the block a session is on its model, alone: whatever wraps it sleeps, and other threads' calls wait."""
    with bare(session.model):
        session.attach()
        try:
            yield
        finally:
            session.detach()
