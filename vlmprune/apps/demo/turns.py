"""The models' lock: one visitor at a time, in the order of arrival, and everyone can be told who is before them."""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class TurnLock:
    """A lock that is given in the order in which it was asked for; used as `with turns.wait():`."""

    def __init__(self) -> None:
        self._line: deque[object] = deque()  # who has the lock, then who waits for it
        self._moved = threading.Condition()

    @contextmanager
    def wait(self, say: Callable[[int], None] = lambda before: None) -> Iterator[None]:
        """Hold the lock within the block; `say` hears how many are before, at first and whenever that changes."""
        me = object()
        with self._moved:
            self._line.append(me)
        try:
            told = 0
            while before := self._before(me, told):
                told = before
                say(before)
            yield
        finally:
            with self._moved:
                self._line.remove(me)
                self._moved.notify_all()

    def _before(self, me: object, told: int) -> int:
        """How many are before `me`, as soon as that is another number than `told`."""
        with self._moved:
            self._moved.wait_for(lambda: self._line.index(me) != told or not told)
            return self._line.index(me)


ORDINALS = ("next", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth")


def in_words(before: int) -> str:
    """The place in the queue, for somebody with `before` others before them, one of whom is being answered."""
    if before == 1:
        return "One question is being answered; yours is next."
    place = ORDINALS[before - 1] if before <= len(ORDINALS) else f"number {before}"
    return f"Yours is {place} in the queue: {before} questions come before it."
