"""``Trainer``: one visible loop on Accelerate that trains a hypernetwork through a frozen base.

A step: encode each prompt once, write its adapter, run the base with the adapters on, and move the hypernetwork
by the objective's loss. Order, wordings, noise and schedule are functions of seed and step, and a batch may be split
over processes and parts, so a resumed run, or one on more processes, repeats the losses of an uninterrupted one.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from promptlora.data import Batch, Batches, Shown, render_inputs, tasks_answered_in_letters, tokenize_rows
from promptlora.errors import ConfigError, ModelError, OutputError, PromptError, TrainingError
from promptlora.extras import need
from promptlora.files import append_lines
from promptlora.host import Host
from promptlora.hypernet.network import HyperNetwork
from promptlora.lora import LoRAWeights
from promptlora.lora.geometry import Spread, spread
from promptlora.losses import weight_penalty
from promptlora.losses.contrastive import contrastive_loss
from promptlora.models import load_base
from promptlora.schedule import learning_rate_factor
from promptlora.settings import to_dict
from promptlora.signals import stopping
from promptlora.teacher import OnlineTeacher, TeacherCache, check_same_tokenizer
from promptlora.text import gibberish
from promptlora.train.checkpoints import (
    FINAL_FOLDER,
    METRICS_FILE,
    checkpoints,
    load_checkpoint,
    metrics_file,
    read_metrics,
    remove_leavings,
    save_checkpoint,
)
from promptlora.train.config import TrainConfig
from promptlora.train.instruments import QUIET, margin_shift
from promptlora.train.objectives import Distill, Objective, Reconstruct, Sft
from promptlora.train.reading import TrainingData, read_training_data
from promptlora.train.schedule import make_optimizer, norm_and_clip
from promptlora.train.validation import Validation

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

_STATISTICS_PROMPTS = 512  # wordings whose states set the encoder's statistics
_SPREAD_PROMPTS = 16  # of a large batch, so many adapters are compared
_PATIENCE = 3  # measurements without a margin before a warning


@dataclass(frozen=True, kw_only=True)
class StepMetrics:
    """What a step shows; None is what was not measured in it.

    Attributes:
        step: Steps done, this one included.
        loss: The objective's loss, in nats (``reconstruct``: relative squared distance), without penalties.
        margin: Steering margin: loss with the adapter of another task's prompt minus loss with the right one.
        gibberish_margin: The same with adapters of random letters.
        mean_margin: The same with the mean of the batch's updates.
        variance_ratio: Variance of the updates of the batch's prompts over the squared norm of their mean.
        effective_rank: In how many directions they differ.
        validation_loss: Loss on the rows of held-out tasks, the mean over tasks.
        validation_wrong: The same with another task's adapter.
        validation_static: The same with the static part alone.
        validation_in_context: As ``validation_loss``, the prompt in the context as well.
        tokens_per_second: Real tokens of the batch over the time of the step.
        lr: Learning rate of the trunk.
        trunk_norm: Gradient norm of encoder and trunk, before clipping.
        head_norm: Of the heads.
        static_norm: Of the static part.
    """

    step: int
    loss: float
    margin: float | None = None
    gibberish_margin: float | None = None
    mean_margin: float | None = None
    variance_ratio: float | None = None
    effective_rank: float | None = None
    validation_loss: float | None = None
    validation_wrong: float | None = None
    validation_static: float | None = None
    validation_in_context: float | None = None
    tokens_per_second: float
    lr: float
    trunk_norm: float
    head_norm: float
    static_norm: float


class Trainer:
    """Trains one hypernetwork as a configuration says, in one process or under ``torchrun`` in several.

    It installs hooks on the base; :meth:`close`, or leaving ``with Trainer(config) as trainer``, removes them.

    Args:
        config: The run.
        base: Base model and tokenizer; loaded as ``config.base`` says when not given.
        progress: Called with a line about each stage.

    Raises:
        DataError: Rows, paraphrases or adapters that cannot be used.
        PromptError: A prompt longer than the encoder takes; its task is named.
        ModelError: A base that cannot be loaded or trained through.
        ConfigError: Settings that do not go together, or that the processes cannot share evenly.
        MissingExtraError: The extra ``train`` is not installed.
    """

    def __init__(
        self,
        config: TrainConfig,
        base: tuple[PreTrainedModel, PreTrainedTokenizerBase] | None = None,
        progress: Callable[[str], None] | None = None,
    ) -> None:
        need("train", "accelerate", "tensorboard", "tomli_w")
        from accelerate import Accelerator
        from accelerate.utils import DistributedDataParallelKwargs

        self.config = config
        say = progress or (lambda line: None)
        self.folder = Path(config.output)
        self._release = ExitStack()
        self._loader: Iterator[list[Batch]] | None = None
        self._loaded = -1  # the step whose batches the loader gives next
        data = read_training_data(config)
        self.accelerator = Accelerator(
            cpu=not (torch.cuda.is_available() or torch.backends.mps.is_available()),  # else torchrun is ignored there
            mixed_precision="no",
            kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
        )
        asked = int(os.environ.get("WORLD_SIZE", "1"))
        if self.accelerator.num_processes != asked:
            raise ConfigError(
                f"torchrun started {asked} processes and {self.accelerator.num_processes} work together; unset WORLD_SIZE, or "
                "start them with torchrun"
            )
        self._parts = config.accumulate * self.accelerator.num_processes
        if config.prompts_per_batch % self._parts:
            raise ConfigError(
                f"prompts_per_batch={config.prompts_per_batch}: not a multiple of accumulate x processes "
                f"({config.accumulate} x {self.accelerator.num_processes}); choose one that is"
            )
        self.model, self.tokenizer = base or load_base(
            config.base or None,
            dtype=getattr(torch, config.base_dtype),
            device=self.accelerator.device,
            attn_implementation=config.attention or None,
            progress=progress,
        )
        if self.model.device.type != self.accelerator.device.type:
            raise ModelError(f"the base is on {self.model.device}; expected {self.accelerator.device}; use model.to")
        self.base = Host.for_training(self.model, self.tokenizer, config.hypernetwork.first_layer)
        self.injector = self.base.injector
        try:
            self._prepare(data, say)
        except BaseException:  # no hook stays on the base
            self.close()
            raise

    def _prepare(self, data: TrainingData, say: Callable[[str], None]) -> None:
        """Batches, objective, hypernetwork and optimizer."""
        config = self.config
        if self.accelerator.device.type == "cuda":  # the head and the hypernetwork are float32: let them use TF32
            before = torch.get_float32_matmul_precision()
            torch.set_float32_matmul_precision("high")
            self._release.callback(torch.set_float32_matmul_precision, before)
        if config.activation_checkpointing:
            self.base.checkpoint_activations()
        self._sharded = config.shard_base and self.accelerator.num_processes > 1
        if self._sharded:
            self.base.shard()
        keep = config.prompt_states and not self._sharded  # a file that one process finds, all would have to find
        self.states = self.base.prompt_states(config.hypernetwork, Path(config.prompt_states) if keep else None)
        if config.objective == "reconstruct":
            library = Reconstruct(
                config.data.sources[0], self.injector.projections, config.prompts_per_batch, config.seed
            )
            self.objective: Objective = library
            prompts = {str(folder): [prompt] for _, prompt, folder in library.entries}
            self._check_prompts(prompts)
            say(f"{len(library.entries)} adapters")
        else:
            prompts = data.prompts
            lengths = self._check_prompts(prompts)
            self.batches = self._make_batches(data, lengths, say)
            self.objective = self._make_objective(say)
        self.validation = Validation(self.base, data.held, config) if data.held else None
        from accelerate.utils import set_seed

        set_seed(config.seed)  # what was loaded before has no part in the initial weights
        hypernetwork = HyperNetwork(
            config.hypernetwork,
            self.injector.projections,
            self.states.state_size,
            self.base.fingerprint,
            self.states.fingerprint,
        ).to(self.accelerator.device)  # statistics are taken from states that are there already
        if hypernetwork.encoder is not None:
            wordings = [prompt for several in prompts.values() for prompt in several[:3]]
            hypernetwork.encoder.fit_statistics(self.states.several(wordings[:_STATISTICS_PROMPTS]))
        optimizer = make_optimizer(hypernetwork, config.optim)
        groups = hypernetwork.parameter_groups()
        self._named = dict(member for members in groups.values() for member in members)
        self._groups = {name: [parameter for _, parameter in members] for name, members in groups.items()}
        self.hypernetwork, self.optimizer = self.accelerator.prepare(hypernetwork, optimizer)
        self.step = 0
        self._margins: deque[float] = deque(maxlen=_PATIENCE)
        digest = hashlib.sha256(json.dumps(prompts).encode())
        for row in data.rows:
            digest.update(json.dumps([row.task, row.input, row.outputs]).encode())
        self._data = digest.hexdigest()[:16]
        say(f"hypernetwork of {sum(p.numel() for p in hypernetwork.parameters()) / 1e6:.2f} M parameters")

    def _check_prompts(self, prompts: Mapping[str, Sequence[str]]) -> dict[str, int]:
        """Tokens of every prompt; one that cannot be read is refused now, not when the order comes to it."""
        lengths = {}
        for task, several in prompts.items():
            for prompt in several:
                try:
                    lengths[prompt] = max(map(len, self.states.encode(prompt)))
                except PromptError as error:
                    raise PromptError(f"task {task!r}: {error}") from error
        return lengths

    def _make_batches(self, data: TrainingData, lengths: Mapping[str, int], say: Callable[[str], None]) -> Batches:
        config, options = self.config, self.config.data
        examples, self.left_out = tokenize_rows(self.tokenizer, data.rows, options)
        held = f"; held out: {len({row.task for row in data.held})} tasks" if data.held else ""
        say(
            f"{len(examples)} rows of {len({example.task for example in examples})} tasks, "
            f"{sum(len(several) - 1 for several in data.prompts.values())} paraphrases; left out as too long: "
            f"{self.left_out['input']} inputs, {self.left_out['answer']} answers{held}"
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
        tokenizer = self.tokenizer

        def render(texts: Sequence[str], prompts: Sequence[str | None], system_turn: str = "empty") -> list[list[int]]:
            return render_inputs(tokenizer, texts, prompts, system_turn)

        common: dict[str, Any] = {
            "prompts_per_batch": config.prompts_per_batch,
            "rows_per_prompt": config.rows_per_prompt,
            "pad": int(self.tokenizer.pad_token_id or 0),
            "shown": shown,
            "render": render,
            "prompt_tokens": lengths,
            "seed": config.seed,
        }
        if options.order == "rows":
            return Batches(examples, data.prompts, **common)
        return Batches.by_tasks(
            examples, data.prompts, sources=data.sources, weights=options.weights, cluster=options.cluster, **common
        )

    def _make_objective(self, say: Callable[[str], None]) -> Objective:
        config, options = self.config, self.config.distill
        if config.objective == "sft":
            return Sft(self.base, self.batches, config)
        if options.cache:
            cache = TeacherCache.open(options.cache, tokenizer=self.tokenizer)
            return Distill(self.base, self.batches, config, cache)
        if options.teacher:
            model, tokenizer = load_base(
                options.teacher,
                dtype=getattr(torch, config.base_dtype),
                device=self.accelerator.device,
                attn_implementation=config.attention or None,
                progress=say,
            )
            check_same_tokenizer(tokenizer, self.tokenizer)
            return Distill(self.base, self.batches, config, OnlineTeacher(model, tokenizer))
        adapter = None
        if options.adapter:
            teacher = HyperNetwork.from_pretrained(options.adapter).to(self.accelerator.device).requires_grad_(False)
            adapter = teacher, self.base.prompt_states(teacher.config, embedder=teacher.embedder)
        own = OnlineTeacher(self.model, self.tokenizer, lm_head=self.base.lm_head)
        return Distill(self.base, self.batches, config, own, adapter)

    @property
    def plain(self) -> HyperNetwork:
        """The hypernetwork without the wrapper of distributed training."""
        unwrapped: HyperNetwork = self.accelerator.unwrap_model(self.hypernetwork)
        return unwrapped

    def __enter__(self) -> Trainer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Take the hooks, and activation checkpointing, off the base; harmless when called twice."""
        self._loader = None
        self.base.close()
        self._release.close()

    # --- one step ----------------------------------------------------------------------------------------

    def _generator(self, part: int) -> torch.Generator:
        """Random numbers of a part of this step."""
        seed = random.Random(f"{self.config.seed}/{self.step}/{part}").getrandbits(63)
        return torch.Generator().manual_seed(seed)

    def adapters(self, batch: Batch) -> LoRAWeights:
        """The adapters of a batch's prompts."""
        if not self.config.hypernetwork.generated:  # without an encoder, only the number of prompts counts
            count = len(batch.prompts)
            nothing = torch.zeros(count, 1, 1, device=self.accelerator.device)
            static: LoRAWeights = self.hypernetwork(nothing, nothing[..., 0] == 0, **self._flags(batch))
            return static
        states, mask = self.states.batch(batch.prompts)
        lora: LoRAWeights = self.hypernetwork(states, mask, **self._flags(batch))
        return lora

    def _flags(self, batch: Batch) -> dict[str, Any]:
        """What else the hypernetwork is told of a batch: the dtype to write in, and which prompts are in the context."""
        dtype = None if self.config.objective == "reconstruct" else self.base.model.dtype  # one cast for each shape
        options: dict[str, Any] = {"dtype": dtype}
        if self.config.hypernetwork.context_flag:
            options["in_context"] = torch.tensor(batch.in_context, device=self.accelerator.device)
        return options

    def _contrast(self, batch: Batch) -> Tensor:
        """The contrastive loss of the contexts of a batch's prompts and of another wording of each task."""
        numbers = {task: number for number, task in enumerate(dict.fromkeys(batch.tasks))}
        groups = torch.tensor([numbers[task] for task in batch.tasks] * 2, device=self.accelerator.device)
        contexts = self.plain.context(*self.states.batch([*batch.prompts, *batch.pairs]))
        return contrastive_loss(contexts, groups)

    def _next_parts(self) -> list[Batch]:
        """The parts of the next step's batch; put together ahead by other processes where there are any."""
        if not self.config.workers:
            return self.objective.parts(self.step, self._parts)
        if self._loader is None or self._loaded != self.step:
            steps = _Parts(self.objective, range(self.step, self.config.steps), self._parts)
            loader = DataLoader(steps, batch_size=None, num_workers=self.config.workers, prefetch_factor=4)
            self._loader, self._loaded = iter(loader), self.step
        self._loaded += 1
        return next(self._loader)

    def _sum(self, values: Sequence[float]) -> list[float]:
        """Sums over processes."""
        if self.accelerator.num_processes == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64, device=self.accelerator.device)
        torch.distributed.all_reduce(total)
        return [float(value) for value in total]

    def train_step(self) -> StepMetrics:
        """One optimizer step on the next batch.

        Raises:
            TrainingError: A loss or a gradient that is not finite; the hypernetwork is as before the step.
        """
        started = time.perf_counter()
        config, optim, penalty = self.config, self.config.optim, self.config.regularization
        factor = learning_rate_factor(self.step, config.steps, optim.warmup, optim.final)
        for group in self.optimizer.param_groups:
            group["lr"] = group["top_lr"] * factor
        batches = self._next_parts()
        if self._sharded:  # running the base is a joint act: each process needs the same states at the same time
            for batch in batches:
                self.states.batch(batch.prompts)
        weights = [self.objective.weight(batch) for batch in batches]
        first = self.accelerator.process_index * config.accumulate
        mine = range(first, first + config.accumulate)
        self.hypernetwork.train()
        losses: list[Tensor] = []
        loras = {}
        for part in mine:
            batch, weight = batches[part], weights[part] / sum(weights)
            generator = self._generator(part)
            # Gradients of the parts add up; they are shared with the other processes after the last one.
            with nullcontext() if part == mine[-1] else self.accelerator.no_sync(self.hypernetwork):
                lora = self.adapters(batch)
                loss = self.objective.loss(batch, lora, generator)
                losses.append(loss.detach() * weight)
                if penalty.l2:
                    loss = loss + weight_penalty(lora, l2=penalty.l2)
                if penalty.contrastive and self.plain.encoder is not None:
                    loss = loss + penalty.contrastive * self._contrast(batch)
                self.accelerator.backward(loss * weight * self.accelerator.num_processes)
            loras[part] = lora.detach()
        (value,) = self._sum([float(torch.stack(losses).sum())])  # the one wait for the device before the norms
        norms = norm_and_clip(self._groups, optim)
        if not math.isfinite(value) or not all(map(math.isfinite, norms.values())):
            self.optimizer.zero_grad(set_to_none=True)
            raise self._not_finite([(batches[part], loras[part]) for part in mine], value, norms)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        seconds = time.perf_counter() - started
        self.step += 1
        measured: dict[str, float | None] = {}
        if self.step % config.margin_every == 0:
            measured = self._measure(batches, batches[mine[-1]], loras[mine[-1]])
        if self.validation is not None and self.step % config.validation.every == 0:
            measured |= self.validate()
        metrics = StepMetrics(
            step=self.step,
            loss=value,
            tokens_per_second=sum(batch.tokens for batch in batches) / seconds,
            lr=optim.lr * factor,
            trunk_norm=norms["trunk"],
            head_norm=norms["heads"],
            static_norm=norms["static"],
            **measured,
        )
        if metrics.margin is not None:
            self._margins.append(metrics.margin)
        return metrics

    @torch.no_grad()
    def _measure(self, batches: Sequence[Batch], batch: Batch, lora: LoRAWeights) -> dict[str, float | None]:
        """Margins and spread, on a part of the batch; the mean over processes where a measure exists."""
        if not self.config.hypernetwork.generated:
            return {}
        own = list(range(len(batch.prompts)))
        shift = margin_shift(batch.tasks)
        turned = [(i + (shift or 0)) % len(own) for i in own]
        longest = self.config.hypernetwork.max_prompt_tokens
        nonsense = [[gibberish(prompt, i, longest) for i, prompt in enumerate(each.prompts)] for each in batches]
        if self._sharded:
            for texts in nonsense:
                self.states.batch(texts)
        ours = next(texts for texts, each in zip(nonsense, batches, strict=True) if each is batch)
        right = float(self.objective.measure(batch, lora, own))
        wrong = float(self.objective.measure(batch, lora, turned)) - right
        noise = self.plain(*self.states.batch(ours), **self._flags(batch)).detach()
        flat = Spread(variance_ratio=0.0, effective_rank=0.0)
        apart = spread(lora.select(own[:_SPREAD_PROMPTS])) if len(own) > 1 else flat
        several = len(own) > 1
        measured: dict[str, tuple[float, bool]] = {
            "margin": (wrong, shift is not None),
            "gibberish_margin": (float(self.objective.measure(batch, noise, own)) - right, True),
            "mean_margin": (float(self.objective.measure(batch, lora.mean(), [0] * len(own))) - right, several),
            "variance_ratio": (apart.variance_ratio, several),
            "effective_rank": (apart.effective_rank, several),
        }
        sums = self._sum([v for value, there in measured.values() for v in (value * there, float(there))])
        return {name: sums[2 * i] / sums[2 * i + 1] if sums[2 * i + 1] else None for i, name in enumerate(measured)}

    def validate(self) -> dict[str, float | None]:
        """Losses on the held-out tasks, by their names in :class:`StepMetrics`; empty without such tasks."""
        return {} if self.validation is None else self.validation.measure(self.plain, self.states)

    @property
    def warning(self) -> str | None:
        """A line when the margin has stayed near 0 in the last measurements after the warm-up."""
        settled = self.step > max(self.config.optim.warmup * self.config.steps, _PATIENCE * self.config.margin_every)
        if not settled or len(self._margins) < _PATIENCE or max(self._margins) >= QUIET:
            return None
        return (
            f"step {self.step}: the steering margin was below {QUIET} nats in the last {_PATIENCE} measurements; the "
            "prompt makes no difference yet; raise optim.lr or head_lr_factor, or mix more tasks in a batch"
        )

    def _not_finite(
        self, parts: Sequence[tuple[Batch, LoRAWeights]], value: float, norms: Mapping[str, float]
    ) -> TrainingError:
        """What to say of a loss or gradient that is not finite: which rows, and what is left."""
        bad, every = [], []
        with torch.no_grad():
            for batch, lora in parts:
                finite = (
                    self.objective.measure(batch, lora, range(len(batch.prompts)), reduce=False).isfinite().tolist()
                )
                every += [self.objective.describe(batch, row) for row in range(len(finite))]
                bad += [self.objective.describe(batch, row) for row, fine in enumerate(finite) if not fine]
        if self.accelerator.num_processes > 1:
            from accelerate.utils import gather_object

            bad, every = gather_object(bad), gather_object(every)
        named = bad or every
        more = f"; and {len(named) - 4} more" if len(named) > 4 else ""
        kept = self.checkpoints()
        left = f"{kept[-1]} is the last good checkpoint" if kept else "there is no checkpoint yet"
        shown = ", ".join(f"{name} {norm}" for name, norm in norms.items())
        return TrainingError(
            f"step {self.step + 1}: loss {value}, gradient norms {shown}; expected finite numbers; {left}; lower optim.lr "
            f"or look at the rows: {'; '.join(named[:4])}{more}"
        )

    # --- checkpoints -------------------------------------------------------------------------------------

    def checkpoints(self) -> list[Path]:
        """Checkpoints of this run, oldest first."""
        return checkpoints(self.folder)

    def save(self) -> Path:
        """Write a checkpoint, whole or not at all, and only then drop the oldest beyond ``keep_checkpoints``.

        Raises:
            OutputError: It cannot be written (no space, no permission); those before it are as they were.
        """
        path = self.folder / f"step-{self.step}"
        if self.accelerator.is_main_process:
            state = {"step": self.step, "config": to_dict(self.config), "data": self._data}
            save_checkpoint(self.folder, self.plain, self.optimizer, self._named, state, self.config.keep_checkpoints)
        self.accelerator.wait_for_everyone()
        return path

    def resume(self) -> int:
        """Continue from the newest checkpoint of the run; returns its step (0 when there is none).

        Raises:
            CheckpointError: A damaged checkpoint, or one of another configuration.
        """
        self.step = load_checkpoint(self.folder, self.plain, self.optimizer, self._named, self.config, self._data)
        if self.step and (self.folder / METRICS_FILE).is_file():
            margins = [line.get("margin") for line in read_metrics(self.folder) if line["step"] <= self.step]
            self._margins.extend(margin for margin in margins if margin is not None)
        return self.step

    # --- the run -----------------------------------------------------------------------------------------

    def _record(self, metrics: StepMetrics, log: Path, board: SummaryWriter) -> None:
        values = {key: value for key, value in vars(metrics).items() if value is not None}
        try:
            append_lines(log, [json.dumps(values)])
            for key, value in values.items():
                if key != "step":
                    board.add_scalar(key, value, metrics.step)
        except OSError as error:
            raise OutputError(
                f"{self.folder}: cannot be written ({error.strerror}); free some space, then --resume"
            ) from error

    @contextmanager
    def _logs(self) -> Iterator[Callable[[StepMetrics], None]]:
        """Where metrics go: a file and TensorBoard, of the first process."""
        if not self.accelerator.is_main_process:
            yield lambda metrics: None
            return
        from torch.utils.tensorboard import SummaryWriter

        log = metrics_file(self.folder, self.step)
        with SummaryWriter(str(self.folder / "tensorboard"), purge_step=self.step + 1) as board:
            yield lambda metrics: self._record(metrics, log, board)

    def run(
        self,
        resume: bool = False,
        on_step: Callable[[StepMetrics], None] | None = None,
        until: int | None = None,
        minutes: float | None = None,
    ) -> Path:
        """Train to the last step, and write the hypernetwork to ``final/``.

        On Ctrl-C or SIGTERM the present step is finished, a checkpoint written and KeyboardInterrupt raised.

        Args:
            resume: Continue from the newest checkpoint; without it a folder that holds one is refused.
            on_step: Called after each step, in each process.
            until: Stop after this step, with a checkpoint.
            minutes: Stop with a checkpoint after the first step that ends this long after the start of the process's run.

        Returns:
            The folder of the trained hypernetwork, or of the checkpoint when stopped early.

        Raises:
            OutputError: A folder that holds a run already or cannot be written.
            CheckpointError: A damaged checkpoint, or one of another configuration.
            TrainingError: A loss or a gradient that is not finite.
            KeyboardInterrupt: It was asked to stop, and a checkpoint is written.
        """
        if until is not None and until < 1:
            raise ConfigError(f"until={until}; expected a step of 1 or more")
        if minutes is not None and not 0 < minutes < 1e6:
            raise ConfigError(f"minutes={minutes}; expected a finite number above 0")
        ends = math.inf if minutes is None else time.monotonic() + 60 * minutes
        if resume:
            self.resume()
        elif self.checkpoints() or (self.folder / FINAL_FOLDER).exists():
            raise OutputError(f"{self.folder}: holds a run already; pass --resume to continue it or another output")
        self.accelerator.wait_for_everyone()  # all have looked before one writes
        if self.accelerator.is_main_process:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                remove_leavings(self.folder)
            except OSError as error:
                raise OutputError(f"{self.folder}: cannot be made ({error.strerror}); choose another output") from error
        last = min(self.config.steps, self.config.steps if until is None else until)
        path = self.folder / f"step-{self.step}"
        with stopping() as asked, self._logs() as record:
            while self.step < last:
                metrics = self.train_step()
                record(metrics)
                if on_step:
                    on_step(metrics)
                # Asked once, so that a signal never comes between the checkpoint and the end; by any process.
                stop = asked()
                over = time.monotonic() >= ends
                if self.accelerator.num_processes > 1:
                    asked_of_any, over_of_any = self._sum([float(stop), float(over)])
                    stop, over = asked_of_any > 0, over_of_any > 0
                if self.step % self.config.checkpoint_every == 0 or self.step == last or stop or over:
                    path = self.save()
                if stop:
                    raise KeyboardInterrupt
                if over:
                    break
        if self.step >= self.config.steps:
            path = self.folder / FINAL_FOLDER
            if self.accelerator.is_main_process:
                self.plain.save_pretrained(path, overwrite=True)
            self.accelerator.wait_for_everyone()
        return path


class _Parts(Dataset[list[Batch]]):
    """The parts of the batches of some steps, for a loader: they are pure functions of the step."""

    def __init__(self, objective: Objective, steps: range, parts: int) -> None:
        self.objective, self.steps, self.parts = objective, steps, parts

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, at: int) -> list[Batch]:
        return self.objective.parts(self.steps[at], self.parts)
