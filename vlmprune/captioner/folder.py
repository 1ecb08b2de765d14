"""Captions of many images: one file each, written whole or not at all, so that a killed run resumes."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from ..errors import VlmpruneError
from ..inputs.images import read_image, suffixes
from .caption import Caption

RUN = "run.json"  # how the captions of a folder are made
RECORDS = "records"
ALL = "captions.jsonl"


def image_paths(images: str | Path | Iterable[str | Path]) -> list[Path]:
    """The paths, or the image files of a folder by name.

    Raises:
        VlmpruneError: there are none.
    """
    if isinstance(images, str | Path):
        folder = Path(images)
        if not folder.is_dir():
            raise VlmpruneError(f"{str(folder)!r} is not a folder; give a folder of images, or a list of paths.")
        paths = sorted(one for one in shown(folder) if one.is_file() and one.suffix.lower() in suffixes())
    else:
        given = list(images)
        wrong = next((one for one in given if not isinstance(one, str | Path)), None)
        if wrong is not None:
            raise VlmpruneError(f"map() takes paths, so that a later run finds the same images, got {wrong!r:.80}.")
        paths = [Path(one) for one in given]
    if not paths:
        where = repr(str(images)) if isinstance(images, str | Path) else "an empty list"
        raise VlmpruneError(f"There are no images in {where:.80}; give PNG, JPEG, WebP, GIF, BMP or TIFF files.")
    return paths


def shown(folder: Path) -> Iterator[Path]:
    """What lies in a folder, without hidden files: those of macOS (`._photo.jpg`) have the names of images."""
    return (one for one in folder.iterdir() if not one.name.startswith("."))


def left_out(images: str | Path | Iterable[str | Path]) -> str:
    """What of a folder is not captioned, in words; "" where all is, or no folder was given."""
    if not isinstance(images, str | Path):
        return ""
    others = sorted(shown(Path(images)))
    folders = [one.name for one in others if one.is_dir()]
    files = [one.name for one in others if one.is_file() and one.suffix.lower() not in suffixes()]
    parts = [
        f"{len(names)} {one if len(names) == 1 else more} ({', '.join(names[:3])}{', ...' * (len(names) > 3)})"
        for one, more, names in (
            ("sub-folder", "sub-folders", folders),
            ("file of another kind", "files of another kind", files),
        )
        if names
    ]
    return f"Not captioned of {str(images)!r}: {' and '.join(parts)}." if parts else ""


def claim(out: Path, identity: dict[str, Any]) -> None:
    """Make a folder for captions made in this way, or go on with one.

    Raises:
        VlmpruneError: it cannot be made, or holds captions made in another way.
    """
    try:
        (out / RECORDS).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise VlmpruneError(f"{str(out)!r} cannot be a folder of captions ({error}); choose another place.") from None
    marker = out / RUN
    wanted = json.loads(json.dumps(identity))
    if not marker.exists():
        write_whole(marker, json.dumps(wanted, indent=2) + "\n")
    elif (found := load(marker)) != wanted:
        other = sorted(k for k in wanted if not isinstance(found, dict) or found.get(k) != wanted[k])
        raise VlmpruneError(
            f"{str(out)!r} holds captions made with another {', '.join(other) or 'set-up'}; choose another folder."
        )


def one_record(caption: Callable[[Image.Image], Caption], path: Path, records: Path) -> dict[str, Any]:
    """The finished record of an image, or a new one, on disk before it is returned."""
    base: dict[str, Any] = {"path": str(path)}
    # The path decides the name, the content whether the record still holds.
    target = records / f"{path.stem[:60]}-{hashlib.sha256(os.path.abspath(path).encode()).hexdigest()[:12]}.json"
    try:
        base["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
        done = load(target)
        if isinstance(done, dict) and done.get("sha256") == base["sha256"] and "error" not in done:
            return {**done, "path": str(path)}
        record = {**base, **caption(read_image(path)).to_dict()}
    except Exception as error:  # the other images go on; Ctrl-C and exit are not caught here
        record = {**base, "error": f"{type(error).__name__}: {error}"}
    write_whole(target, json.dumps(record, ensure_ascii=False, indent=1) + "\n")
    return record


def load(path: Path) -> Any:
    """What a JSON file holds; None where there is none or it is broken."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def write_whole(path: Path, text: str) -> None:
    """Write a file atomically: after a crash it holds the old text or the new one."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with draft.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
