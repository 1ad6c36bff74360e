"""Fixtures for all tests: no network, one thread a process, the real base loaded once."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported: no test waits for a hub
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest
import torch

from promptlora.models import load_base

torch.set_num_threads(1)  # pytest-xdist runs one process a core


@pytest.fixture(scope="session")
def smollm():
    """The real SmolLM2-135M-Instruct in float32, and its tokenizer; leave it as you found it."""
    return load_base()
