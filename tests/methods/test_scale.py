"""Methods that compare tokens with each other, where there are too many for all pairs: the same choice, less memory."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from eval.speed import video, video_scale
from tests.support.grid import only_full
from vlmprune.methods import cdpruner, divprune, mmtok, scope, sparsevlm
from vlmprune.methods.per_image import cosine

SEEDS = range(6)


def points(seed: int, number: int = 90, width: int = 48) -> Tensor:
    """Features in clusters, as those of an image's patches are; no two alike."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(7, width, generator=generator)
    own = torch.randint(0, 7, (number,), generator=generator)
    return centres[own] + 0.4 * torch.randn(number, width, generator=generator)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Count 20 tokens as too many."""

    def lower(room: int = 0) -> None:
        for module in (divprune, cdpruner, mmtok, scope):
            monkeypatch.setattr(module, "WHOLE", 20)
        monkeypatch.setattr(scope, "_REMEMBERED", 500)
        monkeypatch.setattr(scope, "_TOGETHER", 12)
        for name, value in (("_LARGE", 400), ("_BLOCK", 40), ("_NUMBERS", 500), ("_ALL", room)):
            monkeypatch.setattr(f"vlmprune.methods.per_image.{name}", value)

    return lower


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("count", [1, 9, 40])
def test_divprune(seed: int, count: int, few: Any) -> None:
    wanted = divprune.farthest_points(points(seed), count)
    few()
    assert torch.equal(divprune.farthest_points(points(seed), count), wanted)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("count", [1, 9, 40])
def test_cdpruner(seed: int, count: int, few: Any) -> None:
    """As many as there are dimensions at most: beyond them every determinant is 0."""
    features, weights = points(seed), torch.rand(90, dtype=torch.float64) + 0.01
    wanted = cdpruner.greedy_mode(cdpruner.kernel(features, weights), count)
    few()
    assert torch.equal(cdpruner.greedy_mode_of(features, weights, count), wanted)


def test_cdpruner_beyond_the_rank(few: Any) -> None:
    few()
    kept = cdpruner.greedy_mode_of(points(0, width=6), torch.ones(90, dtype=torch.float64), 30)
    assert len(set(kept.tolist())) == 30


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("room", [0, 1 << 20])
def test_coverage(seed: int, weighted: bool, room: int, few: Any) -> None:
    features = points(seed)
    weights = torch.rand(90, dtype=torch.float64) if weighted else torch.ones(90, dtype=torch.float64)
    wanted = [scope.greedy_coverage(cosine(features), count, weights) for count in (1, 9, 40)]
    few(room)
    for count, kept in zip((1, 9, 40), wanted, strict=True):
        assert torch.equal(scope.coverage_of(features, count, weights), kept)


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("choose", [
    divprune.farthest_points,
    lambda features, count: cdpruner.greedy_mode_of(features, torch.full((len(features),), 0.3).double(), count),
    lambda features, count: scope.coverage_of(features, count, torch.ones(len(features), dtype=torch.float64)),
], ids=["divprune", "cdpruner", "coverage"])  # fmt: skip
@pytest.mark.parametrize("seed", SEEDS)
def test_the_earlier_of_equals(seed: int, choose: Any, lazy: bool, few: Any) -> None:
    """Two that add the same differ by rounding, and in a matrix product by where they stand."""
    features = points(seed, 111, 23).repeat(3, 1)
    if lazy:
        few()
    assert choose(features, 9).max() < 111


class Shown:
    """What `MMTok.choose` looks at."""

    def __init__(self, seed: int, count: int) -> None:
        self.hidden, self.words, self.count = points(seed), points(seed + 100, 5), count


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("options", [{}, {"visual_weight": 3.0}, {"visual_temperature": 0.01}])
@pytest.mark.parametrize("room", [0, 1 << 20])
def test_mmtok(seed: int, options: dict[str, float], room: int, few: Any) -> None:
    shown: Any = Shown(seed, 12)
    wanted = mmtok.MMTok(**options).choose(shown)
    few(room)
    assert torch.equal(mmtok.MMTok(**options).choose(shown), wanted)


@pytest.mark.parametrize("seed", SEEDS)
def test_sparsevlm(seed: int, few: Any) -> None:
    wanted = sparsevlm.density_peaks(points(seed), 8, 5)
    few()
    made = sparsevlm.density_peaks(points(seed), 8, 5)
    assert all(torch.equal(a, b) for a, b in zip(made, wanted, strict=True))


class Largest(TorchDispatchMode):
    """The most numbers that a tensor made within the block holds."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, call: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = call(*args, **kwargs or {})
        for one in out if isinstance(out, tuple | list) else [out]:
            if isinstance(one, Tensor):
                self.numbers = max(self.numbers, one.untyped_storage().nbytes() // one.element_size())
        return out


@pytest.mark.parametrize("name", video_scale.methods())
def test_no_method_makes_a_number_for_each_pair_of_tokens(name: str, few: Any, monkeypatch: Any) -> None:
    """All stages of each on 588 tokens, of which 59 stay: one for each token and each that stays is too many too."""
    few()
    monkeypatch.setattr(divprune, "_AT_ONCE", 20)
    monkeypatch.setattr(video_scale, "KEYS", (1, 4))
    monkeypatch.setattr(video_scale, "TOWER", (4, 8))
    frames, side, width = 12, 7, 6
    state, hidden = video_scale.prompt(frames, side, width)
    with Largest() as seen, torch.no_grad():
        video_scale.decide(video_scale.made(name, 0.1), state, hidden, 28, video_scale.video_grid(3, side, side))
    assert len(state.stages[-1].kept[0]) <= 59
    tokens = frames * side**2
    assert seen.numbers < tokens * 50, f"{seen.numbers / tokens:.0f} numbers for each token"


@only_full
def test_the_benchmarks_of_clips_run(tmp_path: Any) -> None:
    words = "--layers 8 --width 128 --frames 4 --side 4 --rounds 1 --guide 2 64 --methods fastvid mmtok scope --out"
    video.main([*words.split(), str(tmp_path / "video.json")])
    record = json.loads((tmp_path / "video.json").read_text())
    assert [row["method"] for row in record["rows"]] == ["fastvid", "mmtok", "scope"]
    assert all(0 < row["ideal"] < 1 and row["over"] > 0 for row in record["rows"])
    assert record["sgl"]["speed_up"] > 0
    row = video_scale.one("holitom", 6, 4, 32, 0.1, 28)
    assert row["kept"] <= 10
    assert row["stages"] == [(0, row["kept"] + video_scale.TEXT)]


MEMORY = """
import resource, sys, torch
from vlmprune.methods import cdpruner, divprune, scope, sparsevlm
from vlmprune.methods.mmtok import MMTok
torch.set_num_threads(1)
generator = torch.Generator().manual_seed(0)
features = torch.randn(6272, 896, generator=generator)  # a quarter of 25,088 tokens of 3,584: 1/16 of the memory
words = torch.randn(20, 896, generator=generator)
weights = torch.rand(6272, generator=generator, dtype=torch.float64)

class Shown:
    hidden, count = features, 12
Shown.words = words

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

torch.randn(300, 300).double() @ torch.randn(300, 300).double()
before = peak()
{"divprune": lambda: divprune.farthest_points(features, 12),
 "cdpruner": lambda: cdpruner.greedy_mode_of(features, cdpruner.relevance(features, words), 200),
 "coverage": lambda: scope.coverage_of(features, 3, weights),
 "mmtok": lambda: MMTok().choose(Shown),
 "sparsevlm": lambda: sparsevlm.recycled(features[:4000], weights[:4000], 400, 5)}[sys.argv[1]]()
print(peak() - before)
"""


@only_full
@pytest.mark.parametrize("method", ["divprune", "cdpruner", "mmtok", "coverage", "sparsevlm"])
def test_memory(method: str) -> None:
    """The unit vectors and at most 250 MB more, so that 25,088 tokens of 3,584 stay below 1 GB (719 MB + 250 MB); all
    pairs are made more than once and take 315 MB each here, and 5 GB there."""
    done = subprocess.run([sys.executable, "-c", MEMORY, method], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) * 1.048576 <= 45 + 250, done.stdout
