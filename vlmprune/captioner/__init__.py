"""Patch Matters: from an image to a detailed caption whose sentences were checked.

divide -> describe -> aggregate; `divide`, `text`, `aggregate`, `ledger` and `hierarchy` know no model.
"""

from __future__ import annotations

from .. import hf  # noqa: F401  # before transformers, to hide a torchvision that does not load
from .aggregate import Aggregator, AggregatorError, Fused, Grouping, Item, Similar, Written
from .by_llm import CausalLMAggregator, StructuredAggregator
from .by_words import WordAggregator
from .caption import Caption, Cost, Node
from .config import CaptionConfig
from .detect import Detector, HFDetector, SaliencyDetector, VLMDetector, read_json_boxes, read_places
from .divide import Detection, Patch
from .endpoint import EndpointAggregator
from .ledger import Sentence
from .match import HFMatcher, Matcher, VLMMatcher
from .pipeline import BUNDLED_CONFIG, PatchCaptioner
from .prompts import Prompts
from .text import Lexicon
from .vlm import VisionModel

__all__ = [
    "BUNDLED_CONFIG",
    "Aggregator",
    "AggregatorError",
    "Caption",
    "CaptionConfig",
    "CausalLMAggregator",
    "Cost",
    "Detection",
    "Detector",
    "EndpointAggregator",
    "Fused",
    "Grouping",
    "HFDetector",
    "HFMatcher",
    "Item",
    "Lexicon",
    "Matcher",
    "Node",
    "Patch",
    "PatchCaptioner",
    "Prompts",
    "SaliencyDetector",
    "Sentence",
    "Similar",
    "StructuredAggregator",
    "VLMDetector",
    "VLMMatcher",
    "VisionModel",
    "WordAggregator",
    "Written",
    "read_json_boxes",
    "read_places",
]
