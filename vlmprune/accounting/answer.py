"""What an answer costs over a cache that is whole, cut, grown in a buffer or read in part: arithmetic on shapes alone.

A step of one layer over T entries moves them once to attend to them. `torch.cat`, by which a `DynamicCache` grows,
copies all of them before: they are read and written. A layer of DELTA that reads K of them gathers these first, and one
that selects reads the keys of all again, half of each. Weights come on top, and a roofline bounds the sum.
"""

from dataclasses import dataclass
from typing import Literal

from ..errors import VlmpruneError
from ..hf.buffered_layer import FIRST_ROOM
from ..methods.kv.delta import BREAK_EVEN, Delta
from .flops import LayerCost
from .hardware import Hardware
from .roofline import ROOM, ModelSize, estimate

Way = Literal["uncut", "cut", "pruned", "delta"]
_SAMPLES = 256  # steps of an answer that are looked at: costs are linear, but where a window fills or DELTA begins


@dataclass(frozen=True)
class MoveCost:
    """Entries moved for one that is copied by `torch.cat`, that a layer selects by, or that is gathered, beyond the one
    move of attending to it."""

    copy: float = 2.0
    select: float = 0.5
    gather: float = 2.0

    def moved(self, held: float, *, copied: bool, read: float | None = None, selects: bool = False) -> float:
        """Entries that a step moves in one layer.

        Args:
            held: entries in the layer, the step's own included. copied: whether `torch.cat` brings it there. read: how
                many of them are gathered, None where all are attended to in place. selects: whether the layer selects.
        """
        attended = held if read is None else read * (1 + self.gather)
        return attended + held * (self.copy * copied + self.select * selects)


@dataclass(frozen=True)
class AnswerCost:
    """An answer under one setting: bytes and seconds of the batch, `fit` requests at once.

    `kept`: visual tokens in the cache. `entries`: what the fullest layer holds at the end. `moved`: entries that an
    average step moves in an average layer that attends. `kv_prompt`, `kv_end`: the cache after the prompt and after the
    answer, a buffer's spare room included. `token`: an average step. `answer`: all steps. `total`: with vision and
    prefill.
    """

    way: Way
    buffer: bool
    kept: int
    entries: int
    moved: float
    kv_prompt: int
    kv_end: int
    prefill: float
    token: float
    answer: float
    total: float
    fit: int


@dataclass(frozen=True)
class _Layer:
    """A layer that attends: whose keys it reads, `prompt` entries of the prompt in them, whether they are its `own`,
    grow in a buffer, and what it does of DELTA."""

    keys: LayerCost
    prompt: int
    own: bool
    buffered: bool
    selects: bool
    reads: int | None

    def step(self, at: int, costs: MoveCost) -> tuple[float, int]:
        """Entries that are moved and attended to in the `at`-th step."""
        held = self.keys.seen(self.prompt + at)
        pays = self.reads is not None and held >= BREAK_EVEN * self.reads
        read = self.reads if pays and not self.selects else None
        copied, selects = self.own and not self.buffered, pays and self.selects
        return costs.moved(held, copied=copied, read=read, selects=selects), held if read is None else read

    def room(self, steps: int) -> tuple[int, int]:
        """Entries that there is room for after so many steps, and how many were copied to make it: `BufferedLayer`."""
        if not self.buffered or not steps:
            return self.prompt + steps, 0
        room, capacity, copied = FIRST_ROOM, self.prompt + FIRST_ROOM, self.prompt
        while capacity < self.prompt + steps:
            room *= 2
            capacity, copied = capacity + room, copied + capacity
        return capacity, copied


def answer_cost(
    size: ModelSize, machine: Hardware, way: Way, *, buffer: bool, text: int, new: int, kept: int, batch: int = 1,
    delta: Delta | None = None, costs: MoveCost | None = None,
) -> AnswerCost:  # fmt: skip
    """What `new` tokens cost behind a prompt of one image and `text` tokens.

    Args:
        way: of `size.visual` tokens all are kept, or `kept`: "cut" from every layer without a window after the prompt,
            or "pruned" before the first layer. "delta" keeps all and reads a part.
        buffer: whether layers without a window grow in buffers.
        delta: None: with its defaults. costs: None: the entries that are moved in principle.
    Raises:
        VlmpruneError: a model whose image is in cross-attention layers.
    """
    cost, costs, delta = size.cost, costs or MoveCost(), delta or Delta()
    if any(part.cross for part in cost.layers):
        raise VlmpruneError(
            f"{size.name} keeps its images in cross-attention layers, which no cache method acts on; leave out "
            "--answer-tokens."
        )
    left = kept if way in ("cut", "pruned") else size.visual
    prefill = estimate(
        size, machine, text=text, new=1, kept=left if way == "pruned" else size.visual, layer=0, batch=batch
    )
    lengths = [text + (left if part.window is None or way == "pruned" else size.visual) for part in cost.layers]
    layers = _layers(size, lengths, buffer, delta if way == "delta" else None)
    steps = max(0, new - 1)  # the first token comes out of the prefill
    moved, seconds = _spent(size, machine, layers, steps, batch, costs)
    rooms = [layers[i].room(steps)[0] if i in layers else 0 for i in range(len(lengths))]
    end = cost.kv_bytes(rooms, 1)
    return AnswerCost(
        way, buffer, left,
        entries=max(lengths[i] + steps for i in layers),
        moved=moved / max(1, steps) / len(layers),
        kv_prompt=cost.kv_bytes(lengths, batch),
        kv_end=batch * end,
        prefill=prefill.prefill,
        token=seconds / max(1, steps),
        answer=seconds,
        total=prefill.vision + prefill.prefill + seconds,
        fit=max(0, int((machine.memory * ROOM - size.all_bytes) // max(1, end))),
    )  # fmt: skip


def _layers(size: ModelSize, lengths: list[int], buffer: bool, delta: Delta | None) -> dict[int, _Layer]:
    """The layers that attend; `lengths`: of every layer, entries of the prompt."""
    parts = size.cost.layers
    grow = [i for i, part in enumerate(parts) if part.kv_width and part.source is None and part.window is None]
    selector = None if delta is None else delta.selector(grow, len(parts))
    layers: dict[int, _Layer] = {}
    for i, part in enumerate(parts):
        source = i if part.source is None else part.source
        if parts[source].kv_width:
            late = selector is not None and i in grow and i >= selector.first
            reads = delta.pages * delta.page if late and delta is not None else None
            selects = selector is not None and i in selector.selecting
            layers[i] = _Layer(parts[source], lengths[source], source == i, buffer and i in grow, selects, reads)
    return layers


def _spent(
    size: ModelSize, machine: Hardware, layers: dict[int, _Layer], steps: int, batch: int, costs: MoveCost
) -> tuple[float, float]:
    """Entries that are moved in so many steps of a request, and seconds of the batch."""
    cost = size.cost
    entry = {i: 2 * layer.keys.kv_width * cost.number_bytes for i, layer in layers.items()}  # bytes
    states = sum(part.state_bytes for part in cost.layers)
    maps = cost.head + cost.beside + sum(part.linear for part in cost.layers)
    number = min(steps, _SAMPLES)
    moved = seconds = 0.0
    for sample in range(number):
        at = steps * (2 * sample + 1) // (2 * number) + 1
        found = {i: layer.step(at, costs) for i, layer in layers.items()}
        flops = 2 * (maps + sum(2 * cost.layers[i].query_width * attended for i, (_, attended) in found.items()))
        read = states + sum(entry[i] * own for i, (own, _) in found.items())
        moved += sum(own for own, _ in found.values()) * steps / number
        seconds += machine.seconds(batch * flops, size.read_bytes(batch) + batch * read) * steps / number
    copied = {i: costs.copy * layer.room(steps)[1] for i, layer in layers.items()}
    more = batch * sum(entry[i] * own for i, own in copied.items()) / machine.bandwidth
    return moved + sum(copied.values()), seconds + more
