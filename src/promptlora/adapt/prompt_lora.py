"""``PromptLoRA``: the object that a user holds.

A host and a hypernetwork together: prompts become adapters, and ``AdaptedBase`` answers with them. It knows nothing of
training, metrics or servers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from promptlora.adapt.adapted_base import AdaptedBase
from promptlora.adapt.function_vectors import add_function_vectors
from promptlora.adapt.refine import RefineSettings, RefineStep, refine_adapters
from promptlora.errors import CheckpointError, PromptError
from promptlora.host import Host
from promptlora.hypernet.distance import PromptDistance, describe
from promptlora.hypernet.hub import is_hub_id
from promptlora.hypernet.network import WEIGHTS_FILE, HyperNetwork
from promptlora.lora import AdapterOrigin, LoRAWeights
from promptlora.models import EMBEDDED_ID, EMBEDDED_NOTE, Progress, base_fingerprint, describe_mismatch, load_base
from promptlora.settings import from_dict
from promptlora.text import with_examples

Examples = Sequence[tuple[str, str]]  # of input and output


def shipped_hypernetwork() -> Path:
    """The folder of the hypernetwork that comes with the package, trained for the embedded base."""
    return Path(str(resources.files("promptlora"))) / "pretrained"


def hypernetwork_label(hypernetwork: str | Path | None) -> str:
    """What cards of adapters call a hypernetwork: a Hub id, or the name of a folder and a hash of its weights."""
    if hypernetwork is not None and is_hub_id(hypernetwork):
        return str(hypernetwork)
    folder = Path(hypernetwork) if hypernetwork else shipped_hypernetwork()
    with (folder / WEIGHTS_FILE).open("rb") as handle:
        digest = hashlib.file_digest(handle, "sha256").hexdigest()
    name = folder.resolve().name if hypernetwork else "the one in the package"
    return f"{name} (SHA-256 of its weights {digest[:12]}…)"


class PromptLoRA(AdaptedBase):
    """A base, the hypernetwork that writes adapters for it, and the host that runs both together.

    Every call may come from any thread and waits its turn; every answer is what it is alone. Neither the model nor
    the hypernetwork is changed: calls run without gradients and in evaluation mode, and training may go on
    through both.

    Args:
        model: The frozen base.
        tokenizer: Its tokenizer.
        hypernetwork: Trained for this base.
        force: Take a hypernetwork that was trained for another base of the same shapes.

    Raises:
        CheckpointError: A hypernetwork of another base.
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
        self.hypernetwork_name: str | None = None  # told by the cards of exports
        super().__init__(Host(model, tokenizer, hypernetwork.projections))
        try:
            expected = {} if force else hypernetwork.embedder
            self.states = self.host.prompt_states(hypernetwork.config, embedder=expected)
            if hypernetwork.state_size != self.states.state_size:
                raise CheckpointError(
                    f"this hypernetwork reads states of width {hypernetwork.state_size}; the base has "
                    f"{self.states.state_size}; load the base that it was trained for"
                )
        except BaseException:  # no hook stays on the base
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
            hypernetwork: A folder written by ``HyperNetwork.save_pretrained``, or the Hub id of one (``owner/name``); by
                default the one in the package.
            base: A folder or a Hugging Face id; by default the embedded SmolLM2-135M-Instruct.
            dtype: Of the base's weights, and of the adapters.
            device: Where both go; ``auto`` is CUDA, else MPS, else the CPU.
            attn_implementation: Passed on to transformers.
            force: Take a hypernetwork that was trained for another base.
            progress: Called with a line about each stage.
            **model_kwargs: Passed on to transformers' ``from_pretrained`` for the base.

        Raises:
            ModelError: A base that cannot be loaded.
            CheckpointError: A hypernetwork that cannot be read or belongs to another base.
        """
        # The small file first: a wrong path is told at once.
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
        """Write one adapter for each prompt, in one forward of the hypernetwork.

        Args:
            prompts: One prompt or several.
            examples: Pairs of input and output that the hypernetwork reads with the prompt, in the format of training
                (``text.with_examples``); for a list of prompts, a list of pairs for each.
            generated: False gives the static part alone, which is the same for every prompt.
            vectors: How much of each prompt's function vector is added, as one more rank of the middle o projections, for
                which the base reads the prompt before a few neutral inputs; by default as the hypernetwork says, and
                none for the static part.
            in_context: Whether the base will also have the prompts in its context. It has no effect on a hypernetwork
                without ``context_flag``.

        Returns:
            As many adapters as prompts, in the base's dtype.

        Raises:
            PromptError: No prompt, an empty one, or one longer than the encoder takes, examples included; examples that are
                not pairs of texts, or not one list for each prompt.
            ConfigError: A ``vectors`` that is not a finite number of 0 or more.
        """
        texts = [prompts] if isinstance(prompts, str) else list(prompts)
        if not texts:
            raise PromptError("no prompt was given; expected at least one")
        given = list(texts)
        several: list[Any] = [[]] * len(texts)
        if examples is not None:
            several = [examples] if isinstance(prompts, str) else list(examples)
            if len(several) != len(texts):
                raise PromptError(
                    f"examples: {len(several)} lists for {len(texts)} prompts. Expected one list of pairs for each. Fix: pass "
                    "[] for a prompt without examples."
                )
            texts = [with_examples(text, pairs) for text, pairs in zip(texts, several, strict=True)]
        states, mask = self.states.batch(texts)  # of the base, whatever is on outside
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
        lora = add_function_vectors(self.host, lora, texts, vectors)
        base = self.model.config.name_or_path or None
        note = EMBEDDED_NOTE if base == EMBEDDED_ID else ""
        origins = [
            AdapterOrigin(prompt, tuple((x, y) for x, y in pairs), in_context, self.hypernetwork_name, note)
            for prompt, pairs in zip(given, several, strict=True)
        ]
        return LoRAWeights(
            lora.stored, lora.scaling, projections=lora.projections, base_model=base,
            provenance=[origin.to_dict() for origin in origins], chat=self.chat_export,
        )  # fmt: skip

    @torch.no_grad()
    def distances(self, prompts: str | Sequence[str]) -> list[PromptDistance] | None:
        """How far each prompt is from the prompts that the hypernetwork was trained on.

        A far prompt is unlike all that training showed, and its adapter should be checked before it is used. A near one is
        no promise: over held-out tasks the distance hardly tells how much an adapter helps (docs/results.md).

        Args:
            prompts: One prompt or several, without examples.

        Returns:
            One for each prompt; None where the hypernetwork's folder says nothing of its training prompts.

        Raises:
            PromptError: An empty prompt, or one longer than the encoder takes.
        """
        known = self.hypernetwork.training_prompts
        if known is None:
            return None
        states, mask = self.states.batch([prompts] if isinstance(prompts, str) else list(prompts))
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
        """Take a few gradient steps from adapters, all of them together in one batch.

        Only the adapters move. Each has its own loss, gradient clip and best step, so that its result is the same alone and
        beside others, to rounding. From 8 rows on a quarter of them is kept back: the step with the lowest loss on these is
        returned, which is never worse than ``lora`` by this measure. Ctrl-C returns the best so far with a warning; so does a
        loss that is not finite. Other threads use the model between two steps.

        Args:
            lora: One adapter for each prompt, such as :meth:`adapt` writes.
            prompts: Their prompts.
            rows: What is learned: ``Row`` objects, dicts of ``input`` and ``outputs``, or pairs of input and output. Of
                several prompts, each row names its ``prompt``.
            inputs: Texts without labels: the base with the prompt in its context answers them, and the adapters learn its
                distributions. One list for all prompts or one for each; a number has the base make so many up itself, which
                is a makeshift. With ``rows`` as well, the rows only decide which step is best.
            steps: Most steps; see ``RefineSettings``.
            seed: The same seed gives the same adapters.
            on_step: Called after each step.
            should_stop: Asked before each step; True returns the best so far.
            **settings: Further fields of ``RefineSettings``.

        Returns:
            As many adapters, whose ``provenance`` records prompt, rows, steps, seed and losses.

        Raises:
            DataError: Rows or inputs that cannot be used, or fewer than two for a prompt.
            LoRAError: Not one adapter for each prompt, or adapters of another base.
            ConfigError: Neither rows nor inputs, or a setting out of range.
        """
        chosen = {**settings, "seed": seed, **({} if steps is None else {"steps": steps})}
        if "starts" in chosen:
            chosen["starts"] = tuple(chosen["starts"])
        return refine_adapters(
            self, lora, prompts, rows=rows, inputs=inputs, settings=from_dict(RefineSettings, chosen), on_step=on_step,
            should_stop=should_stop,
        )  # fmt: skip
