"""What is shipped: the wheel holds all it needs, versions are stated once, and importing changes nothing."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import vlmprune
from tests.support.grid import only_full
from vlmprune.hf.compatibility import NEWEST, OLDEST

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MEBIBYTE = 1 << 20


def python(code: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel of this checkout, built without a network by the backend the environment already has."""
    if find_spec("setuptools") is None:
        pytest.skip("setuptools, the build backend, is not installed")
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "vlmprune", source / "vlmprune", ignore=shutil.ignore_patterns("__pycache__"))
    return zipfile.ZipFile(built("wheel", source))


def built(kind: str, source: Path) -> Path:
    """The wheel or sdist that the backend makes of a folder."""
    code = f"import setuptools.build_meta as b; print(b.build_{kind}('dist'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=source)
    assert done.returncode == 0, done.stderr
    return source / "dist" / done.stdout.splitlines()[-1]


def test_the_wheel_holds_every_file_of_the_package(wheel: zipfile.ZipFile) -> None:
    package = ROOT / "vlmprune"
    files = {
        str(path.relative_to(ROOT)) for path in package.rglob("*") if path.is_file() and path.suffix not in (".pyc",)
    }
    shipped = set(wheel.namelist())
    assert files <= shipped
    outside = {name for name in shipped if not name.startswith(("vlmprune/", "vlmprune-"))}
    assert not outside


def test_the_wheel_carries_the_licence_and_stays_small(wheel: zipfile.ZipFile) -> None:
    assert any(name.endswith("LICENSE") for name in wheel.namelist())
    assert sum(info.file_size for info in wheel.infolist() if "weights" in info.filename) <= 30 * MEBIBYTE


def test_the_wheel_installs_the_command(wheel: zipfile.ZipFile) -> None:
    (entry,) = (name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    assert "vlmprune = vlmprune.apps.cli:main" in wheel.read(entry).decode()


def from_the_wheel(wheel: zipfile.ZipFile, folder: Path, *words: str) -> str:
    """What a command prints in an empty folder, the package taken from the unpacked wheel."""
    wheel.extractall(folder / "unpacked")
    (folder / "empty").mkdir()
    environment = {**os.environ, "PYTHONPATH": str(folder / "unpacked"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, check=False, cwd=folder / "empty", env=environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@only_full
def test_ask_runs_from_the_wheel(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    words = ("-m", "vlmprune", "ask", "--json", "--repeats", "1", "--max-new-tokens", "2")
    assert json.loads(from_the_wheel(wheel, tmp_path, *words))["exit"]["text"] == "blue"


@only_full
def test_check_runs_from_the_wheel(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    found = json.loads(from_the_wheel(wheel, tmp_path, "-m", "vlmprune", "check", "--layer", "1", "--json"))
    assert found["ok"] is True


@only_full
def test_a_source_distribution_builds_the_same_wheel(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    """Without the checkout around it: what the wheel needs is in the archive."""
    source = Path(str(wheel.filename)).parents[1]
    with tarfile.open(built("sdist", source)) as archive:
        archive.extractall(tmp_path, filter="data")
    unpacked = tmp_path / f"vlmprune-{vlmprune.__version__}"
    with zipfile.ZipFile(built("wheel", unpacked)) as again:
        assert sorted(again.namelist()) == sorted(wheel.namelist())


@only_full
def test_vllm_finds_the_plugin_in_the_wheel(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    code = """
from importlib.metadata import entry_points
(found,) = entry_points(group="vllm.general_plugins", name="vlmprune")
print(found.load().__code__.co_filename)
"""
    assert str(tmp_path / "unpacked") in from_the_wheel(wheel, tmp_path, "-c", code)


@only_full
def test_the_demo_answers_from_the_wheel(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    code = """
import httpx
from vlmprune.apps.demo.app import served
from vlmprune.apps.demo.engine import Engine
from vlmprune.harness.models import load_models
with served(Engine(load_models(None, None, trust_remote_code=False))) as (url, _):
    print(httpx.get(url).status_code)
"""
    assert from_the_wheel(wheel, tmp_path, "-c", code).split()[-1] == "200"


def test_the_version_is_one() -> None:
    assert vlmprune.__version__ == PROJECT["version"]


def test_the_changelog_has_notes_of_the_version_below_what_is_not_released() -> None:
    sections = re.findall(r"^## \[(.+?)\](.*)$", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert sections[0] == ("Unreleased", "")
    version, date = sections[1]
    assert version == vlmprune.__version__
    assert re.fullmatch(r" - \d{4}-\d\d-\d\d", date)


def test_everything_that_gets_installed_is_pinned() -> None:
    """Without a pin, `pip install . -c constraints.txt` takes what was never tested (of torch: gigabytes)."""
    pins = {
        canonicalize_name(line.partition("==")[0])
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    }
    extras = PROJECT["optional-dependencies"]
    declared = [*PROJECT["dependencies"], *(one for extra in extras.values() for one in extra)]
    seen: set[str] = set()
    open_ends = [Requirement(one) for one in declared]
    while open_ends:
        requirement = open_ends.pop()
        name = canonicalize_name(requirement.name)
        if name in seen or name == PROJECT["name"] or name.startswith(("nvidia-", "cuda-")):
            continue  # a CUDA build of torch pins its own libraries
        seen.add(name)
        try:
            needs = metadata.requires(name) or []
        except metadata.PackageNotFoundError:  # of an extra that is not installed here
            continue
        environments = [{"extra": extra} for extra in (requirement.extras or {""})]
        for one in map(Requirement, needs):
            if one.marker is None or any(one.marker.evaluate(environment) for environment in environments):
                open_ends.append(one)
    assert sorted(seen - pins) == []


def test_the_versions_of_transformers_are_said_once() -> None:
    """A newer minor version than the newest tested is let in, to warn: `compatibility.check_transformers`."""
    (declared,) = (one for one in PROJECT["dependencies"] if one.startswith("transformers"))
    assert declared == f"transformers>={OLDEST},<6"
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    assert pins["transformers"].startswith(f"{NEWEST}.")


@pytest.fixture(scope="module")
def imported() -> dict[str, Any]:
    """What importing vlmprune, and then its command line, did to a fresh interpreter."""
    code = """
import json, logging, sys, warnings
import torch, transformers
from torch import nn
from transformers import masking_utils, modeling_utils
from transformers.models.llava import modeling_llava

def state():
    return [
        sorted(modeling_utils.ALL_ATTENTION_FUNCTIONS.valid_keys()),
        [str(f) for f in modeling_utils.ALL_ATTENTION_FUNCTIONS._global_mapping.values()],
        [str(f) for f in masking_utils.ALL_MASK_ATTENTION_FUNCTIONS._global_mapping.values()],
        [str(f) for f in vars(modeling_llava.LlavaForConditionalGeneration).values()],
        [str(f) for f in vars(modeling_llava.LlavaModel).values()],
        [str(f) for f in vars(transformers.GenerationMixin).values()],
        [str(f) for f in vars(nn.Module).values()],
        [str(h) for h in nn.modules.module._global_forward_pre_hooks.values()],
        torch.get_num_threads(), str(torch.get_default_dtype()), torch.initial_seed(), torch.is_grad_enabled(),
        logging.root.level, [str(f) for f in warnings.filters],
    ]

before = state()
import vlmprune
for name in vlmprune.__all__:
    getattr(vlmprune, name)
found = {"changed": [i for i, (a, b) in enumerate(zip(before, state())) if a != b]}
found["with the library"] = sorted(sys.modules)
import vlmprune.apps.cli
found["with the command line"] = sorted(sys.modules)
print(json.dumps(found))
"""
    return dict(json.loads(python(code)))


@only_full
def test_importing_changes_nothing_outside(imported: dict[str, Any]) -> None:
    """No attention function registered, no class patched, no logging, warning or thread setting changed."""
    assert imported["changed"] == []


def test_importing_the_library_leaves_the_command_line_alone(imported: dict[str, Any]) -> None:
    assert "vlmprune.apps.cli" not in imported["with the library"]


@pytest.mark.parametrize("module", ["gradio", "fastapi", "ray", "datasets", "matplotlib", "skimage"])
def test_extras_are_imported_by_those_who_use_them(imported: dict[str, Any], module: str) -> None:
    assert module not in imported["with the command line"]


@pytest.mark.parametrize(
    "code",
    [
        "import vlmprune; vlmprune.__version__, dir(vlmprune), vlmprune.VlmpruneError",
        "import vlmprune.apps.cli",
        "from vlmprune.apps.cli import main; sys.argv[1:] = ['--help']; main()",
        "from vlmprune.apps.cli import main; sys.argv[1:] = ['methods']; main()",
        "from vlmprune.apps.cli import main; sys.argv[1:] = ['methods', '--json']; main()",
        "from vlmprune.apps.cli import main; sys.argv[1:] = ['plan', '--help']; main()",
        "from vlmprune.apps.cli import main; sys.argv[1:] = ['plan', '--hardware', 'none']; main()",
        "from vlmprune.apps.cli import main; sys.argv[1:] = ['ask', '--help']; main()",
    ],
)
def test_torch_is_imported_when_a_name_needs_it(code: str) -> None:
    """What the command line prints without a model needs neither."""
    loaded = "[name for name in ('torch', 'transformers', 'torchvision') if name in sys.modules]"
    assert python(f"import sys\ntry: {code}\nexcept SystemExit: pass\nprint({loaded})").endswith("[]")


@only_full
def test_a_name_may_be_asked_for_in_any_order() -> None:
    """Packages are modules, not functions; a name that is not there is an AttributeError, as `hasattr` needs."""
    code = """
import vlmprune
assert vlmprune.methods.__name__ == "vlmprune.methods" and vlmprune.families.__name__ == "vlmprune.families"
import vlmprune.methods.fastv, vlmprune.families.llava
assert vlmprune.FastV is vlmprune.methods.fastv.FastV is vlmprune.list_methods()["fastv"]
assert vlmprune.list_families()["llava"] == "declared"
assert not hasattr(vlmprune, "fastv") and not hasattr(vlmprune, "_nothing")
assert set(vlmprune.__all__) | {"methods", "families", "__version__"} <= set(dir(vlmprune))
from vlmprune import *
assert wrap is vlmprune.wrap
"""
    assert python(code) == ""


def test_a_broken_torchvision_is_hidden_before_transformers_is_imported() -> None:
    """By `vlmprune.hf`, which a package or the module itself imports first; `transformers.utils` reads no images."""
    for path in (ROOT / "vlmprune").rglob("*.py"):
        tree = ast.parse(path.read_text())
        nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
        at_top = [node for node in tree.body if node in nodes]
        heavy = [node for node in nodes if re.match(r"(import|from) transformers(?!\.utils)", ast.unparse(node))]
        if not heavy or path.parent.name == "hf":
            continue
        package = (path.parent / "__init__.py").read_text()
        hidden = "import hf  #" in package or "import hf  #" in path.read_text()
        # An import within a function comes after those at the top, and these packages hide it.
        late = not set(heavy) & set(at_top) and any(
            re.search(r"\.(families|api|engine)\b", ast.unparse(node)) for node in at_top
        )
        assert hidden or late, path


def test_everything_public_is_there_and_documented() -> None:
    assert sorted(vlmprune.__all__) == list(dict.fromkeys(sorted(vlmprune.__all__)))
    for name in vlmprune.__all__:
        assert getattr(vlmprune, name).__doc__, name


def test_every_registered_class_is_public() -> None:
    public = {getattr(vlmprune, name) for name in vlmprune.__all__ if isinstance(getattr(vlmprune, name), type)}
    built_in = [cls for cls in vlmprune.list_methods().values() if cls.__module__.startswith("vlmprune.")]
    assert set(built_in) <= public
