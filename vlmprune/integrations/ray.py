"""Wrapped models on Ray Data: the same answers from many machines, since a wrapped model stays a Hugging Face one.

Any layer, original positions and interventions, which no engine offers. `RAY_ADDRESS` names the cluster; without one
Ray starts on this machine. (`import ray` in here is the package Ray: imports are absolute.)
"""

import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..errors import VlmpruneError
from ..harness.measure import MethodRun
from ..harness.models import load_models, make
from ..inputs.chat import opened
from ..inputs.images import as_rgb, decoded, read_image
from ..inputs.video import check_sampling
from ..methods.base import Method
from ..methods.guided import Guided

PASSED = ("OMP_NUM_THREADS", "PYTHONPATH", "HF_HUB_OFFLINE")  # of this process's environment, to the actors


def map_images(
    dataset: Any,
    model: str | None,
    method: Any,
    *,
    guide: str | None = None,
    workers: int = 1,
    batch_size: int = 1,
    image: str = "image",
    question: str = "question",
    video: str = "video",
    frames: int | None = None,
    fps: float | None = None,
    max_new_tokens: int = 64,
    trust_remote_code: bool = False,
    **options: Any,
) -> Any:
    """Ask every row's question about its image or video, on a pool of actors that each hold the wrapped model.

    Args:
        dataset: a Ray Dataset, or an iterable of rows as dicts. model: a directory or Hub id that every machine can
            read; None is the bundled pair. method: a name with its `options`, or a method object without a guide.
        guide: the small model of methods that need one, a directory or Hub id. workers: actors, a GPU each where there
            are GPUs. batch_size: questions that one actor answers together.
        image, video, question: the columns. An image is a path, the bytes of a file, or an array [H, W, 3] as
            `ray.data.read_images` makes them; a video is a path, or frames as paths or as an array [T, H, W, 3]. A row
            may have either or both, the other column missing, None or "". Rows with a video are asked one by one.
        frames, fps: how many frames of a video are taken, or how many a second, as in `ask`.
    Returns:
        A Ray Dataset, not run yet: the rows with the columns `answer` and `report` (JSON, of the row's batch), or
        `error`, the sentence, where an image or video cannot be read or the question cannot be asked. An actor that
        dies is replaced and its rows are done again.
    Raises:
        VlmpruneError: Ray is not installed, or the method and its options do not fit.
    """
    if isinstance(method, str):
        make(method, **options)  # errors are raised here and not by an actor
    elif not isinstance(method, Method) or options:
        raise VlmpruneError(f"method must be a name with options or a method object alone, got {method!r:.80}.")
    elif isinstance(method, Guided) and method.guide is not None:
        raise VlmpruneError("A guide does not travel with a method object; pass method='sgl', guide=ID_OR_DIR.")
    check_sampling(frames, fps)
    settings = {
        "model": model, "guide": guide, "method": method, "options": options, "image": image, "question": question,
        "video": video, "frames": frames, "fps": fps, "max_new_tokens": max_new_tokens,
        "trust_remote_code": trust_remote_code,
    }  # fmt: skip
    return map_actors(dataset, Asker, (settings,), workers=workers, batch_size=batch_size)


def map_actors(
    dataset: Any, actor: type, arguments: tuple[Any, ...], *, workers: int = 1, batch_size: int | None = 1
) -> Any:
    """Batches of a Ray Dataset, or of an iterable of rows, through a pool of `actor(*arguments)` that take columns."""
    try:
        import ray
        import ray.data
    except ImportError:
        raise VlmpruneError("This needs the package ray; install vlmprune[ray].") from None
    if isinstance(workers, bool) or not isinstance(workers, int) or workers < 1:
        raise VlmpruneError(f"workers must be an int >= 1, got {workers!r}.")
    if not ray.is_initialized():
        # Actors import this package from where this process runs, and must not compete for one core's threads.
        passed = {name: os.environ[name] for name in PASSED if name in os.environ}
        ray.init(
            num_cpus=None if os.environ.get("RAY_ADDRESS") else max(workers + 1, os.cpu_count() or 1),
            include_dashboard=False,
            log_to_driver=False,
            logging_level="error",
            runtime_env={"env_vars": passed},
        )
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    if not isinstance(dataset, ray.data.Dataset):
        rows = list(dataset)
        for number, row in enumerate(rows):
            if not isinstance(row, Mapping):
                raise VlmpruneError(f"Row {number} is {row!r:.60}; make every row a dict, or pass a Ray Dataset.")
        blocks = max(1, min(len(rows), 4 * workers))
        dataset = ray.data.from_items([dict(row) for row in rows], override_num_blocks=blocks)
    return dataset.map_batches(
        actor,
        fn_constructor_args=arguments,
        batch_size=batch_size,
        concurrency=workers,
        num_gpus=1 if torch.cuda.is_available() else 0,
    )


class Asker:
    """One actor of `map_images`: loads the models on its own machine, then answers batch after batch."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.settings = {"video": "video", "frames": None, "fps": None, **settings}
        models = load_models(settings["model"], settings["guide"], trust_remote_code=settings["trust_remote_code"])
        method = settings["method"]
        if isinstance(method, str):
            method = make(method, models, **settings["options"])
        self.run = MethodRun(models.model, models.processor, method)

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Columns in, the same columns and the answers out."""
        questions = batch[self.settings["question"]]
        none = [None] * len(questions)
        images, videos = (batch.get(self.settings[kind], none) for kind in ("image", "video"))
        made = {name: [""] * len(questions) for name in ("answer", "report", "error")}
        together: dict[int, Any] = {}
        for row, (image, video) in enumerate(zip(images, videos, strict=True)):
            try:
                if _is_missing(video):
                    together[row] = read(image)
                    continue
                seen = [] if _is_missing(image) else [read(image)]
                self._answer({row: [*seen, *self._clips(video)]}, questions, made)
            except VlmpruneError as error:
                made["error"][row] = str(error)
        self._answer(together, questions, made)
        return {**batch, **made}

    def _clips(self, video: Any) -> list[Any]:
        paths = video.tolist() if isinstance(video, np.ndarray) and video.dtype == object else video
        return list(opened(None, video=paths, frames=self.settings["frames"], fps=self.settings["fps"]))

    def _answer(self, seen: Mapping[int, Any], questions: Any, made: dict[str, list[str]]) -> None:
        """Ask these rows together; where one of them cannot be asked, each alone."""
        if not seen:
            return
        asked = [str(questions[row]) for row in seen]
        try:
            texts, report = self.run.answer(list(seen.values()), asked, max_new_tokens=self.settings["max_new_tokens"])
        except VlmpruneError as error:
            if len(seen) == 1:
                made["error"][next(iter(seen))] = str(error)
                return
            for row, media in seen.items():
                self._answer({row: media}, questions, made)
            return
        described = json.dumps(report.to_dict())
        for row, text in zip(seen, texts, strict=True):
            made["answer"][row], made["report"][row] = text, described


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value)


def read(value: Any) -> Any:
    """A row's image; anything else, or one that cannot be read, is refused."""
    if isinstance(value, str):
        return read_image(Path(value))
    if isinstance(value, bytes):
        return decoded(io.BytesIO(value), "the image")
    try:
        made = Image.fromarray(value)
    except (TypeError, AttributeError, ValueError):
        raise VlmpruneError(
            f"An image must be a path, the bytes of a file or an array [H, W, 3], got a {type(value).__name__}."
        ) from None
    return as_rgb(made)
