"""Work that comes from many requests at once: each stage has a thread of its own and takes what waits as a batch."""

import asyncio
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class BatchWorker(Generic[T, R]):
    """Turns items into results, as many at once as are waiting; used on one event loop.

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
        self._waiting: dict[asyncio.Future[R], T] = {}
        self._thread = ThreadPoolExecutor(1, f"vlmprune-{name}")
        self._running: asyncio.Task[None] | None = None

    async def result(self, item: T) -> R:
        """Of an item; whoever gives up waiting takes it out of the queue, unless its batch has begun."""
        future: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._waiting[future] = item
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._run())
        del item  # the queue has it
        try:
            return await future
        finally:
            self._waiting.pop(future, None)

    async def _run(self) -> None:
        while self._waiting:
            await self._finish(self._next())

    def _next(self) -> dict[asyncio.Future[R], T]:
        """Take the first item that waits, and those like it."""
        batch: dict[asyncio.Future[R], T] = {}
        key, weight = self._alike(next(iter(self._waiting.values()))), 0
        for future, item in list(self._waiting.items()):
            more = weight + self._weight(item)
            if not batch or (len(batch) < self._most and more <= self._heaviest and self._alike(item) == key):
                batch[future], weight = self._waiting.pop(future), more
        return batch

    async def _finish(self, batch: dict[asyncio.Future[R], T]) -> None:
        items = list(batch.values())
        try:
            results = await asyncio.get_running_loop().run_in_executor(self._thread, self._work, items)
        except Exception as error:
            if len(batch) > 1:  # one of them is to blame, and the others shall not suffer
                for future, item in batch.items():
                    await self._finish({future: item})
            else:
                for future in batch:
                    if not future.done():
                        future.set_exception(error)
            return
        for future, result in zip(batch, results, strict=True):
            if not future.done():
                future.set_result(result)
