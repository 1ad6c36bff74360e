"""The reader: a fixed multi-task LoRA that the base has while it reads prompts, and the check that one fits.

This file knows configurations, generators and fingerprints; it never runs the base.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from promptlora.errors import CheckpointError
from promptlora.fingerprint import describe_mismatch
from promptlora.hypernet.config import HyperNetworkConfig
from promptlora.hypernet.generator import ShapeGroupedLoRAGenerator
from promptlora.projections import Projection

if TYPE_CHECKING:
    from promptlora.hypernet.network import HyperNetwork


def make_reader(config: HyperNetworkConfig, projections: Sequence[Projection]) -> ShapeGroupedLoRAGenerator:
    """The reader of a hypernetwork: only a static part, with the rank, alpha and kind of head of the configuration."""
    static = replace(config, generated=False, static=True, reads_tokens=False, reader=False)
    return ShapeGroupedLoRAGenerator(static, projections).requires_grad_(False)


def check_reader(
    network: HyperNetwork,
    config: HyperNetworkConfig,
    projections: Sequence[Projection],
    base: Mapping[str, str | int],
    name: str = "",
) -> None:
    """Refuse a network that cannot be the reader of a hypernetwork.

    Args:
        network: The network that is to become the reader.
        config: The configuration of the hypernetwork.
        projections: The projections of the hypernetwork.
        base: The fingerprint of its base.
        name: What the network was loaded from, for the message.

    Raises:
        CheckpointError: It is not a multi-task LoRA for the same base and projections and with the same rank, alpha and
            kind of head.
    """
    what, theirs = f"reader={name!r}" if name else "reader", network.config
    with torch.device("meta"):  # only names and shapes are needed
        ours = make_reader(config, projections).state_dict()
    given = network.generator.state_dict()
    same_kind = theirs.shares_factors == config.shares_factors and (theirs.head == "diagonal") == (
        config.head == "diagonal"
    )
    if theirs.generated or (theirs.rank, theirs.scaling) != (config.rank, config.scaling) or not same_kind:
        raise CheckpointError(
            f"{what}: generated={str(theirs.generated).lower()}, head={theirs.head!r}, rank={theirs.rank}, alpha={theirs.alpha}. "
            f"Expected a multi-task LoRA (generated=false) with head={config.head!r}, rank={config.rank} and "
            f"alpha={config.alpha}. Fix: train one with these settings."
        )
    mismatch = describe_mismatch(network.base, base)
    if mismatch:
        raise CheckpointError(
            f"{what}: {mismatch}. Expected a multi-task LoRA of this base. Fix: train one for this base."
        )
    if network.projections != tuple(projections) or ours.keys() != given.keys():
        raise CheckpointError(
            f"{what}: it adapts {len(network.projections)} projections, not the {len(projections)} of this hypernetwork. "
            "Expected the same projections. Fix: train one with the same first_layer."
        )
