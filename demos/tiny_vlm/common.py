"""Shared by the training stages: paths, resumable state, a wall-clock learning-rate schedule."""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn


class State:
    """A module with its optimizer, moving average and progress, saved as safetensors + JSON so that a run can go on.

    The schedule runs over wall-clock seconds, not steps: the machines this was trained on are shared, so a step's
    duration is not known ahead. Warmup, then flat, then linear to zero over the last ``decay`` fraction of the budget.
    """

    def __init__(
        self,
        module: nn.Module,
        lr: float,
        folder: Path,
        *,
        weight_decay: float = 0.05,
        ema: float = 0.999,
        slow: nn.Module | None = None,
        factor: float = 1.0,
    ):
        """`slow`: a part of the module that is trained at `factor` times the rate."""
        self.module, self.lr, self.folder, self.ema_decay = module, lr, folder, ema
        behind = set() if slow is None else {id(p) for p in slow.parameters()}
        groups: list[dict[str, Any]] = []
        matrices: list[nn.Parameter] = []
        vectors: list[nn.Parameter] = []
        for part, times in ((False, 1.0), (True, factor)):
            chosen = [p for p in module.parameters() if p.requires_grad and (id(p) in behind) == part]
            wide, thin = [p for p in chosen if p.ndim >= 2], [p for p in chosen if p.ndim < 2]
            groups += [{"params": wide, "weight_decay": weight_decay, "factor": times}] * bool(wide)
            groups += [{"params": thin, "weight_decay": 0.0, "factor": times}] * bool(thin)
            matrices, vectors = matrices + wide, vectors + thin
        self.optimizer = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.97), eps=1e-8, foreach=True)
        self.params = matrices + vectors
        self.ema = [p.detach().clone() for p in self.params]
        self.meta: dict[str, Any] = {"step": 0, "seconds": 0.0, "images": 0, "answers": 0}
        self._mark = time.time()

    def begin(self, minutes: float, more: float) -> tuple[float, float]:
        """Seconds spent before this run and the seconds that it may take; `more` > 0 goes on after a finished run."""
        if more:
            self.meta["start_step"] = self.meta["step"]
        return (self.meta["seconds"] if more else 0.0), 60 * (more or minutes)

    def rate(self, budget: float, warmup: int, decay: float, start: float = 0.0) -> float:
        """Learning rate now; ``start`` = seconds already spent before this run (a resumed run warms up again)."""
        spent = (self.meta["seconds"] - start) / max(budget, 1e-9)
        fall = 1.0 if spent < 1 - decay else max(0.0, (1 - spent) / decay)
        return self.lr * fall * min(1.0, (self.meta["step"] - self.meta.get("start_step", 0) + 1) / warmup)

    def step(self, rate: float, clip: float = 1.0) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        norm = float(nn.utils.clip_grad_norm_(self.params, clip))
        if math.isfinite(norm):
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            # A young average follows fast, so that early checkpoints are not dominated by the initial weights.
            weight = 1 - min(self.ema_decay, (1 + self.meta["step"]) / (10 + self.meta["step"]))
            torch._foreach_lerp_(self.ema, [p.detach() for p in self.params], weight)
        now = time.time()
        self.meta["step"] += 1
        self.meta["seconds"] += now - self._mark
        self._mark = now
        return norm

    def restart_average(self) -> None:
        """Start the moving average at the weights as they are."""
        with torch.no_grad():
            torch._foreach_copy_(self.ema, [p.detach() for p in self.params])

    def pause(self) -> None:
        """Call after work that is not training (evaluation, saving): it does not count as training time."""
        self._mark = time.time()

    def swap(self) -> None:
        """Exchange weights and their average; call twice to evaluate the average."""
        with torch.no_grad():
            for p, e in zip(self.params, self.ema, strict=True):
                kept = p.detach().clone()
                p.copy_(e)
                e.copy_(kept)

    def save(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        tensors = {f"model.{k}": v.detach().contiguous().clone() for k, v in self.module.state_dict().items()}
        for i, (p, e) in enumerate(zip(self.params, self.ema, strict=True)):
            tensors[f"ema.{i}"] = e
            for name, value in self.optimizer.state.get(p, {}).items():
                tensors[f"adam.{i}.{name}"] = value.reshape(value.shape)
        target = self.folder / "state.safetensors"
        save_file(tensors, str(target) + ".new")
        os.replace(str(target) + ".new", target)
        (self.folder / "meta.json").write_text(json.dumps(self.meta))

    def load(self) -> bool:
        if not (self.folder / "state.safetensors").exists():
            return False
        tensors = load_file(str(self.folder / "state.safetensors"))
        self.module.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("model.")})
        for i, p in enumerate(self.params):
            self.ema[i].copy_(tensors[f"ema.{i}"])
            prefix = f"adam.{i}."
            found = {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}
            if found:
                # Moments lie where the parameter does, the number of steps on the CPU.
                self.optimizer.state[p] = {k: v if k == "step" else v.to(p.device) for k, v in found.items()}
        self.meta = json.loads((self.folder / "meta.json").read_text())
        self.pause()
        return True

    def _names(self) -> list[str]:
        names = {id(p): name for name, p in self.module.named_parameters()}
        return [names[id(p)] for p in self.params]

    def save_average(self, path: Path) -> None:
        """The moving average of all that is trained, by name, and the progress: a quarter of the state."""
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {name: e.cpu() for name, e in zip(self._names(), self.ema, strict=True)}
        save_file(tensors, f"{path}.new", metadata={"meta": json.dumps(self.meta)})
        os.replace(f"{path}.new", path)

    def begin_from(self, path: Path) -> None:
        """Weights, average and progress as `save_average` wrote them; the optimizer starts anew.

        Raises:
            ValueError: the file is of another model.
        """
        with safe_open(str(path), "pt") as file:
            if set(file.keys()) != set(self._names()):
                raise ValueError(f"{path} is not the moving average of such a model.")
            tensors = [file.get_tensor(name) for name in self._names()]
            self.meta = json.loads(file.metadata()["meta"])
        with torch.no_grad():
            for p, e, there in zip(self.params, self.ema, tensors, strict=True):
                p.copy_(there)
                e.copy_(there)
        self.pause()


def log(folder: Path, **record: Any) -> None:
    """One JSON line in the run's log, and on the terminal."""
    record = {k: round(v, 4) if isinstance(v, float) else v for k, v in record.items()}
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "log.jsonl", "a") as file:
        file.write(json.dumps(record) + "\n")
    print(json.dumps(record), flush=True)
