"""vlmprune: one call prunes the visual tokens of any Hugging Face vision-language model.

>>> pruned = vlmprune.wrap(model, vlmprune.FastV(keep=0.25))
>>> out = model.generate(**inputs)
>>> print(pruned.report)
>>> pruned.unwrap()
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .hf.imports import hide_broken_torchvision

hide_broken_torchvision()  # before anything below imports transformers

from .accounting.report import Report
from .api import Answer, PrunedModel, wrap
from .errors import InactiveHandleError, UnsupportedModelError, VlmpruneError
from .flow.locate import ImageSpan, SampleLayout
from .flow.select import Selection
from .sinks.find import find_sinks
from .sinks.report import SinkReport
from .tiny import load_tiny

# The functions `methods` and `families` share their names with folders: they are bound last, and nothing imports these
# folders afterwards, so that the functions stay.
from .families import families  # isort: skip
from .methods.act import ACT  # isort: skip
from .methods.base import Intervention, Method, Pruner, PruningContext  # isort: skip
from .methods.cdpruner import CDPruner  # isort: skip
from .methods.dart import Dart  # isort: skip
from .methods.divprune import DivPrune  # isort: skip
from .methods.downsample import Downsample  # isort: skip
from .methods.fastv import FastV  # isort: skip
from .methods.fastv_oracle import FastVOracle  # isort: skip
from .methods.knorm import KNorm  # isort: skip
from .methods.none import Unpruned  # isort: skip
from .methods.prumerge import PruMerge  # isort: skip
from .methods.pyramiddrop import PyramidDrop  # isort: skip
from .methods.random import Random  # isort: skip
from .methods.registry import register_method  # isort: skip
from .methods.registry import methods  # isort: skip
from .methods.sgl import SGL  # isort: skip
from .methods.sparsevlm import SparseVLM  # isort: skip
from .methods.uniform import Uniform  # isort: skip
from .methods.var import VAR  # isort: skip
from .methods.visionzip import VisionZip  # isort: skip

if TYPE_CHECKING:
    from .captioner import Caption, PatchCaptioner

__version__ = "0.1.0"

__all__ = [
    "ACT",
    "SGL",
    "VAR",
    "Answer",
    "CDPruner",
    "Caption",
    "Dart",
    "DivPrune",
    "Downsample",
    "FastV",
    "FastVOracle",
    "ImageSpan",
    "InactiveHandleError",
    "Intervention",
    "KNorm",
    "Method",
    "PatchCaptioner",
    "PruMerge",
    "PrunedModel",
    "Pruner",
    "PruningContext",
    "PyramidDrop",
    "Random",
    "Report",
    "SampleLayout",
    "Selection",
    "SinkReport",
    "SparseVLM",
    "Uniform",
    "Unpruned",
    "UnsupportedModelError",
    "VisionZip",
    "VlmpruneError",
    "families",
    "find_sinks",
    "load_tiny",
    "methods",
    "register_method",
    "wrap",
]


def __getattr__(name: str) -> Any:
    """The captioner on first use: it needs transformers' generation code, which takes seconds to import."""
    if name in ("Caption", "PatchCaptioner"):
        from . import captioner

        return getattr(captioner, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
