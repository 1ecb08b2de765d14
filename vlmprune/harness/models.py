"""Loads ``--model`` and ``--guide``, and makes methods and captioners from a command's options."""

from __future__ import annotations

import hashlib
import inspect
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import VlmpruneError, nearest
from .format import note

if TYPE_CHECKING:
    from ..captioner import PatchCaptioner

BUNDLED_LARGE, BUNDLED_SMALL = "the bundled large model", "the bundled small model"
CLIPS_LARGE, CLIPS_SMALL = "the bundled large model for clips", "the bundled small model for clips"
PACKAGE = Path(__file__).parents[1]
HASHED_VALUES = 4096  # of every weight; a retrained model differs in all of them


@dataclass(frozen=True)
class Models:
    """The large model and, if there is one, the small model: the bundled one or that of ``--guide``."""

    name: str
    model: Any
    processor: Any
    small_name: str | None = None
    small: Any = None
    small_processor: Any = None


def load_models(model: str | None, guide: str | None, *, trust_remote_code: bool, video: bool = False) -> Models:
    """Load the bundled pair, that for clips with `video`, or the named models in place of either."""
    import torch

    import vlmprune
    from vlmprune import hf  # noqa: F401  # before transformers, to hide a torchvision that does not load

    small: tuple[Any, ...] = ()
    if model is None:
        if "OMP_NUM_THREADS" not in os.environ:
            # On matrices this small, threads only wait for each other: an answer took 43 ms on one thread and 340 to
            # 2,400 ms on two, more than the differences between methods.
            torch.set_num_threads(1)
        names = (CLIPS_LARGE, CLIPS_SMALL) if video else (BUNDLED_LARGE, BUNDLED_SMALL)
        tiny, smaller, processor = vlmprune.load_tiny(video=True) if video else vlmprune.load_tiny()
        large, small = (names[0], tiny, processor), (names[1], smaller, processor)
    else:
        large = (model, *_load("--model", model, trust_remote_code))
    if guide is not None:
        small = (guide, *_load("--guide", guide, trust_remote_code))
    return Models(*large, *small)


def _load(option: str, name: str, trust_remote_code: bool) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForImageTextToText

    from ..inputs.processor import load_processor, reason

    path = Path(name).expanduser()
    local = path.exists() or name.startswith((".", "/", "~")) or name.count("/") != 1
    if not name.strip() or (local and not path.is_dir()):
        # Anything else goes to the Hub, which fails slowly without a network.
        raise VlmpruneError(f"{option} must be a directory with a model or an id like org/name, got {name!r}")
    source = str(path) if path.is_dir() else name
    where = {"device_map": "auto"} if torch.cuda.is_available() else {}
    try:
        processor = load_processor(source, trust_remote_code=trust_remote_code)
        model = AutoModelForImageTextToText.from_pretrained(
            source, dtype="auto", trust_remote_code=trust_remote_code, **where
        )
    except Exception as error:  # any error of transformers on a user's files is bad input
        why = reason(error)
        if "pip install" not in why:
            why += "; give a directory or an id that holds its config, weights and processor"
        raise VlmpruneError(f"{option} {name!r} cannot be loaded as an image-text model: {why}") from error
    return model.eval(), processor


def weights_hash(model: Any) -> str:
    """A hash of every weight's name, shape and some 4,096 evenly spaced values: seconds for 7B weights, not minutes."""
    total = hashlib.sha256()
    for name, weight in model.state_dict().items():
        flat = weight.detach().flatten()
        values = flat[:: max(1, flat.numel() // HASHED_VALUES)].float().cpu().numpy()
        total.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode() + values.tobytes())
    return total.hexdigest()[:16]


def method_class(name: str) -> type:
    """The registered class of this name; the error for an unknown name suggests the nearest."""
    import vlmprune

    known = vlmprune.list_methods()
    if name not in known:
        raise VlmpruneError(f"there is no method {name!r}; {nearest(name, known)}")
    return known[name]


def options_of(name: str) -> set[str]:
    """Names of the options that a method takes."""
    return set(inspect.signature(method_class(name)).parameters)


def make(name: str, models: Models | None = None, **given: Any) -> Any:
    """The method of this name with the given options (None: not given).

    Without ``models``, only check what can be checked before models are loaded.
    """
    accepted = options_of(name)
    options = {option: value for option, value in given.items() if value is not None}
    for option in sorted(options.keys() - accepted):
        raise VlmpruneError(f"the method {name!r} takes no --{option.replace('_', '-')}; leave it out")
    if "guide" in accepted:
        if models is None:
            return None  # its constructor needs a loaded model
        if models.small is None:
            raise VlmpruneError(f"the method {name!r} needs a small model beside --model; name one with --guide")
        options |= {"guide": models.small}
        if models.small_processor is not models.processor:
            options |= {"guide_processor": models.small_processor}
    return method_class(name)(**options)


def build_captioner(models: Models, method: Any, aggregator: Any, changes: dict[str, Any], seed: int) -> PatchCaptioner:
    """A captioner with the wrapped model; a family without an adapter runs unwrapped if nothing is pruned."""
    import vlmprune

    from ..captioner import BUNDLED_CONFIG, CaptionConfig

    supported = models.model.config.model_type in vlmprune.list_families()
    plain = isinstance(method, vlmprune.Unpruned) and not supported
    wrapped = models.model if plain else vlmprune.wrap(models.model, method, processor=models.processor)
    config = BUNDLED_CONFIG if models.name == BUNDLED_LARGE else CaptionConfig()
    config = replace(config, **{name: value for name, value in changes.items() if value is not None})
    return vlmprune.PatchCaptioner(wrapped, models.processor, aggregator=aggregator, config=config, seed=seed)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence logs and progress bars of other libraries; print each of our own warnings once, in one line.

    Warnings are printed only if the block succeeds: bad input prints exactly one line.
    """
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
    for message in dict.fromkeys(str(w.message) for w in caught if PACKAGE in Path(w.filename).parents):
        note(f"warning: {message}")
