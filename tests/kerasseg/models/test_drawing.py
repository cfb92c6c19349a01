"""The drawing shows every block once, where it stands, and fits the terminal."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kerasseg.models.blocks import Block, Blocks, Skip
from kerasseg.models.drawing import WIDEST, draw


def some_block(name: str, k: int, *, channels: int = 16, parameters: int = 0, size: int | None = 512) -> Block:
    layers = (
        [SimpleNamespace(name=f"{name}_layer", weights=[SimpleNamespace(shape=(parameters,))])] if parameters else []
    )
    side = None if size is None else size >> k
    return Block(name, tuple(layers), 2**k, channels, tuple(x.name for x in layers), (side, side))


def some_blocks(depth: int, *, size: int | None = 512, parameters: int = 1000, drop: str = "") -> Blocks:
    """Parameter counts are all different, so that each can be looked for."""
    encoder = [
        some_block(f"encoder_{k}", k - 1, channels=2**k, parameters=parameters + k, size=size)
        for k in range(1, depth + 1)
    ]
    decoder = [
        some_block(f"decoder_{k}", k - 1, channels=2**k, parameters=2 * parameters + k, size=size)
        for k in range(depth, 0, -1)
    ]
    return Blocks(
        encoder=tuple(encoder),
        bottleneck=some_block("bottleneck", depth, channels=777, parameters=3 * parameters, size=size),
        decoder=tuple(block for block in decoder if block.name != drop),
        head=some_block("head", 0, channels=1, parameters=17, size=size),
        skips=tuple(Skip(f"encoder_{k}", f"decoder_{k}", 2**k, "x") for k in range(1, depth + 1)),
    )


def line_of(lines: list[str], text: str) -> int:
    found = [i for i, line in enumerate(lines) if text in line]
    assert len(found) == 1, (text, found)
    return found[0]


@given(st.integers(1, 6), st.integers(20, 220), st.booleans(), st.booleans())
def test_every_block_stands_at_its_level_and_nothing_sticks_out(
    depth: int, width: int, unicode: bool, known: bool
) -> None:
    blocks = some_blocks(depth, size=512 if known else None)
    lines = draw(blocks, width=width, unicode=unicode).plain.splitlines()
    assert max(map(len, lines)) <= max(60, min(width, WIDEST))
    rows = []
    for k in range(1, depth + 1):
        left, right = f"encoder_{k}", f"decoder_{k}"
        row = line_of(lines, f" {left} ")
        assert row == line_of(lines, f" {right} ")
        assert lines[row].index(left) < lines[row].index(right)
        # The parameters stand in their own box, two lines below the title.
        assert f"{blocks[left].parameters:,}" in lines[row + 2][: len(lines[row + 2]) // 2]
        assert f"{blocks[right].parameters:,}" in lines[row + 2][len(lines[row + 2]) // 2 :]
        arrow = f" {2**k} "
        assert arrow in lines[row + 1]
        rows.append((row, lines[row].index(left), len(lines[row])))
    bottom = line_of(lines, " bottleneck ")
    rows.append((bottom, lines[bottom].index("bottleneck"), len(lines[bottom])))
    # Downwards, inwards from both sides.
    assert rows == sorted(rows)
    assert [a for _, a, _ in rows] == sorted(a for _, a, _ in rows)
    assert [b for _, _, b in rows] == sorted((b for _, _, b in rows), reverse=True)
    assert line_of(lines, " head ") < rows[0][0]


@given(st.integers(1, 5), st.integers(60, 200))
def test_arrows_meet_from_box_to_box(depth: int, width: int) -> None:
    lines = draw(some_blocks(depth), width=width).plain.splitlines()
    grid = {(x, y): c for y, line in enumerate(lines) for x, c in enumerate(line)}
    for (x, y), c in grid.items():
        if c == "┬":
            assert grid[x, y + 1] == "▼"
        if c == "┴":
            assert grid[x, y - 1] == "▲"
        if c == "▶":
            assert grid[x + 1, y] == "│"
    counts = {c: sum(line.count(c) for line in lines) for c in "┬▼┴▲▶├"}
    assert counts["┬"] == depth
    assert counts["▼"] == counts["▲"] == counts["┴"] == depth + 1
    assert counts["▶"] == counts["├"] == depth
    for line in lines:
        if "▶" in line:
            start, end = line.index("├"), line.index("▶")
            assert set(line[start + 1 : end]) <= set("─ 0123456789")


def test_what_is_frozen_carries_a_snowflake() -> None:
    text = draw(some_blocks(4), {"encoder_1", "encoder_2"}, partly={"bottleneck"}).plain
    assert [name for name in some_blocks(4).names if f"{name} ❄" in text] == ["encoder_1", "encoder_2"]
    assert "bottleneck ◐" in text
    assert text.splitlines()[-1] == "❄ frozen   ◐ partly frozen"
    assert "❄" not in draw(some_blocks(4)).plain


def test_frozen_blocks_are_coloured() -> None:
    text = draw(some_blocks(2), {"encoder_2"})
    at = text.plain.index("encoder_2")
    styles = [str(span.style) for span in text.spans if span.start <= at < span.end]
    assert any("cyan" in style for style in styles)
    other = text.plain.index("encoder_1")
    assert not any("cyan" in str(span.style) for span in text.spans if span.start <= other < span.end)


def test_plain_ascii() -> None:
    text = draw(some_blocks(4), {"encoder_1"}, partly={"head"}, unicode=False, source=(512, 512, 3)).plain
    text.encode("ascii")
    assert "encoder_1 *" in text
    assert "head ~" in text
    assert "512x512x3" in text
    assert text.splitlines()[-1] == "* frozen   ~ partly frozen"


@pytest.mark.parametrize("width", [60, 80, 120])
def test_long_numbers_fit(width: int) -> None:
    blocks = some_blocks(4, parameters=1_234_567_890)
    lines = draw(blocks, width=width).plain.splitlines()
    assert max(map(len, lines)) <= width
    assert all(any(f"{block.parameters:,}" in line for line in lines) for block in blocks)
    if width == 120:
        assert any("1,234,567,891 parameters" in line for line in lines)


def test_open_sizes_are_fractions() -> None:
    text = draw(some_blocks(2, size=None), unicode=False).plain
    assert all(part in text for part in ("full x 2", "1/2 x 4", "1/4 x 777", "full x 1"))


def test_a_level_without_decoder_says_so() -> None:
    lines = draw(some_blocks(3, drop="decoder_3")).plain.splitlines()
    row = line_of(lines, " encoder_3 ")
    assert "no layers" in lines[row + 1]
    assert "▶" not in lines[row + 1]


def test_skips_to_other_levels_are_listed() -> None:
    blocks = some_blocks(3)
    further = tuple(Skip("encoder_1", f"decoder_{k}", 2, "x") for k in (2, 3))
    blocks = Blocks(blocks.encoder, blocks.bottleneck, blocks.decoder, blocks.head, (*blocks.skips, *further))
    lines = draw(blocks, width=60).plain.splitlines()
    text = " ".join(line.strip() for line in lines)
    assert "further skips: encoder_1 → decoder_2 (2), encoder_1 → decoder_3 (2)" in text
    assert max(map(len, lines)) <= 60


def test_an_autoencoder_has_no_arrows_across() -> None:
    blocks = some_blocks(2)
    assert "▶" not in draw(Blocks(blocks.encoder, blocks.bottleneck, blocks.decoder, blocks.head)).plain
