"""What the decoder layer before was given, so that a layer in the same situation is given the same at once.

Most layers of a model differ in their weights alone. To work out their arguments anew cost as much host time as their
kernels' launches, and a GPU waits for those wherever a forward is small: a decode step, a pruned prompt.
"""

from typing import Any

from torch import Tensor


class LayerBefore:
    """The last layer's kind, hidden states' form and arguments, and the arguments that these were made into, None
    where they were left."""

    def __init__(self) -> None:
        self._kind: Any = None
        self._form: Any = None
        self._given: dict[str, Any] = {}
        self._made: dict[str, Any] | None = None

    def same(self, kind: Any, hidden: Tensor, kwargs: dict[str, Any]) -> bool:
        """Whether a layer of this kind gets what the one before got: the very same objects, and hidden states alike."""
        given = self._given
        return (
            kind == self._kind
            and (hidden.shape, hidden.device) == self._form
            and len(kwargs) == len(given)
            and all(name in kwargs and kwargs[name] is value for name, value in given.items())
        )

    def keep(self, kind: Any, hidden: Tensor, kwargs: dict[str, Any], made: dict[str, Any] | None) -> None:
        """Remember a layer for the next one. `kind`: all that its arguments depend on besides those that it was
        given."""
        self._kind, self._form, self._given = kind, (hidden.shape, hidden.device), kwargs
        self._made = None if made is None else dict(made)  # a user's hook may change the one that the layer gets

    @property
    def made(self) -> dict[str, Any] | None:
        """The arguments, in a dict of the caller's own."""
        return None if self._made is None else dict(self._made)
