"""What does not fit into a machine's memory, and what would: a smaller precision, other cards, fewer tokens."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ..accounting.hardware import HARDWARE, Hardware
from ..accounting.roofline import ROOM, ModelSize
from .format import amount

MOST_CARDS = 64
Row = Mapping[str, Any]  # of a plan


def what_fits(
    size: ModelSize, small: ModelSize | None, machine: Hardware, rows: Sequence[Row], batch: int,
    requests_of: Callable[[int], int],
) -> list[str]:  # fmt: skip
    """Sentences about the rows whose `batch` requests do not fit at once; none where all do.

    `requests_of`: how many requests of so many visual tokens fit, nothing dropped later.
    """
    short = [row for row in rows if row["requests"] < batch]
    if not short:
        return []
    room, first = machine.memory * ROOM, rows[0]
    usable = f"the {amount(room, 'B')} that {machine.title} has for weights and caches"
    requests = "a request" if batch == 1 else f"{batch:,} requests"
    if size.all_bytes > room:
        said = f"{size.name} does not fit: its weights take {amount(size.all_bytes, 'B')} of {usable}"
        need = size.all_bytes + batch * first["cache"]
    elif first in short:
        cache = amount(batch * first["cache"], "B")
        said = (
            f"Without pruning, {requests} do{'es' if batch == 1 else ''} not fit: weights and cache take "
            f"{amount(size.all_bytes, 'B')} and {cache} of {usable}"
        )
        need = size.all_bytes + batch * first["cache"]
    else:
        guide = small.all_bytes if small else 0
        said = (
            f"{requests[0].upper()}{requests[1:]} with {short[0]['method']} do{'es' if batch == 1 else ''} not fit: "
            f"the guide's weights take another {amount(guide, 'B')} of {usable}"
        )
        need = size.all_bytes + guide + batch * short[0]["cache"]
    would = list(_remedies(size, machine, rows, batch, need, requests_of))
    end = "; what would fit: " + ", or ".join(would) if would else "; nothing that is known here would"
    return [said + end + "."]


def _remedies(
    size: ModelSize, machine: Hardware, rows: Sequence[Row], batch: int, need: float, requests_of: Callable[[int], int]
) -> Iterator[str]:
    room = machine.memory * ROOM
    if size.all_bytes < room:
        if fitting := [row for row in rows[1:] if row["requests"] >= batch]:
            yield " or ".join(f"{row['method']} at keep={row['keep']}" for row in fitting[:2])
        elif rows[0]["requests"] < batch and (most := _most_tokens(size.visual, batch, requests_of)):
            yield f"at most {most:,} visual tokens per request"
    for bits in (8, 4):
        weights = size.all_bytes * bits / (8 * size.number_bytes)
        if need - size.all_bytes + weights <= room:
            yield f"weights quantised to {bits} bits ({amount(weights, 'B')})"
            break
    for card in sorted(HARDWARE.values(), key=lambda card: card.memory):
        if need <= card.memory * ROOM:
            yield f"one {card.name}"
            break
    cards, one = 2 * machine.cards, room / machine.cards
    while cards <= MOST_CARDS and need / cards > one:
        cards *= 2
    if cards <= MOST_CARDS:
        yield f"tensor parallel over {cards} x {machine.name} (--gpus {cards})"


def _most_tokens(visual: int, batch: int, requests_of: Callable[[int], int]) -> int:
    """The most visual tokens below `visual` of which a whole batch fits, 0 if not even one does."""
    low, high = 0, visual
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if requests_of(middle) >= batch else (low, middle)
    return low
