"""The wheel holds what it should, installs into a clean environment, and its command runs there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
VERSIONS = ("3.11", "3.12", "3.13")


def run(*command: object, **options: object) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "PYTHONWARNINGS"}}
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, env=environment, **options)  # type: ignore[call-overload,no-any-return]


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    done = run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = out.glob("*.whl")
    return path


@pytest.mark.rest
def test_the_wheel_holds_the_three_packages_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert tops == {"kerasseg", "kerasseg_cli", "kerasseg_tfrecords"}
    for package in tops:
        assert f"{package}/py.typed" in names
        base = {"kerasseg": ROOT, "kerasseg_cli": ROOT / "cli", "kerasseg_tfrecords": ROOT / "tfrecords"}[package]
        modules = {path.relative_to(base).as_posix() for path in (base / package).rglob("*.py")}
        assert modules <= set(names)
    templates = {path.relative_to(ROOT).as_posix() for path in (ROOT / "kerasseg").rglob("*.j2")}
    assert templates
    assert templates <= set(names)


def interpreter(version: str) -> Path | None:
    """A Python of this version, if the machine has one (on the path, or kept by pyenv)."""
    found = shutil.which(f"python{version}")
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    for candidate in ([Path(found)] if found else []) + sorted(pyenv.glob(f"{version}.*/bin/python")):
        if run(candidate, "-c", "import sys, venv; print(sys.version)").stdout.startswith(version):
            return candidate
    return None


def docker_context(folder: Path) -> Path:
    """What the Dockerfile copies into the image."""
    for line in (ROOT / "Dockerfile").read_text().splitlines():
        if line.startswith("COPY "):
            *names, target = line.split()[1:]
            for name in names:
                to = folder / target / ("" if target == name else name)
                to.parent.mkdir(parents=True, exist_ok=True)
                if (ROOT / name).is_dir():
                    shutil.copytree(ROOT / name, to, ignore=shutil.ignore_patterns("__pycache__"))
                else:
                    shutil.copy(ROOT / name, to)
    return folder


@pytest.mark.rest
@pytest.mark.parametrize("version", VERSIONS)
def test_the_command_runs_in_a_clean_environment(wheel: Path, tmp_path: Path, version: str) -> None:
    """With all dependencies on the running version, installed as the Dockerfile does from the files that it copies; on the
    others the wheel, with what `--help` and reading shards' facts need.
    """
    whole = sys.version.startswith(version)
    base = interpreter(version)
    if base is None:
        pytest.skip(f"no Python {version} on this machine")
    assert run(base, "-m", "venv", tmp_path / "venv").returncode == 0
    python = tmp_path / "venv" / "bin" / "python"
    # Bytes of the dependencies are compiled when they are imported: ours are, below, and of theirs few are.
    pip = [python, "-m", "pip", "install", "--quiet", "--no-compile", "--constraint", ROOT / "constraints.txt"]
    done = run(*pip, *([docker_context(tmp_path / "src")] if whole else ["--no-deps", wheel]), cwd=tmp_path)
    if not whole and done.returncode == 0:
        needed = ("typer", "rich", "pydantic", "numpy", "opencv-python-headless", "google-crc32c", "protobuf")
        done = run(*pip, *needed, cwd=tmp_path)
    if done.returncode and "CI" not in os.environ:
        pytest.skip(f"pip could not install: {done.stderr.splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    command = tmp_path / "venv" / "bin" / "kerasseg"
    shown = run(command, "--help", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert "prepare" in shown.stdout
    refused = run(command, "verify", "nowhere", cwd=tmp_path)
    assert refused.returncode == 3, refused.stderr
    assert "not a shard directory" in refused.stderr
    assert "Traceback" not in refused.stderr
    ours = next((tmp_path / "venv" / "lib").glob("python*/site-packages"))
    for package in ("kerasseg", "kerasseg_cli", "kerasseg_tfrecords"):
        compiled = run(python, "-W", "error", "-m", "compileall", "-q", "-f", ours / package, cwd=tmp_path)
        assert compiled.returncode == 0, compiled.stdout
