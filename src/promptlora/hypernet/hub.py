"""Hypernetworks on the Hugging Face Hub: download their files, upload a folder, and write the model card.

This file knows ids, files and texts; it knows nothing of tensors. ``HyperNetwork`` checks downloaded files like those
of any other folder.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import huggingface_hub

from promptlora.errors import CheckpointError, one_line
from promptlora.loading import hub_answers
from promptlora.reading import is_dir

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_LONGEST_ID = 96  # characters, a limit of the Hub


def is_hub_id(name: str | Path) -> bool:
    """Whether a name means ``owner/name`` on the Hub: a string of that form that is not a local folder.

    A ``Path`` is always a folder.
    """
    return (
        isinstance(name, str)
        and len(name) <= _LONGEST_ID
        and _ID.fullmatch(name) is not None
        and not is_dir(Path(name))
    )


def local_folder(
    name: str | Path, files: Sequence[str], *, revision: str | None = None, token: str | bool | None = None
) -> Path:
    """The local folder of that name, or the folder to which the files of a Hub id were downloaded.

    If the Hub does not answer, files in its local cache are used.

    Args:
        name: A folder, or ``owner/name``.
        files: The names of the files to download; other files of the repository are ignored.
        revision: Branch, tag or commit on the Hub.
        token: See ``huggingface_hub``.

    Raises:
        CheckpointError: The files of a Hub id cannot be downloaded.
    """
    if not is_hub_id(name):
        return Path(name)
    try:
        found = huggingface_hub.snapshot_download(
            str(name),
            revision=revision,
            token=token,
            allow_patterns=list(files),
            local_files_only=not hub_answers(str(name)),
            library_name="promptlora",
        )
    except Exception as error:  # network and Hub errors of every kind
        raise CheckpointError(
            f"{name}: no such folder, and it cannot be fetched from the Hub ({one_line(error)}). Expected a folder written by "
            "HyperNetwork.save_pretrained, or the Hub id of one. Fix: check the name, the network and the token."
        ) from error
    return Path(found)


def upload(
    folder: Path,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    message: str = "Upload a hypernetwork with promptlora",
) -> str:
    """Upload a folder to a model repository as one commit; the repository is created if it does not exist.

    Returns:
        The URL of the repository.

    Raises:
        CheckpointError: The Hub cannot be reached or refuses the upload.
    """
    try:
        api = huggingface_hub.HfApi(library_name="promptlora", token=token)
        address = api.create_repo(repo_id, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        api.upload_folder(repo_id=repo_id, folder_path=folder, revision=revision, commit_message=message)
    except Exception as error:
        raise CheckpointError(
            f"{repo_id}: cannot be uploaded ({one_line(error)}); check the network, the name and the token"
        ) from error
    return str(address)


def card(
    repo_id: str,
    *,
    base: Mapping[str, str | int],
    sizes: Mapping[str, str],
    base_model: str | None = None,
    embedder: Mapping[str, str | int] | None = None,
) -> str:
    """The model card (README.md) of a hypernetwork: its base, its sizes, and how to load it.

    Args:
        repo_id: The repository of the hypernetwork.
        base: Fingerprint of its base.
        sizes: The rows of the size table, by name.
        base_model: Hub id of the base, for the metadata; a local path is omitted.
        embedder: Fingerprint of the text embedder that it uses, if any.
    """
    named = base_model if base_model and is_hub_id(base_model) else None
    metadata = huggingface_hub.ModelCardData(
        base_model=named,
        library_name="promptlora",
        tags=["promptlora", "hypernetwork", "lora", "peft"],
    )
    told = {
        key: value
        for key, value in base.items()
        if key in ("model_type", "hidden_size", "num_hidden_layers", "vocab_size")
    }
    described = ", ".join(f"{key} {value}" for key, value in told.items()) or "not recorded"
    rows = "\n".join(f"| {key} | {value} |" for key, value in sizes.items())
    argument = f', base="{named}"' if named else ', base="FOLDER_OR_ID_OF_THE_BASE"'
    reads = "a frozen text embedder" if embedder else "its base"
    return f"""---
{metadata.to_yaml()}
---

# {repo_id.rpartition("/")[2]}

A hypernetwork of promptlora: it reads a prompt through {reads} and writes, in one
forward pass, a LoRA for every attention projection of a frozen language model.

## Base

{f"[{named}](https://huggingface.co/{named})" if named else "The base is identified by its fingerprint in `config.json`"}
({described}). Loading it beside another base is refused.

## Sizes

| | |
| --- | --- |
{rows}

## Use

```python
from promptlora import PromptLoRA

lm = PromptLoRA.from_pretrained("{repo_id}"{argument})
lora = lm.adapt("Translate to Spanish.")
print(lm.generate("good morning", lora, max_new_tokens=24))
lora.save_peft("spanish/")  # loads in PEFT and vLLM
```

This card was generated. It says nothing of training data, results or limits: add them here.
"""
