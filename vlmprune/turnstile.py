"""One call at a time through a wrapped model: concurrent calls wait, they are never mixed up."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Turnstile:
    """Held for a whole `generate`, or for a single forward outside of one.

    Not a plain lock: a forward enters and leaves through two hooks, and Ctrl-C between them runs no second hook. The
    same thread may therefore enter again, and a thread that is gone holds nothing.
    """

    def __init__(self) -> None:
        self._free = threading.Condition()
        self._owner: threading.Thread | None = None
        self._generating = False

    def enter(self) -> None:
        me = threading.current_thread()
        with self._free:
            while self._owner is not None and self._owner is not me and self._owner.is_alive():
                self._free.wait(timeout=1.0)
            if self._owner is not me:
                self._owner, self._generating = me, False

    def leave(self) -> None:
        """End a forward; inside a `generate` of this thread the turnstile stays held."""
        if not self._generating:
            self._release()

    def _release(self) -> None:
        with self._free:
            if self._owner is threading.current_thread():
                self._owner, self._generating = None, False
                self._free.notify()

    @contextmanager
    def generating(self) -> Iterator[None]:
        self.enter()
        before, self._generating = self._generating, True
        try:
            yield
        finally:
            self._generating = before
            self.leave()
