"""Labels inputs with a teacher: a model with the prompt in its context, whose distributions become the targets.

It knows the host and texts; it knows nothing of the trained adapters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from promptlora.adapt.generation import generation_options
from promptlora.adapt.refine.rows import LEAST_ROWS, Item, row_limits
from promptlora.adapt.streaming import stream_ids
from promptlora.data import ids_and_labels, render_inputs
from promptlora.errors import DataError
from promptlora.host import Host
from promptlora.lora import LoRAWeights
from promptlora.losses import TeacherTargets, answer_positions
from promptlora.teacher import teacher_targets
from promptlora.text import pad_rows

_ROWS = {"cpu": 16}  # rows per batch
_ROWS_ELSEWHERE, _TOKENS = 256, 65536  # a small batch is bound by kernel launches there; tokens including padding
_POSITIONS = 1024  # positions whose logits exist at the same time
_INVENT = "Here is an instruction:\n{prompt}\n\nWrite one short text that this instruction could be applied to. Write the text alone."


def group_inputs(prompts: Sequence[str], inputs: Sequence[str] | Sequence[Sequence[str]]) -> list[list[str]]:
    """The inputs of each prompt, from one list of texts for all prompts or one list per prompt.

    Raises:
        DataError: The inputs are not texts, or there are fewer than two.
    """
    given: list[Any] | None = None
    if not isinstance(inputs, (str, bytes)) and isinstance(inputs, Sequence):
        given = list(inputs)
    if given is None:
        raise DataError(f"inputs: a {type(inputs).__name__}. Expected a list of texts. Fix: pass inputs=[text, …].")
    if all(isinstance(text, str) for text in given):
        lists = [[str(text) for text in given] for _ in prompts]
    else:
        lists = [list(each) if isinstance(each, (list, tuple)) else [each] for each in given]
        if len(lists) != len(prompts):
            raise DataError(
                f"inputs: {len(lists)} lists for {len(prompts)} prompts. Expected one list of texts for each."
            )
    for prompt, texts in zip(prompts, lists, strict=True):
        odd = [text for text in texts if not isinstance(text, str)]
        if odd:
            raise DataError(f"inputs: {repr(odd[0])[:60]} for prompt {prompt.strip()[:40]!r}. Expected texts.")
        if len(texts) < LEAST_ROWS:
            raise DataError(
                f"inputs: {len(texts)} for prompt {prompt.strip()[:60]!r}. Expected {LEAST_ROWS} or more texts. Fix: add some."
            )
    return lists


def invented_inputs(host: Host, prompts: Sequence[str], count: int, seed: int) -> list[list[str]]:
    """Inputs that the base generates for each prompt, at a temperature of 1; their quality depends on the base."""
    found = []
    for prompt in prompts:
        ids, mask = pad_rows([host.render(_INVENT.format(prompt=prompt.strip()))] * count, host.pad, left=True)
        settings = generation_options({"do_sample": True, "temperature": 1.0, "top_p": 0.95}, 48, 48, host.pad)
        devices = [host.device] if host.device.type == "cuda" else []
        with host.evaluating(None), torch.random.fork_rng(devices):
            torch.manual_seed(seed)
            written = host.generate(ids, mask, **settings)
        texts = [text.strip() for text in host.tokenizer.batch_decode(written, skip_special_tokens=True)]
        found.append([text for text in dict.fromkeys(texts) if text])
    return found


def taught_items(
    host: Host,
    prompts: Sequence[str],
    inputs: Sequence[Sequence[str]],
    lora: LoRAWeights | None,
    *,
    answer_tokens: int,
    top_k: int,
    stop: Callable[[], bool],
    in_context: Sequence[bool] = (),
) -> list[list[Item]] | None:
    """Each input with the teacher's greedy answer and its distributions; None if ``stop`` returned True.

    An answer that does not end within ``answer_tokens`` is truncated; the remaining tokens are still valid targets.

    Args:
        host: The host that runs the base.
        prompts: The prompts in the teacher's context.
        inputs: The texts of each prompt.
        lora: The teacher's adapters, one per prompt; None uses the base.
        answer_tokens: The maximum answer length in tokens.
        top_k: The number of most likely tokens to keep.
        stop: Called between batches; True ends the work.
        in_context: For each prompt, whether the student also reads it; empty if it reads none.

    Raises:
        DataError: All inputs are too long.
    """
    longest = getattr(host.model.config.get_text_config(), "max_position_embeddings", None)
    most = row_limits(longest).max_input_tokens
    rows: list[tuple[int, list[int], list[int]]] = []  # prompt, student's context, teacher's context
    for number, (prompt, texts) in enumerate(zip(prompts, inputs, strict=True)):
        teacher = render_inputs(host.tokenizer, texts, [prompt] * len(texts))
        student = teacher if in_context and in_context[number] else render_inputs(host.tokenizer, texts)
        fitting = [
            (number, own, shown)
            for own, shown in zip(student, teacher, strict=True)
            if len(own) <= most and (longest is None or len(shown) + answer_tokens <= longest)
        ]
        if len(fitting) < LEAST_ROWS:
            raise DataError(
                f"inputs: {len(fitting)} of {len(texts)} for prompt {prompt.strip()[:60]!r} are short enough (at most {most} tokens, and "
                f"with the prompt what the base takes). Expected {LEAST_ROWS} or more. Fix: shorten them."
            )
        rows += fitting
    items: dict[int, Item] = {}
    for batch in _batches(host, [len(shown) + answer_tokens for _, _, shown in rows]):
        if stop():
            return None
        chosen = sorted(batch, key=lambda i: rows[i][0])
        answered = _answered(
            host,
            [rows[i][2] for i in chosen],
            lora,
            [rows[i][0] for i in chosen],
            answer_tokens,
            min(top_k, _width(host)),
        )
        for i, (answer, targets) in zip(chosen, answered, strict=True):
            items[i] = Item(rows[i][1], [answer], targets)
    return [[items[i] for i in range(len(rows)) if rows[i][0] == number] for number in range(len(prompts))]


def _batches(host: Host, lengths: Sequence[int]) -> list[list[int]]:
    """Rows of similar length, by their numbers, as many per batch as the device needs and its memory allows."""
    most = _ROWS.get(host.device.type, _ROWS_ELSEWHERE)
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        full = not batches or len(batches[-1]) == most or (len(batches[-1]) + 1) * lengths[i] > _TOKENS
        if full:
            batches.append([])
        batches[-1].append(i)
    return batches


def _width(host: Host) -> int:
    return int(host.model.config.get_text_config().vocab_size)


def _answered(
    host: Host, contexts: list[list[int]], lora: LoRAWeights | None, index: list[int], answer_tokens: int, top_k: int
) -> list[tuple[list[int], TeacherTargets]]:
    """The teacher's answer to each context, and its distributions at the answer's tokens."""
    rows = None if lora is None else index
    settings = generation_options({}, answer_tokens, answer_tokens, host.pad)
    steps = [step.tolist() for step in stream_ids(host, contexts, lora, rows, **settings)]
    ends = host.end_ids
    answers = []
    for written in map(list, zip(*steps, strict=True)):
        end = next((at for at, token in enumerate(written) if token in ends), None)
        answers.append(written if end is None else [*written[:end], int(host.tokenizer.eos_token_id)])
    ids, labels = ids_and_labels(list(zip(contexts, answers, strict=True)), host.pad)
    with host.evaluating(lora, rows):
        found = teacher_targets(host.model, ids.to(host.device), labels, top_k, lm_head=host.lm_head)
    assert found.ids is not None
    lengths = [len(answer) for answer in answers]
    parts = zip(found.log_probs.split(lengths), found.ids.split(lengths), strict=True)
    return [(answer, TeacherTargets(*part)) for answer, part in zip(answers, parts, strict=True)]


@torch.no_grad()
def agreement(host: Host, items: Sequence[Sequence[Item]], lora: LoRAWeights) -> list[float]:
    """For each adapter, the share of the teacher's answer tokens that it also predicts, given the tokens before them.

    Args:
        host: The host that runs the base.
        items: The rows of each adapter, with a teacher's distributions.
        lora: The adapters.
    """
    equal, total = [0] * len(items), [0] * len(items)
    rows = [(number, item) for number, own in enumerate(items) for item in own]
    for batch in _batches(host, [len(item.ids) + len(item.answers[0]) for _, item in rows]):
        some = [rows[i] for i in sorted(batch)]  # in the order of the adapters
        ids, labels = ids_and_labels([(item.ids, item.answers[0]) for _, item in some], host.pad)
        hidden = host.hidden(ids, lora, [number for number, _ in some])
        states = hidden[answer_positions(labels, hidden.device)]
        said = torch.cat([host.lm_head(part).argmax(-1) for part in states.split(_POSITIONS)]).tolist()
        wanted = [(number, token) for number, item in some for token in item.answers[0]]
        for found, (number, token) in zip(said, wanted, strict=True):
            equal[number] += found == token
            total[number] += 1
    return [found / count for found, count in zip(equal, total, strict=True)]
