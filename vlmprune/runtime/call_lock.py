"""One call at a time through a model: concurrent calls wait, they are never mixed up."""

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn
from torch.utils.weak import WeakIdKeyDictionary

BASE, MODEL, GENERATE = range(3)  # how much of a call holds it: a forward of the base model, of the model, all steps


class CallLock:
    """Held for a whole `generate`, or for a single forward outside of one; threads enter in the order they came in.

    Not a plain lock: a shorter call passes inside a longer one of the same thread, whoever waits first enters first,
    and a thread that is gone holds nothing.
    """

    def __init__(self) -> None:
        self.sessions: list[Any] = []  # what is on the model, in the order in which it came
        self._changed = threading.Condition()
        self._waiting: deque[object] = deque()
        self._owner: threading.Thread | None = None
        self._level = BASE

    def enter(self, level: int = BASE) -> None:
        """Wait until no other thread is inside; inside a longer call of this thread, which goes on holding it, pass."""
        me = threading.current_thread()
        if self._owner is me and level < self._level:
            return
        ticket = object()
        with self._changed:
            self._waiting.append(ticket)
            try:
                while (owner := self._owner) is not me:
                    if (owner is None or not owner.is_alive()) and self._waiting[0] is ticket:
                        break
                    # A second, because nobody tells that a thread has died.
                    self._changed.wait(timeout=1.0)
                self._owner, self._level = me, level
            finally:
                self._waiting.remove(ticket)
                self._changed.notify_all()

    def leave(self, level: int = BASE) -> None:
        """End a call; inside a longer one of this thread the lock stays held."""
        with self._changed:
            if self._owner is threading.current_thread() and self._level == level:
                self._owner = None
                self._changed.notify_all()

    @contextmanager
    def generating(self) -> Iterator[None]:
        """Held within the block, which may lie inside any other call of this thread."""
        outer = self._level if self._owner is threading.current_thread() else None
        self.enter(GENERATE)
        try:
            yield
        finally:
            if outer is None:
                self.leave(GENERATE)
            else:
                self._level = outer


_locks: Any = WeakIdKeyDictionary()
_guard = threading.Lock()


def call_lock_of(model: nn.Module) -> CallLock:
    """The one of a model: all that is put on it shares it, so that two sessions never wait for each other."""
    with _guard:
        found: CallLock = _locks.setdefault(model, CallLock())
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
