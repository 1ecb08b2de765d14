"""The documents name what the code has, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

import vlmprune
from eval.methods_page import described
from eval.tasks.registry import TASKS
from vlmprune import families
from vlmprune.hf.compatibility import NEWEST, OLDEST
from vlmprune.methods import BUILT_IN, registry
from vlmprune.methods.catalogue import catalogue

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


METHODS, FAMILIES = ((ROOT / f"docs/{page}.md").read_text() for page in ("methods", "families"))


def test_the_methods_table_is_the_registry() -> None:
    rows = re.findall(r"^\| `([a-z0-9_-]+)` \| (\S+) \|", METHODS, flags=re.MULTILINE)
    # A method whose depth follows from its budget has no default layer.
    depth = {name: getattr(cls, "layer", "-") for name, cls in vlmprune.list_methods().items()}
    assert dict(rows) == {name: "keep*L" if layer is None else str(layer) for name, layer in depth.items()}


def test_the_families_are_listed_in_order() -> None:
    """Those with an adapter of their own in the README, all of them on the page."""
    families = vlmprune.list_families()
    (said,) = re.findall(r"<!-- text: families -->\n(.+?)<!-- end of text -->", README, flags=re.DOTALL)
    names = re.findall(r"`([a-z0-9_]+)`", said)
    assert names == sorted(name for name, adapter in families.items() if adapter == "declared")
    rows = re.findall(r"^\| `([\w.-]+)` \| (declared|generic) \|", FAMILIES, flags=re.MULTILINE)
    assert dict(rows) == families, "run python -m tests.full matrix, then python -m eval.pages"


def test_the_versions_of_transformers_are_those_that_are_tested() -> None:
    assert f"Tested with transformers {OLDEST} to {NEWEST};" in (ROOT / "docs/quickstart.md").read_text()


@pytest.mark.parametrize("name", ["quick-start", "tests"])
def test_the_commands_that_ci_runs_are_there_and_pinned(name: str) -> None:
    block = re.search(rf"<!-- ci: {name} -->\n```bash\n(.+?)\n```", README, flags=re.DOTALL)
    assert block is not None
    assert "-c constraints.txt" in block.group(1)


def test_links_lead_to_files() -> None:
    folders = ("demos/tiny_vlm", "eval", "eval/serving")
    pages = [f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")]
    readmes = [f"{folder}/README.md" for folder in folders]
    for document in ("README.md", "CONTRIBUTING.md", "llms.txt", *pages, *readmes):
        folder = (ROOT / document).parent
        for target in re.findall(r"\]\(((?!https?:)[^)#]+)\)", (ROOT / document).read_text()):
            assert (folder / target).exists(), f"{document} links to {target}"


@pytest.mark.parametrize("name", ["own_method", "own_family"])
def test_the_examples_run(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(registry, "_methods", dict(registry._methods))
    monkeypatch.setattr(families, "FAMILIES", dict(families.FAMILIES))
    page = (ROOT / f"docs/{name}.md").read_text()
    (code,) = re.findall(r"^```python\n(.+?)^```", page, flags=re.MULTILINE | re.DOTALL)
    exec(compile(code, f"docs/{name}.md", "exec", dont_inherit=True), {"__name__": name})
    assert re.search(r"kept\s+49", capsys.readouterr().out)


def test_files_named_in_the_layout_exist() -> None:
    layout = (ROOT / "CONTRIBUTING.md").read_text().partition("\n## Adding a method")[0]
    names = re.findall(r"^\| `([^`]+)` \|", layout, flags=re.MULTILINE)
    assert len(names) > 15
    assert not [name for name in names if not (ROOT / name).exists()]


def test_the_table_of_tasks_is_the_registry() -> None:
    rows = re.findall(
        r"^\| (`[^|]+`) \|", (ROOT / "eval/README.md").read_text().split("## Tasks")[1], flags=re.MULTILINE
    )
    assert [name for row in rows for name in re.findall(r"`([^`]+)`", row)] == list(TASKS)


def test_the_small_files_tell_what_the_package_says_of_itself() -> None:
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), flags=re.MULTILINE)
    assert version is not None
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (citation["version"], citation["license"]) == (version.group(1), "Apache-2.0")
    for form in (ROOT / ".github/ISSUE_TEMPLATE").glob("[!c]*.yml"):
        assert {"name", "description", "body"} <= set(yaml.safe_load(form.read_text()))
    steps = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]["ci"]["steps"]
    assert {"run": "bash .ci/run"}.items() <= steps[-1].items()


def test_the_readme_is_short_and_starts_with_what_it_does() -> None:
    assert len(README.split()) <= 1200
    first = README.split("\n\n")
    assert first[2].startswith("![")  # name, one sentence, a picture
    assert "from_pretrained" in README.split("## What will I gain?")[0]


# What readers ask -> the heading that answers it. Each is one click from the README, or in it.
ANSWERS = {
    "what do I type first": "README.md#install-and-see-it-work",
    "how do I wrap my model": "README.md#ten-lines-on-your-own-model",
    "what will I gain": "README.md#what-will-i-gain",
    "will answers change": "README.md#will-answers-change",
    "which method": "README.md#which-method",
    "my family": "docs/quickstart.md",
    "a batch": "docs/cookbook.md#a-batch",
    "a pipeline": "docs/cookbook.md#a-pipeline",
    "streaming": "docs/cookbook.md#streaming",
    "one call without pruning": "docs/cookbook.md#one-call-without-pruning",
    "which tokens stayed": "docs/cookbook.md#which-tokens-stayed",
    "Trainer and PEFT": "docs/cookbook.md#training-with-peft-or-the-trainer",
    "4-bit": "docs/cookbook.md#in-4-bits",
    "lmms-eval": "docs/cookbook.md#lmms-eval",
    "own method": "docs/own_method.md",
    "own family": "docs/own_family.md",
    "serving": "docs/serving.md",
    "is it exact on my model": "docs/check.md",
    "what does a method do, when to use it": "docs/each_method.md",
    "how do methods compare": "docs/results.md",
    "sinks": "docs/sinks.md#kinds-of-sinks",
    "captions": "docs/captions.md",
    "the demo": "docs/demo.md",
    "a command": "docs/command_line.md",
    "an error": "docs/troubleshooting.md",
    "a word": "docs/glossary.md",
    "how do I cite it": "docs/faq.md",
    "what changed": "CHANGELOG.md",
}


def links(page: Path) -> set[str]:
    """What a page links to, as paths from the checkout's root, with the heading where one is named."""
    found = re.findall(r"\]\(((?!https?:)[^)]+)\)", page.read_text())
    targets = [(page.parent / target.partition("#")[0] if target[0] != "#" else page, target) for target in found]
    return {
        f"{path.resolve().relative_to(ROOT)}{''.join(target.partition('#')[1:])}"
        for path, target in targets
        if path.suffix == ".md"
    }


def headings(page: Path) -> set[str]:
    """The fragments that a page's headings can be linked by, on GitHub as on the site."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).strip().replace(" ", "-") for title in titles}


def test_every_question_is_answered_within_two_clicks_from_the_readme() -> None:
    start = {f"README.md#{heading}" for heading in headings(ROOT / "README.md")}
    once = start | links(ROOT / "README.md")
    twice = once.union(*(links(ROOT / page.partition("#")[0]) for page in once))
    pages = {link.partition("#")[0] for link in twice}
    assert [question for question, answer in ANSWERS.items() if answer not in twice | pages] == []
    assert {f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")} <= pages


def test_links_to_headings_lead_to_one() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "eval").rglob("README.md")]
    targets = {link.partition("#")[::2] for link in set(ANSWERS.values()).union(*map(links, pages)) if "#" in link}
    assert [(page, heading) for page, heading in targets if heading not in headings(ROOT / page)] == []


def test_every_page_stands_in_the_menu_of_the_site() -> None:
    menu = re.findall(r": (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), flags=re.MULTILINE)
    assert {f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")} <= set(menu)
    assert all((ROOT / page).is_file() for page in menu)


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_method_says_what_it_does_when_to_use_it_and_what_its_options_are(name: str) -> None:
    """In its docstring, from which `docs/each_method.md` is made."""
    found = described(name)
    assert found.what
    assert found.when, f"the docstring of {name} has no paragraph that begins with 'When: '"
    own = {option for entry in found.options for option in re.findall(r"`(\w+)`", entry.partition(":")[0])}
    assert own <= set(next(one for one in catalogue() if one["name"] == found.name)["options"])
    assert "arXiv" in found.source or found.name in (
        "none",
        "random",
        "uniform",
        "downsample",
        "fastv-oracle",
        "kv-random",
        "kv-buffer",
    )
