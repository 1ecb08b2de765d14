"""vlmprune: one call prunes the visual tokens of any Hugging Face vision-language model.

>>> pruned = vlmprune.wrap(model, vlmprune.FastV(keep=0.25))
>>> out = model.generate(**inputs)
>>> print(pruned.report)
>>> pruned.unwrap()

Importing the package loads neither torch nor transformers; the first use of a name does (PEP 562).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .accounting.report import Report
    from .api import Answer, PrunedModel, wrap
    from .captioner import Caption, PatchCaptioner
    from .errors import InactiveHandleError, UnsupportedModelError, VlmpruneError
    from .families import list_families, register_family
    from .flow.locate import ImageSpan, SampleLayout
    from .flow.select import Selection
    from .methods.act import ACT
    from .methods.base import Intervention, Method, Pruner, PruningContext
    from .methods.cdpruner import CDPruner
    from .methods.dart import Dart
    from .methods.divprune import DivPrune
    from .methods.downsample import Downsample
    from .methods.fastv import FastV
    from .methods.fastv_oracle import FastVOracle
    from .methods.knorm import KNorm
    from .methods.none import Unpruned
    from .methods.prumerge import PruMerge
    from .methods.pyramiddrop import PyramidDrop
    from .methods.random import Random
    from .methods.registry import list_methods, register_method
    from .methods.sgl import SGL
    from .methods.sparsevlm import SparseVLM
    from .methods.uniform import Uniform
    from .methods.var import VAR
    from .methods.visionzip import VisionZip
    from .sinks.find import find_sinks
    from .sinks.report import SinkReport
    from .tiny import load_tiny

__version__ = "0.1.0"

__all__ = [
    "ACT", "SGL", "VAR", "Answer", "CDPruner", "Caption", "Dart", "DivPrune", "Downsample", "FastV", "FastVOracle",
    "ImageSpan", "InactiveHandleError", "Intervention", "KNorm", "Method", "PatchCaptioner", "PruMerge", "PrunedModel",
    "Pruner", "PruningContext", "PyramidDrop", "Random", "Report", "SampleLayout", "Selection", "SinkReport",
    "SparseVLM", "Uniform", "Unpruned", "UnsupportedModelError", "VisionZip", "VlmpruneError", "find_sinks",
    "list_families", "list_methods", "load_tiny", "register_family", "register_method", "wrap",
]  # fmt: skip

# The modules that define these names: the imports above, as Python sees them (a test compares the three).
_NAMES_OF = {
    "accounting.report": "Report",
    "api": "Answer PrunedModel wrap",
    "captioner": "Caption PatchCaptioner",
    "errors": "InactiveHandleError UnsupportedModelError VlmpruneError",
    "families": "list_families register_family",
    "flow.locate": "ImageSpan SampleLayout",
    "flow.select": "Selection",
    "methods.act": "ACT",
    "methods.base": "Intervention Method Pruner PruningContext",
    "methods.cdpruner": "CDPruner",
    "methods.dart": "Dart",
    "methods.divprune": "DivPrune",
    "methods.downsample": "Downsample",
    "methods.fastv": "FastV",
    "methods.fastv_oracle": "FastVOracle",
    "methods.knorm": "KNorm",
    "methods.none": "Unpruned",
    "methods.prumerge": "PruMerge",
    "methods.pyramiddrop": "PyramidDrop",
    "methods.random": "Random",
    "methods.registry": "list_methods register_method",
    "methods.sgl": "SGL",
    "methods.sparsevlm": "SparseVLM",
    "methods.uniform": "Uniform",
    "methods.var": "VAR",
    "methods.visionzip": "VisionZip",
    "sinks.find": "find_sinks",
    "sinks.report": "SinkReport",
    "tiny": "load_tiny",
}
_MODULE_OF = {name: module for module, names in _NAMES_OF.items() for name in names.split()}
_PACKAGES = ("captioner", "families", "inputs", "integrations", "methods", "serving", "tiny")


def __getattr__(name: str) -> Any:
    """A public name or package, imported when first asked for."""
    if name in _PACKAGES:
        return import_module(f"{__name__}.{name}")
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PACKAGES, *__all__})
