"""From a folder, a file, a published model's name or an id on the Hub to a transformers config."""

import json
import re
from pathlib import Path
from typing import Any

from .. import hf  # noqa: F401  # before transformers, to hide a torchvision that does not load
from ..errors import VlmpruneError
from . import published

_SIZES = ("hidden_size", "num_hidden_layers")  # which no default can stand for
MOST_LAYERS, MOST_EXPERTS = 1000, 10_000  # each is built, without weights: more would take minutes


def load_config(text: str) -> tuple[str, Any, str]:
    """A model's name, its transformers config, and a sentence about the sizes that it leaves to defaults, if any.

    `text`: a folder with a config.json, that file, the name of a published model, or the id of any model on the Hub.

    Raises:
        VlmpruneError: it is none of these, or the config cannot be had or read.
    """
    if not text.strip():
        raise VlmpruneError(
            f"The model's name is empty ({text!r:.20}); give a model's folder, its config.json, or a name of "
            "vlmprune plan --list."
        )
    path = Path(text)
    try:
        path = path.expanduser()
        there = path.exists()
    except (OSError, RuntimeError, ValueError):  # too long for a path, or the home of nobody
        there = False
    if there:
        file = path / "config.json" if path.is_dir() else path
        if path.is_dir() and not file.exists():
            raise VlmpruneError(f"The folder {str(path)!r} has no config.json; give a model's, or the file itself.")
        if not file.is_file():
            raise VlmpruneError(f"{str(file)!r} is no file; give a model's folder or its config.json.")
        try:
            values = file.read_text(encoding="utf-8-sig")
        except UnicodeError:
            raise VlmpruneError(f"{str(file)!r} cannot be read (no UTF-8 text); give a model's config.json.") from None
        except OSError as error:
            why = error.strerror or error
            raise VlmpruneError(f"{str(file)!r} cannot be read ({why}); give a model's config.json.") from None
        return text, *made_of(values, str(file))
    if model := published.find(text):
        from transformers import CONFIG_MAPPING

        return model.name, CONFIG_MAPPING[model.config["model_type"]].from_dict(dict(model.config)), ""
    if re.fullmatch(r"[\w.-]+/[\w.-]+", text) and not text.startswith(".") and not text.endswith(".json"):
        return text, *made_of(_from_hub(text), text)
    raise VlmpruneError(
        f"There is no config at {text!r:.200}, and no published model has this name; give a config.json"
        f"{_or_near(text)}."
    )


def made_of(text: str, where: str) -> tuple[Any, str]:
    """The transformers config that a config.json's text describes, and what it leaves to defaults."""
    from transformers import CONFIG_MAPPING

    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        why = getattr(error, "msg", "numbers too long, or lists too deep")
        raise VlmpruneError(f"{where!r} is not a JSON object ({why}); give a model's config.json.") from None
    if not isinstance(values, dict):
        raise VlmpruneError(f"{where!r} is not a JSON object (a {type(values).__name__}); give a model's config.json.")
    if "model_type" not in values:
        raise VlmpruneError(f"{where!r} states no model_type; give a model's whole config.json.")
    kind = values["model_type"]
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        raise VlmpruneError(f"{where!r} has the unknown model_type {kind!r}; give another model's config.")
    _check_counts(values, where)
    try:
        config = CONFIG_MAPPING[kind].from_dict(values)
        missing = _missing(values, config)
    except Exception as error:  # whatever a user's file makes transformers raise is bad input
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise VlmpruneError(f"{where!r} is not a valid config of a {kind!r} ({reason:.200}); check the file.") from None
    if not _parts(values) and len(missing) >= len(_SIZES):
        raise VlmpruneError(
            f"{where!r} states no sizes, only that it is a {kind!r}, and transformers' defaults are no published "
            f"model's; give the whole config.json{_or_near(kind)}."
        )
    said = [f"The config does not state {', '.join(missing)}: transformers' defaults count."] if missing else []
    if quantised := values.get("quantization_config"):
        method = quantised.get("quant_method") if isinstance(quantised, dict) else quantised
        said.append(f"Its weights are quantised ({method}), but count in full here.")
    return config, " ".join(said)


def _check_counts(values: dict[str, Any], where: str) -> None:
    """Refuse more layers or experts than any model has."""
    for name, value in values.items():
        if isinstance(value, dict):
            _check_counts(value, where)
        elif isinstance(value, int) and (words := {"layers", "depth", "experts", "layer"} & set(name.split("_"))):
            most = MOST_EXPERTS if "experts" in words else MOST_LAYERS
            if value > most:
                raise VlmpruneError(f"{where!r} has {name}={value}, more than {most}; give a model's config.json.")


def _parts(values: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The configs inside a config that state something."""
    return {name: part for name, part in values.items() if name.endswith("_config") and isinstance(part, dict) and part}


def _missing(values: dict[str, Any], config: Any) -> list[str]:
    """Which sizes of the language model and of the tower a config.json leaves to transformers' defaults."""
    text, parts = config.get_text_config(), _parts(values)
    stated = set(values).union(*(part for name, part in parts.items() if "vision" not in name and "audio" not in name))
    names = {size: text.attribute_map.get(size, size) for size in _SIZES}
    missing = [f"{size}={getattr(text, size)}" for size, name in names.items() if not {size, name} & stated]
    if getattr(config, "vision_config", None) is not None and not any("vision" in name for name in parts):
        missing.append("vision_config")
    return missing


def _from_hub(name: str) -> str:
    """The text of a model's config.json, from the local cache or by one request, without a retry."""
    from huggingface_hub import get_session, get_token, hf_hub_url, try_to_load_from_cache

    try:
        if isinstance(cached := try_to_load_from_cache(name, "config.json"), str):
            return Path(cached).read_text(encoding="utf-8-sig")
        address = hf_hub_url(name, "config.json")
        headers = {"authorization": f"Bearer {token}"} if (token := get_token()) else {}
        answer = get_session().get(address, headers=headers, timeout=10, follow_redirects=True)
    except Exception as error:  # of its HTTP library, whichever that is
        reason = " ".join(str(error).split())[:80] or type(error).__name__
        raise VlmpruneError(
            f"{name!r} is no folder here, and the Hugging Face Hub does not answer ({reason}); give a config.json"
            f"{_or_near(name)}."
        ) from None
    if answer.status_code == 200:
        return str(answer.text)
    why = {401: "has no such model, or it is private or gated", 403: "does not let you read it"}
    raise VlmpruneError(
        f"The Hugging Face Hub {why.get(answer.status_code, 'has no config.json of it')}: {name!r}; check the id, log "
        f"in, or give a config.json{_or_near(name)}."
    )


def _or_near(text: str) -> str:
    names = published.near(text)
    return f", or {' or '.join(names)}" if names else ", or a name of vlmprune plan --list"
