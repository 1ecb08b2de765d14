"""Work that comes from many requests at once: each stage has a thread of its own and takes what waits as a batch."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class Stage(Generic[T, R]):
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
        self._work, self._most, self._alike, self._weight, self._heaviest = work, most, alike, weight, heaviest
        self._queue: queue.SimpleQueue[tuple[T, Future[R]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=f"vlmprune-{name}", daemon=True)
        self._thread.start()

    def submit(self, item: T) -> Future[R]:
        """Queue an item; cancelling its future takes it out again unless its batch has begun."""
        future: Future[R] = Future()
        self._queue.put((item, future))
        return future

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def close(self) -> None:
        """Finish what is queued and end the thread."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        waiting: list[tuple[T, Future[R]]] = []
        open_ = True
        while open_ or waiting:
            # Whatever has come while the last batch ran; only an idle stage waits.
            while open_:
                try:
                    entry = self._queue.get(block=not waiting)
                except queue.Empty:
                    break
                if entry is None:
                    open_ = False
                else:
                    waiting.append(entry)
                del entry  # an idle stage would keep the last one's images
            waiting = [entry for entry in waiting if not entry[1].cancelled()]
            if waiting:
                waiting = self._batch(waiting)

    def _batch(self, waiting: list[tuple[T, Future[R]]]) -> list[tuple[T, Future[R]]]:
        """Run the first item and those like it; returns the others."""
        key = self._alike(waiting[0][0])
        batch: list[tuple[T, Future[R]]] = []
        others: list[tuple[T, Future[R]]] = []
        weight = 0
        for entry in waiting:
            more = weight + self._weight(entry[0])
            fits = not batch or (len(batch) < self._most and more <= self._heaviest and self._alike(entry[0]) == key)
            (batch if fits else others).append(entry)
            weight = more if fits else weight
        self._finish([entry for entry in batch if entry[1].set_running_or_notify_cancel()])
        return others

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
