"""The documentation as a site: it builds without a warning, says what is so, and works in a browser without a network."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import runpy
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import keras
import pytest
from typer.testing import CliRunner

import kerasseg
from browser import Page, browser
from kerasseg_cli.app import app

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
needs_mkdocs = pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="MkDocs is not installed")


@pytest.fixture(scope="module")
def commands() -> str:
    """The command reference as the build writes it."""
    text: str = runpy.run_path(str(DOCS / "tools" / "commands.py"))["reference"]()
    return text


def test_the_command_reference_holds_every_command_and_option(commands: str) -> None:
    """Held against what `--help` shows: whatever looks like an option there stands in the command's own section."""
    runner = CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1"})
    sections = {part.split("`")[0].strip(): part for part in commands.split("## `kerasseg")[1:]}
    listed = runner.invoke(app, ["--help"]).output.partition("Commands:")[2].partition("\n\n")[0]
    names = re.findall(r"^  ([a-z][a-z-]+)  ", listed, flags=re.MULTILINE)
    assert {"prepare", "train", "tune-threshold", "evaluate"} <= set(names)
    assert set(sections) == {"", *names}
    for name, section in sections.items():
        help_text = runner.invoke(app, [*name.split(), "--help"]).output
        if "--help-all" in help_text:
            help_text = runner.invoke(app, [*name.split(), "--help-all"]).output
        options = re.findall(r"(?<![\w-])--?[a-z][a-z0-9-]*", help_text)
        assert len(options) >= 3, help_text
        assert [option for option in options if option not in (section if name else commands)] == [], name
    assert "`--fail-under" in sections["evaluate"]
    assert "<object" not in commands


def test_each_public_name_stands_once_in_the_reference() -> None:
    pages = "".join(page.read_text() for page in (DOCS / "reference").glob("*.md"))
    named = re.findall(r"^::: kerasseg\.(\w+)$", pages, flags=re.MULTILINE)
    assert sorted(named) == [name for name in kerasseg.__all__ if name != "__version__"]


def strings(path: Path) -> Iterator[str]:
    """Every text of a module, with `…` for what is put in."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def test_troubleshooting_quotes_what_is_really_said() -> None:
    """Each quotation is in the source, ours or Keras'."""
    page = (DOCS / "troubleshooting.md").read_text()
    quoted = [line.removeprefix("> ") for line in page.splitlines() if line.startswith("> ")]
    assert len(quoted) > 15
    others = Path(keras.__file__).parent / "src"
    sources = [path for name in ("cli", "kerasseg", "tfrecords") for path in (ROOT / name).rglob("*.py")]
    sources += [others / "saving" / "saving_api.py", others / "layers" / "layer.py"]
    said = [text for path in sources for text in strings(path)]
    for text in quoted:
        for part in (part.strip() for part in text.split("…")):
            assert any(part in whole for whole in said), part


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built pages."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.mark.rest
@needs_mkdocs
def test_the_pages_build_without_a_warning(site: Path) -> None:
    assert "DiceBCELoss" in (site / "reference" / "training.html").read_text()
    assert "--fail-under" in (site / "commands.html").read_text()
    assert (site / "examples" / "own_fit.py").is_file()
    assert not (site / "tools").exists()


@pytest.mark.rest
@needs_mkdocs
def test_the_pages_fit_a_phone_and_ask_for_nothing_on_the_net(site: Path, page: Page) -> None:
    for path in sorted(site.rglob("*.html")):
        if path.name == "404.html":
            continue  # of servers, whose root it is below
        page.open(path, width=390)
        assert [url for url in page.requests if url.startswith("http")] == [], path
        assert page.value("document.documentElement.scrollWidth") <= 390, path
    assert page.problems == []


@pytest.mark.rest
@needs_mkdocs
def test_they_follow_the_reader_s_light_or_dark(site: Path, page: Page) -> None:
    colours = []
    for dark in (False, True):
        page.open(site / "index.html", dark=dark)
        colours.append(page.value("getComputedStyle(document.body).backgroundColor"))
    light, night = (sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in colours)
    assert light > 700 > 200 > night


@pytest.mark.rest
@needs_mkdocs
def test_search_works_from_the_disk(site: Path, page: Page) -> None:
    page.open(site / "index.html", width=1400)
    page.value(
        "(() => { const field = document.querySelector('[data-md-component=search-query]'); field.focus();"
        "field.value = 'threshold'; field.dispatchEvent(new KeyboardEvent('keyup', {bubbles: true})) })()"
    )
    for _ in range(100):
        if found := page.value("document.querySelectorAll('.md-search-result__link').length"):
            break
        time.sleep(0.1)
    assert found >= 5
