"""The page of `kerasseg app`, with real clicks in Chromium."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import nibabel as nib
import numpy as np
import pytest
from typer.testing import CliRunner

from browser import Page, browser
from children import PATIENCE
from evaluated_runs import brightness_network, write_run
from exported_runs import set_rule
from factories import blob, write_figshare, write_mat
from kerasseg.postprocessing import MaskRule
from kerasseg_cli.app import app
from kerasseg_tfrecords import prepare
from kerasseg_tfrecords.records.manifest import PrepareOptions

SIZE = 64


def test_without_gradio_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    done = CliRunner().invoke(app, ["app", "runs/none"])
    assert done.exit_code == 2
    assert "the page needs Gradio" in done.stderr
    assert 'pip install "kerasseg[app]"' in done.stderr


# --- served by `kerasseg app` in a process of its own: Gradio leaves sockets and loops open -------------------------------


@dataclass(frozen=True)
class Served:
    url: str
    temporary: Path
    run: Path


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, child_environment: dict[str, str]) -> Iterator[Served]:
    root = tmp_path_factory.mktemp("served")
    write_figshare(root / "raw", patients=9, slices_each=2, size=48)
    prepare(root / "raw", root / "shards", PrepareOptions(size=SIZE, split="60/20/20"), jobs=1)
    network = brightness_network(SIZE, at=0.6, steep=6)
    made = write_run(root / "runs" / "tiny <run>", root / "shards", model=network)
    set_rule(made, MaskRule(threshold=0.42, fill_holes=True))
    run = made.root
    temporary = root / "tmp"
    temporary.mkdir()
    command = [sys.executable, "-m", "kerasseg_cli", "app", str(run), "--json", "--max-upload", "1"]
    environment = {**child_environment, "TMPDIR": str(temporary)}
    child = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True)
    try:
        assert child.stdout is not None
        text = ""
        while not text.endswith("\n}\n"):
            line = child.stdout.readline()
            assert line, "it ended"
            text += line
        yield Served(json.loads(text)["url"], temporary, run)
        child.send_signal(signal.SIGTERM)
        assert child.wait(PATIENCE) == 0
        assert list(temporary.glob("kerasseg-app-*")) == []
    finally:
        child.kill()
        child.communicate()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture
def opened(page: Page, served: Served, tmp_path: Path) -> Page:
    """The page with a .mat file and a volume of 6 slices dropped."""
    write_mat(tmp_path / "1.mat", *blob(1, 70), label=1, pid="P1")
    volume = np.stack([blob(3 + k, 60)[0] for k in range(6)], axis=-1)
    nib.save(nib.Nifti1Image(volume, np.diag([-1, -1, 5.0, 1])), tmp_path / "head.nii.gz")
    page.open(served.url, width=1280)
    page.give(DROP, tmp_path / "1.mat", tmp_path / "head.nii.gz")
    page.wait("document.querySelectorAll('.trio img').length === 3")
    return page


DROP = "#drop input[type=file]"
WORDS = "document.querySelector('#pictures').innerText"
FIGURE = "[...document.querySelectorAll('.figures dd')].map(e => e.innerText)"


def choose_volume(page: Page) -> None:
    page.click("#case input")
    page.press("ArrowDown", 40)
    page.press("Enter", 13)
    page.wait(f"{WORDS}.includes('head.nii.gz, slice')")


@pytest.mark.rest
def test_the_threshold_changes_mask_area_and_volume(opened: Page) -> None:
    assert "1.mat" in opened.value(WORDS)
    choose_volume(opened)
    area, volume, _ = opened.value(FIGURE)
    assert area.endswith(" mm²")
    assert volume.endswith(" ml")
    mask = "document.querySelector('.trio img').src"
    before = opened.value(mask)
    opened.click("#threshold input[type=range]")  # in the middle, about 0.5
    opened.wait(f"{mask} !== {before!r}")
    opened.press("ArrowRight", 39, times=200)
    opened.wait("document.querySelector('#threshold input[type=range]').value > 0.65")
    opened.wait(f"parseFloat({FIGURE}[1]) < {float(volume.split()[0])} - 0.01")
    assert float(opened.value(FIGURE)[0].split()[0].replace(",", "")) < float(area.split()[0].replace(",", ""))
    assert opened.value("[...document.images].every(i => i.complete && i.naturalWidth > 0)")


@pytest.mark.rest
def test_slices_of_a_volume_are_stepped_through(opened: Page) -> None:
    choose_volume(opened)
    opened.click("#place input[type=range]")
    opened.press("Home", 36)
    opened.press("ArrowLeft", 37, times=6)
    opened.wait(f"{WORDS}.includes('slice 1 of 6')")
    opened.press("ArrowRight", 39, times=2)
    opened.wait(f"{WORDS}.includes('slice 3 of 6')")


@pytest.mark.rest
def test_masks_are_downloaded_and_nothing_is_kept(opened: Page, served: Served, tmp_path: Path) -> None:
    downloads = tmp_path / "downloads"
    downloads.mkdir()
    opened.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(downloads))
    opened.click("#download")
    for _ in range(100):
        if (downloads / "masks.zip").exists():
            break
        opened.value("new Promise(r => setTimeout(r, 100))")
    with zipfile.ZipFile(downloads / "masks.zip") as archive:
        assert archive.namelist() == ["1_mask.png", "head_mask.nii.gz", "predictions.csv"]
    # Gradio makes an empty file with a random name for each upload that it hands on.
    assert [path for path in served.temporary.rglob("*") if path.is_file() and path.stat().st_size] == []


@pytest.mark.rest
def test_the_page_asks_no_other_server_and_escapes_names(opened: Page, served: Served) -> None:
    elsewhere = [address for address in opened.requests if not address.startswith((served.url, "data:", "blob:"))]
    assert elsewhere == []
    assert opened.problems == []
    assert opened.value("document.querySelector('#head h1').innerText") == "tiny <run>"


@pytest.mark.rest
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_nothing_is_wider_than_a_phone(opened: Page, dark: bool) -> None:
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    opened.call("Emulation.setDeviceMetricsOverride", width=390, height=844, deviceScaleFactor=1, mobile=True)
    opened.call("Emulation.setEmulatedMedia", media="", features=[scheme])
    opened.wait("innerWidth === 390")
    assert opened.value("document.documentElement.scrollWidth") <= 390
    assert opened.value("document.querySelector('.trio').getBoundingClientRect().right") <= 390


@pytest.mark.rest
def test_a_file_that_is_no_image_is_explained(page: Page, served: Served, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no image")
    page.open(served.url, width=1280)
    page.give(DROP, tmp_path / "notes.txt")
    page.wait("document.body.innerText.includes('no images (found')")
    assert str(served.temporary) not in page.value("document.body.innerText")


@pytest.mark.rest
def test_uploads_are_limited(page: Page, served: Served, tmp_path: Path) -> None:
    (tmp_path / "large.png").write_bytes(os.urandom(1_100_000))
    page.open(served.url, width=1280)
    page.give(DROP, tmp_path / "large.png")
    page.wait("document.body.innerText.toLowerCase().includes('maximum')")
    page.problems.clear()  # the browser logs the refusal


@pytest.mark.rest
def test_it_listens_on_loopback_and_refuses_other_names(served: Served) -> None:
    assert served.url.startswith("http://127.0.0.1:")
    with urlopen(served.url) as answer:  # noqa: S310 - our own address
        assert "default-src 'self'" in answer.headers["content-security-policy"]
    with pytest.raises(HTTPError, match="400"):
        urlopen(Request(served.url, headers={"Host": "evil.example"}))  # noqa: S310 - our own address


@pytest.mark.rest
def test_a_busy_port_is_named(served: Served, python: str, child_environment: dict[str, str]) -> None:
    port = served.url.rstrip("/").rsplit(":", 1)[1]
    command = [python, "-m", "kerasseg_cli", "app", str(served.run), "--port", port]
    done = subprocess.run(command, env=child_environment, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 2
    assert f"expected port {port} of 127.0.0.1 to be free" in done.stderr
