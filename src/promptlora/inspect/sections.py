"""The values of one token as tables; the terminal, the report and the page all draw these tables.

It knows the life of a token and captures; it knows nothing of drawing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from promptlora.inspect.ablation import Ablation
from promptlora.inspect.drawing import visible_text
from promptlora.inspect.life import TokenLife, projection_shares
from promptlora.inspect.values import LAYER_VECTORS, TOKEN_VECTORS, AttentionCapture

Cell = str | float | None  # None leaves the cell empty
Vectors = Sequence[tuple[str, Tensor | None, Tensor | None]]


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        name: Its heading.
        form: Format of its numbers, such as ``".3f"`` or ``".2%"``; a sign, as in ``"+.4f"``, marks gains and losses.
        sided: Whether each row has one cell for the base and one for the adapted model.
        text: Whether it holds text from the input, which may be long.
    """

    name: str
    form: str = ".3f"
    sided: bool = False
    text: bool = False

    @property
    def signed(self) -> bool:
        """Whether its numbers are gains and losses."""
        return self.form.startswith("+")

    def shown(self, cell: Cell) -> str:
        """A cell as text; a gain or loss that would be printed as 0 is left empty."""
        if cell is None or isinstance(cell, str):
            return cell or ""
        text = format(cell, self.form).replace("%", " %")
        nothing = not any(digit in text for digit in "123456789")
        return "" if nothing and self.signed else text.removeprefix("-") if nothing else text


@dataclass(frozen=True)
class Section:
    """A table with a title.

    Attributes:
        title: Title of the table.
        note: How to read the table.
        sides: The cells of a sided column: ``base`` and ``adapted``, or only ``base``.
        columns: The columns.
        rows: For each row and column, a tuple of cells: one cell, or one per side.
        here: The row of the selected token, if there is one.
    """

    title: str
    note: str
    sides: tuple[str, ...]
    columns: tuple[Column, ...]
    rows: tuple[tuple[tuple[Cell, ...], ...], ...]
    here: int | None = None

    def texts(self) -> list[list[tuple[str, ...]]]:
        """The cells of all rows as text."""
        return [
            [tuple(map(column.shown, cells)) for column, cells in zip(self.columns, row, strict=True)]
            for row in self.rows
        ]


def token_sections(life: TokenLife) -> list[Section]:
    """One token in one head: every key, what the adapter adds to each projection, and the vectors from x to the new x."""
    adapted = life.adapted
    vectors = [
        (words, getattr(life.base, name), None if adapted is None else getattr(adapted, name))
        for name, words in TOKEN_VECTORS.items()
    ]
    added = [] if adapted is None else [_projections(adapted.shares)]
    return [_keys(life), *added, _vectors(vectors)]


def layer_sections(capture: AttentionCapture, layer: int, token: int) -> list[Section]:
    """One token in a layer without softmax weights: what the adapter adds, and the vectors from x to the new x."""
    base, adapted = capture.base[layer], None if capture.adapted is None else capture.adapted[layer]
    vectors = []
    for name, words in LAYER_VECTORS.items():
        both = [None if one is None else getattr(one, name) for one in (base, adapted)]
        first, second = (None if vector is None else vector[token] for vector in both)
        vectors.append((words, first, second))
    added = [] if adapted is None else [_projections(projection_shares(adapted, token))]
    return [*added, _vectors(vectors)]


def _keys(life: TokenLife) -> Section:
    """Scores and weight of every key; the last row is the sum of the weights."""
    sides = [side for side in (life.base, life.adapted) if side is not None]
    capped = [Column("capped", sided=True)] if life.softcap is not None else []
    change = [Column("change", "+.4f")] if life.change is not None else []
    columns = (
        Column("key", text=True),
        Column("q·k", ".2f", sided=True),
        Column(f"×{life.scaling:.3g}", sided=True),
        *capped,
        Column("weight", ".4f", sided=True),
        *change,
    )
    rows: list[tuple[tuple[Cell, ...], ...]] = []
    for i, token in enumerate(life.tokens):
        hidden = [float(side.masked[i]) == -torch.inf for side in sides]
        row: list[tuple[Cell, ...]] = [
            (f"{i} {visible_text(token, 40)}",),
            tuple(float(side.raw[i]) for side in sides),
            tuple(float(side.scaled[i]) for side in sides),
        ]
        if capped:
            row.append(tuple(None if h else float(s.masked[i]) for s, h in zip(sides, hidden, strict=True)))
        row.append(tuple("masked" if h else float(s.weights[i]) for s, h in zip(sides, hidden, strict=True)))
        if life.change is not None:
            row.append((float(life.change[i]),))
        rows.append(tuple(row))
    nothing: tuple[Cell, ...] = (None,) * len(sides)
    sums = tuple(f"{float(side.weights.sum()) + side.sink:.6f}" for side in sides)
    between = [nothing] * (2 + len(capped))
    rows.append((("sum of the row",), *between, sums, *([(None,)] if change else [])))
    sink = ", with what goes to no token (the sink)" if any(side.sink for side in sides) else ""
    return Section(
        "Every key",
        "q·k says how well each key fits this token's query. It is multiplied by the scale; later tokens are masked; "
        f"the softmax makes weights of what is left, which sum to 1{sink}.",
        ("base", "adapted")[: len(sides)],
        columns,
        tuple(rows),
        life.token,
    )


def _projections(shares: Mapping[str, tuple[float, float, float]]) -> Section:
    """What the adapter adds to each projection: lengths of base and delta, and the share of the delta."""
    return Section(
        "What the adapter adds to each projection, at this token",
        "The share is the length of what is added, divided by the sum of both lengths.",
        (),
        (Column("projection"), Column("length of base"), Column("length of what is added"), Column("share", ".2%")),
        tuple(((role,), (base,), (delta,), (share,)) for role, (base, delta, share) in shares.items()),
    )


def _vectors(vectors: Vectors) -> Section:
    """Lengths of base and adapted vectors, and their difference; vectors that the model lacks are left out."""
    both = any(other is not None for _, _, other in vectors)
    rows: list[tuple[tuple[Cell, ...], ...]] = []
    for words, base, other in vectors:
        if base is None or (both and other is None):
            continue
        name: tuple[Cell, ...] = (f"{words} ({len(base)} numbers)",)
        if other is None:
            rows.append((name, (float(base.norm()),)))
            continue
        similar = float(torch.nn.functional.cosine_similarity(base, other, dim=0))
        lengths = (float(base.norm()), float(other.norm()))
        rows.append((name, lengths, (float((other - base).norm()),), (similar,)))
    compared = (Column("difference"), Column("cosine")) if both else ()
    return Section(
        "From x to the new x",
        "The length of each vector on the way of the token through the layer, and the length of the difference.",
        ("base", "adapted") if both else ("base",),
        (Column("vector"), Column("length", sided=True), *compared),
        tuple(rows),
    )


def ablation_section(found: Ablation) -> Section:
    """What each choice of projections changes, averaged over layers and inputs."""
    attention, output = found.by_layer(), found.outputs_by_layer()
    rows: list[tuple[tuple[Cell, ...], ...]] = []
    if found.score:
        rows.append((("nothing (base)",), ("0",), ("0",), ("0",), (found.score["base"],)))
    for i, choice in enumerate(found.choices):
        changed: Cell = float(attention[:, i].mean()) if found.layers else "no softmax"
        row = ((choice,), (changed,), (float(output[:, i].mean()),), (found.next_token[choice],))
        rows.append((*row, (found.score[choice],)) if found.score else row)
    return Section(
        f"Change against the base, mean over layers and {found.inputs} input{'s' if found.inputs != 1 else ''}",
        "",
        (),
        (
            Column("adapter on for"),
            Column("attention (JS distance)", ".4f"),
            Column("output of o (relative)", ".4f"),
            Column("next token (KL, nats)", ".4f"),
            *((Column("score", ".1f"),) if found.score else ()),
        ),
        tuple(rows),
    )
