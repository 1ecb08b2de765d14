"""Patch Matters: from an image to a detailed caption whose sentences were checked.

divide -> describe -> aggregate; `divide`, `text`, `aggregate`, `provenance` and `hierarchy` know no model.
"""

from .. import hf  # noqa: F401  # before transformers, to hide a torchvision that does not load
from .aggregate import Aggregator as Aggregator
from .aggregate import AggregatorError as AggregatorError
from .aggregate import Candidate as Candidate
from .aggregate import Fusion as Fusion
from .aggregate import Grouping as Grouping
from .aggregate import Rewrite as Rewrite
from .aggregate import Similar as Similar
from .caption import Caption as Caption
from .caption import Node as Node
from .config import CaptionConfig as CaptionConfig
from .detect import Detector as Detector
from .detect import HFDetector as HFDetector
from .detect import SaliencyDetector as SaliencyDetector
from .detect import VLMDetector as VLMDetector
from .detect import read_json_boxes as read_json_boxes
from .divide import Detection as Detection
from .divide import Patch as Patch
from .llm import CausalLMAggregator as CausalLMAggregator
from .llm import StructuredAggregator as StructuredAggregator
from .match import HFMatcher as HFMatcher
from .match import Matcher as Matcher
from .match import VLMMatcher as VLMMatcher
from .openai import EndpointAggregator as EndpointAggregator
from .pipeline import BUNDLED_CONFIG as BUNDLED_CONFIG
from .pipeline import PatchCaptioner as PatchCaptioner
from .prompts import Prompts as Prompts
from .provenance import Sentence as Sentence
from .rules import WordAggregator as WordAggregator
from .text import Lexicon as Lexicon
from .vlm import CaptionCost as CaptionCost
from .vlm import VisionModel as VisionModel
