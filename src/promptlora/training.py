"""``Trainer``: one visible loop on Accelerate that trains a hypernetwork through a frozen base.

A step: encode each prompt once, write its adapter, run the base with the adapters on, apply the language
model's head at the answer positions alone, and move the hypernetwork. Order, paraphrases and schedule are
functions of seed and step, so a resumed run repeats the losses of an uninterrupted one.
"""

from __future__ import annotations

import json
import math
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from promptlora.config import TrainConfig, from_dict, to_dict
from promptlora.data import Batch, Batches, read_paraphrases, read_rows, tokenize_rows
from promptlora.errors import CheckpointError, ModelError, OutputError
from promptlora.files import creating_folder
from promptlora.hypernetwork import WEIGHTS_FILE, HyperNetwork
from promptlora.injection import HookBasedLoRAInjector
from promptlora.lora import LoRAWeights
from promptlora.losses import sft_loss
from promptlora.models import base_fingerprint, load_base
from promptlora.projections import find_projections
from promptlora.prompts import PromptStates

_STATE_FILE = "trainer.json"
_OPTIMIZER_FILE = "optimizer.safetensors"
_METRICS_FILE = "metrics.jsonl"
FINAL_FOLDER = "final"


@dataclass(frozen=True, kw_only=True)
class StepMetrics:
    """What a step shows.

    Attributes:
        step: Steps done, this one included.
        loss: Training loss, in nats.
        margin: Steering margin: loss with another prompt's adapter minus loss with the right one; None
            where it was not measured.
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


class Trainer:
    """Trains one hypernetwork as a configuration says.

    Args:
        config: The run.
        base: Base model and tokenizer; loaded as ``config.base`` says when not given.
        progress: Called with a line about each stage.
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
        rows = read_rows(config.data.train, config.data.split)
        tasks = {row.task: row.prompt for row in rows}
        others: dict[str, list[str]] = {}
        if config.data.paraphrases:
            others = read_paraphrases(config.data.paraphrases, tasks)
        self.accelerator = Accelerator()
        set_seed(config.seed)
        self.model, self.tokenizer = base or load_base(
            config.base or None, device=self.accelerator.device, progress=progress
        )
        self.model.requires_grad_(False)
        self.injector = HookBasedLoRAInjector(self.model, find_projections(self.model))
        if config.activation_checkpointing:
            self.model.train()
            self.injector.enable_checkpointing()
        examples, self.left_out = tokenize_rows(self.tokenizer, rows, config.data)
        say(
            f"{len(examples)} rows of {len(tasks)} tasks, {sum(map(len, others.values()))} paraphrases; left out as "
            f"too long: {self.left_out['input']} inputs, {self.left_out['answer']} answers"
        )
        self.batches = Batches(
            examples,
            {task: [prompt, *others.get(task, [])] for task, prompt in tasks.items()},
            prompts_per_batch=config.prompts_per_batch,
            rows_per_prompt=config.rows_per_prompt,
            pad=int(self.tokenizer.pad_token_id or 0),  # type: ignore[arg-type]
            paraphrase_share=config.data.paraphrase_share,
            seed=config.seed,
        )
        hypernetwork = HyperNetwork(
            config.hypernetwork,
            self.injector.projections,
            self.model.config.get_text_config().hidden_size,
            base_fingerprint(self.model),
        )
        self.states = PromptStates(self.model, self.tokenizer, config.hypernetwork)
        self._check_head()
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

    def _check_head(self) -> None:
        """Head on the decoder's states must be the model's logits: some models scale or cap them after."""
        ids = torch.tensor([[1, 2, 3]], device=self.model.device)
        with torch.no_grad():
            ours = self._lm_head(self.model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state)
            theirs = self.model(input_ids=ids, use_cache=False).logits
        if not torch.allclose(ours, theirs, atol=1e-3, rtol=1e-3):
            raise ModelError(f"{type(self.model).__name__} changes its logits after the head; training it is not supported")

    def _lm_head(self, hidden: Tensor) -> Tensor:
        logits: Tensor = self.model.get_output_embeddings()(hidden)
        return logits

    # --- one step ----------------------------------------------------------------------------------------

    def batch_loss(self, batch: Batch, lora: LoRAWeights, shift: int = 0) -> Tensor:
        """Loss of a batch whose group i uses adapter ``i + shift`` (0 is the right one)."""
        prompts, rows = len(batch.prompts), batch.input_ids.shape[0] // len(batch.prompts)
        index = [(i + shift) % prompts for i in range(prompts) for _ in range(rows)]
        device = self.accelerator.device
        with self.injector.apply(lora, index):
            hidden = self.model.get_decoder()(input_ids=batch.input_ids.to(device), use_cache=False).last_hidden_state
        return sft_loss(hidden, batch.labels.to(device), self._lm_head, row_weight=self.config.row_weight)

    def train_step(self) -> StepMetrics:
        """One optimizer step on the next batch."""
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
        if not math.isfinite(value):
            raise CheckpointError(
                f"step {self.step + 1}: the loss is {value}; the last good checkpoint is kept in {self.folder}; lower "
                f"optim.lr. Prompts of the batch: {[prompt[:30] for prompt in batch.prompts]}"
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        seconds = time.perf_counter() - started
        self.step += 1
        margin = None
        if self.step % config.margin_every == 0:
            with torch.no_grad():
                margin = float(self.batch_loss(batch, lora.detach(), shift=1)) - value
        return StepMetrics(
            step=self.step,
            loss=value,
            margin=margin,
            tokens_per_second=batch.tokens / seconds,
            lr=optim.lr * factor,
            trunk_norm=float(trunk_norm),
            head_norm=float(head_norm),
        )

    # --- checkpoints -------------------------------------------------------------------------------------

    def checkpoints(self) -> list[Path]:
        """Whole checkpoints of this run, oldest first."""
        return sorted(self.folder.glob("step-*"), key=lambda path: int(path.name.removeprefix("step-")))

    def save(self) -> Path:
        """Write a checkpoint, whole or not at all, and drop the oldest beyond ``keep_checkpoints``."""
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
            shutil.rmtree(old)
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
        try:
            state = json.loads((path / _STATE_FILE).read_text(encoding="utf-8"))
            tensors = load_file(path / _OPTIMIZER_FILE)
            before = from_dict(TrainConfig, state["config"])
        except (SafetensorError, OSError, ValueError, KeyError) as error:
            raise CheckpointError(f"{path}: a damaged checkpoint ({error}); remove it to use the one before") from error
        ours = to_dict(self.config)
        for key, value in to_dict(before).items():
            if key not in ("output", "checkpoint_every", "keep_checkpoints") and ours[key] != value:
                raise CheckpointError(
                    f"{path}: was written with {key}={value}; this configuration has {ours[key]}; use the same, or "
                    "another output folder"
                )
        self.plain.load_weights(path / WEIGHTS_FILE)
        for name, parameter in zip(self._names, self._parameters(), strict=True):
            keys = [key for key in tensors if key.rpartition("|")[0] == name]
            self.optimizer.state[parameter] = {key.rpartition("|")[2]: tensors[key] for key in keys}
            for key, value in self.optimizer.state[parameter].items():
                if key != "step":
                    self.optimizer.state[parameter][key] = value.to(parameter.device)
        self.step = int(state["step"])
        return self.step

    # --- the run -----------------------------------------------------------------------------------------

    def _metrics_file(self) -> Path:
        """The metrics of the steps up to this one; later lines of a killed run are dropped."""
        path = self.folder / _METRICS_FILE
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= self.step]
        path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        return path

    def run(
        self, resume: bool = False, on_step: Callable[[StepMetrics], None] | None = None, until: int | None = None
    ) -> Path:
        """Train to the last step, and write the hypernetwork to ``final/``.

        On Ctrl-C or SIGTERM the present step is finished and a checkpoint written.

        Args:
            resume: Continue from the newest checkpoint; without it a folder that holds one is refused.
            on_step: Called after each step.
            until: Stop after this step, with a checkpoint.

        Returns:
            The folder of the trained hypernetwork, or of the checkpoint when stopped early.
        """
        if resume:
            self.resume()
        elif self.checkpoints() or (self.folder / FINAL_FOLDER).exists():
            raise OutputError(f"{self.folder}: holds a run already; pass --resume to continue it or another output")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{self.folder}: cannot be made ({error.strerror}); choose another output") from error
        from torch.utils.tensorboard import SummaryWriter

        last = min(self.config.steps, until or self.config.steps)
        path = self.folder / f"step-{self.step}"
        with (
            _stopping() as stop,
            self._metrics_file().open("a", encoding="utf-8") as log,
            SummaryWriter(str(self.folder / "tensorboard"), purge_step=self.step + 1) as board,
        ):
            while self.step < last:
                metrics = self.train_step()
                values = {key: value for key, value in vars(metrics).items() if value is not None}
                log.write(json.dumps(values) + "\n")
                log.flush()
                for key, value in values.items():
                    if key != "step":
                        board.add_scalar(key, value, metrics.step)
                if on_step:
                    on_step(metrics)
                if self.step % self.config.checkpoint_every == 0 or self.step == last or stop():
                    path = self.save()
                if stop():
                    raise KeyboardInterrupt
        if self.step >= self.config.steps:
            path = self.folder / FINAL_FOLDER
            self.plain.save_pretrained(path, overwrite=True)
        return path


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
            signal.signal(number, handler)
