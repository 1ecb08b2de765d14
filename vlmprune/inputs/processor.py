"""Loading a saved model's processor, also where torchvision is missing: then with our own video part."""

import importlib.util
import json
import re
from typing import Any

from transformers.utils import cached_file

from ..errors import VlmpruneError
from .video_processor import NoImageProcessor, OwnVideoProcessor

CONFIGS = ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json", "config.json")
VIDEO_CONFIGS = ("video_preprocessor_config.json", "preprocessor_config.json")
LONGEST_REASON = 400  # characters of what transformers says, cut between sentences


def load_processor(source: str, *, trust_remote_code: bool = False) -> Any:
    """A model's processor, from a folder or the Hub; where torchvision does not load, with ours as video part.

    Such a processor is put together from the tokenizer, the image processor that works on Pillow, if there is one, and
    the template.

    Raises:
        VlmpruneError: it cannot be loaded; where a package is missing, the sentence names it and how to install it.
    """
    from transformers import AutoProcessor

    try:
        return AutoProcessor.from_pretrained(source, trust_remote_code=trust_remote_code)
    except Exception as error:  # whatever a user's files make transformers raise is bad input, not a bug of ours
        first = error
    if importlib.util.find_spec("torchvision") is None:  # missing, or hidden because it does not load
        try:
            found = _class_of(source)
            if found is not None and "video_processor" in found.get_attributes():
                return _with_own_video(found, source, trust_remote_code)
        except Exception as error:
            first = error
    raise VlmpruneError(reason(first)) from first


def _class_of(source: str) -> Any:
    """The class of a saved processor, None where it comes with the model as code or is unknown."""
    from transformers import AutoConfig
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING, processor_class_from_name

    for name in CONFIGS:
        if found := _json(source, name).get("processor_class"):
            return processor_class_from_name(found)
    try:
        return PROCESSOR_MAPPING.get(type(AutoConfig.from_pretrained(source)), None)
    except Exception:  # what AutoProcessor said is the better reason
        return None


def _with_own_video(kind: Any, source: str, trust_remote_code: bool) -> Any:
    """The processor with `OwnVideoProcessor` in the place of its video part."""
    from transformers import AutoFeatureExtractor, AutoImageProcessor, AutoTokenizer

    def lenient(self: Any, name: str, part: Any) -> Any:
        own = isinstance(part, OwnVideoProcessor | NoImageProcessor)
        return type(part) if own else kind.check_argument_for_proper_class(self, name, part)

    saved, _ = kind.get_processor_dict(source)
    video = _json(source, CONFIGS[0]).get("video_processor", {})
    for name in VIDEO_CONFIGS:
        video = video or _json(source, name)

    def image_processor() -> Any:
        try:
            # A broken torchvision counts as there, and its image processors would be chosen.
            return AutoImageProcessor.from_pretrained(source, trust_remote_code=trust_remote_code, backend="pil")
        except ValueError as error:  # PerceptionLM's has no form that works on Pillow
            if "torchvision" not in str(error):
                raise
            return NoImageProcessor(saved.get("image_processor") or _json(source, "preprocessor_config.json"))

    loaders = {
        "image_processor": image_processor,
        "tokenizer": lambda: AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code),
        "feature_extractor": lambda: AutoFeatureExtractor.from_pretrained(source, trust_remote_code=trust_remote_code),
        "video_processor": lambda: OwnVideoProcessor(video),
    }
    parts = [loaders[name]() for name in kind.get_attributes()]
    # Its own check of types would refuse the stand-in. Afterwards the object is one of the real class.
    changed = {"check_argument_for_proper_class": lenient, "__module__": kind.__module__}
    made: Any = type(kind.__name__, (kind,), changed)
    processor = made.from_args_and_dict(parts, saved)
    processor.__class__ = kind
    return processor


def _json(source: str, name: str) -> dict[str, Any]:
    """A file of the model, {} where there is none."""
    path = cached_file(
        source, name, _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False
    )
    if path is None:
        return {}
    with open(path, encoding="utf-8") as file:
        found = json.load(file)
    return found if isinstance(found, dict) else {}


def reason(error: BaseException) -> str:
    """What went wrong as one whole sentence or several, on one line; a missing package with how to install it."""
    chain: list[BaseException] = []
    while error is not None and error not in chain:
        chain.append(error)
        error = error.__cause__ or error.__context__  # type: ignore[assignment]  # None ends the loop
    for one in chain:
        if isinstance(one, ImportError) and (package := _package(one)):
            return f"it needs the package {package}; install it with pip install {package}"
    text = " ".join(str(chain[0]).split()) or type(chain[0]).__name__
    if len(text) > LONGEST_REASON:
        whole = text[:LONGEST_REASON].rfind(". ")
        text = text[: whole + 1] if whole > 0 else text.partition(". ")[0]
    return text.rstrip(". ")


def _package(error: ImportError) -> str | None:
    """The package that an import error misses, as transformers or Python words it."""
    if found := re.search(r"pip install ([A-Za-z0-9_\-\[\]]+)", str(error)):
        return found.group(1)
    if found := re.search(r"requires the (\w+) library", str(error)):
        return found.group(1).lower()
    return error.name.partition(".")[0] if error.name and not error.name.startswith("transformers") else None
