"""``Trainer``: one visible loop on Accelerate that trains a hypernetwork through a frozen base.

A step encodes each prompt once, writes its adapter, runs the base with the adapters switched on, and updates the
hypernetwork with the gradient of the objective's loss. Order, wordings, noise and schedule depend only on the seed and
the step, and a batch may be split over processes and parts. A resumed run, or one with more processes, therefore
repeats the losses of an uninterrupted one.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from promptlora.data import Batch, Row
from promptlora.errors import ConfigError, ModelError, OutputError
from promptlora.extras import need
from promptlora.host import Host
from promptlora.hypernet.network import HyperNetwork
from promptlora.hypernet.reader import check_reader
from promptlora.lora import LoRAWeights
from promptlora.losses import weight_penalty
from promptlora.models import base_fingerprint
from promptlora.schedule import learning_rate_factor
from promptlora.settings import to_dict
from promptlora.signals import stopping
from promptlora.train.adapters import AdapterWriter
from promptlora.train.callbacks import CallbackList, Given, StepMetrics, as_callback
from promptlora.train.checkpoints import (
    FINAL_FOLDER,
    checkpoints,
    flat,
    load_checkpoint,
    make_run_folder,
    save_checkpoint,
)
from promptlora.train.config import TrainConfig, check_sources
from promptlora.train.failures import not_finite
from promptlora.train.instruments import Instruments
from promptlora.train.known_prompts import training_prompts
from promptlora.train.loading import PartsLoader
from promptlora.train.logs import RunLog
from promptlora.train.metrics import METRICS_FILE, read_metrics
from promptlora.train.objectives import Objective, Reconstruct
from promptlora.train.processes import any_of, start_accelerator, sum_over
from promptlora.train.reading import TrainingData, read_training_data
from promptlora.train.schedule import make_optimizer, norm_and_clip
from promptlora.train.setup import (
    Pair,
    Say,
    check_prompts,
    identity,
    load_pair,
    make_batches,
    make_hypernetwork,
    make_objective,
    read_reader,
)
from promptlora.train.validation import Validation


class Trainer:
    """Trains one hypernetwork according to a configuration, in one process or under ``torchrun`` in several.

    It installs hooks on the base; :meth:`close`, or leaving ``with Trainer(config) as trainer``, removes them.

    Objects can be passed in place of paths in the configuration; the configuration must then leave the path empty::

        config = TrainConfig(steps=500)
        with Trainer(config, model=model, tokenizer=tokenizer, rows=rows, output="runs/mine") as trainer:
            folder = trainer.run()

    Args:
        config: The run's configuration.
        model: The base, on the device of the run; by default it is loaded from ``config.base``.
        tokenizer: The base's tokenizer.
        rows: Rows to train on, instead of ``config.data.train``; ``split`` selects among them as it does in a file.
        teacher: Model and tokenizer of the teacher of ``distill``, instead of ``config.distill.teacher``.
        output: Folder of the run, instead of ``config.output``.
        callbacks: Receive the events of the run (:class:`Callback`); a plain function gets the :class:`StepMetrics` of
            each step. The attribute ``callbacks`` is a list that may be changed until :meth:`run` is called.
        progress: Called with one line for each stage of the preparation, and of the work after the last step.

    Raises:
        DataError: Rows, paraphrases or adapters cannot be used.
        PromptError: A prompt is longer than the encoder accepts; the message names its task.
        ModelError: A base cannot be loaded, or gradients cannot pass through it.
        ConfigError: Settings are incompatible, or the processes cannot share a batch evenly.
        MissingExtraError: The extra ``train`` is not installed.
    """

    def __init__(
        self,
        config: TrainConfig,
        *,
        model: PreTrainedModel | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        rows: Sequence[Row] | None = None,
        teacher: Pair | None = None,
        output: str | Path | None = None,
        callbacks: Sequence[Given] = (),
        progress: Say | None = None,
    ) -> None:
        need("train", "accelerate", "tensorboard", "tomli_w")
        self.config = config = config if output is None else replace(config, output=str(output))
        check_sources(config, model=model, tokenizer=tokenizer, rows=rows, teacher=teacher)
        self.callbacks: list[Given] = [as_callback(each) for each in callbacks]
        self.folder = Path(config.output)
        self.step = 0
        self._release = ExitStack()
        self._say: Say = progress or (lambda line: None)
        reader = read_reader(config.reader) if config.reader else None  # a wrong folder is refused before any work
        data = read_training_data(config, rows)
        self.accelerator = start_accelerator(config)
        device = self.accelerator.device
        if model is None or tokenizer is None:
            model, tokenizer = load_pair(config, config.base or None, device, progress)
        self.model, self.tokenizer = model, tokenizer
        if model.device.type != device.type:
            raise ModelError(f"the base is on {model.device}; expected {device}; use model.to")
        self._own_prompts, self._heldout_prompts = data.own_prompts, data.heldout_prompts
        self.base = Host.for_training(model, tokenizer, config.hypernetwork.first_layer)
        self.injector = self.base.injector
        try:
            self._prepare(data, self._say, teacher, reader)
        except BaseException:  # remove all hooks from the base
            self.close()
            raise

    def _prepare(self, data: TrainingData, say: Say, teacher: Pair | None, reader: HyperNetwork | None) -> None:
        """Create batches, objective, hypernetwork and optimizer."""
        config, device = self.config, self.accelerator.device
        if reader is not None:
            projections, base = self.injector.projections, self.base.fingerprint
            check_reader(reader, config.hypernetwork, projections, base, config.reader)
        if device.type == "cuda":  # the head and the hypernetwork are float32: allow TF32
            before = torch.get_float32_matmul_precision()
            torch.set_float32_matmul_precision("high")
            self._release.callback(torch.set_float32_matmul_precision, before)
            # cuDNN's attention plans anew for every new shape of a batch, which takes longer than the attention itself.
            self._release.callback(torch.backends.cuda.enable_cudnn_sdp, torch.backends.cuda.cudnn_sdp_enabled())
            torch.backends.cuda.enable_cudnn_sdp(False)
        if config.activation_checkpointing:
            self.base.checkpoint_activations()
        self._sharded = config.shard_base and self.accelerator.num_processes > 1
        if self._sharded:
            self.base.shard()
        keep = config.prompt_states and not self._sharded  # with shards, all processes must find the same files
        self.states = self.base.prompt_states(
            config.hypernetwork,
            Path(config.prompt_states) if keep else None,
            reader=None if reader is None else reader.generator(torch.zeros(1, 0), generated=False).detach(),
        )
        self.objective: Objective
        if config.objective == "reconstruct":
            library = Reconstruct(
                config.data.sources[0], self.injector.projections, config.prompts_per_batch, config.seed
            )
            self.objective = library
            prompts = {str(folder): [prompt] for _, prompt, folder in library.entries}
            check_prompts(self.states, prompts)
            say(f"{len(library.entries)} adapters")
        else:
            prompts = data.prompts
            lengths = check_prompts(self.states, prompts)
            self.batches, self.left_out = make_batches(config, self.tokenizer, data, lengths, say)
            self.objective = make_objective(config, self.base, self.batches, device, say, teacher)
        self.validation = Validation(self.base, data.held, config) if data.held else None
        if config.hypernetwork.generated:
            say("reading prompts for the statistics of the encoder")
        hypernetwork = make_hypernetwork(config, self.base, self.states, prompts, device, reader)
        optimizer = make_optimizer(hypernetwork, config.optim)
        groups = hypernetwork.parameter_groups()
        self._named = dict(member for members in groups.values() for member in members)
        self._groups = {name: [parameter for _, parameter in members] for name, members in groups.items()}
        self.hypernetwork, self.optimizer = self.accelerator.prepare(hypernetwork, optimizer)
        dtype = None if config.objective == "reconstruct" else self.model.dtype  # one cast per shape
        self.writer = AdapterWriter(self.hypernetwork, self.plain, self.states, dtype)
        self.instruments = Instruments(config, self.objective, self.writer, self._sum)
        parts = config.accumulate * self.accelerator.num_processes
        self._loader = PartsLoader(self.objective, config.steps, parts, config.workers)
        self._release.callback(self._loader.close)
        self._data = identity(prompts, data.rows, base_fingerprint(teacher[0]) if teacher else None, reader)
        trained = sum(parameter.numel() for parameter in self._named.values())
        beside = f", and a reader of {hypernetwork.reader_size / 1e6:.2f} M" if reader is not None else ""
        say(f"hypernetwork of {trained / 1e6:.2f} M parameters{beside}")

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
        """Remove the hooks and activation checkpointing from the base; calling it twice is safe."""
        self.base.close()
        self._release.close()

    # --- one step ----------------------------------------------------------------------------------------

    def _generator(self, part: int) -> torch.Generator:
        """The random generator for a part of this step."""
        seed = random.Random(f"{self.config.seed}/{self.step}/{part}").getrandbits(63)
        return torch.Generator().manual_seed(seed)

    def _sum(self, values: Sequence[float]) -> list[float]:
        return sum_over(self.accelerator, values)

    def adapters(self, batch: Batch) -> LoRAWeights:
        """The adapters of a batch's prompts, with gradients."""
        return self.writer.adapters(batch, self.writer.encode(batch))

    def train_step(self) -> StepMetrics:
        """One optimizer step on the next batch.

        Raises:
            TrainingError: A loss or a gradient is not finite; the hypernetwork is unchanged by the step.
        """
        started = time.perf_counter()
        config, optim, penalty = self.config, self.config.optim, self.config.regularization
        factor = learning_rate_factor(self.step, config.steps, optim.warmup, optim.final)
        for group in self.optimizer.param_groups:
            group["lr"] = group["top_lr"] * factor
        batches = self._loader.load(self.step)
        if self._sharded:  # all processes run a sharded base together and need the same states at the same time
            for batch in batches:
                self.states.batch([*batch.prompts, *batch.pairs])
        weights = [self.objective.weight(batch) for batch in batches]
        first = self.accelerator.process_index * config.accumulate
        mine = range(first, first + config.accumulate)
        self.hypernetwork.train()
        losses: list[Tensor] = []
        loras = {}
        for part in mine:
            batch, weight = batches[part], weights[part] / sum(weights)
            generator = self._generator(part)
            # Gradients accumulate over the parts; they are reduced across processes after the last part.
            with nullcontext() if part == mine[-1] else self.accelerator.no_sync(self.hypernetwork):
                encoded = self.writer.encode(batch)
                lora = self.writer.adapters(batch, encoded)
                loss = self.objective.loss(batch, lora, generator)
                losses.append(loss.detach() * weight)
                if penalty.l2:
                    loss = loss + weight_penalty(lora, l2=penalty.l2)
                if penalty.contrastive and self.plain.encoder is not None:
                    loss = loss + penalty.contrastive * self.writer.contrast(batch, encoded)
                self.accelerator.backward(loss * weight * self.accelerator.num_processes)
            loras[part] = lora.detach()
        (value,) = self._sum([float(torch.stack(losses).sum())])  # the only device synchronisation before the norms
        norms = norm_and_clip(self._groups, optim)
        if not math.isfinite(value) or not all(map(math.isfinite, norms.values())):
            self.optimizer.zero_grad(set_to_none=True)
            parts = [(batches[part], loras[part]) for part in mine]
            raise not_finite(
                self.accelerator,
                self.objective,
                parts,
                step=self.step + 1,
                loss=value,
                norms=norms,
                folder=self.folder,
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        seconds = time.perf_counter() - started
        self.step += 1
        measured: dict[str, float | None] = {}
        if self.step % config.margin_every == 0:
            if self._sharded:
                for batch in batches:
                    self.states.batch(self.instruments.nonsense(batch))
            measured = self.instruments.measure(batches[mine[-1]], loras[mine[-1]])
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
        self.instruments.remember(metrics.margin)
        return metrics

    def validate(self) -> dict[str, float | None]:
        """Losses on the held-out tasks, by their names in :class:`StepMetrics`; empty if there are no such tasks."""
        return {} if self.validation is None else self.validation.measure(self.plain, self.states)

    @property
    def warning(self) -> str | None:
        """One line if the last measurements after the warm-up all had a margin near 0; otherwise None."""
        return self.instruments.warning(self.step)

    # --- checkpoints -------------------------------------------------------------------------------------

    def checkpoints(self) -> list[Path]:
        """Checkpoints of this run, oldest first."""
        return checkpoints(self.folder)

    def save(self) -> Path:
        """Write a checkpoint atomically, and only then delete the oldest ones beyond ``keep_checkpoints``.

        Raises:
            OutputError: The checkpoint cannot be written (no space, no permission); earlier checkpoints are unchanged.
        """
        path = self.folder / f"step-{self.step}"
        if self.accelerator.is_main_process:
            state = {"step": self.step, "config": to_dict(self.config), "data": self._data}
            save_checkpoint(self.folder, self.plain, self.optimizer, self._named, state, self.config.keep_checkpoints)
        self.accelerator.wait_for_everyone()
        return path

    def resume(self) -> int:
        """Continue from the newest checkpoint of the run; returns its step, or 0 if there is none.

        Raises:
            CheckpointError: The checkpoint is damaged, or belongs to another configuration.
        """
        self.step = load_checkpoint(self.folder, self.plain, self.optimizer, self._named, self.config, self._data)
        if self.step and (self.folder / METRICS_FILE).is_file():
            self.instruments.remember(
                *(line.get("margin") for line in read_metrics(self.folder) if line["step"] <= self.step)
            )
        return self.step

    # --- the run -----------------------------------------------------------------------------------------

    def run(self, resume: bool = False, until: int | None = None, minutes: float | None = None) -> Path:
        """Train to the last step, and write the hypernetwork to ``final/``.

        On Ctrl-C or SIGTERM the current step is finished, a checkpoint is written, and KeyboardInterrupt is raised.

        Args:
            resume: Continue from the newest checkpoint; if False, a folder that holds a checkpoint is refused.
            until: Stop after this step, with a checkpoint.
            minutes: Stop with a checkpoint after the first step that ends at least this many minutes after the call.

        Returns:
            The folder of the trained hypernetwork, or of the checkpoint if the run stopped early.

        Raises:
            OutputError: The folder already holds a run, or cannot be written.
            CheckpointError: The checkpoint is damaged, or belongs to another configuration.
            TrainingError: A loss or a gradient is not finite.
            KeyboardInterrupt: The run was asked to stop; a checkpoint has been written.
        """
        if until is not None and until < 1:
            raise ConfigError(f"until={until}; expected a step of 1 or more")
        if minutes is not None and not 0 < minutes < 1e6:
            raise ConfigError(f"minutes={minutes}; expected a finite number above 0")
        ends = math.inf if minutes is None else time.monotonic() + 60 * minutes
        if resume:
            self.resume()
        elif self.checkpoints() or (self.folder / FINAL_FOLDER).exists():
            raise OutputError(f"{self.folder}: holds a run already; pass resume=True to continue it or another output")
        self.accelerator.wait_for_everyone()  # all processes must have checked the folder before one writes
        if self.accelerator.is_main_process:
            make_run_folder(self.folder)
        last = min(self.config.steps, self.config.steps if until is None else until)
        path = self.folder / f"step-{self.step}"
        log = RunLog(self.folder, self.accelerator, flat(to_dict(self.config)))
        with stopping() as asked, CallbackList([log, *map(as_callback, self.callbacks)]) as callbacks:
            callbacks.on_start(self.step)
            while self.step < last:
                metrics = self.train_step()
                callbacks.after_step(metrics, self.warning)
                # Checked once per step, over all processes, so that no signal falls between the checkpoint and the end.
                over = callbacks.should_stop() or time.monotonic() >= ends
                stop, over = any_of(self.accelerator, asked(), over)
                if self.step % self.config.checkpoint_every == 0 or self.step == last or stop or over:
                    path = self.save()
                    callbacks.on_checkpoint(self.step, path)
                if stop:
                    raise KeyboardInterrupt
                if over:
                    break
        if self.step >= self.config.steps:
            path = self.folder / FINAL_FOLDER
            if self.config.hypernetwork.generated:  # runs in every process, because a sharded base needs all of them
                self._say(f"describing {len(self._own_prompts)} prompts, to tell later whether a prompt is near them")
                self.plain.training_prompts = training_prompts(
                    self._own_prompts, self._heldout_prompts, self.base, self.config.hypernetwork, self.states
                )
            if self.accelerator.is_main_process:
                self.plain.save_pretrained(path, overwrite=True)
            self.accelerator.wait_for_everyone()
        return path
