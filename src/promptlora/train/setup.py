"""Creates the parts of a training run from its configuration: batches, objective, hypernetwork, data identity."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from promptlora.data import (
    Batches,
    Row,
    Shown,
    TaskOrder,
    render_inputs,
    rows_by_task,
    tasks_answered_in_letters,
    tokenize_rows,
)
from promptlora.errors import CheckpointError, PromptError
from promptlora.fingerprint import weights_digest
from promptlora.host import Host
from promptlora.hypernet.network import HyperNetwork
from promptlora.models import load_base
from promptlora.teacher import OnlineTeacher, TeacherCache, check_same_tokenizer
from promptlora.text import PromptStates
from promptlora.train.config import TrainConfig
from promptlora.train.objectives import Distill, Objective, Sft
from promptlora.train.reading import TrainingData

Pair = tuple[PreTrainedModel, PreTrainedTokenizerBase]
Say = Callable[[str], None]
_STATISTICS_PROMPTS = 512  # number of wordings from whose states the encoder's statistics are computed


def load_pair(config: TrainConfig, name: str | None, device: torch.device, say: Say | None) -> Pair:
    """Load a base or teacher with the dtype and the attention implementation of the run."""
    return load_base(
        name,
        dtype=getattr(torch, config.base_dtype),
        device=device,
        attn_implementation=config.attention or None,
        progress=say,
    )


def check_prompts(states: PromptStates, prompts: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """Count the tokens of every prompt of every task.

    Raises:
        PromptError: A prompt cannot be encoded; the message names its task. All prompts are checked here, before
            training.
    """
    lengths = {}
    for task, several in prompts.items():
        for prompt in several:
            try:
                lengths[prompt] = max(map(len, states.encode(prompt)))
            except PromptError as error:
                raise PromptError(f"task {task!r}: {error}") from error
    return lengths


def make_batches(
    config: TrainConfig, tokenizer: PreTrainedTokenizerBase, data: TrainingData, lengths: Mapping[str, int], say: Say
) -> tuple[Batches, dict[str, int]]:
    """The batches of a run, and the number of rows skipped because of a too long ``input`` or ``answer``.

    Raises:
        DataError: There are too few rows for one batch.
    """
    options = config.data
    examples, left_out = tokenize_rows(tokenizer, data.rows, options)
    held = f"; held out: {len({row.task for row in data.held})} tasks" if data.held else ""
    say(
        f"{len(examples)} rows of {len({example.task for example in examples})} tasks, "
        f"{sum(len(several) - 1 for several in data.prompts.values())} paraphrases; left out as too long: "
        f"{left_out['input']} inputs, {left_out['answer']} answers{held}"
    )
    letters = tasks_answered_in_letters(data.rows)
    if letters:
        say(
            f"warning: all answers of {', '.join(map(repr, letters))} are single letters, several a row; expected texts: "
            "was a text split? write outputs as a list of texts"
        )
    shown = Shown(
        paraphrase_share=options.paraphrase_share,
        in_context_share=options.in_context_share,
        longest_in_context=options.max_context_tokens,
        examples_share=options.examples_share,
        longest_prompt=config.hypernetwork.max_prompt_tokens,
        default_system_share=options.default_system_share,
        no_system_share=options.no_system_share,
        pairs=config.regularization.contrastive > 0,
    )

    def render(texts: Sequence[str], prompts: Sequence[str | None], system_turn: str = "empty") -> list[list[int]]:
        return render_inputs(tokenizer, texts, prompts, system_turn)

    size: dict[str, int] = {
        "prompts_per_batch": config.prompts_per_batch, "rows_per_prompt": config.rows_per_prompt, "seed": config.seed,
    }  # fmt: skip
    order = None  # None means ordered by rows
    if options.order == "tasks":
        order = TaskOrder(
            rows_by_task(examples),
            [example.length for example in examples],
            sources=data.sources,
            weights=options.weights,
            pools={example.task: example.pool for example in examples if example.pool},
            cluster=options.cluster,
            **size,
        )
    batches = Batches(
        examples,
        data.prompts,
        pad=int(tokenizer.pad_token_id or 0),
        shown=shown,
        render=render,
        order=order,
        prompt_tokens=lengths,
        **size,
    )
    return batches, left_out


def make_objective(
    config: TrainConfig, host: Host, batches: Batches, device: torch.device, say: Say, teacher: Pair | None = None
) -> Objective:
    """``sft``, or ``distill`` with the given teacher or the one that the configuration names.

    Raises:
        ModelError: The teacher cannot be loaded, or has another tokenizer.
    """
    options = config.distill
    if config.objective == "sft":
        return Sft(host, batches, config)
    if options.cache:
        return Distill(host, batches, config, TeacherCache.open(options.cache, tokenizer=host.tokenizer))
    if teacher or options.teacher:
        model, tokenizer = teacher or load_pair(config, options.teacher, device, say)
        check_same_tokenizer(tokenizer, host.tokenizer)
        return Distill(host, batches, config, OnlineTeacher(model, tokenizer))
    adapter = None
    if options.adapter:
        network = HyperNetwork.from_pretrained(options.adapter).to(device).requires_grad_(False)
        states = host.prompt_states(network.config, embedder=network.embedder, reader=network.reader_lora())
        adapter = network, states
    own = OnlineTeacher(host.model, host.tokenizer, lm_head=host.lm_head)
    return Distill(host, batches, config, own, adapter)


def read_reader(folder: str) -> HyperNetwork:
    """The multi-task LoRA that becomes the reader.

    Raises:
        CheckpointError: The folder is missing or damaged; the message names the setting.
    """
    try:
        return HyperNetwork.from_pretrained(folder)
    except CheckpointError as error:
        raise CheckpointError(f"reader={folder!r}: {error}") from error


def make_hypernetwork(
    config: TrainConfig,
    host: Host,
    states: PromptStates,
    prompts: Mapping[str, Sequence[str]],
    device: torch.device,
    reader: HyperNetwork | None = None,
) -> HyperNetwork:
    """A hypernetwork with initial weights from the run's seed and statistics from the states of the first prompts.

    Raises:
        CheckpointError: The reader does not fit the hypernetwork.
    """
    from accelerate.utils import set_seed

    set_seed(config.seed)  # makes the initial weights independent of anything loaded before
    hypernetwork = HyperNetwork(
        config.hypernetwork, host.injector.projections, states.state_size, host.fingerprint, states.fingerprint
    ).to(device)  # before the statistics, which are computed from states on this device
    if reader is not None:
        hypernetwork.load_reader(reader)
    if hypernetwork.encoder is not None:
        wordings = [prompt for several in prompts.values() for prompt in several[:3]]
        hypernetwork.encoder.fit_statistics(states.several(wordings[:_STATISTICS_PROMPTS]))
    return hypernetwork


def identity(
    prompts: Mapping[str, Sequence[str]],
    rows: Sequence[Row],
    teacher: Mapping[str, str | int] | None = None,
    reader: HyperNetwork | None = None,
) -> str:
    """A hash of everything that a run is trained on, so that a checkpoint is never resumed with other data.

    Args:
        prompts: Maps each task to its prompts.
        rows: The rows.
        teacher: Fingerprint of a teacher that is not named in the configuration.
        reader: The reader, whose folder may have been trained again since.
    """
    digest = hashlib.sha256(json.dumps(prompts).encode())
    for row in rows:
        digest.update(json.dumps([row.task, row.input, row.outputs]).encode())
    if teacher:
        digest.update(json.dumps(teacher, sort_keys=True).encode())
    if reader is not None:
        digest.update(weights_digest(reader.generator).encode())
    return digest.hexdigest()[:16]
