"""What a release needs besides the code: valid files for citation, issues and automation, and one version everywhere."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from kerasseg_tfrecords._version import __version__

RELATIVE = re.compile(r"\]\((?!https://|#)")
ROOT = Path(__file__).resolve().parents[1]
SCHEMAS = {
    "vendor.citation-file-format": ["CITATION.cff"],
    "vendor.github-workflows": sorted(path.as_posix() for path in (ROOT / ".github" / "workflows").glob("*.yml")),
    "vendor.github-issue-forms": [f".github/ISSUE_TEMPLATE/{name}.yml" for name in ("bug_report", "feature_request")],
    "vendor.github-issue-config": [".github/ISSUE_TEMPLATE/config.yml"],
}


@pytest.mark.rest
@pytest.mark.parametrize("schema", SCHEMAS)
def test_files_match_their_schemas(schema: str) -> None:
    """The schemas come with check-jsonschema, so that nothing is fetched."""
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema, *SCHEMAS[schema]]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_version_is_the_same_everywhere() -> None:
    citation = (ROOT / "CITATION.cff").read_text()
    assert re.search(r"^version: (.+)$", citation, flags=re.MULTILINE)[1] == __version__  # type: ignore[index]
    assert f"## {__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_workflows_and_dockerfiles_use_what_exists() -> None:
    """Every `make` target of a workflow is in the Makefile; every path that a Dockerfile copies is in the tree."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    workflows = "".join(path.read_text() for path in (ROOT / ".github" / "workflows").glob("*.yml"))
    assert set(re.findall(r"run: make ([a-z-]+)", workflows)) <= targets
    for name in ("Dockerfile", "Dockerfile.gpu"):
        copied = re.findall(r"^COPY (.+) \S+$", (ROOT / name).read_text(), flags=re.MULTILINE)
        assert copied
        for path in " ".join(copied).split():
            assert (ROOT / path).exists(), path


def test_links_of_the_readme_are_absolute_on_the_package_index(tmp_path: Path) -> None:
    """Its address stands once in the repository, in the line that people type."""
    found: dict[str, Any] = {}
    (tmp_path / "README.md").write_text(
        "git clone https://h/o/k\n![a [b]](c/d.png) [e](f.md#g) [h](#i) [j](https://k.org)"
    )
    runpy.run_path(str(ROOT / "hatch_build.py"))["ReadmeHook"](tmp_path, {}).update(found)
    url = "https://h/o/k"
    shown = f"[e]({url}/blob/main/f.md#g) [h](#i) [j](https://k.org)"
    assert found["readme"]["text"].endswith(shown)
    (tmp_path / "README.md").write_text("[a](b.md)")
    with pytest.raises(ValueError, match="git clone"):
        runpy.run_path(str(ROOT / "hatch_build.py"))["ReadmeHook"](tmp_path, {}).update(found)
    text = (ROOT / "README.md").read_text()
    assert RELATIVE.search(text)
    whole = runpy.run_path(str(ROOT / "hatch_build.py"))["absolute_links"](text)
    assert not RELATIVE.search(whole)
    assert "/raw/main/docs/images/" in whole
    assert text.count("/OWNER/") == 1


@pytest.mark.rest
def test_source_and_wheel_pass_twine(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    done = subprocess.run(build, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    files = sorted(map(str, tmp_path.iterdir()))
    assert [Path(file).suffix for file in files] == [".whl", ".gz"]
    with zipfile.ZipFile(files[0]) as wheel:
        (metadata,) = (name for name in wheel.namelist() if name.endswith("METADATA"))
        text = wheel.read(metadata).decode()
    assert "# kerasseg" in text
    assert not RELATIVE.search(text)
    check = [sys.executable, "-m", "twine", "check", "--strict", *files]
    done = subprocess.run(check, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
