"""The call behind an answer, as Python that runs."""

from typing import Any

from ...harness.models import BUNDLED_LARGE, BUNDLED_SMALL, Models, options_of
from .upload import FRAMES

OWN_IMAGE = "", '"image.png"  # where yours lies'  # imports and expression, as an example's
OWN_CLIP = "", '"clip.mp4"  # where yours lies'


def snippet(models: Models, image: tuple[str, str], question: str, method: Any, new: int) -> str:
    """A script that loads the models, asks the question and prints the answer and the report.

    Args:
        image: what to import, and the expression that gives the image or its path. method: a pruner. new: tokens at
            most.
    """
    guided = "guide" in options_of(method.name)
    bundled, own_guide = models.name == BUNDLED_LARGE, guided and models.small_name != BUNDLED_SMALL
    foreign = not bundled or own_guide
    imports = ["from transformers import AutoModelForImageTextToText"] if foreign else []
    imports += ["import vlmprune", *filter(None, [image[0]])]
    # AutoProcessor needs torchvision for families that take videos.
    imports += ["from vlmprune.inputs.processor import load_processor"] if foreign else []
    if bundled:
        loaded = ["model, small, processor = vlmprune.load_tiny()"]
    else:
        loaded = [processor_of("processor", models.name), model_of("model", models.name)]
    given = ["model", repr(method.name), "processor=processor"]
    if guided:
        given.append("guide=small")
    if own_guide:
        loaded.append(model_of("small", str(models.small_name)))
        if models.small_processor is not models.processor:
            loaded.append(processor_of("small_processor", str(models.small_name)))
            given.append("guide_processor=small_processor")
    given += [f"{name}={getattr(method, name)!r}" for name in ("keep", "exit_at") if hasattr(method, name)]
    sampled = f"frames={FRAMES}, " if image is OWN_CLIP else ""
    lines = [
        *imports,
        "",
        *loaded,
        f"image = {image[1]}",
        f"with vlmprune.wrap({', '.join(given)}) as pruned:",
        f"    answer = pruned.ask(image, {question!r}, {sampled}max_new_tokens={new}, do_sample=False)",
        "print(answer.text)",
        "print(answer.report)",
    ]
    return "\n".join(lines) + "\n"


def model_of(to: str, name: str) -> str:
    """The line that loads a model."""
    return f'{to} = AutoModelForImageTextToText.from_pretrained({name!r}, dtype="auto").eval()'


def processor_of(to: str, name: str) -> str:
    """The line that loads a processor."""
    return f"{to} = load_processor({name!r})"
