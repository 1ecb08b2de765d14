"""Patch Matters: from an image to a detailed caption whose sentences were checked.

divide -> describe -> aggregate; `divide`, `text`, `aggregate`, `provenance` and `hierarchy` know no model.
"""

from __future__ import annotations

from .. import hf  # noqa: F401  # before transformers, to hide a torchvision that does not load
from .aggregate import Aggregator, AggregatorError, Candidate, Fusion, Grouping, Rewrite, Similar
from .caption import Caption, Node
from .config import CaptionConfig
from .detect import Detector, HFDetector, SaliencyDetector, VLMDetector, read_json_boxes
from .divide import Detection, Patch
from .llm import CausalLMAggregator, StructuredAggregator
from .match import HFMatcher, Matcher, VLMMatcher
from .openai import EndpointAggregator
from .pipeline import BUNDLED_CONFIG, PatchCaptioner
from .prompts import Prompts
from .provenance import Sentence
from .rules import WordAggregator
from .text import Lexicon
from .vlm import CaptionCost, VisionModel

__all__ = [
    "BUNDLED_CONFIG",
    "Aggregator",
    "AggregatorError",
    "Candidate",
    "Caption",
    "CaptionConfig",
    "CaptionCost",
    "CausalLMAggregator",
    "Detection",
    "Detector",
    "EndpointAggregator",
    "Fusion",
    "Grouping",
    "HFDetector",
    "HFMatcher",
    "Lexicon",
    "Matcher",
    "Node",
    "Patch",
    "PatchCaptioner",
    "Prompts",
    "Rewrite",
    "SaliencyDetector",
    "Sentence",
    "Similar",
    "StructuredAggregator",
    "VLMDetector",
    "VLMMatcher",
    "VisionModel",
    "WordAggregator",
    "read_json_boxes",
]
