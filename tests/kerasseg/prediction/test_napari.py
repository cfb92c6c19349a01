"""The recipe for napari in docs/prediction.md, without its window; skipped where napari (1 GB with Qt) is not installed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

PAGE = Path(__file__).resolve().parents[3] / "docs" / "prediction.md"
# The viewer with its layers, but without the window, which needs OpenGL.
WINDOWLESS = """
import napari
from napari.components import ViewerModel
napari.Viewer = ViewerModel
"""
CHECK = """
assert [layer.ndim for layer in viewer.layers] == [3, 3]
shown, labels = viewer.layers
assert shown.data.shape == labels.data.shape == (20, 16, 4)
assert (shown.extent.world == labels.extent.world).all(), (shown.extent, labels.extent)
assert tuple(labels.scale) == (1.0, 0.5, 5.0), labels.scale
assert set(labels.data.ravel()) == {0, 1}
place = tuple(int(i) for i in labels.world_to_data((3, 2.5, 10)))
assert labels.data[place] == 1, place
"""


@pytest.mark.rest
def test_image_and_mask_lie_on_each_other(tmp_path: Path) -> None:
    pytest.importorskip("napari")
    volume = np.random.default_rng(0).random((20, 16, 4)).astype(np.float32)
    mask = np.zeros(volume.shape, np.uint8)
    mask[2:6, 4:8, 1:3] = 1
    affine = np.diag([1, 0.5, 5, 1])
    (tmp_path / "masks").mkdir()
    nib.save(nib.Nifti1Image(volume, affine), tmp_path / "t1c.nii.gz")
    nib.save(nib.Nifti1Image(mask, affine), tmp_path / "masks" / "t1c_mask.nii.gz")
    (recipe,) = re.findall(r"```text\n(import napari.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert recipe.endswith("napari.run()\n")
    code = WINDOWLESS + recipe.removesuffix("napari.run()\n") + CHECK
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
