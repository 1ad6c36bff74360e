"""``Trainer``: one visible loop on Accelerate that trains a hypernetwork through a frozen base.

A step: encode each prompt once, write its adapter, run the base with the adapters on, apply the language
model's head at the answer positions alone, and move the hypernetwork. Order, paraphrases and schedule are
functions of seed and step, so a resumed run repeats the losses of an uninterrupted one.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_layers import GradientCheckpointingLayer

from promptlora.config import TrainConfig, from_dict, to_dict
from promptlora.data import Batch, Batches, Row, one_prompt_a_task, read_paraphrases, read_rows, tokenize_rows
from promptlora.errors import (
    CheckpointError,
    ConfigError,
    ModelError,
    OutputError,
    PromptError,
    TrainingError,
    one_line,
)
from promptlora.files import creating_folder, replacing_file
from promptlora.hypernetwork import CONFIG_FILE, WEIGHTS_FILE, HyperNetwork
from promptlora.injection import HookBasedLoRAInjector
from promptlora.lora import LoRAWeights
from promptlora.losses import sft_loss
from promptlora.models import base_fingerprint, describe_mismatch, load_base
from promptlora.projections import find_projections
from promptlora.prompts import PromptStates, encode_prompt

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

_STATE_FILE = "trainer.json"
_OPTIMIZER_FILE = "optimizer.safetensors"
_METRICS_FILE = "metrics.jsonl"
FINAL_FOLDER = "final"
_FREE_KEYS = ("output", "checkpoint_every", "keep_checkpoints")  # what may differ when a run is continued
_STATISTICS_PROMPTS = 512  # wordings whose states set the encoder's statistics


@dataclass(frozen=True, kw_only=True)
class StepMetrics:
    """What a step shows.

    Attributes:
        step: Steps done, this one included.
        loss: Training loss, in nats.
        margin: Steering margin: loss with the adapter of another task's prompt minus loss with the right one;
            None where it was not measured, or where the batch holds one task only.
        tokens_per_second: Real tokens of the batch over the time of the step.
        lr: Learning rate of the trunk.
        trunk_norm: Gradient norm of trunk and static part, before clipping.
        head_norm: Gradient norm of the heads, before clipping.
    """

    step: int
    loss: float
    margin: float | None
    tokens_per_second: float
    lr: float
    trunk_norm: float
    head_norm: float


def learning_rate_factor(step: int, steps: int, warmup: float, final: float) -> float:
    """Linear warm-up from 0, then a cosine to ``final``; 1 at the top. ``step`` is counted from 0."""
    rising = max(1, round(warmup * steps))
    if step < rising:
        return (step + 1) / rising
    done = (step - rising) / max(1, steps - rising)
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def margin_shift(tasks: Sequence[str]) -> int | None:
    """How far to turn the adapters of a batch so that each prompt meets one of another task.

    The smallest shift at which the fewest prompts meet their own task again; None when all of them would.
    """
    count = len(tasks)
    clashes = {s: sum(tasks[i] == tasks[(i + s) % count] for i in range(count)) for s in range(1, count)}
    best = min(clashes, key=clashes.__getitem__, default=None)
    return None if best is None or clashes[best] == count else best


class Trainer:
    """Trains one hypernetwork as a configuration says.

    It installs hooks on the base; :meth:`close`, or leaving ``with Trainer(config) as trainer``, removes them.

    Args:
        config: The run.
        base: Base model and tokenizer; loaded as ``config.base`` says when not given.
        progress: Called with a line about each stage.

    Raises:
        DataError: Rows or paraphrases that cannot be used.
        PromptError: A prompt longer than the encoder takes; its task is named.
        ModelError: A base that cannot be loaded or trained through.
        ConfigError: More than one process.
    """

    def __init__(
        self,
        config: TrainConfig,
        base: tuple[PreTrainedModel, PreTrainedTokenizerBase] | None = None,
        progress: Callable[[str], None] | None = None,
    ) -> None:
        self.config = config
        say = progress or (lambda line: None)
        self.folder = Path(config.output)
        rows = one_prompt_a_task(read_rows(config.data.train, config.data.split))
        tasks = {row.task: row.prompt for row in rows}
        others: dict[str, list[str]] = {}
        if config.data.paraphrases:
            others = read_paraphrases(config.data.paraphrases, tasks)
        self.accelerator = Accelerator(mixed_precision="no")
        if self.accelerator.num_processes > 1:
            raise ConfigError(
                f"{self.accelerator.num_processes} processes; this trainer runs on one; start it without torchrun"
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
        self.model.requires_grad_(False)
        self._release, self._closed = ExitStack(), False
        try:
            self._prepare(rows, tasks, others, say)
        except BaseException:  # no hook stays on the base
            self.close()
            raise

    def _prepare(
        self, rows: Sequence[Row], tasks: dict[str, str], others: dict[str, list[str]], say: Callable[[str], None]
    ) -> None:
        """Hooks, batches, hypernetwork and optimizer."""
        config = self.config
        self.injector = HookBasedLoRAInjector(self.model, find_projections(self.model))
        self._release.callback(self.injector.remove)
        if config.activation_checkpointing:
            self._checkpoint_activations()
        examples, self.left_out = tokenize_rows(self.tokenizer, rows, config.data)
        say(
            f"{len(examples)} rows of {len({example.task for example in examples})} tasks, "
            f"{sum(map(len, others.values()))} paraphrases; left out as too long: {self.left_out['input']} inputs, "
            f"{self.left_out['answer']} answers"
        )
        prompts = {task: [prompt, *others.get(task, [])] for task, prompt in tasks.items()}
        for task, several in prompts.items():  # now, not when the order comes to it
            for prompt in several:
                try:
                    encode_prompt(self.tokenizer, prompt, config.hypernetwork.max_prompt_tokens)
                except PromptError as error:
                    raise PromptError(f"task {task!r}: {error}") from error
        self.batches = Batches(
            examples,
            prompts,
            prompts_per_batch=config.prompts_per_batch,
            rows_per_prompt=config.rows_per_prompt,
            pad=int(self.tokenizer.pad_token_id or 0),
            paraphrase_share=config.data.paraphrase_share,
            seed=config.seed,
        )
        set_seed(config.seed)  # what was loaded before has no part in the initial weights
        hypernetwork = HyperNetwork(
            config.hypernetwork,
            self.injector.projections,
            self.model.config.get_text_config().hidden_size,
            base_fingerprint(self.model),
        )
        self.states = PromptStates(self.model, self.tokenizer, config.hypernetwork)
        head = self.model.get_output_embeddings()
        if head is None:
            raise ModelError(f"{type(self.model).__name__} has no output embeddings; expected a causal language model")
        self._head_weight = head.weight.detach().float()  # a bfloat16 head is slow on a CPU, and its loss coarse
        self._head_bias = None if getattr(head, "bias", None) is None else head.bias.detach().float()
        self._check_head()
        wordings = [prompt for prompts in self.batches.prompts.values() for prompt in prompts[:3]]
        hypernetwork.encoder.fit_statistics([self.states.one(prompt) for prompt in wordings[:_STATISTICS_PROMPTS]])
        groups = hypernetwork.parameter_groups()
        optim = config.optim
        fan_in = config.hypernetwork.context_size
        rates = {"trunk": optim.lr, "heads": optim.lr * optim.head_lr_factor / fan_in, "static": optim.static_lr}
        optimizer = torch.optim.AdamW(
            [
                {
                    "params": [parameter for _, parameter in members],
                    "lr": rates[name],
                    "top_lr": rates[name],
                    "weight_decay": 0.0 if name == "static" else optim.weight_decay,
                }
                for name, members in groups.items()
                if members
            ],
            betas=(0.9, 0.98),
            fused=False,
        )
        self._names = [name for members in groups.values() for name, _ in members]
        self._clipped = {
            "trunk": [p for _, p in groups["trunk"] + groups["static"]],
            "heads": [p for _, p in groups["heads"]],
        }
        self.hypernetwork, self.optimizer = self.accelerator.prepare(hypernetwork, optimizer)
        self.step = 0
        say(f"hypernetwork of {sum(p.numel() for p in hypernetwork.parameters()) / 1e6:.2f} M parameters")

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
        self._release.close()
        self._closed = True

    def _checkpoint_activations(self) -> None:
        """Switch recomputation on; only the layers that do it are in training mode, so that no dropout wakes."""
        before = {module: module.training for module in self.model.modules()}

        def restore() -> None:
            self.model.activation_checkpointing_disable()
            for module, training in before.items():
                module.training = training

        self._release.callback(restore)
        self.injector.enable_checkpointing()
        ids = torch.tensor([[1, 2, 3]], device=self.model.device)
        self.model.eval()
        with torch.no_grad():
            expected = self.model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
            layers = [module for module in self.model.modules() if isinstance(module, GradientCheckpointingLayer)]
            if not layers:
                self.model.train()
            for layer in layers:
                layer.training = True
            found = self.model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
        if not torch.equal(expected, found):
            raise ModelError(
                f"{type(self.model).__name__} computes otherwise in training mode (dropout?), which activation "
                "checkpointing needs; set the dropout in its config.json to 0, or activation_checkpointing = false"
            )

    def _check_head(self) -> None:
        """Head on the decoder's states must be the model's logits: some models scale or cap them after."""
        ids = torch.tensor([[1, 2, 3]], device=self.model.device)
        with torch.no_grad():
            ours = self._lm_head(self.model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state)
            theirs = self.model(input_ids=ids, use_cache=False).logits
        coarse = 1e-3 if self.model.dtype == torch.float32 else 0.05
        if not torch.allclose(ours, theirs.float(), atol=coarse * float(theirs.abs().max()), rtol=coarse):
            raise ModelError(
                f"{type(self.model).__name__} changes its logits after the head; training it is not supported"
            )

    def _lm_head(self, hidden: Tensor) -> Tensor:
        """Logits of hidden states ``[n, d]``, in float32."""
        return F.linear(hidden.float(), self._head_weight, self._head_bias)

    # --- one step ----------------------------------------------------------------------------------------

    def batch_loss(self, batch: Batch, lora: LoRAWeights, shift: int = 0, *, reduce: bool = True) -> Tensor:
        """Loss of a batch whose group i uses adapter ``i + shift`` (0 is the right one); of each row if not ``reduce``."""
        if self._closed:
            raise TrainingError("this Trainer is closed, its hooks are off the base; make another")
        prompts, rows = len(batch.prompts), batch.input_ids.shape[0] // len(batch.prompts)
        index = [(i + shift) % prompts for i in range(prompts) for _ in range(rows)]
        device = self.accelerator.device
        with self.injector.apply(lora.to(self.model.dtype), index):
            hidden = self.model.get_decoder()(input_ids=batch.input_ids.to(device), use_cache=False).last_hidden_state
        return sft_loss(
            hidden, batch.labels.to(device), self._lm_head, row_weight=self.config.row_weight, reduce=reduce
        )

    def train_step(self) -> StepMetrics:
        """One optimizer step on the next batch.

        Raises:
            TrainingError: A loss or a gradient that is not finite; the hypernetwork is as before the step.
        """
        started = time.perf_counter()
        config, optim = self.config, self.config.optim
        factor = learning_rate_factor(self.step, config.steps, optim.warmup, optim.final)
        for group in self.optimizer.param_groups:
            group["lr"] = group["top_lr"] * factor
        batch = self.batches[self.step]
        states, mask = self.states.batch(batch.prompts)
        self.hypernetwork.train()
        lora = self.hypernetwork(states, mask)
        loss = self.batch_loss(batch, lora)
        self.accelerator.backward(loss)
        trunk_norm = torch.nn.utils.clip_grad_norm_(self._clipped["trunk"], optim.clip)
        head_norm = torch.nn.utils.clip_grad_norm_(self._clipped["heads"], optim.head_clip)
        value = float(loss.detach())
        if not math.isfinite(value) or not math.isfinite(float(trunk_norm) + float(head_norm)):
            self.optimizer.zero_grad(set_to_none=True)
            raise self._not_finite(batch, lora.detach(), value, float(trunk_norm), float(head_norm))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        seconds = time.perf_counter() - started
        self.step += 1
        margin = None
        shift = margin_shift(batch.tasks) if self.step % config.margin_every == 0 else None
        if shift is not None:
            with torch.no_grad():
                margin = float(self.batch_loss(batch, lora.detach(), shift)) - value
        return StepMetrics(
            step=self.step,
            loss=value,
            margin=margin,
            tokens_per_second=batch.tokens / seconds,
            lr=optim.lr * factor,
            trunk_norm=float(trunk_norm),
            head_norm=float(head_norm),
        )

    def _not_finite(
        self, batch: Batch, lora: LoRAWeights, value: float, trunk_norm: float, head_norm: float
    ) -> TrainingError:
        """What to say of a loss or gradient that is not finite: which rows, and what is left."""
        with torch.no_grad():
            finite = self.batch_loss(batch, lora, reduce=False).isfinite().tolist()
        bad = [i for i, fine in zip(batch.examples, finite, strict=True) if not fine] or list(batch.examples)
        examples = [self.batches.examples[i] for i in bad]
        rows = "; ".join(f"task {e.task[:40]!r} input {e.text[:40]!r}" for e in examples[:4])
        more = f"; and {len(bad) - 4} more" if len(bad) > 4 else ""
        kept = self.checkpoints()
        left = f"{kept[-1]} is the last good checkpoint" if kept else "there is no checkpoint yet"
        return TrainingError(
            f"step {self.step + 1}: loss {value}, gradient norms {trunk_norm} and {head_norm}; expected finite numbers; "
            f"{left}; lower optim.lr or look at the rows: {rows}{more}"
        )

    # --- checkpoints -------------------------------------------------------------------------------------

    def checkpoints(self) -> list[Path]:
        """Checkpoints of this run, oldest first."""
        found = [path for path in self.folder.glob("step-*") if re.fullmatch(r"step-\d+", path.name)]
        return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))

    def save(self) -> Path:
        """Write a checkpoint, whole or not at all, and only then drop the oldest beyond ``keep_checkpoints``.

        Raises:
            OutputError: It cannot be written (no space, no permission); those before it are as they were.
        """
        path = self.folder / f"step-{self.step}"
        with creating_folder(path, overwrite=True) as temporary:
            self.plain.write_to(temporary)
            tensors = {}
            for name, parameter in zip(self._names, self._parameters(), strict=True):
                for key, value in self.optimizer.state.get(parameter, {}).items():
                    tensors[f"{name}|{key}"] = torch.as_tensor(value).detach().cpu().contiguous()
            save_file(tensors, temporary / _OPTIMIZER_FILE)
            state = {"step": self.step, "config": to_dict(self.config)}
            (temporary / _STATE_FILE).write_text(json.dumps(state, indent=1), encoding="utf-8")
        for old in self.checkpoints()[: -self.config.keep_checkpoints]:
            try:
                shutil.rmtree(old)
            except OSError as error:
                raise OutputError(f"{old}: cannot be removed ({error.strerror}); remove it, then --resume") from error
        return path

    def _parameters(self) -> list[torch.nn.Parameter]:
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def resume(self) -> int:
        """Continue from the newest checkpoint of the run; returns its step (0 when there is none).

        Raises:
            CheckpointError: A damaged checkpoint, or one of another configuration.
        """
        found = self.checkpoints()
        if not found:
            return 0
        path = found[-1]
        fix = f"remove it to continue from {found[-2].name}" if len(found) > 1 else "remove it to start anew"
        damage = (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError)
        try:
            state = json.loads((path / _STATE_FILE).read_text(encoding="utf-8"))
            step, before = int(state["step"]), from_dict(TrainConfig, state["config"])
            base = dict(json.loads((path / CONFIG_FILE).read_text(encoding="utf-8"))["base"])
        except damage as error:
            raise CheckpointError(f"{path}: a damaged checkpoint ({one_line(error)}); {fix}") from error
        ours = _flat(to_dict(self.config))
        for key, value in _flat(to_dict(before)).items():
            if key not in _FREE_KEYS and ours[key] != value:
                raise CheckpointError(
                    f"{path}: was written with {key}={value!r}; this configuration has {ours[key]!r}; use the same, or "
                    "another output folder"
                )
        differs = describe_mismatch(base, self.plain.base)
        if differs:
            raise CheckpointError(f"{path}: was written for another base ({differs}); use that one, or another output")
        try:
            moments = self._moments(load_file(path / _OPTIMIZER_FILE))
            self.plain.load_weights(path / WEIGHTS_FILE)
        except damage as error:
            raise CheckpointError(f"{path}: a damaged checkpoint ({one_line(error)}); {fix}") from error
        self.optimizer.state.clear()
        self.optimizer.state.update(moments)
        self.step = step
        return self.step

    def _moments(self, tensors: dict[str, Tensor]) -> dict[torch.nn.Parameter, dict[str, Tensor]]:
        """The optimizer's state from the tensors of its file, ``parameter|key``; a ValueError says what does not fit."""
        moments: dict[torch.nn.Parameter, dict[str, Tensor]] = {}
        named = dict(zip(self._names, self._parameters(), strict=True))
        for full, value in tensors.items():
            name, _, key = full.rpartition("|")
            parameter = named.get(name)
            if parameter is None or (key != "step" and value.shape != parameter.shape):
                raise ValueError(f"{_OPTIMIZER_FILE}: {full} {list(value.shape)} does not fit this hypernetwork")
            moments.setdefault(parameter, {})[key] = value if key == "step" else value.to(parameter.device)
        return moments

    # --- the run -----------------------------------------------------------------------------------------

    def _metrics_file(self) -> Path:
        """The metrics of the steps up to this one; later lines of a killed run are dropped."""
        path = self.folder / _METRICS_FILE
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
        with replacing_file(path) as temporary:
            temporary.write_text(
                "".join(f"{line}\n" for line in lines if _step_of(line) <= self.step), encoding="utf-8"
            )
        return path

    def _clean(self) -> None:
        """Remove what a run that was killed while it saved has left half-written."""
        for name in ("step-*", FINAL_FOLDER, _METRICS_FILE):
            for left in self.folder.glob(f".{name}.*"):
                shutil.rmtree(left) if left.is_dir() else left.unlink()

    def _record(self, metrics: StepMetrics, log: TextIO, board: SummaryWriter) -> None:
        values = {key: value for key, value in vars(metrics).items() if value is not None}
        try:
            log.write(json.dumps(values) + "\n")
            log.flush()
            for key, value in values.items():
                if key != "step":
                    board.add_scalar(key, value, metrics.step)
        except OSError as error:
            raise OutputError(
                f"{self.folder}: cannot be written ({error.strerror}); free some space, then --resume"
            ) from error

    def run(
        self, resume: bool = False, on_step: Callable[[StepMetrics], None] | None = None, until: int | None = None
    ) -> Path:
        """Train to the last step, and write the hypernetwork to ``final/``.

        On Ctrl-C or SIGTERM the present step is finished, a checkpoint written and KeyboardInterrupt raised.

        Args:
            resume: Continue from the newest checkpoint; without it a folder that holds one is refused.
            on_step: Called after each step.
            until: Stop after this step, with a checkpoint.

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
        if resume:
            self.resume()
        elif self.checkpoints() or (self.folder / FINAL_FOLDER).exists():
            raise OutputError(f"{self.folder}: holds a run already; pass --resume to continue it or another output")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._clean()
        except OSError as error:
            raise OutputError(f"{self.folder}: cannot be made ({error.strerror}); choose another output") from error
        from torch.utils.tensorboard import SummaryWriter

        last = min(self.config.steps, self.config.steps if until is None else until)
        path = self.folder / f"step-{self.step}"
        with (
            _stopping() as asked,
            self._metrics_file().open("a", encoding="utf-8") as log,
            SummaryWriter(str(self.folder / "tensorboard"), purge_step=self.step + 1) as board,
        ):
            while self.step < last:
                metrics = self.train_step()
                self._record(metrics, log, board)
                if on_step:
                    on_step(metrics)
                stop = asked()  # once, so that a signal never comes between the checkpoint and the end
                if self.step % self.config.checkpoint_every == 0 or self.step == last or stop:
                    path = self.save()
                if stop:
                    raise KeyboardInterrupt
        if self.step >= self.config.steps:
            path = self.folder / FINAL_FOLDER
            self.plain.save_pretrained(path, overwrite=True)
        return path


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables to dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _step_of(line: str) -> float:
    """The step of a line of metrics; infinity for one that was cut short."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


@contextmanager
def _stopping() -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C or SIGTERM came; a second Ctrl-C stops at once."""
    asked = {"stop": False}

    def ask(number: int, frame: Any) -> None:
        if asked["stop"]:
            raise KeyboardInterrupt
        asked["stop"] = True

    try:
        before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread: no handlers there
        before = {}
    try:
        yield lambda: asked["stop"]
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
