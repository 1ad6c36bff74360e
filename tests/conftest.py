"""Fixtures for all tests: no network, one thread a process, the real base loaded once."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported: no test waits for a hub
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import hypothesis
import pytest
import torch

from promptlora.adaptation import PromptLoRA
from promptlora.config import HyperNetworkConfig
from promptlora.hypernetwork import HyperNetwork
from promptlora.models import base_fingerprint, load_base
from promptlora.projections import find_projections

torch.set_num_threads(1)  # pytest-xdist runs one process a core
hypothesis.settings.register_profile("promptlora", deadline=None)  # no timed assertion: the machine may be busy
hypothesis.settings.load_profile("promptlora")


@pytest.fixture(scope="session")
def smollm():
    """The real SmolLM2-135M-Instruct in float32, and its tokenizer; leave it as you found it."""
    return load_base()


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
