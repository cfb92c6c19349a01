"""The default U-Net in PyTorch, layer for layer: training steps and masks."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

LAYOUTS = {"contiguous": torch.contiguous_format, "channels-last": torch.channels_last}


class Block(nn.Sequential):
    def __init__(self, before: int, filters: int, *, bias: bool) -> None:
        super().__init__(
            *(
                layer
                for width in (before, filters)
                for layer in (
                    nn.Conv2d(width, filters, 3, padding=1, bias=bias),
                    nn.BatchNorm2d(filters, eps=1e-3, momentum=0.01),
                    nn.ReLU(inplace=True),
                )
            )
        )


class UNet(nn.Module):
    """Logits (batch, 1, height, width) from images (batch, 3, height, width); 31,037,633 weights with 64 filters.

    `bias`: whether convolutions before a BatchNorm have one; kerasseg's have none.
    """

    def __init__(self, filters: int = 64, *, bias: bool = False) -> None:
        super().__init__()
        widths = [filters * 2**level for level in range(5)]
        self.down = nn.ModuleList(Block(a, b, bias=bias) for a, b in zip([3, *widths], widths, strict=False))
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * width, width, 2, stride=2) for width in widths[-2::-1])
        self.decode = nn.ModuleList(Block(2 * width, width, bias=bias) for width in widths[-2::-1])
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

    def in_order(self) -> Iterator[nn.Module]:
        """Layers with weights, in order of computation."""
        blocks = [*self.down]
        for up, block in zip(self.up, self.decode, strict=True):
            blocks += [up, block]
        for block in [*blocks, self.head]:
            for layer in block if isinstance(block, Block) else [block]:
                if any(True for _ in layer.parameters()):
                    yield layer


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
    """One training step, all layers trainable."""
    if os.environ.get("ATEN_CPU_CAPABILITY") == "avx2":
        from torch._inductor import config

        config.cpp.simdlen = 256  # which the variable does not limit
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

    return one


def filled(weights: Sequence[np.ndarray]) -> UNet:
    """Load a Keras network's weights, in the order of its layers; return the network in inference mode.

    Raises:
        ValueError: If the architecture differs.
    """
    model = UNet(weights[0].shape[-1], bias=weights[5].ndim == 1)  # a bias, or a second kernel
    left = iter(weights)
    for layer in model.in_order():
        names = (
            ["weight", "bias", "running_mean", "running_var"]
            if isinstance(layer, nn.BatchNorm2d)
            else ["weight", "bias"]
        )
        for name in names:
            into = getattr(layer, name)
            if into is None:
                continue
            value = torch.from_numpy(next(left))
            # Keras kernels: height, width, in, out (transposed: out, in); PyTorch reverses the order.
            value = value.permute(3, 2, 0, 1) if value.ndim == 4 else value
            if value.shape != into.shape:
                msg = f"weights of shape {tuple(value.shape)} do not fit {name} of {layer}"
                raise ValueError(msg)
            with torch.no_grad():
                into.copy_(value)
    if next(left, None) is not None:
        msg = "there are more weights than the network has"
        raise ValueError(msg)
    return model.eval()


def masks(weights: str, files: Sequence[str], out: str, count: int, bfloat16: bool) -> Callable[[], object]:
    """Write masks of files in batches, as `benchmarks.prediction.write_masks` does.

    Args:
        weights: .npz file with the weights in the order of the layers.
        files, out: See `write_masks`.
        count: Slices per batch.
        bfloat16: Whether to autocast.
    """
    from benchmarks.prediction import write_masks

    with np.load(weights) as stored:
        model = filled([stored[name] for name in stored.files]).to(memory_format=torch.channels_last)

    def answer(images: np.ndarray) -> np.ndarray:
        # Channels-last: (batch, height, width, channels).
        image = torch.from_numpy(images).permute(0, 3, 1, 2)
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            return model(image).float().sigmoid().permute(0, 2, 3, 1).numpy()

    paths = [Path(file) for file in files]
    return lambda: write_masks(answer, paths, Path(out), count)
