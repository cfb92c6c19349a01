"""The default U-Net in PyTorch, layer for layer, and a step of training with it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import nn
from torch.nn import functional

LAYOUTS = {"contiguous": torch.contiguous_format, "channels-last": torch.channels_last}


class Block(nn.Sequential):
    def __init__(self, before: int, filters: int) -> None:
        super().__init__(
            *(
                layer
                for width in (before, filters)
                for layer in (
                    nn.Conv2d(width, filters, 3, padding=1, bias=False),
                    nn.BatchNorm2d(filters, eps=1e-3, momentum=0.01),
                    nn.ReLU(inplace=True),
                )
            )
        )


class UNet(nn.Module):
    """Logits (batch, 1, height, width) from images (batch, 3, height, width); 31,037,633 weights with 64 filters."""

    def __init__(self, filters: int = 64) -> None:
        super().__init__()
        widths = [filters * 2**level for level in range(5)]
        self.down = nn.ModuleList(Block(a, b) for a, b in zip([3, *widths], widths, strict=False))
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * width, width, 2, stride=2) for width in widths[-2::-1])
        self.decode = nn.ModuleList(Block(2 * width, width) for width in widths[-2::-1])
        self.head = nn.Conv2d(filters, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skips: list[torch.Tensor] = []
        for block in self.down:
            x = block(functional.max_pool2d(x, 2) if skips else x)
            skips.append(x)
        skips.pop()
        for up, block in zip(self.up, self.decode, strict=True):
            x = block(torch.cat([up(x), skips.pop()], 1))
        return self.head(x)


def loss_of(logits: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Soft Dice plus cross-entropy, as `kerasseg.DiceBCELoss`, in float32."""
    logits = logits.float()
    probability = logits.sigmoid()
    both, sizes = (probability * mask).sum((1, 2, 3)), (probability + mask).sum((1, 2, 3))
    dice = (2 * both + 1) / (sizes + 1)
    return (1 - dice).mean() + functional.binary_cross_entropy_with_logits(logits, mask)


def network(filters: int, layout: str, *, compiled: bool = False) -> nn.Module:
    torch.manual_seed(0)
    model = UNet(filters).to(memory_format=LAYOUTS[layout])
    return torch.compile(model) if compiled else model


def batch(size: int, count: int, layout: str) -> tuple[torch.Tensor, torch.Tensor]:
    image = torch.from_numpy(np.random.default_rng(0).random((count, 3, size, size), "float32"))
    return image.contiguous(memory_format=LAYOUTS[layout]), (image[:, :1] > 0.9).float()


def step(filters: int, layout: str, bfloat16: bool, compiled: bool, size: int, count: int) -> Callable[[], object]:
    """One step of training, everything trained, done twice already."""
    model = network(filters, layout, compiled=compiled)
    adam = torch.optim.AdamW(model.parameters(), 1e-4, weight_decay=1e-5)
    image, mask = batch(size, count, layout)

    def one() -> float:
        adam.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            logits = model(image)
        loss = loss_of(logits, mask)
        loss.backward()
        adam.step()
        return loss.item()

    one()
    return one


def prediction(filters: int, layout: str, bfloat16: bool, size: int, count: int) -> Callable[[], object]:
    """Probabilities of a batch in inference mode."""
    model = network(filters, layout).eval()
    image, _ = batch(size, count, layout)

    def one() -> object:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            return model(image).float().sigmoid()

    one()
    return one
