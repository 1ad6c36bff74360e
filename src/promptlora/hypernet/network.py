"""``HyperNetwork``: an encoder and a generator that produce a LoRA for every projection in one forward pass.

It is stored as safetensors and JSON. It knows shapes and names of projections, and the fingerprint of the base it was
trained for; it never runs the base.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from safetensors.torch import save_file
from torch import Tensor, nn

from promptlora.errors import CheckpointError, ConfigError, one_line
from promptlora.files import creating_folder
from promptlora.hypernet.config import HyperNetworkConfig
from promptlora.hypernet.distance import TrainingPrompts
from promptlora.hypernet.encoder import Encoded, PromptEncoder
from promptlora.hypernet.generator import ShapeGroupedLoRAGenerator, context_layers
from promptlora.hypernet.hub import card, local_folder, upload
from promptlora.hypernet.reader import check_reader, make_reader
from promptlora.lora import LoRAWeights
from promptlora.projections import Projection, read_projections
from promptlora.reading import is_file, read_json, read_tensors
from promptlora.settings import from_dict, to_dict, whole

_FORMAT = "promptlora.hypernetwork/1"
WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
PROMPTS_FILE = "prompts.safetensors"
_WIDEST = 1 << 20  # hidden size of a base
_STATIC = tuple(f"generator.{name}." for name in ("static_A", "static_B", "static_C", "factor_A", "factor_B", "scales"))


class HyperNetwork(nn.Module):
    """Maps prompt states to a LoRA for every projection.

    Args:
        config: The shape of the hypernetwork.
        projections: The projections of the base to generate a LoRA for.
        state_size: Width of the prompt states; see ``PromptStates.state_size``.
        base: Fingerprint of the base it belongs to; see ``models.base_fingerprint``.
        embedder: Fingerprint of the text embedder that it uses, if any; see ``PromptStates.fingerprint``.

    Attributes:
        training_prompts: Descriptions of the training prompts, for measuring the distance of other prompts; None if
            they are not known.
    """

    def __init__(
        self,
        config: HyperNetworkConfig,
        projections: Sequence[Projection],
        state_size: int,
        base: dict[str, str | int] | None = None,
        embedder: dict[str, str | int] | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.state_size = state_size
        self.base, self.embedder = dict(base or {}), dict(embedder or {})
        self.training_prompts: TrainingPrompts | None = None
        layers = context_layers(config, projections)
        if torch.get_default_device().type != "meta":
            _check_memory(config, projections, state_size)
        self.encoder = PromptEncoder(config, state_size, layers) if config.generated else None
        self.generator = ShapeGroupedLoRAGenerator(config, projections)
        self.reader: ShapeGroupedLoRAGenerator | None = None
        if config.reader:
            self.reader = make_reader(config, projections)
        if config.context_flag and config.generated:
            self.in_context = nn.Parameter(torch.zeros(config.context_size))

    @property
    def projections(self) -> tuple[Projection, ...]:
        """The projections that it generates a LoRA for."""
        return self.generator.projections

    def context(
        self,
        prompt_states: Float[Tensor, "prompts tokens *layers state"],
        prompt_mask: Bool[Tensor, "prompts tokens"],
    ) -> Float[Tensor, "prompts *chosen d"]:
        """The contexts of prompts; with ``config.source = "layers"`` one per layer.

        With ``config.generated = False`` the contexts have width 0.
        """
        return self.encode(prompt_states, prompt_mask).context

    def encode(
        self,
        prompt_states: Float[Tensor, "prompts tokens *layers state"],
        prompt_mask: Bool[Tensor, "prompts tokens"],
    ) -> Encoded:
        """The contexts of prompts, and their encoded tokens for generators that read them."""
        if self.encoder is None:
            nothing = prompt_mask.new_zeros(len(prompt_mask), 0, dtype=torch.float32)  # only its length is used
            return Encoded(nothing, nothing[:, None], prompt_mask)
        return self.encoder.encode(prompt_states, prompt_mask)

    @property
    def reader_size(self) -> int:
        """The number of parameters of the reader, which are fixed; 0 without a reader."""
        return 0 if self.reader is None else sum(p.numel() for p in self.reader.parameters())

    def reader_lora(self) -> LoRAWeights | None:
        """The LoRA that the base has while it reads prompts, as one adapter; None without ``config.reader``."""
        if self.reader is None:
            return None
        nothing = next(self.reader.parameters()).new_zeros(1, 0)  # only its length is used
        lora: LoRAWeights = self.reader(nothing)
        return lora.detach()

    def load_reader(self, network: HyperNetwork) -> None:
        """Copy the weights of a multi-task LoRA (``generated=False``) into the reader.

        Raises:
            ConfigError: This hypernetwork has no reader.
            CheckpointError: See :func:`promptlora.hypernet.reader.check_reader`.
        """
        if self.reader is None:
            raise ConfigError(
                "reader=false. Expected a hypernetwork with a reader. Fix: set reader=true in its configuration."
            )
        check_reader(network, self.config, self.projections, self.base)
        self.reader.load_state_dict(network.generator.state_dict())

    def write(
        self,
        prompts: Tensor | Encoded,
        in_context: Bool[Tensor, " prompts"] | bool = False,
        *,
        generated: bool = True,
        dtype: torch.dtype | None = None,
    ) -> LoRAWeights:
        """One adapter per prompt of :meth:`encode`, or per context; for the other arguments see :meth:`forward`."""
        context = prompts.context if isinstance(prompts, Encoded) else prompts
        if self.config.context_flag and self.encoder is not None:
            # A plain bool is not converted to a tensor, because that would wait for the accelerator.
            flag = in_context if isinstance(in_context, bool) else in_context.reshape(-1, *[1] * (context.dim() - 1))
            context = context + flag * self.in_context
        given = prompts._replace(context=context) if isinstance(prompts, Encoded) else context
        lora: LoRAWeights = self.generator(given, generated=generated, dtype=dtype)
        return lora

    def forward(
        self,
        prompt_states: Float[Tensor, "prompts tokens *layers state"] | Encoded,
        prompt_mask: Bool[Tensor, "prompts tokens"] | None = None,
        in_context: Bool[Tensor, " prompts"] | bool = False,
        *,
        generated: bool = True,
        dtype: torch.dtype | None = None,
    ) -> LoRAWeights:
        """Generate one adapter per prompt.

        Args:
            prompt_states: The states from ``PromptStates.batch``, which have an axis for the layers of the base if
                ``config.source`` is ``layers``; or the result of :meth:`encode` for these states.
            prompt_mask: True where a token is not padding; not needed with the result of :meth:`encode`.
            in_context: Whether the base also has each prompt in its context; no effect without ``config.context_flag``.
            generated: False returns only the static part.
            dtype: Dtype of the adapters, by default that of the parameters. All projections of a shape are cast at
                once.
        """
        if isinstance(prompt_states, Encoded):
            encoded = prompt_states
        else:
            assert prompt_mask is not None
            encoded = self.encode(prompt_states, prompt_mask)
        return self.write(encoded, in_context, generated=generated, dtype=dtype)

    def parameter_groups(self) -> dict[str, list[tuple[str, nn.Parameter]]]:
        """The parameters grouped by how their learning rate is set.

        ``heads`` contains the linear layers that generate matrices; their learning rates depend on :meth:`head_fan_in`.
        ``static`` contains the parameters that are used directly: the static LoRA, shared factors, scales and the gates
        of ranks. ``trunk`` contains all others, including the embeddings inside heads and the gate of prompts. The
        reader is in no group, because it is not trained.
        """
        groups: dict[str, list[tuple[str, nn.Parameter]]] = {"trunk": [], "heads": [], "static": []}
        for name, parameter in self.named_parameters():
            if name.startswith("reader."):
                continue
            if name.startswith("generator.heads.") and hasattr(self._owner(name), "fan_in"):
                groups["heads"].append((name, parameter))
            elif name.startswith(_STATIC) or (name.startswith("generator.heads.") and name.endswith(".gate")):
                groups["static"].append((name, parameter))
            else:
                groups["trunk"].append((name, parameter))
        return groups

    def head_fan_in(self, name: str) -> int:
        """The number of inputs of the head's linear layer that a weight or bias belongs to.

        Args:
            name: The name of a parameter in the group ``heads`` of :meth:`parameter_groups`.
        """
        return int(self._owner(name).fan_in)  # type: ignore[arg-type]

    def _owner(self, name: str) -> nn.Module:
        return self.get_submodule(name.rpartition(".")[0])

    # --- persistence ---------------------------------------------------------------------------------

    def write_to(self, folder: Path, dtype: torch.dtype | None = None) -> None:
        """Write weights, config.json and, if known, the training prompts' descriptions into an existing folder."""
        tensors = {
            name: value.detach().to(dtype or value.dtype).contiguous().cpu()
            for name, value in self.state_dict().items()
        }
        save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": _FORMAT})
        if self.training_prompts is not None:
            self.training_prompts.write(folder / PROMPTS_FILE)
        description = {
            "format": _FORMAT,
            "config": to_dict(self.config),
            "state_size": self.state_size,
            "base": self.base,
            **({"embedder": self.embedder} if self.embedder else {}),
            "projections": [asdict(projection) for projection in self.projections],
        }
        (folder / CONFIG_FILE).write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")

    def save_pretrained(self, path: str | Path, *, overwrite: bool = False, dtype: torch.dtype | None = None) -> None:
        """Write ``model.safetensors``, ``config.json`` and, if known, ``prompts.safetensors`` to a folder, atomically.

        Args:
            path: The folder to create.
            overwrite: Whether to replace an existing folder.
            dtype: The dtype of the stored weights (they are always loaded as float32).

        Raises:
            OutputError: The folder already exists or cannot be written.
        """
        with creating_folder(Path(path), overwrite=overwrite) as temporary:
            self.write_to(temporary, dtype)

    @classmethod
    def from_pretrained(
        cls, path: str | Path, *, revision: str | None = None, token: str | bool | None = None
    ) -> HyperNetwork:
        """Load what :meth:`save_pretrained` or :meth:`push_to_hub` wrote, as float32, in evaluation mode.

        Loading never unpickles anything.

        Args:
            path: A folder, or ``owner/name`` on the Hugging Face Hub; a local folder of that name takes precedence.
            revision: Branch, tag or commit on the Hub.
            token: Access token for a private repository; by default that of ``hf auth login``.

        Raises:
            CheckpointError: The folder is missing, the id cannot be downloaded, or files are truncated or inconsistent.
        """
        path = local_folder(path, (CONFIG_FILE, WEIGHTS_FILE, PROMPTS_FILE), revision=revision, token=token)
        if not is_file(path / WEIGHTS_FILE) and is_file(path / CONFIG_FILE):
            raise CheckpointError(
                f"{path}: no {WEIGHTS_FILE}; expected a folder written by HyperNetwork.save_pretrained"
            )
        with _configuration_of(path) as description:
            config = from_dict(HyperNetworkConfig, description["config"])
            projections = read_projections(description["projections"])
            state_size = whole("state_size", description["state_size"], high=_WIDEST)
            with torch.device("meta"):  # no memory before the sizes are checked, no random draws
                embedder = _read_base(description.get("embedder") or {})
                hypernetwork = cls(config, projections, state_size, _read_base(description["base"]), embedder)
        hypernetwork.load_state_dict(hypernetwork._read_weights(path / WEIGHTS_FILE), assign=True)
        if is_file(path / PROMPTS_FILE):
            hypernetwork.training_prompts = TrainingPrompts.read(path / PROMPTS_FILE)
        return hypernetwork.eval()

    def load_weights(self, file: Path) -> None:
        """Load weights from a safetensors file into the existing parameters.

        Raises:
            CheckpointError: The file is truncated, tensors have other names or shapes, or values are not finite.
        """
        self.load_state_dict(self._read_weights(file))

    def _read_weights(self, file: Path) -> dict[str, Tensor]:
        """The tensors of a file, in the dtypes of the parameters, checked against their names and shapes."""
        tensors, _ = read_tensors(file, CheckpointError, fix="the file is damaged; fetch or train it again")
        expected = self.state_dict()
        odd = sorted(set(tensors) ^ set(expected))
        if odd:
            raise CheckpointError(
                f"{file}: {odd[0]} is {'missing' if odd[0] in expected else 'not expected'}; it does not fit its "
                f"{CONFIG_FILE}; fetch or train it again"
            )
        read = {}
        for name, value in tensors.items():
            if value.shape != expected[name].shape or not value.is_floating_point():
                raise CheckpointError(
                    f"{file}: {name} is {value.dtype} {list(value.shape)}; expected floats "
                    f"{list(expected[name].shape)} as {CONFIG_FILE} says; fetch or train it again"
                )
            read[name] = value.to(expected[name].dtype, copy=True)  # not a view of the file's memory
        return read

    def push_to_hub(
        self,
        repo_id: str,
        *,
        base_model: str | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        dtype: torch.dtype | None = None,
    ) -> str:
        """Upload weights, configuration and a generated card to a model repository of the Hugging Face Hub, as one commit.

        Args:
            repo_id: ``owner/name``; the repository is created if it does not exist.
            base_model: Hub id of the base, for the card.
            private: Whether a new repository is private; by default the owner's settings decide.
            token: Access token; by default that of ``hf auth login``.
            revision: The branch to commit to, created if it does not exist; by default ``main``.
            dtype: The dtype of the stored weights (they are always loaded as float32).

        Returns:
            The URL of the repository.

        Raises:
            CheckpointError: The Hub cannot be reached or refuses the upload.
        """
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            self.write_to(folder, dtype)
            text = card(repo_id, base=self.base, sizes=self._sizes(), base_model=base_model, embedder=self.embedder)
            (folder / "README.md").write_text(text, encoding="utf-8")
            return upload(folder, repo_id, private=private, token=token, revision=revision)

    def _sizes(self) -> dict[str, str]:
        """The rows of the card's size table."""
        modules = len({projection.module for projection in self.projections})
        reader = f", {self.reader_size:,} of them in the reader" if self.reader_size else ""
        return {
            "parameters": f"{sum(p.numel() for p in self.parameters()):,}{reader}",
            "projections": f"{len(self.projections)} in {modules} modules",
            "rank": str(self.config.rank),
            "longest prompt": f"{self.config.max_prompt_tokens} tokens",
        }


@contextmanager
def _configuration_of(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the values of a folder's config.json; errors from using them inside ``with`` become a CheckpointError."""
    file = path / CONFIG_FILE
    if not is_file(file):
        raise CheckpointError(f"{path}: no {CONFIG_FILE}; expected a folder written by HyperNetwork.save_pretrained")
    description = read_json(file, CheckpointError)
    try:
        if description["format"] != _FORMAT:
            raise CheckpointError(f"format {repr(description['format'])[:80]}; expected {_FORMAT!r}")
        yield description
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise CheckpointError(
            f"{file}: not a hypernetwork's configuration ({one_line(error)}); fetch or train it again"
        ) from error


def read_config(path: str | Path) -> HyperNetworkConfig:
    """The configuration of a hypernetwork in a folder or on the Hub; the weights are not loaded.

    Raises:
        CheckpointError: The folder is missing, the id cannot be downloaded, or the file is damaged.
    """
    with _configuration_of(local_folder(path, (CONFIG_FILE,))) as description:
        return from_dict(HyperNetworkConfig, description["config"])


def _check_memory(config: HyperNetworkConfig, projections: Sequence[Projection], state_size: int) -> None:
    """Refuse parameters that do not fit in this machine's memory, before allocating any.

    Raises:
        ConfigError: They do not fit; the message contains their size in bytes.
    """
    try:
        with torch.device("meta"):
            made = HyperNetwork(config, projections, state_size)
        needed = sum(p.numel() * p.element_size() for p in made.parameters())
    except (RuntimeError, TypeError) as error:  # sizes beyond 64 bits
        raise ConfigError(
            f"hypernetwork: too large ({one_line(error)}); choose a smaller rank or context_size"
        ) from error
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else math.inf
    if needed > there:
        raise ConfigError(
            f"hypernetwork: rank={config.rank} and context_size={config.context_size} make {needed / 1e9:,.0f} GB of "
            f"parameters. Expected at most {there / 1e9:,.0f} GB, the memory of this machine. Fix: make them smaller."
        )


def _read_base(values: Any) -> dict[str, str | int]:
    """The fingerprint of a base: strings and integers by name."""
    if not isinstance(values, dict) or not all(type(value) in (str, int) for value in values.values()):
        raise CheckpointError(f"base={str(values)[:80]}; expected texts and whole numbers by name")
    return values
