"""``PromptLoRA``: the main user-facing object.

It combines a host and a hypernetwork. The hypernetwork generates adapters from prompts, and ``AdaptedBase`` answers
with them. This file knows nothing of training, metrics or servers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from promptlora.adapt.adapted_base import AdaptedBase
from promptlora.adapt.function_vectors import add_function_vectors, constant_readers
from promptlora.adapt.refine import RefineSettings, RefineStep, refine_adapters
from promptlora.errors import CheckpointError, ConfigError, PromptError
from promptlora.host import Host
from promptlora.hypernet.distance import PromptDistance, describe
from promptlora.hypernet.hub import is_hub_id
from promptlora.hypernet.network import WEIGHTS_FILE, HyperNetwork
from promptlora.lora import AdapterOrigin, LoRAWeights
from promptlora.models import EMBEDDED_ID, EMBEDDED_NOTE, Progress, base_fingerprint, describe_mismatch, load_base
from promptlora.settings import from_dict
from promptlora.text import example_list, example_lists, prompt_list, with_examples

Examples = Sequence[tuple[str, str]]  # pairs of input and output


def shipped_hypernetwork() -> Path:
    """The folder of the hypernetwork that comes with the package, trained for the embedded base."""
    return Path(str(resources.files("promptlora"))) / "pretrained"


def hypernetwork_label(hypernetwork: str | Path | None) -> str:
    """The name of a hypernetwork in model cards: a Hub id, or the folder name and a hash of the weights."""
    if hypernetwork is not None and is_hub_id(hypernetwork):
        return str(hypernetwork)
    folder = Path(hypernetwork) if hypernetwork else shipped_hypernetwork()
    with (folder / WEIGHTS_FILE).open("rb") as handle:
        digest = hashlib.file_digest(handle, "sha256").hexdigest()
    name = folder.resolve().name if hypernetwork else "the one in the package"
    return f"{name} (SHA-256 of its weights {digest[:12]}…)"


class PromptLoRA(AdaptedBase):
    """A base, the hypernetwork that generates adapters for it, and the host that runs both.

    All methods are thread-safe: a call waits until the model is free. An answer does not depend on other calls. Calls
    run without gradients and in evaluation mode, and they change neither the model nor the hypernetwork, so both can be
    trained at the same time.

    Args:
        model: The frozen base.
        tokenizer: Its tokenizer.
        hypernetwork: A hypernetwork that was trained for this base.
        force: Whether to accept a hypernetwork that was trained for another base with the same shapes.

    Raises:
        CheckpointError: The hypernetwork was trained for another base.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        hypernetwork: HyperNetwork,
        *,
        force: bool = False,
    ) -> None:
        mismatch = describe_mismatch(hypernetwork.base, base_fingerprint(model))
        if mismatch and not force:
            raise CheckpointError(
                f"this hypernetwork was trained for another base: {mismatch}; load that base, or override with "
                "force=True"
            )
        self.hypernetwork = hypernetwork
        self.hypernetwork_name: str | None = None  # appears in the cards of exports
        super().__init__(Host(model, tokenizer, hypernetwork.projections))
        try:
            expected = {} if force else hypernetwork.embedder
            self.states = self.host.prompt_states(
                hypernetwork.config, embedder=expected, reader=hypernetwork.reader_lora()
            )
            if hypernetwork.state_size != self.states.state_size:
                raise CheckpointError(
                    f"this hypernetwork reads states of width {hypernetwork.state_size}; the base has "
                    f"{self.states.state_size}; load the base that it was trained for"
                )
        except BaseException:  # removes the hooks from the base
            self.close()
            raise

    @classmethod
    def from_pretrained(
        cls,
        hypernetwork: str | Path | None = None,
        base: str | Path | None = None,
        *,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "auto",
        attn_implementation: str | None = None,
        force: bool = False,
        progress: Progress | None = None,
        **model_kwargs: Any,
    ) -> PromptLoRA:
        """Load a base and a hypernetwork.

        Args:
            hypernetwork: A folder written by ``HyperNetwork.save_pretrained``, or a Hub id (``owner/name``); by default
                the hypernetwork in the package.
            base: A folder or a Hugging Face id; by default the embedded SmolLM2-135M-Instruct.
            dtype: The dtype of the base's weights and of the adapters.
            device: The device of both; ``auto`` is CUDA, else MPS, else the CPU.
            attn_implementation: Passed to transformers.
            force: Whether to accept a hypernetwork that was trained for another base.
            progress: Called with one line per stage.
            **model_kwargs: Passed to transformers' ``from_pretrained`` for the base.

        Raises:
            ModelError: The base cannot be loaded.
            CheckpointError: The hypernetwork cannot be read or belongs to another base.
        """
        # The small file is loaded first, so that a wrong path fails immediately.
        network = HyperNetwork.from_pretrained(hypernetwork or shipped_hypernetwork())
        model, tokenizer = load_base(
            base, dtype=dtype, device=device, attn_implementation=attn_implementation, progress=progress, **model_kwargs
        )
        where: Any = model.get_input_embeddings().weight
        network = network.to(where.device).requires_grad_(False)
        made = cls(model, tokenizer, network, force=force)
        made.hypernetwork_name = hypernetwork_label(hypernetwork)
        return made

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Upload the hypernetwork with a card that names this base; see ``HyperNetwork.push_to_hub``."""
        return self.hypernetwork.push_to_hub(
            repo_id, **{"base_model": self.model.config.name_or_path or None, **options}
        )

    # --- prompts to adapters ---------------------------------------------------------------------------

    @torch.no_grad()
    def adapt(
        self,
        prompts: str | Sequence[str],
        *,
        examples: Examples | Sequence[Examples] | None = None,
        generated: bool = True,
        vectors: float | None = None,
        in_context: bool = False,
    ) -> LoRAWeights:
        """Generate one adapter per prompt, in one forward pass of the hypernetwork.

        Args:
            prompts: One prompt or several.
            examples: Pairs of input and output that the hypernetwork reads with the prompt, in the training format
                (``text.with_examples``). For a list of prompts, one list of pairs per prompt.
            generated: False returns only the static part, which is the same for every prompt.
            vectors: The factor of each prompt's function vector, which is added as one more rank of the middle o
                projections. To compute it, the base reads the prompt once more, with its adapter. By default the
                hypernetwork's setting is used, and 0 for the static part.
            in_context: Whether the base will also have the prompts in its context. It has no effect on a hypernetwork
                without ``context_flag``.

        Returns:
            One adapter per prompt, in the base's dtype. Its ``provenance`` records prompt and examples, and the static
            part (``generated``) or ``vectors`` where they were asked for.

        Raises:
            PromptError: There is no prompt, a prompt is empty, a prompt with its examples is longer than the encoder
                supports, or the examples are not pairs of texts or not one list per prompt.
            ConfigError: ``vectors`` is not a finite number of 0 or more, or another setting is neither True nor False.
        """
        given = prompt_list(prompts)
        if not given:
            raise PromptError("no prompt was given; expected at least one")
        for name, value in (("generated", generated), ("in_context", in_context)):
            if not isinstance(value, bool):
                raise ConfigError(f"{name}={value!r}; expected True or False")
        one = isinstance(prompts, str)
        pairs = [example_list(examples)] if one else example_lists(examples, len(given))
        texts = [with_examples(text, several) for text, several in zip(given, pairs, strict=True)]
        states, mask = self.states.batch(texts)  # states of the unadapted base, even inside apply
        weight = next(self.hypernetwork.parameters())
        lora: LoRAWeights = self.hypernetwork(
            states.to(weight.device),
            mask.to(weight.device),
            in_context,
            generated=generated,
            dtype=self.model.dtype,
        ).to(device=self.host.device)
        if vectors is None:
            vectors = self.hypernetwork.config.vectors if generated else 0.0
        if vectors:
            lora = add_function_vectors(self.host, lora, texts, vectors, self._constant_readers)
        base = self.model.config.name_or_path or None
        note = EMBEDDED_NOTE if base == EMBEDDED_ID else ""
        origins = [
            AdapterOrigin(prompt, tuple(several), in_context, self.hypernetwork_name, note)
            for prompt, several in zip(given, pairs, strict=True)
        ]
        # An adapter that is not what the prompt gives by default says so.
        unusual: dict[str, Any] = {} if generated else {"generated": False}
        if vectors:
            unusual["vectors"] = float(vectors)
        return LoRAWeights(
            lora.stored, lora.scaling, projections=lora.projections, base_model=base,
            provenance=[{**origin.to_dict(), **unusual} for origin in origins], chat=self.chat_export,
        )  # fmt: skip

    @cached_property
    def _constant_readers(self) -> dict[str, Tensor]:
        """See :func:`promptlora.adapt.function_vectors.constant_readers`."""
        return constant_readers(self.host)

    @torch.no_grad()
    def distances(self, prompts: str | Sequence[str]) -> list[PromptDistance] | None:
        """The distance of each prompt from the prompts that the hypernetwork was trained on.

        A far prompt is unlike all training prompts; check its adapter before you use it. A near prompt does not
        guarantee a good adapter: on held-out tasks, the distance hardly predicts how much an adapter helps
        (docs/results.md).

        Args:
            prompts: One prompt or several, without examples.

        Returns:
            One distance per prompt; None if the hypernetwork's folder has no record of its training prompts.

        Raises:
            PromptError: A prompt is empty, or longer than the encoder supports.
        """
        known = self.hypernetwork.training_prompts
        if known is None:
            return None
        states, mask = self.states.batch(prompt_list(prompts))
        return known.distances(describe(states, mask, self.hypernetwork.config.two_parts))

    def refine(
        self,
        lora: LoRAWeights,
        prompts: str | Sequence[str],
        *,
        rows: Sequence[Any] | None = None,
        inputs: Sequence[str] | Sequence[Sequence[str]] | int | None = None,
        steps: int | None = None,
        seed: int = 0,
        on_step: Callable[[RefineStep], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
        **settings: Any,
    ) -> LoRAWeights:
        """Improve adapters with a few gradient steps, all adapters together in one batch.

        Only the adapters are trained. Each adapter has its own loss, gradient clipping and best step, so its result
        does not depend on the others, up to rounding. With 8 or more rows, a quarter of them is held out, and the step
        with the lowest held-out loss is returned; by this measure, the result is never worse than ``lora``. Ctrl-C, or
        a loss that is not finite, returns the best adapters so far with a warning. Other threads can use the model
        between two steps.

        Args:
            lora: One adapter per prompt, for example from :meth:`adapt`.
            prompts: The prompts of the adapters.
            rows: The training data: ``Row`` objects, dicts of ``input`` and ``outputs``, or pairs of input and output.
                With several prompts, each row must have its ``prompt``.
            inputs: Unlabelled texts. The base answers them with the prompt in its context, and the adapters learn its
                distributions. One list for all prompts, or one list per prompt. A number n lets the base generate n
                inputs, which is a stopgap for missing inputs. If ``rows`` is given too, the rows only select the best
                step.
            steps: The maximum number of steps; see ``RefineSettings``.
            seed: The random seed; the same seed gives the same adapters.
            on_step: Called after each step.
            should_stop: Called before each step; if it returns True, the best adapters so far are returned.
            **settings: Further fields of ``RefineSettings``.

        Returns:
            The refined adapters; their ``provenance`` records prompt, rows, steps, seed and losses.

        Raises:
            DataError: Rows or inputs cannot be used, or a prompt has fewer than two.
            LoRAError: There is not one adapter per prompt, or the adapters belong to another base.
            ConfigError: Neither rows nor inputs are given, or a setting is out of range.
        """
        chosen = {**settings, "seed": seed, **({} if steps is None else {"steps": steps})}
        if "starts" in chosen:
            chosen["starts"] = tuple(chosen["starts"])
        return refine_adapters(
            self, lora, prompts, rows=rows, inputs=inputs, settings=from_dict(RefineSettings, chosen), on_step=on_step,
            should_stop=should_stop,
        )  # fmt: skip
