"""``promptlora targets``: the attention projections of a model, grouped by shape."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from promptlora.cli.console import Json, out, print_json, working


def targets(
    model: Annotated[str | None, typer.Argument(help="Folder or Hugging Face id; by default the embedded base.")] = None,
    json: Json = False,
) -> None:
    """Print where a model keeps q, k, v and o, grouped by shape; reads its configuration, not its weights.

    Example: **promptlora targets ./my-model**
    """
    with working("loading PyTorch and transformers") as say:
        from promptlora.models import load_meta
        from promptlora.projections import find_projections, group_by_shape

        groups = group_by_shape(find_projections(load_meta(model, say)))
    if json:
        print_json([{"in": i, "out": o, "count": len(g)} for (i, o), g in groups.items()])
        return
    table = Table("in", "out", "count")
    for (i, o), g in groups.items():
        table.add_row(str(i), str(o), str(len(g)))
    out.print(table)
