"""A whole ``PromptLoRA`` on a tiny random base, and what each kind of call gives when it runs alone."""

from __future__ import annotations

import gc
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from promptlora.adapt.prompt_lora import PromptLoRA
from promptlora.hypernet.config import HyperNetworkConfig
from promptlora.hypernet.network import HyperNetwork
from promptlora.lora import LoRAWeights
from promptlora.models import base_fingerprint
from promptlora.projections import find_projections
from tests.helpers import tiny_llama
from tests.training_helpers import WORDS, word_tokenizer


def tiny_network(model: PreTrainedModel, seed: int = 0, **options: object) -> HyperNetwork:
    """A hypernetwork of random weights whose adapters change what the model says."""
    torch.manual_seed(seed)
    config = HyperNetworkConfig(
        **{
            "source_layer": 1, "max_prompt_tokens": 16, "context_size": 32, "encoder_layers": 1, "encoder_heads": 2,
            "pooling_queries": 2, "trunk_layers": 1, "rank": 4, "alpha": 8.0, **options,
        }
    )  # fmt: skip
    network = HyperNetwork(config, find_projections(model), model.config.hidden_size, base_fingerprint(model))
    for name, parameter in network.named_parameters():
        if name.endswith("B.weight") or "static_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return network


def tiny_prompt_lora(model: PreTrainedModel | None = None, **options: object) -> PromptLoRA:
    """Two layers, 97 words, float32; every prompt of words gives another adapter."""
    base = model or tiny_llama(torch.float32)
    network = tiny_network(base, **options).to(base.device)
    lm = PromptLoRA(base, word_tokenizer(), network)
    if network.encoder is not None:
        network.encoder.fit_statistics([lm.states.one(prompt) for prompt in prompts(4)])
    lm.states.clear()
    return lm


def prompts(count: int) -> list[str]:
    """Prompts of four words each."""
    return [" ".join(WORDS[6 + (i * 7 + j * 11 + i * j) % 84] for j in range(4)) for i in range(count)]


def texts(count: int) -> list[str]:
    """Inputs of one to five words."""
    return [" ".join(WORDS[6 + (i * 13 + j * 5) % 84] for j in range(1 + i % 5)) for i in range(count)]


TOKENS = 6


@dataclass(frozen=True)
class Alone:
    """What the calls give when nothing else runs: for each prompt its adapter, for each pair answer and score."""

    prompts: list[str]
    texts: list[str]
    adapters: list[LoRAWeights]
    answers: dict[tuple[int | None, int], str]
    scores: dict[tuple[int | None, int], float]


def run_alone(lm: PromptLoRA, adapters: int, inputs: int) -> Alone:
    """Every call that :func:`hammer` makes, made once, one after the other."""
    alone = Alone(prompts(adapters), texts(inputs), [], {}, {})
    for prompt in alone.prompts:
        alone.adapters.append(lm.adapt(prompt))
    for a in (None, *range(adapters)):
        lora = None if a is None else alone.adapters[a]
        for t, text in enumerate(alone.texts):
            alone.answers[a, t] = lm.generate(text, lora, max_new_tokens=TOKENS)
            alone.scores[a, t] = lm.score([text], [alone.texts[0]], lora)[0]
    return alone


def hammer(lm: PromptLoRA, alone: Alone, threads: int, calls: int, seed: int = 0) -> list[str]:
    """Mixed calls from several threads; what differed from the call alone, or failed."""
    wrong: list[str] = []

    def same(what: str, found: object, expected: object) -> None:
        if found != expected:
            wrong.append(f"{what}: {found!r}, alone {expected!r}")

    def work(number: int) -> None:
        rng = random.Random(f"{seed}/{number}")
        kept = []  # streams that are left half-way, dropped later
        for call in range(calls):
            a, t = rng.randrange(len(alone.adapters)), rng.randrange(len(alone.texts))
            kind = rng.choice(["adapt", "generate", "batch", "base", "stream", "two streams", "abandoned", "score"])
            lora, text, what = alone.adapters[a], alone.texts[t], f"thread {number} call {call} {kind}"
            try:
                if kind == "adapt":
                    lm.states.clear()  # read it again, beside what the others do
                    found = lm.adapt(alone.prompts[a])
                    for name in found:
                        for mine, theirs in zip(found[name], lora[name], strict=True):
                            same(f"{what} {name}", torch.equal(mine, theirs), True)
                elif kind == "generate":
                    same(what, lm.generate(text, lora, max_new_tokens=TOKENS), alone.answers[a, t])
                elif kind == "batch":
                    rows = rng.sample(range(len(alone.adapters)), 3)
                    together = LoRAWeights.stack([alone.adapters[row] for row in rows])
                    expected = [alone.answers[row, t] for row in rows]
                    same(what, lm.generate([text] * 3, together, max_new_tokens=TOKENS), expected)
                elif kind == "base":
                    same(what, lm.generate(text, max_new_tokens=TOKENS), alone.answers[None, t])
                elif kind == "stream":
                    found_text = "".join(lm.stream(text, lora, max_new_tokens=TOKENS))
                    same(what, found_text.strip(), alone.answers[a, t])
                elif kind == "two streams":
                    other, last = rng.randrange(len(alone.adapters)), rng.randrange(len(alone.texts))
                    first = lm.stream(text, lora, max_new_tokens=TOKENS)
                    second = lm.stream(alone.texts[last], alone.adapters[other], max_new_tokens=TOKENS)
                    one, two = [next(first, "")], []
                    two.append(next(second, ""))
                    same(what, lm.generate(text, lora, max_new_tokens=TOKENS), alone.answers[a, t])
                    two += list(second)
                    one += list(first)
                    same(what, "".join(one).strip(), alone.answers[a, t])
                    same(what, "".join(two).strip(), alone.answers[other, last])
                elif kind == "abandoned":
                    pieces = lm.stream(text, lora, max_new_tokens=TOKENS)
                    next(pieces, "")
                    kept.append(pieces)
                    if len(kept) > 3:
                        kept.pop(0)
                else:
                    found_score = lm.score([text], [alone.texts[0]], lora)[0]
                    same(what, found_score, alone.scores[a, t])
            except Exception as error:
                wrong.append(f"{what}: {error!r}")

    running = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    gc.collect()
    return wrong


def in_threads(*calls: Callable[[], object]) -> list[object]:
    """Results of calls that start at the same time, each in a thread of its own."""
    results: list[object] = [None] * len(calls)
    barrier = threading.Barrier(len(calls))

    def work(i: int) -> None:
        barrier.wait()
        try:
            results[i] = calls[i]()
        except BaseException as error:
            results[i] = error

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    return results
