"""The model card (README.md) of an exported adapter: its prompt, its base, how to load it, and the chat format.

It knows texts; it knows nothing of tensors, tokenizers or files.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from typing import Any

import huggingface_hub

from promptlora.lora.origin import AdapterOrigin

CARD_FILE = "README.md"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


def adapter_card(
    record: Mapping[str, Any],
    *,
    name: str,
    base_model: str | None,
    rank: int,
    dtype: str,
    chat: tuple[str, bool] | None,
) -> str:
    """The text of the card.

    Args:
        record: The entry of ``LoRAWeights.provenance``; empty where it is not known. Values of an unexpected type, which a
            foreign file may contain, are treated as missing.
        name: The name of the folder, which becomes the title and the adapter's name in vLLM.
        base_model: Hub id or path of the base.
        rank: The ``--max-lora-rank`` with which vLLM accepts the adapter.
        dtype: The dtype of the base that the adapter was generated for.
        chat: A rendered chat, and whether the template in the folder renders it; None if the folder has no template.
    """
    named = base_model if base_model and _HUB_ID.fullmatch(base_model) else None
    metadata = huggingface_hub.ModelCardData(
        base_model=named, library_name="peft", pipeline_tag="text-generation", tags=["lora", "peft", "promptlora"]
    )
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-") or "adapter"
    refined = _refined(record)
    made = "written from a prompt by a hypernetwork of promptlora" + (", then refined" if refined else "")
    found = record.get("base_note")
    note = found if isinstance(found, str) else ""
    parts = [
        f"---\n{metadata.to_yaml()}\n---",
        f"# {name}",
        f"A LoRA adapter in PEFT's format, {made}. Loading it needs PEFT or vLLM only.",
        *_prompt(record),
        *refined,
        *_base(base_model, note),
        *_use(base_model or "FOLDER_OR_ID_OF_THE_BASE", rank, dtype, chat, name, "embedded_folder()" in note),
    ]
    return "\n\n".join(parts) + "\n"


def _fenced(text: str, kind: str = "text") -> str:
    """A text as a fenced code block; the text may contain backticks."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{kind}\n{text}\n{fence}"


def _prompt(record: Mapping[str, Any]) -> list[str]:
    origin = AdapterOrigin.of(record)
    if origin is None:
        missing = (
            "The adapter was written for a base that reads the prompt as well. The prompt is not recorded here: put it before "
            "the first user message yourself."
        )
        return ["## Prompt", missing] if record.get("in_context") is True else []
    shown = (
        "The adapter was written for a base that reads this prompt as well: the prompt stands before the first user message."
        if origin.in_context
        else "The adapter takes the place of this prompt: the prompt does not have to be in the context."
    )
    parts = ["## Prompt", _fenced(origin.prompt), shown]
    if origin.examples:
        pairs = "\n\n".join(f"Input: {question}\nOutput: {answer}" for question, answer in origin.examples)
        parts += ["The hypernetwork read these examples with it:", _fenced(pairs)]
    wrote = f" Hypernetwork: {origin.hypernetwork}." if origin.hypernetwork else ""
    return [
        *parts,
        f"SHA-256 of the prompt: `{origin.digest}`.{wrote} Both the prompt and its hash are in the metadata of "
        "`adapter_model.safetensors`, under `promptlora.provenance`.",
    ]


def _refined(record: Mapping[str, Any]) -> list[str]:
    """What ``PromptLoRA.refine`` recorded; nothing for an adapter that was not refined."""

    def count(name: str) -> int | None:
        return value if isinstance(value := record.get(name), int) and not isinstance(value, bool) else None

    best, steps, kept = count("best_step"), count("steps"), count("kept_back")
    if best is None:
        return []
    told = [
        f"{count(name)} {kind}"
        for name, kind in (("rows", "labelled rows"), ("inputs", "inputs without labels"))
        if count(name)
    ]
    parts = [f"Refined by gradient steps on {' and '.join(told) or 'rows'}, of which {kept or 'none'} were kept back."]
    if not kept:
        parts.append(f"The adapter is that of step {best}; nothing measured whether it memorised what it saw.")
    elif best:
        parts.append(f"Best step: {best}{f' of at most {steps}' if steps else ''}.")
    else:
        parts.append("No step was better than the start, so the adapter is the one that refinement started from.")
    before, after = record.get("loss_before"), record.get("loss_after")
    if isinstance(before, (int, float)) and isinstance(after, (int, float)):
        parts.append(f"Loss on what was kept back: {before:.3f} before, {after:.3f} after.")
    if record.get("stopped") is True:
        parts.append("The refinement was stopped before its end.")
    return ["## Refined", " ".join(parts)]


def _base(base_model: str | None, note: str) -> list[str]:
    told = f"`{base_model}`." if base_model else "Its name was not recorded."
    note = f" {note}" if note else ""
    return ["## Base", f"{told}{note} Another model, or the same model with other weights, can give other answers."]


def _use(base_model: str, rank: int, dtype: str, chat: tuple[str, bool] | None, name: str, embedded: bool) -> list[str]:
    tokenizer = "folder" if chat else "base"
    offline = "# without a network: from promptlora.models import embedded_folder; base = embedded_folder()\n"
    code = f"""from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

base, folder = {json.dumps(base_model)}, "."  # the folder of this file
{offline if embedded else ""}tokenizer = AutoTokenizer.from_pretrained({tokenizer})
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype="{dtype}"), folder)
messages = [{{"role": "user", "content": "INPUT"}}]
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")
output = model.generate(**inputs, max_new_tokens=64, do_sample=False)
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip())"""
    template = " --chat-template ./chat_template.jinja" if chat else ""
    serve = (
        f"vllm serve {shlex.quote(base_model)} --enable-lora --max-lora-rank {rank} --lora-modules {name}=.{template}"
    )
    parts = ["## Use", "In this folder:", _fenced(code, "python"), _fenced(serve, "sh")]
    if chat is None:
        return [
            *parts,
            "## Chat format",
            "This folder has no tokenizer, so the base's own chat template is used, which may differ from the one that the "
            "adapter was written for: promptlora writes an empty system turn where a template would write a default one.",
        ]
    rendered, exact = chat
    differs = (
        "The base's own template can differ, for example by a default system turn, and then the answers differ too."
        if exact
        else "`chat_template.jinja` does not render this format, because the base's template does not allow it. Write the text yourself."
    )
    says = "`apply_chat_template` with the tokenizer in this folder renders the input `INPUT` as:"
    return [
        *parts,
        "## Chat format",
        says if exact else "The adapter expects the input `INPUT` as:",
        _fenced(rendered),
        differs,
    ]
