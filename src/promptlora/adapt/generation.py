"""Resolves generation settings: keywords, a ``generation_config``, our defaults and the base's, in this order.

It knows transformers' ``GenerationConfig``; it knows nothing of adapters.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from transformers import GenerationConfig

from promptlora.errors import ConfigError, PromptError, one_line
from promptlora.settings import whole

# Defaults that override the base's generation_config.json: one greedy answer unless the caller asks for something else.
_OURS = {"do_sample": False, "num_beams": 1, "num_return_sequences": 1}
_LONGEST = 1 << 24  # tokens; more than any model supports


def generation_options(
    options: Mapping[str, Any], max_new_tokens: int | None, default: int, pad: int
) -> dict[str, Any]:
    """The keywords for ``model.generate``: one ``generation_config`` with every setting, and the remaining keywords.

    A setting is taken from the caller's keyword, else from the given ``generation_config``, else from our defaults
    (greedy, one answer), else from the base. If our defaults were passed as keywords, transformers would let them
    override the caller's ``generation_config``.

    Args:
        options: Keywords of the caller, including ``generation_config``.
        max_new_tokens: The caller's argument; None if it was not given.
        default: The maximum answer length if none is given.
        pad: Id of the padding token.

    Raises:
        ConfigError: transformers refuses a setting, or ``max_length`` is given.
        PromptError: ``max_new_tokens`` is not an integer of 1 or more.
    """
    given = dict(options)
    config = given.pop("generation_config", None)
    if config is not None and not isinstance(config, GenerationConfig):
        raise ConfigError(f"generation_config: {type(config).__name__}. Expected a transformers GenerationConfig.")
    merged = GenerationConfig() if config is None else copy.deepcopy(config)
    try:
        rest: dict[str, Any] = merged.update(**given)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"generation options: {one_line(error)}") from error
    if merged.max_length is not None:
        raise ConfigError(
            f"max_length={merged.max_length!r}: it counts the padded input too. Expected max_new_tokens. "
            "Fix: set max_new_tokens instead."
        )
    if max_new_tokens is not None:
        merged.max_new_tokens = max_new_tokens
    for name, value in {**_OURS, "max_new_tokens": default, "pad_token_id": pad}.items():
        if getattr(merged, name) is None:
            setattr(merged, name, value)
    whole("max_new_tokens", merged.max_new_tokens, high=_LONGEST, error=PromptError)
    whole("num_beams", merged.num_beams, high=1024)
    whole("num_return_sequences", merged.num_return_sequences, high=1024)
    if merged.num_return_sequences > merged.num_beams and not merged.do_sample:
        raise ConfigError(
            f"num_return_sequences={merged.num_return_sequences} with num_beams={merged.num_beams} and greedy decoding. "
            "Expected as many beams, or do_sample=True."
        )
    return {**rest, "generation_config": merged}
