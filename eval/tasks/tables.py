"""Tables with images, through `datasets`: parquet files in a folder as `hf download` leaves it, and the Hub itself."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmprune.errors import VlmpruneError

from .readers import Bad, BadRow, Row, check_start

# The words by which the Hub knows the split of a file, in its order.
SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_NAME_OF = {word: split for split, words in SPLITS.items() for word in words}
_SHARD = re.compile(r"^(?P<split>.+?)-(?P<number>\d{5})-of-(?P<count>\d{5})(?:-[0-9a-f]+)?$")
_WORD = re.compile(r"[^a-z0-9]+")


@dataclass(frozen=True)
class Hub:
    """A data set on the Hugging Face Hub, or what a folder laid out like one holds."""

    id: str
    config: str | None
    split: str


@dataclass(frozen=True)
class TablePart:
    """A parquet file: the configurations and the split that its path, or the data set's card, says it belongs to."""

    path: Path
    configs: tuple[str, ...]
    split: str | None


def parts_of(files: Sequence[Path], root: Path) -> list[TablePart]:
    """What each parquet file below `root` belongs to."""
    card = _card(root)
    return [card.get(one) or _by_path(one, root) for one in files]


def _by_path(path: Path, root: Path) -> TablePart:
    """By the Hub's conventions: `CONFIG/SPLIT-00000-of-00001.parquet`, `data/SPLIT-...`, `CONFIG/SPLIT/0.parquet`."""
    folders = path.relative_to(root).parts[:-1] if root.is_dir() else ()
    shard = _SHARD.match(path.stem)
    split = shard["split"] if shard else _split_word(path.stem)
    if split is None:
        split = next((one for one in reversed(folders) if one.lower() in _NAME_OF), None)
    return TablePart(path, tuple(one for one in folders if one != "data" and one != split), split)


def _split_word(name: str) -> str | None:
    """The word of a split in a file's name, as in `pope_test.parquet`."""
    return next((word for word in _WORD.split(name.lower()) if word in _NAME_OF), None)


def _card(root: Path) -> dict[Path, TablePart]:
    """The files that a data set's README assigns to a configuration and a split."""
    import yaml

    out: dict[Path, TablePart] = {}
    for readme in sorted(root.glob("README.md")) if root.is_dir() else ():
        text = readme.read_text(encoding="utf-8-sig", errors="replace")
        head = re.match(r"---\r?\n(.*?)\r?\n---", text, re.DOTALL)
        try:
            said = yaml.safe_load(head[1]) if head else None
        except yaml.YAMLError:
            said = None
        configs = said.get("configs") if isinstance(said, dict) else None
        for config in configs if isinstance(configs, list) else ():
            files = config.get("data_files") if isinstance(config, dict) else None
            for one in files if isinstance(files, list) else ():
                if not isinstance(one, dict) or not isinstance(one.get("split"), str):
                    continue
                patterns = one["path"] if isinstance(one.get("path"), list) else [one.get("path")]
                for path in (path for pattern in patterns if pattern for path in root.glob(str(pattern))):
                    out[path] = TablePart(path, (str(config.get("config_name", "default")),), one["split"])
    return out


def chosen(
    task: str, parts: Sequence[TablePart], wanted: Hub, *, config: str | None, split: str | None
) -> list[TablePart]:
    """The files of one configuration and one split.

    Args:
        wanted: what the task asks for. config, split: what the user asks for instead.
    Raises:
        VlmpruneError: there are none, or it is not said which of several.
    """
    name = config or wanted.config
    named = [one for one in parts if name is not None and name.lower() in (part.lower() for part in one.configs)]
    plain = [one for one in parts if not one.configs or one.configs[-1] == "default"]
    others = sorted({one.configs[-1] for one in parts if one.configs})
    if named:
        parts = named
    elif plain and config is None:
        parts = plain
    elif config is not None or len(others) > 1 or (name is not None and others):
        raise VlmpruneError(_no(task, "configuration", name, others, "--config"))
    return _of_split(task, parts, split or wanted.split, given=split is not None)


def _of_split(task: str, parts: Sequence[TablePart], split: str, *, given: bool) -> list[TablePart]:
    there = sorted({one.split for one in parts if one.split is not None})
    alike = SPLITS.get(_NAME_OF.get(split.lower(), ""), ())
    for names in ((split.lower(),), alike):
        if found := [one for one in parts if one.split is not None and one.split.lower() in names]:
            return found
    if there or given:
        raise VlmpruneError(_no(task, "split", split, there, "--split"))
    return list(parts)


def _no(task: str, what: str, name: str | None, others: Sequence[str], option: str) -> str:
    there = ", ".join(map(repr, others)) or "no name of one"
    found = f"finds no {what} {name!r} in its folder" if name else f"finds more than one {what} in its folder"
    return f"The task {task!r} {found}, which has {there}; name one with {option}."


def missing_shards(parts: Sequence[TablePart]) -> Iterator[Bad]:
    """What lacks of files that are numbered `00000-of-00003`: a download that was cut short."""
    sets: dict[tuple[Path, str, int], set[int]] = {}
    for one in parts:
        if shard := _SHARD.match(one.path.stem):
            sets.setdefault((one.path.parent, shard["split"], int(shard["count"])), set()).add(int(shard["number"]))
    for (folder, split, count), numbers in sets.items():
        if lacking := sorted(set(range(count)) - numbers):
            some = ", ".join(f"{number:05}" for number in lacking[:5])
            yield Bad(f"{folder.name}/{split}", f"{len(lacking)} of its {count} parquet files are not there ({some})")


@dataclass(frozen=True)
class Stored:
    """An image in a column of a data set, fetched when called: memory holds none of them."""

    table: Any
    row: int
    column: str = "image"

    def __call__(self) -> Any:
        cell = self.table[self.row][self.column]
        if isinstance(cell, list):
            cell = cell[0] if cell else None
        if isinstance(cell, Mapping):
            cell = cell.get("bytes") or (Path(cell["path"]) if cell.get("path") else None)
        if cell is None:
            raise VlmpruneError(f"row {self.row} holds no image; check the data set")
        return cell


def hub_table(task: str, name: str, config: str | None, split: str) -> Any:
    """A data set of the Hub (or of a folder laid out like one), images left encoded.

    Raises:
        VlmpruneError: `datasets` is not installed, or the data set cannot be had.
    """
    datasets = _datasets(task)
    try:
        table = datasets.load_dataset(name, config, split=split)
    except Exception as error:  # no network, no access, a changed layout: whatever it is, the user must act on it
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise VlmpruneError(
            f"The task {task!r} cannot read {name!r} from the Hub ({reason}); check the network and access, or put "
            "the files into the task's folder."
        ) from error
    return _encoded(table, datasets)


def local_table(paths: Sequence[Path]) -> Any:
    """Parquet files as one table, images left encoded.

    Raises:
        BadRow: a file is empty or no parquet.
    """
    datasets = _datasets("parquet")
    for path in paths:
        with path.open("rb") as file:
            check_start(path, file.read(64))
    try:
        table = datasets.load_dataset("parquet", data_files=[str(path) for path in paths], split="train")
    except Exception as error:  # whatever a damaged file makes the reader raise
        raise BadRow(f"{paths[0].parent.name} cannot be read as parquet ({error.__cause__ or error})") from None
    return _encoded(table, datasets)


def _datasets(task: str) -> Any:
    try:
        import datasets
    except ImportError:
        raise VlmpruneError(
            f"The task {task!r} needs the package datasets to read parquet files or the Hub; install vlmprune[eval]."
        ) from None
    datasets.disable_progress_bars()
    return datasets


def _encoded(table: Any, datasets: Any) -> Any:
    features = table.features.copy()
    for name, feature in features.items():
        if isinstance(feature, datasets.Image):
            features[name] = datasets.Image(decode=False)
        elif isinstance(feature, datasets.List) and isinstance(feature.feature, datasets.Image):
            features[name] = datasets.List(datasets.Image(decode=False))
    return table.cast(features)


def rows_of(table: Any) -> Iterator[Row]:
    """The rows of a table, each with its `image` as something to call."""
    # Texts and numbers stay as they are: they are base64, or refer to another row.
    kind = str(getattr(table.features.get("image"), "dtype", ""))
    images = "image" in table.column_names and not kind.startswith(("string", "large_string", "int", "uint"))
    bare = table.remove_columns("image") if images else table
    for at, row in enumerate(bare):
        yield Row(row, image=Stored(table, at)) if images else Row(row)
