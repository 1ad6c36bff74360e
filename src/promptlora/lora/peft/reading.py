"""Reads a LoRA from a PEFT folder that PEFT, this package or another program wrote.

Adapters with more than ``x @ A @ B * scaling`` on attention projections are refused; the error names the unsupported
part. Only JSON and safetensors files are read, never a pickle.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import regex
from torch import Tensor

from promptlora.errors import LoRAError, PromptLoRAError, one_line
from promptlora.lora import LoRAWeights
from promptlora.lora.peft.physical import Block, ModuleLoRA, recover
from promptlora.lora.peft.writing import CONFIG_FILE, METADATA, PREFIX, PROVENANCE, WEIGHTS_FILE
from promptlora.lora.storage import read_provenance
from promptlora.projections import ROLES, Projection, check_names, read_projection
from promptlora.reading import check_finite, is_file, parse_json, read_json, read_tensors
from promptlora.settings import whole

_LONGEST_PATTERN = 1000  # characters
_SECONDS = 2.0
# Counted repeats can make a short pattern very expensive; module names need neither look-around nor back-references.
_CHARACTERS = re.compile(r"(?:(?!\(\?(?!:))[^{}])*")
_KEY = re.compile(re.escape(PREFIX) + r"(.+)\.lora_([AB])\.weight")

# Fields of a PEFT config that repeat what the weights already show, or that only affect training.
_HARMLESS = frozenset(
    {
        "alpha_pattern", "auto_mapping", "base_model_name_or_path", "corda_config", "ensure_weight_tying", "eva_config",
        "exclude_modules", "fan_in_fan_out", "inference_mode", "init_lora_weights", "layers_pattern",
        "layers_to_transform", "loftq_config", "lora_alpha", "lora_dropout", "lora_ga_config", "megatron_config",
        "megatron_core", "peft_type", "peft_version", "qalora_group_size", "r", "rank_pattern", "revision",
        "target_modules", "task_type", "use_rslora", "velora_config",
    }
)  # fmt: skip
# Initialisations that leave the base weights unchanged; the others subtract something from them.
_HARMLESS_STARTS = (True, False, None, "gaussian", "eva", "orthogonal", "mica")


def load_peft(path: str | Path, *, projections: Sequence[Projection] | None = None) -> LoRAWeights:
    """Read a PEFT folder as a LoRA with one adapter.

    An adapter that ``save_peft`` wrote is restored bitwise, unless it was compressed or cast, or its scaling was folded
    into B. For a fused module, the matrices of each projection are restored if the adapter has the stacked form;
    otherwise all projections share one A. Both are exact. If modules differ in scaling (rank and alpha patterns), the
    scaling is folded into B.

    Args:
        path: The folder.
        projections: The projections of the base model (``find_projections(model)``). They are needed for adapters that
            another program wrote for modules that are fused or not named q_proj, k_proj, v_proj or o_proj.

    Raises:
        LoRAError: A file is missing, truncated or in another format; the adapter has DoRA, biases, embeddings or
            ``modules_to_save``; or a module is not an attention projection.
    """
    folder = Path(path)
    config = _read_config(folder)
    pairs, metadata = _read_weights(folder)
    blocks = _read_note(folder, metadata.get(METADATA))
    if projections is None and blocks:
        projections = [block.projection for block in blocks]
    patterns = _Patterns(folder / CONFIG_FILE, config)
    scales = {module: _scale(folder, config, patterns, module, A) for module, (A, _) in pairs.items()}
    scaling = next(iter(scales.values()))
    if len(set(scales.values())) > 1:
        scaling = 1.0
        pairs = {module: (A, B * scales[module]) for module, (A, B) in pairs.items()}
        for module, (_, B) in pairs.items():
            check_finite(B, f"{folder}: {module}: B times alpha / r", LoRAError, "merge it in PEFT")
    matrices, used = {}, []
    for module, (A, B) in pairs.items():
        mine = _projections_of(folder, module, A, B, projections)
        stated = tuple(replace(b, projection=p) for b in blocks for p in mine if _same(b.projection, p))
        for projection, own_A, own_B in recover(ModuleLoRA(module, A, B, stated), mine):
            if projection.name in matrices:
                raise LoRAError(f"{folder}: two modules hold {projection.name}; expected one; write the adapter again")
            matrices[projection.name] = (own_A.contiguous()[None], own_B.contiguous()[None])
            used.append(projection)
    order = {p.name: i for i, p in enumerate(projections or used)}
    matrices = dict(sorted(matrices.items(), key=lambda item: order[item[0]]))
    named = config.get("base_model_name_or_path")
    return LoRAWeights(
        matrices,
        scaling,
        projections=projections if projections is not None else used,
        base_model=named if isinstance(named, str) else None,
        provenance=read_provenance(metadata, 1, PROVENANCE),
    )


def named_base(path: str | Path) -> str | None:
    """The name of the base in a PEFT folder, read without the weights; None if the folder has none.

    Raises:
        LoRAError: The folder has no usable adapter_config.json.
    """
    named = _read_config(Path(path)).get("base_model_name_or_path")
    return named if isinstance(named, str) and named else None


def _same(first: Projection, second: Projection) -> bool:
    return all(getattr(first, key) == getattr(second, key) for key in ("name", "module", "rows", "shape"))


# --- the config --------------------------------------------------------------------------------------


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_FILE
    if not is_file(path):
        raise LoRAError(f"{folder}: no {CONFIG_FILE}; expected a PEFT folder with {CONFIG_FILE} and {WEIGHTS_FILE}")
    config = read_json(path, LoRAError)
    if not isinstance(config, dict):
        raise LoRAError(f"{path}: a {type(config).__name__}; expected a JSON object")
    if config.get("peft_type") != "LORA":
        raise LoRAError(f"{path}: peft_type is {config.get('peft_type')!r}; expected 'LORA'")
    if config.get("use_dora"):
        raise LoRAError(
            f"{path}: use_dora is set; expected a plain LoRA (DoRA also rescales the weights); merge it in PEFT"
        )
    if config.get("bias", "none") != "none":
        raise LoRAError(
            f"{path}: bias is {config['bias']!r}; expected 'none': a LoRA here has no biases; merge it in PEFT"
        )
    for key, value in config.items():
        if value and key not in _HARMLESS and (key, value) != ("bias", "none"):
            raise LoRAError(f"{path}: {key} is {value!r}; expected a plain LoRA without it; merge it in PEFT")
    for key in ("rank_pattern", "alpha_pattern"):
        if not isinstance(config.get(key) or {}, dict):
            raise LoRAError(f"{path}: {key} is {config[key]!r}; expected an object of patterns and numbers")
    start = config.get("init_lora_weights")
    if start not in _HARMLESS_STARTS:
        raise LoRAError(
            f"{path}: init_lora_weights is {start!r}, which also changed the base weights; convert it in PEFT "
            "(path_initial_model_for_weight_conversion) and save it again"
        )
    for key in ("r", "lora_alpha"):
        _number(path, key, config.get(key))
    if not isinstance(config.get("use_rslora") or False, bool):
        raise LoRAError(f"{path}: use_rslora is {config['use_rslora']!r}; expected true or false")
    return config


def _number(path: Path, key: str, value: Any) -> float:
    """A rank (an integer above 0) or an alpha (any number); the JSON reader has already refused non-finite numbers."""
    rank = key in ("r", "rank_pattern")
    if isinstance(value, bool) or not isinstance(value, int if rank else (int, float)) or (rank and value < 1):
        raise LoRAError(f"{path}: {key} is {repr(value)[:80]}; expected a {'positive whole ' if rank else ''}number")
    return float(value)


class _Patterns:
    """``rank_pattern`` and ``alpha_pattern`` of a config; all matching together is limited to ``_SECONDS``.

    The patterns are regular expressions from a file, and some, such as ``(a+)+$``, would run practically forever.
    """

    def __init__(self, path: Path, config: dict[str, Any]) -> None:
        self.path = path
        self.patterns: dict[str, list[tuple[Any, float]]] = {}
        self.until = time.monotonic() + _SECONDS
        for key in ("rank_pattern", "alpha_pattern"):
            given = config.get(key) or {}
            values = [(pattern, _number(path, key, value)) for pattern, value in given.items()]
            self.patterns[key] = [(self._compiled(key, pattern), value) for pattern, value in values]

    def _compiled(self, key: str, pattern: str) -> Any:
        if len(pattern) > _LONGEST_PATTERN:
            raise LoRAError(f"{self.path}: {key} has {pattern[:40]!r}…; expected at most {_LONGEST_PATTERN} characters")
        if not _CHARACTERS.fullmatch(pattern):
            raise LoRAError(
                f"{self.path}: {key} has {pattern!r}; expected a pattern of names, without {{}} and lookaround"
            )
        try:
            return regex.compile(rf"(.*\.)?({pattern})$")
        except (regex.error, RecursionError, OverflowError) as error:
            raise LoRAError(f"{self.path}: {key} has {pattern!r} ({error}); expected a regular expression") from error

    def value(self, key: str, module: str, default: float) -> float:
        """The number of the first pattern that matches the end of a module's name, or else the default."""
        for compiled, value in self.patterns[key]:
            try:
                if compiled.match(module, timeout=max(self.until - time.monotonic(), 0.01)):
                    return value
            except TimeoutError as error:
                raise LoRAError(
                    f"{self.path}: {key} takes more than {_SECONDS} s to match; expected simple patterns, such as names"
                ) from error
        return default


def _scale(folder: Path, config: dict[str, Any], patterns: _Patterns, module: str, A: Tensor) -> float:
    """``alpha / r`` of one module, or ``alpha / sqrt(r)`` with ``use_rslora``; A is ``[in, rank]``."""
    rank = patterns.value("rank_pattern", module, config["r"])
    alpha = patterns.value("alpha_pattern", module, config["lora_alpha"])
    if rank != A.shape[1]:
        raise LoRAError(
            f"{module}: {WEIGHTS_FILE} has rank {A.shape[1]}, {CONFIG_FILE} says {rank:g}; expected the same"
        )
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


# --- the weights -------------------------------------------------------------------------------------


def _read_weights(folder: Path) -> tuple[dict[str, tuple[Tensor, Tensor]], dict[str, str]]:
    """A ``[in, rank]`` and B ``[rank, out]`` of each module, and the metadata of the file."""
    path = folder / WEIGHTS_FILE
    if not is_file(path):
        if is_file(folder / "adapter_model.bin"):
            raise LoRAError(
                f"{folder}: adapter_model.bin is a pickle, which is not read; save it again as safetensors in PEFT"
            )
        raise LoRAError(f"{folder}: no {WEIGHTS_FILE}; expected a PEFT folder")
    tensors, metadata = read_tensors(path, LoRAError, fix="write the adapter again")
    halves: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        match = _KEY.fullmatch(key)
        if match is None or tensor.ndim != 2 or not tensor.is_floating_point() or not tensor.numel():
            raise LoRAError(
                f"{path}: {key} {list(tensor.shape)} {tensor.dtype}; expected only {PREFIX}<module>.lora_A.weight and "
                "lora_B.weight, two-dimensional and not empty (no embeddings, biases, DoRA magnitudes or saved modules)"
            )
        halves.setdefault(match[1], {})[match[2]] = tensor.T
    if not halves:
        raise LoRAError(f"{path}: no tensors; expected {PREFIX}<module>.lora_A.weight and lora_B.weight")
    pairs = {}
    for module, pair in halves.items():
        if len(pair) != 2:
            raise LoRAError(f"{path}: {module} has only lora_{next(iter(pair))}; expected lora_A and lora_B")
        if pair["A"].shape[1] != pair["B"].shape[0]:
            raise LoRAError(f"{path}: {module} has rank {pair['A'].shape[1]} in lora_A, {pair['B'].shape[0]} in lora_B")
        pairs[module] = (pair["A"], pair["B"])
    return pairs, metadata


def _read_note(folder: Path, note: str | None) -> list[Block]:
    """The location of each projection, as recorded by ``save_peft``; empty for files of other programs."""
    if note is None:
        return []
    where = f"{folder / WEIGHTS_FILE}: its note {METADATA}"
    entries = parse_json(note, where, LoRAError)
    blocks = []
    try:
        for entry in entries if isinstance(entries, list) else [entries]:
            start, rank = entry["start"], entry["rank"]
            whole("start", start, low=0)
            whole("rank", rank)
            blocks.append(Block(read_projection(entry["projection"], strict=False), start, rank))
        check_names(block.projection for block in blocks)
    except (TypeError, KeyError, PromptLoRAError) as error:
        raise LoRAError(f"{where} is damaged ({one_line(error)}); write the adapter again") from error
    return blocks


def _projections_of(
    folder: Path, module: str, A: Tensor, B: Tensor, projections: Sequence[Projection] | None
) -> list[Projection]:
    """The projections that a module computes, checked against its A ``[in, rank]`` and B ``[rank, out]``."""
    width_in, width_out = A.shape[0], B.shape[1]
    if projections is None:
        role = module.rpartition(".")[2].removesuffix("_proj")
        if role not in ROLES or not module.endswith("_proj"):
            raise LoRAError(
                f"{folder}: {module} is not named as an attention projection (q_proj, k_proj, v_proj, o_proj); if it is "
                "one under another name, pass projections=find_projections(model); others are not supported"
            )
        return [Projection(name=module, module=module, role=role, in_features=width_in, out_features=width_out)]
    mine = [p for p in projections if p.module == module]
    if not mine:
        raise LoRAError(
            f"{folder}: {module} holds no attention projection of the base model; expected only such modules"
        )
    for p in mine:
        top = p.out_features if p.rows is None else max(stop for _, stop in p.rows)
        if p.in_features != width_in or top > width_out or (p.rows is None and top != width_out):
            raise LoRAError(
                f"{folder}: {module} is {width_in} x {width_out} (in x out); expected in {p.in_features} and out {top}; "
                "was this adapter made for another model?"
            )
    # The width is recorded, so that a later export needs no model.
    return [replace(p, module_out_features=width_out) if p.module_out_features is None else p for p in mine]
