"""What the trainings share: runs of so many seconds with lessons from other processes, averages to go on from, and
that a step keeps to the device of its model."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from demos.tiny_vlm import stepper
from demos.tiny_vlm.second import lessons
from demos.tiny_vlm.second import train as second
from demos.tiny_vlm.second.train import Trainer
from demos.tiny_vlm.stepper import Schedule, ahead, each_tensor
from demos.tiny_vlm.video import train as video
from demos.tiny_vlm.video.train import ClipTrainer

pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two images or one clip a step, none on a photograph of a package that tests do not install."""
    monkeypatch.setattr(lessons, "PHOTOGRAPHS", 0.0)
    monkeypatch.setattr(second, "BATCH", {"captions": 2, "answers": 2})
    monkeypatch.setattr(video, "BATCH", 1)
    monkeypatch.setattr(stepper, "LAST_LOOK", 1)


def run(monkeypatch: pytest.MonkeyPatch, module: ModuleType, *options: object) -> None:
    threads = torch.get_num_threads()
    monkeypatch.setattr(sys, "argv", ["train", "--which", "small", *map(str, options)])
    module.main()
    torch.set_num_threads(threads)


@pytest.mark.parametrize("module", [second, video])
def test_a_run_of_seconds_ends_in_an_average_to_export_and_to_go_on_from(
    module: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    average, later = tmp_path / "average.safetensors", tmp_path / "later.safetensors"
    run(monkeypatch, module, "--work", tmp_path / "a", "--seconds", 1.5, "--workers", 1, "--average", average)
    run(monkeypatch, module, "--work", tmp_path / "b", "--seconds", 0.5, "--from", average, "--average", later)
    before, after = load_file(average), load_file(later)
    assert before.keys() == after.keys() and any(not torch.equal(before[name], after[name]) for name in before)
    run(monkeypatch, module, "--work", tmp_path / "none", "--from", average, "--export", tmp_path / "out")
    (model,) = (tmp_path / "out").glob("**/small/model.safetensors") if module is video else (
        (tmp_path / "out" / "112" / "small" / "model.safetensors"),
    )  # fmt: skip
    name = "model.language_model.embed_tokens.weight"
    (exported,) = (value for key, value in load_file(model).items() if key.endswith(name))
    (kept,) = (value for key, value in before.items() if key.endswith(name))
    assert torch.equal(exported, kept.half())


def test_the_average_of_another_model_is_refused(tmp_path: Path) -> None:
    ClipTrainer(tmp_path, "small").state.save_average(tmp_path / "average.safetensors")
    with pytest.raises(ValueError, match="not the moving average"):
        Trainer(tmp_path, "small", "answers", begin=tmp_path / "average.safetensors")


def test_workers_make_the_lessons_that_their_steps_have() -> None:
    made = Trainer(Path("none"), "small", "answers").lessons
    here, there = ahead(made, lambda step: 1.0, 3, 0), ahead(made, lambda step: 1.0, 3, 2)
    for _ in range(8):
        mine, other = [], []
        each_tensor(next(here), lambda part, seen=mine: seen.append(torch.as_tensor(part)))
        each_tensor(next(there), lambda part, seen=other: seen.append(torch.as_tensor(part)))
        assert len(mine) == len(other) > 8 and all(torch.equal(a, b) for a, b in zip(mine, other, strict=True))
    here.close(), there.close()


def test_the_rate_of_a_run_of_seconds_falls_with_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(stepper.time, "monotonic", lambda: clock[0])
    plan, on = Schedule(0, seconds=50.0), Schedule(7, seconds=50.0)
    seen = []
    for clock[0] in (100.0, 125.0, 142.5, 150.0, 151.0):
        seen.append((plan.rate(1000), plan.progress(1000), on.progress(1000)))
    expected = [(1.0, 0.0, 1.0), (1.0, 0.5, 1.0), (0.5, 0.85, 1.0), (0.0, 1.0, 1.0), (0.0, 1.0, 1.0)]
    assert seen == [pytest.approx(row) for row in expected]
    clock[0] = 100.0
    assert plan.rate(0) == 1 / stepper.WARMUP


@pytest.mark.parametrize("which", ["large", "small"])
def test_a_step_keeps_to_the_device_of_its_model(which: str, tmp_path: Path) -> None:
    """On the device without memory, where a tensor of another device is an error as on a GPU."""

    def there(part: torch.Tensor) -> torch.Tensor:
        return torch.empty_like(part, device="meta")

    trainers: list[tuple[Any, Any]] = []
    trainers += [(trainer := Trainer(tmp_path, which, "answers"), trainer.trainee)]
    trainers += [(clip := ClipTrainer(tmp_path, which), clip.model)]
    for trainer, module in trainers:
        module.to("meta")
        for step in range(4):
            loss, watched, images = trainer.loss(each_tensor(trainer.lessons(step, 1.0), there))
            loss.backward()
            assert loss.is_meta and watched.is_meta and images
