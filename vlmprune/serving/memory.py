"""What is kept of earlier requests, so that the same need not be computed twice."""

import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Any


class Memory:
    """Values by their keys, at most so many bytes; those used longest ago go first. For any number of threads.

    `hits`: how often a value was found. `used`: bytes.
    """

    def __init__(self, most: int) -> None:
        self.most, self.used, self.hits = most, 0, 0
        self._values: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable) -> Any:
        """The value, or None."""
        with self._lock:
            if key not in self._values:
                return None
            self._values.move_to_end(key)
            self.hits += 1
            return self._values[key][0]

    def put(self, key: Hashable, value: Any, size: int) -> None:
        """Keep a value of `size` bytes, unless it is larger than everything may be."""
        with self._lock:
            self.used -= self._values.pop(key, (None, 0))[1]
            if size <= self.most:
                self._values[key] = value, size
                self.used += size
            while self.used > self.most:
                self.used -= self._values.popitem(last=False)[1][1]
