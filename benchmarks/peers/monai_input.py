"""MONAI's `CacheDataset` and `DataLoader` with its transforms for the four augmentations."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from monai.data import CacheDataset, DataLoader
from monai.transforms import (
    Compose,
    EnsureTyped,
    RandFlipd,
    RandScaleIntensityd,
    RandShiftIntensityd,
    RandZoomd,
    RepeatChanneld,
    ScaleIntensityRanged,
)


def epochs(count: int, size: int, channels: int, batch: int, passes: int) -> Callable[[], object]:
    """Read a number of epochs."""
    random = np.random.default_rng(0)
    data = []
    for _ in range(count):
        mask = np.zeros((1, size, size), np.uint8)
        mask[:, size // 3 : size // 2, size // 3 : size // 2] = 1
        data.append({"image": random.integers(0, 256, (channels, size, size), np.uint8), "mask": mask})
    both = ("image", "mask")
    steps = [
        EnsureTyped(both, dtype=torch.float32),
        ScaleIntensityRanged("image", 0, 255, 0, 1),
        *([RepeatChanneld("image", 3)] if channels == 1 else []),
        RandFlipd(both, 0.5, spatial_axis=1),
        RandZoomd(both, 1.0, 0.95, 1.05, mode=("bilinear", "nearest")),
        RandScaleIntensityd("image", 0.1, 1.0),
        RandShiftIntensityd("image", 0.1, prob=1.0),
        ScaleIntensityRanged("image", 0, 1, 0, 1, clip=True),
    ]
    cached = CacheDataset(data, Compose(steps), progress=False)
    loader = DataLoader(cached, batch_size=batch, shuffle=True, num_workers=2, persistent_workers=True, drop_last=True)

    def read() -> None:
        for _ in range(passes):
            for _batch in loader:
                pass

    return read
