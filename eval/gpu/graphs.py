"""What runs inside an engine's step, captured in a CUDA graph and replayed with other inputs.

A graph reads and writes the addresses it was captured with, and may not wait for the host: a function that asks the GPU
for a number fails here and nowhere on a CPU.
Shapes: V visual tokens, K kept, N tokens of a step, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vlmprune.ops.gather import gather_rows
from vlmprune.ops.top_k import top_k
from vlmprune.serving.plugin.positions import PositionBuffer, with_distances

from .stage import FAILED, PASSED, Emit, GpuStage, Point, StageSetting, short

REPLAYS = 3


@dataclass
class GraphStep:
    """`run` is captured; it reads `inputs`, which `fill` writes anew, and `expected` works on copies of them."""

    inputs: list[Tensor]
    fill: Callable[[], None]
    run: Callable[[], Tensor]
    expected: Callable[[], Tensor]


def selection(device: str, size: int) -> GraphStep:
    """The K best of V scores, and their rows, as one graph."""
    scores, rows = torch.zeros(size, device=device), torch.zeros(1, size, 64, device=device)
    span = torch.arange(size, device=device)

    def fill() -> None:
        scores.copy_(torch.randn(size))
        rows.copy_(torch.randn(1, size, 64))

    def run() -> Tensor:
        return gather_rows(rows, top_k(scores, [span], [size // 4])[None])

    def expected() -> Tensor:
        order = torch.sort(scores.cpu(), descending=True, stable=True).indices[: size // 4].sort().values
        return rows.cpu()[:, order]

    return GraphStep([scores, rows], fill, run, expected)


def gather(device: str, size: int) -> GraphStep:
    """Rows of a batch at indices that differ from replay to replay."""
    rows, index = torch.zeros(2, size, 64, device=device), torch.zeros(2, size // 2, dtype=torch.long, device=device)

    def fill() -> None:
        rows.copy_(torch.randn(2, size, 64))
        index.copy_(torch.stack([torch.randperm(size)[: size // 2].sort().values for _ in range(2)]))

    def expected() -> Tensor:
        return torch.stack([own[at] for own, at in zip(rows.cpu(), index.cpu(), strict=True)])

    return GraphStep([rows, index], fill, lambda: gather_rows(rows, index), expected)


def positions(device: str, size: int, longest: int | None = None) -> GraphStep:
    """An engine's positions with the distances of a step's rows, which are written outside of the graph."""
    with torch.device(device):
        buffer, counted = PositionBuffer(size, longest), torch.zeros(3, size + 1, dtype=torch.long)
    given: dict[str, Tensor] = {}

    def fill() -> None:
        visual = torch.rand(size) < 0.5
        kept = torch.arange(1600)[torch.randperm(1600)[: int(visual.sum())]].sort().values
        distances = torch.stack(torch.unravel_index(kept, (1, 40, 40))) if longest is None else kept.expand(3, -1)
        buffer.take([with_distances(torch.zeros(len(kept), 8, device=device, dtype=torch.bfloat16), distances)], visual)
        counted[:, :size].copy_(torch.arange(size) + int(torch.randint(100, (1,))))
        given["expected"] = counted[:, :size].cpu().clone()
        given["expected"][:, visual] += distances

    def expected() -> Tensor:
        return given["expected"] if longest is None else given["expected"][0].clamp(max=longest)

    return GraphStep([counted], fill, lambda: buffer.add(counted[:, :size]), expected)


STEPS: dict[str, Callable[[str, int], GraphStep]] = {
    "selection": selection,
    "gather": gather,
    "positions of three axes": positions,
    "positions of one axis": lambda device, size: positions(device, size, longest=1500),
}


def captured(step: GraphStep, device: str) -> tuple[Callable[[], None], Tensor]:
    """A function that runs the step again, and where its result stands; on a CPU, where there are no graphs, the result
    is copied there."""
    step.fill()
    if device == "cpu":
        result = step.run().clone()

        def again() -> None:
            result.copy_(step.run())

        return again, result
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # compiles kernels, which a capture must not
        for _ in range(2):
            step.run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = step.run()
    return graph.replay, result


def groups(tiny: bool) -> list[str]:
    """One process: each capture takes milliseconds."""
    return ["graphs"]


def run(group: str, setting: StageSetting, emit: Emit) -> None:
    """Every function with other inputs at each replay, compared bit by bit with what it should be."""
    torch.manual_seed(setting.seed)
    size = 64 if setting.tiny else 1024
    for name, make in STEPS.items():
        try:
            step = make(setting.device, size)
            replay, result = captured(step, setting.device)
            same = []
            for _ in range(REPLAYS):
                step.fill()
                replay()
                same.append(torch.equal(result.cpu(), step.expected()))
            status = PASSED if all(same) else FAILED
            emit({"point": name, "status": status, "equal": same, "captured": setting.device != "cpu"})
        except Exception as error:  # the next function may still be captured
            emit({"point": name, "status": FAILED, "error": short(error)})


def headlines(points: Sequence[Point]) -> list[str]:
    """How many were replayed."""
    held = [point["point"] for point in points if point["status"] == PASSED]
    return [f"captured and replayed with other inputs: {', '.join(held)}"] if held else []


STAGE = GpuStage("graphs", 10, groups, run)
