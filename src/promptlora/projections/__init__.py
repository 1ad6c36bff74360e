"""The attention projections of a causal language model: their description, how to find them, the table of families."""

from promptlora.projections.finder import (
    ROLES,
    Block,
    Projection,
    block_projections,
    find_blocks,
    find_projections,
    group_by_shape,
    layer_of,
    module_shape,
)
from promptlora.projections.layouts import LAYOUTS, Layout, Source, separate
from promptlora.projections.reading import check_names, read_projection, read_projections

__all__ = [
    "LAYOUTS",
    "ROLES",
    "Block",
    "Layout",
    "Projection",
    "Source",
    "block_projections",
    "check_names",
    "find_blocks",
    "find_projections",
    "group_by_shape",
    "layer_of",
    "module_shape",
    "read_projection",
    "read_projections",
    "separate",
]
