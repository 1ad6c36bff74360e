"""Writes one adapter as a PEFT folder: ``adapter_config.json``, ``adapter_model.safetensors``, a card and a tokenizer.

All modules are written with the same rank (smaller ones are padded with zeros) and one ``lora_alpha``. PEFT's
``rank_pattern`` and ``alpha_pattern`` stay empty, because some readers ignore them (vLLM scales every module by the
global ``lora_alpha / r``). This file knows PEFT's file format; it does not use PEFT.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from promptlora.errors import LoRAError
from promptlora.files import creating_folder
from promptlora.lora import LoRAWeights
from promptlora.lora.origin import ChatFiles
from promptlora.lora.peft.card import CARD_FILE, adapter_card
from promptlora.lora.peft.physical import ModuleLoRA, difference_norm, join, pad, product_norm, truncate
from promptlora.lora.storage import provenance_text
from promptlora.projections import ROLES, Projection, find_projections, module_shape

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
PREFIX = "base_model.model."
METADATA = "promptlora.peft/1"
PROVENANCE = "promptlora.provenance"
VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


@dataclass(frozen=True, kw_only=True)
class PeftReport:
    """A report on what :func:`save_peft` wrote.

    Attributes:
        rank: The common rank of all modules.
        alpha: ``lora_alpha``; readers scale by ``alpha / rank``.
        modules: The number of physical modules.
        bytes: Size of the folder's files.
        relative_error: Frobenius norm of the lost part divided by that of the update, over all modules; 0.0 if the
            export is exact.
    """

    rank: int
    alpha: float
    modules: int
    bytes: int
    relative_error: float


def save_peft(
    lora: LoRAWeights,
    path: str | Path,
    *,
    base_model_name: str | None = None,
    overwrite: bool = False,
    pad_rank: int | str | None = None,
    compress: int | None = None,
    dtype: torch.dtype | None = None,
    projections: Sequence[Projection] | None = None,
    model: nn.Module | None = None,
    chat: ChatFiles | None = None,
    card: bool = True,
) -> PeftReport:
    """Write the single adapter of ``lora`` as a PEFT folder, atomically.

    In addition to the two files that PEFT reads, the folder gets a model card (README.md) and the base's tokenizer,
    with a chat template that renders the same text as ``PromptLoRA.generate`` uses. The prompt and its hash are in the
    metadata of the weights.

    The rank of a fused module (q, k and v in one) is the sum of its projections' ranks, so the export is exact. Without
    ``projections``, each name is treated as a separate module, as in models with separate q_proj, k_proj, v_proj and
    o_proj.

    Args:
        lora: A selection of exactly one adapter.
        path: The folder to create.
        base_model_name: Hub id or path of the base, which PEFT's auto classes load. By default ``lora.base_model``
            (``PromptLoRA.adapt`` sets it), or the name from which ``model`` was loaded.
        overwrite: Whether to replace an existing folder.
        pad_rank: Pad with zeros to this rank; ``"auto"`` pads to the next ``max_lora_rank`` that vLLM supports.
        compress: Truncate each module's update to this rank (SVD); see ``relative_error`` of the report.
        dtype: The dtype of the written tensors; by default that of the LoRA.
        projections: The location of the names; by default ``lora.projections``.
        model: The base model, which may be on the meta device. Its projections are used by default, its module widths
            and orientation (GPT-2's Conv1D) are exported, and the adapter is checked against it. Without it, a Conv1D
            adapter still loads correctly; PEFT corrects the flag and warns.
        chat: Writes the tokenizer and its template; by default the one from ``PromptLoRA.adapt``. An adapter that was
            loaded from a file has none; pass ``PromptLoRA.chat_export``, or the folder gets no tokenizer.
        card: If False, only the two files that PEFT reads are written, without card and tokenizer.

    Returns:
        Rank, alpha, number of modules, bytes, and the relative error.

    Raises:
        LoRAError: There is not exactly one adapter, a projection is unknown or does not match, or the requested rank is
            not possible.
        OutputError: The folder already exists or cannot be written.
    """
    written, report = _export(lora, pad_rank, compress, dtype, projections, model)
    tensors, metadata = _tensors(written)
    base = _base_name(lora, base_model_name, model)
    config = _config(report, written, base, model)
    with creating_folder(Path(path), overwrite=overwrite) as folder:
        notes = {"format": "pt", METADATA: metadata}
        if lora.provenance[0]:
            notes[PROVENANCE] = provenance_text(lora.provenance)
        save_file(tensors, folder / WEIGHTS_FILE, metadata=notes)
        if card:
            _write_card(folder, Path(path).name, lora, base, report.rank, chat)
        (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        size = sum(file.stat().st_size for file in folder.iterdir())
    return replace(report, bytes=size)


def peft_state_dict(
    lora: LoRAWeights,
    *,
    pad_rank: int | str | None = None,
    compress: int | None = None,
    dtype: torch.dtype | None = None,
    projections: Sequence[Projection] | None = None,
    model: nn.Module | None = None,
) -> dict[str, Tensor]:
    """The single adapter of ``lora`` as the tensors of a PEFT folder, in memory and on the CPU.

    ``peft.set_peft_model_state_dict(peft_model, lora.peft_state_dict())`` loads them into a model that was wrapped with
    ``peft.LoraConfig(**lora.peft_config())``. Pass the same arguments to both methods, because another ``lora_alpha``
    would change the scaling of the update. Later, any adapter of the same base and rank can be loaded in its place.

    Args:
        lora: A selection of exactly one adapter.
        pad_rank: See :func:`save_peft`.
        compress: See :func:`save_peft`.
        dtype: See :func:`save_peft`.
        projections: See :func:`save_peft`.
        model: See :func:`save_peft`.

    Returns:
        ``lora_A.weight [rank, in]`` and ``lora_B.weight [out, rank]`` of each module, by PEFT's names.

    Raises:
        LoRAError: See :func:`save_peft`.
    """
    written, _ = _export(lora, pad_rank, compress, dtype, projections, model)
    return _tensors(written)[0]


def peft_config(
    lora: LoRAWeights,
    *,
    base_model_name: str | None = None,
    pad_rank: int | str | None = None,
    compress: int | None = None,
    projections: Sequence[Projection] | None = None,
    model: nn.Module | None = None,
) -> dict[str, Any]:
    """The arguments of the ``peft.LoraConfig`` for :func:`peft_state_dict`; also the content of adapter_config.json.

    Args:
        lora: A selection of exactly one adapter.
        base_model_name: See :func:`save_peft`.
        pad_rank: See :func:`save_peft`.
        compress: See :func:`save_peft`.
        projections: See :func:`save_peft`.
        model: See :func:`save_peft`.

    Raises:
        LoRAError: See :func:`save_peft`.
    """
    written, report = _export(lora, pad_rank, compress, None, projections, model)
    return _config(report, written, _base_name(lora, base_model_name, model), model)


def _export(
    lora: LoRAWeights,
    pad_rank: int | str | None,
    compress: int | None,
    dtype: torch.dtype | None,
    projections: Sequence[Projection] | None,
    model: nn.Module | None,
) -> tuple[list[ModuleLoRA], PeftReport]:
    """The adapter by physical module, with one rank and one alpha for all modules; the report lacks the size."""
    if lora.adapters != 1:
        raise LoRAError(
            f"{lora.adapters} adapters; expected exactly one in a PEFT folder; choose one with lora.select(i)"
        )
    if compress is not None and compress < 1:
        raise LoRAError(f"compress={compress}; expected a rank of at least 1, or None")
    if dtype is not None and not dtype.is_floating_point:
        raise LoRAError(f"dtype={dtype}; expected a floating dtype such as torch.float32 or torch.bfloat16")
    known = _known_projections(lora, projections, model)
    exact = _modules(lora, known, model)
    written = exact if compress is None else [truncate(module, compress) for module in exact]
    rank = _rank(max(module.rank for module in written), pad_rank)
    alpha, fold = _alpha(lora.scaling, rank)
    written = [pad(module, rank) for module in written]
    written = [replace(m, A=m.A.to(dtype or m.A.dtype), B=(m.B * fold).to(dtype or m.B.dtype)) for m in written]
    changed = compress is not None or fold != 1.0 or dtype not in (None, lora.dtype)
    error = _relative_error(exact, written, fold) if changed else 0.0
    return written, PeftReport(rank=rank, alpha=alpha, modules=len(written), bytes=0, relative_error=error)


def _base_name(lora: LoRAWeights, given: str | None, model: nn.Module | None) -> str | None:
    """The base name for the config: the given name, else the LoRA's, else the loaded model's; None without any."""
    return given or lora.base_model or getattr(getattr(model, "config", None), "name_or_path", None) or None


# --- from names to modules ---------------------------------------------------------------------------


def _known_projections(
    lora: LoRAWeights, given: Sequence[Projection] | None, model: nn.Module | None
) -> dict[str, Projection]:
    """The projection of every name of the LoRA."""
    known: Sequence[Projection] | None = given or lora.projections
    if known is None and model is not None:
        known = find_projections(model)
    if known is None:
        return {name: _plain(name, A, B) for name, (A, B) in lora.items()}
    by_name = {projection.name: projection for projection in known}
    for name, (A, B) in lora.items():
        projection = by_name.get(name)
        if projection is None:
            raise LoRAError(
                f"{name}: not among the {len(by_name)} projections of the base model, first {next(iter(by_name), None)}; "
                "was this LoRA made for another model?"
            )
        if (A.shape[1], B.shape[2]) != projection.shape:
            raise LoRAError(f"{name}: the LoRA is {A.shape[1]} x {B.shape[2]} (in x out); expected {projection.shape}")
    return {name: by_name[name] for name in lora}


def _plain(name: str, A: Tensor, B: Tensor) -> Projection:
    """The projection for a name without a record: a whole module."""
    role = name.rpartition(".")[2].removesuffix("_proj")
    if role not in ROLES or not name.endswith("_proj"):
        raise LoRAError(
            f"{name}: nothing says which module this is; expected a name ending in q_proj, k_proj, v_proj or o_proj; "
            "pass projections=find_projections(model)"
        )
    return Projection(name=name, module=name, role=role, in_features=A.shape[1], out_features=B.shape[2])


def _modules(lora: LoRAWeights, known: dict[str, Projection], model: nn.Module | None) -> list[ModuleLoRA]:
    """The adapter by physical module, on the CPU, without the scaling."""
    parts: dict[str, list[tuple[Projection, Tensor, Tensor]]] = {}
    for name, (A, B) in lora.items():
        A, B = A[0].detach().cpu(), B[0].detach().cpu()  # [in, rank], [rank, out]
        if not (A.isfinite().all() and B.isfinite().all()):
            raise LoRAError(f"{name}: A or B holds nan or inf; expected finite numbers; write the adapter again")
        parts.setdefault(known[name].module, []).append((known[name], A, B))
    return [join(module, group, _width(module, group, model)) for module, group in parts.items()]


def _width(module: str, group: list[tuple[Projection, Tensor, Tensor]], model: nn.Module | None) -> int:
    """The width of the module's output. It cannot be derived from the projections' rows, as a gate may follow them."""
    first = group[0][0]
    needed = max(first.out_features if p.rows is None else max(stop for _, stop in p.rows) for p, _, _ in group)
    width: int | None = first.out_features if first.rows is None else first.module_out_features
    if model is not None:
        found = dict(model.named_modules()).get(module)
        shape = module_shape(found) if found is not None else None
        if shape is None or shape[0] != first.in_features or shape[1] < needed or width not in (None, shape[1]):
            raise LoRAError(
                f"{module}: {'no such module' if found is None else shape} in {type(model).__name__}; expected in "
                f"{first.in_features} and out {width or needed}; was this LoRA made for another model?"
            )
        width = shape[1]
    if width is None:
        raise LoRAError(f"{module}: a fused module of unknown width; pass model= (the meta device is enough)")
    return width


# --- rank and scale ----------------------------------------------------------------------------------


def _rank(rank: int, pad_rank: int | str | None) -> int:
    """The rank that the export uses for all modules."""
    listed = ", ".join(str(r) for r in VLLM_RANKS)
    if pad_rank is None:
        return max(rank, 1)
    if pad_rank == "auto":
        fitting = [accepted for accepted in VLLM_RANKS if accepted >= rank]
        if not fitting:
            raise LoRAError(f"rank {rank} is above what vLLM accepts ({listed}); export with compress={VLLM_RANKS[-1]}")
        return fitting[0]
    if not isinstance(pad_rank, int) or isinstance(pad_rank, bool):
        raise LoRAError(f"pad_rank={pad_rank!r}; expected None, 'auto' (one of {listed}) or a number")
    if pad_rank < rank:
        raise LoRAError(f"pad_rank={pad_rank} is below the adapter's rank {rank}; raise it, or add compress={pad_rank}")
    return pad_rank


def _alpha(scaling: float, rank: int) -> tuple[float, float]:
    """``lora_alpha`` and a factor for B, so that ``alpha / rank * factor`` is the scaling.

    The factor is 1 if some float alpha gives the scaling exactly. Otherwise alpha is the rank, and the factor is the
    scaling.
    """
    near = scaling * rank
    for alpha in (near, math.nextafter(near, math.inf), math.nextafter(near, -math.inf)):
        if alpha / rank == scaling:
            return (int(alpha) if alpha == int(alpha) else alpha), 1.0
    return rank, scaling


def _relative_error(exact: list[ModuleLoRA], written: list[ModuleLoRA], fold: float) -> float:
    lost = total = 0.0
    for before, after in zip(exact, written, strict=True):
        scaled = replace(before, B=before.B.double() * fold)
        lost += difference_norm(scaled, after) ** 2
        total += product_norm(scaled.A, scaled.B) ** 2
    return math.sqrt(lost / total) if total else 0.0


# --- files -------------------------------------------------------------------------------------------


def _write_card(
    folder: Path, name: str, lora: LoRAWeights, base: str | None, rank: int, chat: ChatFiles | None
) -> None:
    """Write the tokenizer, if there is one, and the card that shows its chat format."""
    (origin,), (record,) = lora.origins, lora.provenance
    chat = chat or lora.chat
    rendered = chat.write(folder, origin.prompt if origin and origin.in_context else None) if chat else None
    accepted = next((known for known in VLLM_RANKS if known >= rank), rank)
    dtype = str(lora.dtype).removeprefix("torch.")
    text = adapter_card(record, name=name, base_model=base, rank=accepted, dtype=dtype, chat=rendered)
    (folder / CARD_FILE).write_text(text, encoding="utf-8")


def _tensors(modules: list[ModuleLoRA]) -> tuple[dict[str, Tensor], str]:
    """PEFT's tensors, and our own record of the location of each projection, which other readers ignore."""
    tensors, note = {}, []
    own = partial(
        torch.clone, memory_format=torch.contiguous_format
    )  # at rank 1, contiguous() would return the caller's own memory
    for lora in modules:
        tensors[f"{PREFIX}{lora.module}.lora_A.weight"] = own(lora.A.T)  # [rank, in]
        tensors[f"{PREFIX}{lora.module}.lora_B.weight"] = own(lora.B.T)  # [out, rank]
        note += [{"projection": asdict(b.projection), "start": b.start, "rank": b.rank} for b in lora.blocks]
    return tensors, json.dumps(note)


def _config(
    report: PeftReport, modules: list[ModuleLoRA], base_model_name: str | None, model: nn.Module | None
) -> dict[str, Any]:
    """PEFT's ``adapter_config.json``; target modules have full dotted names, so that no other module matches."""
    transposed = False
    if model is not None:
        found = dict(model.named_modules())
        transposed = all(hasattr(found[lora.module], "nf") for lora in modules)
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model_name,
        "inference_mode": True,
        "r": report.rank,
        "lora_alpha": report.alpha,
        "lora_dropout": 0.0,
        "target_modules": sorted(lora.module for lora in modules),
        "rank_pattern": {},
        "alpha_pattern": {},
        "fan_in_fan_out": transposed,
        "bias": "none",
        "modules_to_save": None,
        "use_rslora": False,
        "use_dora": False,
    }
