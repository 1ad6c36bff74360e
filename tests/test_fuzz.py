"""Damaged files of every format: each loads to finite and right values, or is refused in one line.

100 damaged files for each test here, 2,000 with ``make nightly``.
"""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from promptlora.data import read_rows
from promptlora.data.config import DataConfig
from promptlora.errors import PromptLoRAError
from promptlora.hypernet.config import HyperNetworkConfig
from promptlora.hypernet.network import HyperNetwork
from promptlora.lora import LoRAWeights
from promptlora.lora.peft import load_peft, save_peft
from promptlora.projections import find_projections
from promptlora.settings import from_dict, load_toml, to_dict
from promptlora.train.config import TrainConfig
from tests.helpers import random_lora, tiny_gpt2, tiny_llama

HOSTILE = [
    None, True, False, "", "x", "q_proj", "x" * 2000, "\ud800", "nul\0", "(a+)+$", "(.*a){20}", -1, 0, 1, 2, 3, 7, 1.5, -0.0,
    1e308, 1e-320, math.nan, math.inf, -math.inf, 10**6, 10**9, 2**63, 10**30, 10**4000, [], {}, [[]], [[0, 0]], [[5, 2]], [[0, 10**9]],
    [1, "a"], {"a": 1}, json.loads("[" * 80 + "]" * 80),
]  # fmt: skip
numbers = st.integers(0, 1 << 30)
hostile = st.sampled_from(range(len(HOSTILE)))
edits = st.lists(
    st.tuples(st.sampled_from(["set", "drop", "double", "swap"]), numbers, hostile), min_size=1, max_size=3
)
cuts = st.lists(
    st.tuples(st.sampled_from(["cut", "flip", "insert", "repeat"]), numbers, st.binary(min_size=1, max_size=12)),
    min_size=1,
    max_size=3,
)
BAD_VALUES = st.sampled_from([math.nan, math.inf, -math.inf, 1e30, 0.0])


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all values inside a value of JSON, its own too."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(found for key, each in inner for found in places(each, (*path, key)))]


def edited(value: Any, changes: list[tuple[str, int, int]]) -> Any:
    """A value of JSON with some of its parts replaced, dropped, doubled or exchanged."""
    value = copy.deepcopy(value)
    for what, place, other in changes:
        found = places(value)
        *path, last = found[place % len(found)] or (None,)
        if last is None:
            continue
        holder = value
        for key in path:
            holder = holder[key]
        if what == "set":
            holder[last] = copy.deepcopy(HOSTILE[other])
        elif what == "drop":
            del holder[last]
        elif what == "double" and isinstance(holder, list):
            holder.append(copy.deepcopy(holder[last]))
        elif isinstance(holder, dict):
            name = list(holder)[other % len(holder)]
            holder[last], holder[name] = holder[name], holder[last]
    return value


def damaged(data: bytes, changes: list[tuple[str, int, bytes]]) -> bytes:
    """Bytes with a cut, a flip, an insertion or a repetition."""
    for what, place, more in changes:
        at = place % (len(data) + 1)
        if what == "cut":
            data = data[:at]
        elif what == "flip" and at < len(data):
            data = data[:at] + bytes([data[at] ^ (more[0] or 1)]) + data[at + 1 :]
        elif what == "insert":
            data = data[:at] + more + data[at:]
        else:
            data = data[:at] + data[max(0, at - len(more)) :]
    return data


def refused(error: PromptLoRAError) -> None:
    """A refusal is one line of a length that can be read."""
    text = str(error)
    assert "\n" not in text
    assert 0 < len(text) < 3000


def tensors_and_metadata(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    with safe_open(path, framework="pt") as handle:
        return load_file(path), dict(handle.metadata() or {})


def spoiled(tensors: dict[str, Tensor], what: str, place: int, value: float) -> dict[str, Tensor]:
    """Tensors with one of them changed in value, shape, dtype or name."""
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    name = sorted(tensors)[place % len(tensors)]
    tensor = tensors[name]
    if what == "value" and tensor.numel():
        tensor.view(-1)[place % tensor.numel()] = value
    elif what == "shape":
        tensors[name] = (
            tensor[..., :-1].contiguous() if place % 2 else tensor.T.contiguous() if tensor.ndim == 2 else tensor[None]
        )
    elif what == "dtype":
        tensors[name] = tensor.to([torch.int64, torch.bool, torch.float16, torch.bfloat16, torch.float64][place % 5])
    elif what == "rename":
        tensors[f"{name}x"] = tensors.pop(name)
    elif what == "drop":
        del tensors[name]
    return tensors


spoils = st.tuples(st.sampled_from(["value", "shape", "dtype", "rename", "drop"]), numbers, BAD_VALUES)


# --- hypernetwork folders ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def network(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    config = HyperNetworkConfig(
        context_size=8, encoder_heads=2, rank=2, encoder_layers=1, trunk_layers=1, source_layer=1
    )
    folder = tmp_path_factory.mktemp("fuzz") / "network"
    HyperNetwork(config, find_projections(tiny_gpt2()), 32, {"model_type": "gpt2"}).save_pretrained(folder)
    return folder


def check_network(folder: Path) -> None:
    try:
        made = HyperNetwork.from_pretrained(folder)
    except PromptLoRAError as error:
        refused(error)
        return
    on_disk = load_file(folder / "model.safetensors")
    assert made.state_dict().keys() == on_disk.keys()
    assert all(
        bool(torch.isfinite(v).all()) and torch.equal(v, on_disk[k].to(v.dtype)) for k, v in made.state_dict().items()
    )
    states, mask = torch.zeros(1, 3, made.state_size), torch.ones(1, 3, dtype=torch.bool)
    if made.config.source != "layers":
        lora = made(states, mask)
        assert len(lora) == len(made.projections)
        for projection in made.projections:
            assert len(projection.row_index()) == projection.out_features


def replaced(folder: Path, name: str, data: bytes, check: Any) -> None:
    """Check a folder with one of its files replaced, and put it back."""
    before = (folder / name).read_bytes()
    try:
        (folder / name).write_bytes(data)
        check(folder)
    finally:
        (folder / name).write_bytes(before)


@given(edits)
def test_the_configuration_of_a_hypernetwork(network, changes):
    value = edited(json.loads((network / "config.json").read_text()), changes)
    replaced(network, "config.json", json.dumps(value).encode(), check_network)


@given(st.sampled_from(["config.json", "model.safetensors"]), cuts)
def test_the_bytes_of_a_hypernetwork(network, name, changes):
    replaced(network, name, damaged((network / name).read_bytes(), changes), check_network)


@given(spoils)
def test_the_tensors_of_a_hypernetwork(network, tmp_path_factory, spoil):
    tensors, metadata = tensors_and_metadata(network / "model.safetensors")
    made = tmp_path_factory.getbasetemp() / "made.safetensors"
    save_file(spoiled(tensors, *spoil), made, metadata=metadata)
    replaced(network, "model.safetensors", made.read_bytes(), check_network)


# --- adapters ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def adapters(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("fuzz") / "adapters.safetensors"
    random_lora(find_projections(tiny_gpt2()), 2, dtype=torch.float32).save(file)
    return file


def check_adapters(path: Path) -> None:
    try:
        lora = LoRAWeights.load(path)
    except PromptLoRAError as error:
        refused(error)
        return
    on_disk = load_file(path)
    assert math.isfinite(lora.scaling)
    for name, (A, B) in lora.items():
        assert torch.equal(A, on_disk[f"{name}.lora_A"])
        assert torch.equal(B, on_disk[f"{name}.lora_B"])
        assert bool(torch.isfinite(A).all() and torch.isfinite(B).all())
    for projection in lora.projections or ():
        assert len(projection.row_index()) == projection.out_features
    assert len({p.name for p in lora.projections or ()}) == len(lora.projections or ())


@given(cuts)
def test_the_bytes_of_adapters(adapters, changes):
    made = adapters.with_name("damaged.safetensors")
    made.write_bytes(damaged(adapters.read_bytes(), changes))
    check_adapters(made)


@given(st.sampled_from(["scaling", "projections", "format"]), edits, hostile)
def test_the_metadata_of_adapters(adapters, key, changes, other):
    tensors, metadata = tensors_and_metadata(adapters)
    value = edited(json.loads(metadata[key]), changes) if key == "projections" else HOSTILE[other]
    made = adapters.with_name("metadata.safetensors")
    save_file(tensors, made, metadata={**metadata, key: json.dumps(value)})
    check_adapters(made)


@given(spoils)
def test_the_tensors_of_adapters(adapters, spoil):
    tensors, metadata = tensors_and_metadata(adapters)
    made = adapters.with_name("spoiled.safetensors")
    save_file(spoiled(tensors, *spoil), made, metadata=metadata)
    check_adapters(made)


# --- PEFT folders ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def peft_folder(tmp_path_factory, request) -> Path:
    folder = tmp_path_factory.mktemp("fuzz") / "peft"
    model = tiny_llama() if request.param == "llama" else tiny_gpt2()
    save_peft(random_lora(find_projections(model), dtype=torch.float32), folder)
    return folder


def check_peft(folder: Path) -> None:
    try:
        lora = load_peft(folder)
    except PromptLoRAError as error:
        refused(error)
        return
    assert math.isfinite(lora.scaling)
    assert all(bool(torch.isfinite(A).all() and torch.isfinite(B).all()) for A, B in lora.values())
    assert len(lora) >= len(load_file(folder / "adapter_model.safetensors")) // 2  # no module is lost


@given(edits)
def test_the_configuration_of_a_peft_folder(peft_folder, changes):
    value = edited(json.loads((peft_folder / "adapter_config.json").read_text()), changes)
    replaced(peft_folder, "adapter_config.json", json.dumps(value).encode(), check_peft)


@given(st.sampled_from(["rank_pattern", "alpha_pattern"]), st.text("ab.*+?()[]{}|^$\\q_proj", max_size=30), hostile)
def test_the_patterns_of_a_peft_folder(peft_folder, key, pattern, other):
    value = json.loads((peft_folder / "adapter_config.json").read_text())
    value[key] = {pattern: HOSTILE[other], "(a+)+$": 3, ".*": value["r"]}
    replaced(peft_folder, "adapter_config.json", json.dumps(value).encode(), check_peft)


@given(st.sampled_from(["adapter_config.json", "adapter_model.safetensors"]), cuts)
def test_the_bytes_of_a_peft_folder(peft_folder, name, changes):
    replaced(peft_folder, name, damaged((peft_folder / name).read_bytes(), changes), check_peft)


@given(edits)
def test_the_note_of_a_peft_folder(peft_folder, changes):
    file = peft_folder / "adapter_model.safetensors"
    tensors, metadata = tensors_and_metadata(file)
    key = next((key for key in metadata if key.startswith("promptlora")), None)
    if key is None:
        return
    made = peft_folder.with_name("note.safetensors")
    note = edited(json.loads(metadata[key]), changes)
    save_file(tensors, made, metadata={**metadata, key: json.dumps(note)})
    replaced(peft_folder, file.name, made.read_bytes(), check_peft)


@given(spoils)
def test_the_tensors_of_a_peft_folder(peft_folder, spoil):
    tensors, metadata = tensors_and_metadata(peft_folder / "adapter_model.safetensors")
    made = peft_folder.with_name("spoiled.safetensors")
    save_file(spoiled(tensors, *spoil), made, metadata=metadata)
    replaced(peft_folder, "adapter_model.safetensors", made.read_bytes(), check_peft)


# --- TOML --------------------------------------------------------------------------------------------------

TRAINING = to_dict(TrainConfig(output="runs/a", data=DataConfig(train="rows.jsonl")))


def check_toml(path: Path) -> None:
    try:
        config = load_toml(TrainConfig, path)
    except PromptLoRAError as error:
        refused(error)
        return
    assert from_dict(TrainConfig, to_dict(config)) == config
    leaves = [
        value
        for table in (vars(config), *(vars(t) for t in (config.optim, config.hypernetwork, config.data)))
        for value in table.values()
    ]
    assert all(math.isfinite(value) for value in leaves if isinstance(value, (int, float)))
    assert all(type(config.__dict__[name]) is int for name in ("steps", "seed", "accumulate"))
    assert config.hypernetwork.rank <= 4096


@given(edits)
def test_the_values_of_a_training_configuration(tmp_path_factory, changes):
    path = tmp_path_factory.getbasetemp() / "values.toml"
    try:
        path.write_text(tomli_w.dumps(edited(TRAINING, changes)), encoding="utf-8")
    except (TypeError, ValueError, AttributeError):  # what TOML cannot hold
        return
    check_toml(path)


@given(cuts)
def test_the_bytes_of_a_training_configuration(tmp_path_factory, changes):
    path = tmp_path_factory.getbasetemp() / "bytes.toml"
    path.write_bytes(damaged(tomli_w.dumps(TRAINING).encode(), changes))
    check_toml(path)


# --- rows --------------------------------------------------------------------------------------------------

ROW = {
    "task": "t",
    "prompt": "Say yes.",
    "input": "i",
    "outputs": ["a", "b"],
    "metric": "rougeL",
    "split": "train",
    "x": [1],
}


def check_rows(path: Path) -> None:
    try:
        rows = read_rows(path)
    except PromptLoRAError as error:
        refused(error)
        return
    assert rows
    for row in rows:
        assert row.prompt.strip()
        assert row.outputs
        assert all(output.strip() for output in row.outputs)
        for text in (row.task, row.prompt, row.input, row.split, row.category, *row.outputs):
            text.encode()


@given(edits)
def test_the_values_of_rows(tmp_path_factory, changes):
    path = tmp_path_factory.getbasetemp() / "values.jsonl"
    path.write_text(json.dumps(ROW) + "\n" + json.dumps(edited(ROW, changes)) + "\n")
    check_rows(path)


@given(cuts)
def test_the_bytes_of_rows(tmp_path_factory, changes):
    path = tmp_path_factory.getbasetemp() / "bytes.jsonl"
    path.write_bytes(damaged((json.dumps(ROW) + "\n").encode() * 3, changes))
    check_rows(path)
