"""State of which every thread has its own: the one place of the package that holds any."""

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class PerThread(Generic[T]):
    """One `T` for each thread, made when the thread first asks for it."""

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._local = threading.local()

    @property
    def own(self) -> T:
        """This thread's."""
        try:
            value: T = self._local.value
        except AttributeError:
            value = self._local.value = self._make()
        return value
