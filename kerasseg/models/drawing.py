"""A text drawing of a network's U for terminals: `draw`.

The encoder goes down on the left, the decoder up on the right, with skips between them.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from rich.text import Text

from kerasseg.models.blocks import Block, Blocks

NARROWEST = 60
WIDEST = 110  # columns; longer arrows are hard to follow

_FROZEN = "bold cyan"
_PARTLY = "cyan"
_LINES = "dim"
_ROWS = 4  # of a box: border, size, parameters, border


_ASCII = str.maketrans(dict(zip("╭╮╰╯─│┬▼┴▲├▶×❄◐", "++++-|+v+^+>x*~", strict=True)) | {"→": "->"})


def draw(
    blocks: Blocks,
    frozen: Collection[str] = (),
    *,
    partly: Collection[str] = (),
    width: int = 100,
    unicode: bool = True,
    source: Sequence[int | None] | None = None,
) -> Text:
    """Draw the U.

    Args:
        blocks: The result of `find_blocks`.
        frozen: Names of the frozen blocks, marked with a snowflake.
        partly: Names of the blocks in which only some layers are frozen.
        width: Available columns; at least 60 are needed, at most 110 are used.
        unicode: Whether to use box-drawing characters; otherwise plain ASCII, with `*` for the snowflake.
        source: Height, width and channels of the input (None if not fixed) to show.

    Returns:
        The styled drawing; `.plain` is the text. Lines are no longer than `width` (or 60).

    Example:
        >>> from kerasseg.models.blocks import Block
        >>> u = Blocks(
        ...     encoder=(Block("encoder_1", (), 1, 16, size=(64, 64)),),
        ...     bottleneck=Block("bottleneck", (), 2, 32, size=(32, 32)),
        ...     decoder=(Block("decoder_1", (), 1, 16, size=(64, 64)),),
        ...     head=Block("head", (), 1, 1, size=(64, 64)),
        ... )
        >>> print(draw(u, {"encoder_1"}, width=60, unicode=False).plain.splitlines()[4])
        + encoder_1 * ----v+                    ++------ decoder_1 +
    """
    signs: dict[int, str] = {} if unicode else _ASCII
    marks = dict.fromkeys(partly, "◐") | dict.fromkeys(frozen, "❄")
    width = max(NARROWEST, min(width, WIDEST))
    levels = len(blocks.encoder)
    texts = {block.name: _contents(block, long=width >= 90) for block in blocks}
    longest = max(len(line) for name, lines in texts.items() if name != "bottleneck" for line in lines)
    node = 6
    while True:
        # The title needs room beside the arrow from the box above, which is `node` columns further out.
        box = max(longest + 4, len("bottleneck *") + 5 + node)
        if node == 0 or width - 2 * box - 2 * node * levels >= 12:
            break
        node -= 1
    pen = _Pen(width, signs, marks)
    decoder = {block.name: block for block in blocks.decoder}

    pen.box(width - box, 0, box, "head", texts["head"], right=True)
    pen.put(2, 1, "input", "bold")
    if source is not None:
        pen.put(2, 2, _extent((source[0], source[1]), source[2], 1))
    pen.put(box - 2, 3, "│", _LINES)
    for k in range(1, levels + 1):
        x, y = (k - 1) * node, _ROWS * k
        pen.box(x, y, box, f"encoder_{k}", texts[f"encoder_{k}"])
        name = f"decoder_{k}"
        pen.box(width - x - box, y, box, name, texts.get(name, ("no layers", "")), right=True)
        skips = [s.filters for s in blocks.skips if (s.source, s.target) == (f"encoder_{k}", name)]
        if skips and name in decoder:
            pen.skip(x + box, width - x - box, y + 1, "+".join(map(str, skips)))
    x = levels * node
    pen.box(x, _ROWS * (levels + 1), width - 2 * x, "bottleneck", texts["bottleneck"])
    for k in range(levels + 1):
        # Arrows to the next level down on the left, and up on the right.
        column, row = max(0, k - 1) * node + box - 2, _ROWS * (k + 1)
        if k:
            pen.put(column, row - 1, "┬", _LINES)
        pen.put(column, row, "▼", _LINES)
        pen.put(width - 1 - column, row - 1, "▲", _LINES)
        pen.put(width - 1 - column, row, "┴", _LINES)
    return Text("\n").join([*pen.lines(), *_legend(blocks, marks, signs, width)])


@dataclass(slots=True)
class _Pen:
    """Draws boxes and arrows on a grid of characters with styles."""

    width: int
    signs: dict[int, str]  # replacements of characters
    marks: dict[str, str]
    rows: list[list[tuple[str, str]]] = field(default_factory=list)

    def put(self, x: int, y: int, text: str, style: str = "") -> None:
        while len(self.rows) <= y:
            self.rows.append([(" ", "")] * self.width)
        for i, character in enumerate(text.translate(self.signs)):
            if 0 <= x + i < self.width:
                self.rows[y][x + i] = (character, style)

    def lines(self) -> list[Text]:
        made = [Text.assemble(*row) for row in self.rows]
        for line in made:
            line.rstrip()
        return made

    def box(self, x: int, y: int, width: int, name: str, lines: tuple[str, str], *, right: bool = False) -> None:
        """Draw a box with its title in the border, right-aligned on the right-hand side."""
        mark = self.marks.get(name)
        style = {"❄": _FROZEN, "◐": _PARTLY}.get(mark or "", "")
        title = f" {name} {mark} " if mark else f" {name} "
        inner = width - 2
        top = title.rjust(inner, "─") if right else title.ljust(inner, "─")
        self.put(x, y, f"╭{top}╮", style or _LINES)
        self.put(x + 1 + top.index(title), y, title, style or "bold")
        for i, line in enumerate(lines, 1):
            text = line.rjust(inner - 1) + " " if right else " " + line.ljust(inner - 1)
            self.put(x, y + i, "│", style or _LINES)
            self.put(x + 1, y + i, text, style)
            self.put(x + width - 1, y + i, "│", style or _LINES)
        self.put(x, y + 3, f"╰{'─' * inner}╯", style or _LINES)

    def skip(self, start: int, end: int, y: int, label: str) -> None:
        """Draw an arrow from the column `start` to the box at `end`."""
        room = end - start - 1
        label = f" {label} " if len(label) + 4 <= room else ""
        self.put(start - 1, y, "├", _LINES)
        self.put(start, y, label.center(room, "─") + "▶", _LINES)


def _contents(block: Block, *, long: bool) -> tuple[str, str]:
    count = f"{block.parameters:,}"
    weights = f"{count} parameters" if long else count
    return _extent(block.size, block.filters, block.scale), weights if block.parameters else "no weights"


def _extent(size: tuple[int | None, int | None], channels: int | None, scale: int) -> str:
    """Format as 256x256x16, or as 1/2 x16 (relative to the input) if the size is not fixed."""
    if None in size:
        return f"{'full' if scale == 1 else f'1/{scale}'} × {channels}"
    return "×".join(str(n) for n in (*size, channels))


def _legend(blocks: Blocks, marks: dict[str, str], signs: dict[int, str], width: int) -> list[Text]:
    """Return the lines below the drawing: skips between different levels, and the meaning of the marks."""
    further = [
        f"{skip.source} → {skip.target} ({skip.filters})".translate(signs)
        for skip in blocks.skips
        if skip.source.partition("_")[2] != skip.target.partition("_")[2]
    ]
    lines = []
    if further:
        line = "further skips:"
        for i, text in enumerate(further):
            part = f" {text}" + ("," if i + 1 < len(further) else "")
            if len(line) + len(part) > width:
                lines.append(line)
                line = "  "
            line += part
        lines.append(line)
    words = {"❄": "frozen", "◐": "partly frozen"}
    shown = [f"{sign} {word}" for sign, word in words.items() if sign in marks.values()]
    if shown:
        lines.append("   ".join(shown).translate(signs))
    return [Text(line, _LINES if line.startswith(("further", "  ")) else _PARTLY) for line in lines]
