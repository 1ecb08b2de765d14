"""Work that comes from many requests at once: each stage has a thread of its own and takes what waits as a batch."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class BatchWorker(Generic[T, R]):
    """A thread that turns items into results, as many at once as are waiting.

    Args:
        work: a batch of items to their results, in order. most: the largest batch. alike: items of one batch agree in
            this. weight: of an item; those of a batch weigh no more than `heaviest` together, unless it is one alone.
    """

    def __init__(
        self,
        name: str,
        work: Callable[[list[T]], list[R]],
        *,
        most: int = 8,
        alike: Callable[[T], Hashable] = lambda item: None,
        weight: Callable[[T], int] = lambda item: 0,
        heaviest: int = 0,
    ) -> None:
        self.name = name
        self._work, self._most, self._alike, self._weight, self._heaviest = work, most, alike, weight, heaviest
        self._waiting: list[tuple[T, Future[R]]] = []
        self._open = True
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name=f"vlmprune-{name}", daemon=True)
        self._thread.start()

    def submit(self, item: T) -> Future[R]:
        """Queue an item; cancelling its future lets go of it, unless its batch has begun."""
        future: Future[R] = Future()
        with self._changed:
            self._waiting.append((item, future))
            self._changed.notify()
        future.add_done_callback(self._let_go)
        return future

    def _let_go(self, future: Future[R]) -> None:
        if future.cancelled():  # at once: the batch that runs may take a minute, and meanwhile many may hang up
            with self._changed:
                self._waiting = [entry for entry in self._waiting if entry[1] is not future]

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def close(self) -> None:
        """Finish what is queued and end the thread."""
        with self._changed:
            self._open = False
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                # Whatever has come while the last batch ran; only an idle stage waits.
                self._changed.wait_for(lambda: self._waiting or not self._open)
                if not self._waiting:
                    return
                batch = self._next()
            self._finish(batch)
            del batch  # an idle stage would keep the last one's images

    def _next(self) -> list[tuple[T, Future[R]]]:
        """Take the first item that waits, and those like it."""
        key = self._alike(self._waiting[0][0])
        batch: list[tuple[T, Future[R]]] = []
        others: list[tuple[T, Future[R]]] = []
        weight = 0
        for entry in self._waiting:
            more = weight + self._weight(entry[0])
            fits = not batch or (len(batch) < self._most and more <= self._heaviest and self._alike(entry[0]) == key)
            (batch if fits else others).append(entry)
            weight = more if fits else weight
        self._waiting = others
        return [entry for entry in batch if entry[1].set_running_or_notify_cancel()]

    def _finish(self, batch: list[tuple[T, Future[R]]]) -> None:
        if not batch:
            return
        try:
            results: list[Any] = self._work([item for item, _ in batch])
        except Exception as error:
            if len(batch) == 1:
                batch[0][1].set_exception(error)
            else:  # one of them is to blame, and the others shall not suffer
                for entry in batch:
                    self._finish([entry])
            return
        for (_, future), result in zip(batch, results, strict=True):
            future.set_result(result)
