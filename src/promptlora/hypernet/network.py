"""``HyperNetwork``: an encoder and a generator that write a LoRA for every projection in one forward.

Persistence is safetensors and JSON. It knows shapes and names of projections, and the fingerprint of the
base it was trained for; it never runs the base.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from safetensors.torch import save_file
from torch import Tensor, nn

from promptlora.errors import CheckpointError, one_line
from promptlora.files import creating_folder
from promptlora.hypernet.config import HyperNetworkConfig
from promptlora.hypernet.encoder import PromptEncoder
from promptlora.hypernet.generator import ShapeGroupedLoRAGenerator, context_layers
from promptlora.lora import LoRAWeights
from promptlora.projections import Projection, read_projections
from promptlora.reading import is_file, read_json, read_tensors
from promptlora.settings import from_dict, to_dict, whole

_FORMAT = "promptlora.hypernetwork/1"
WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
_WIDEST = 1 << 20  # hidden size of a base


class HyperNetwork(nn.Module):
    """Prompt states in, a LoRA for every projection out.

    Args:
        config: Its shape.
        projections: The projections of the base to write for.
        state_size: Width of the prompt states: the hidden size of the base.
        base: Fingerprint of the base it belongs to; see ``models.base_fingerprint``.
    """

    def __init__(
        self,
        config: HyperNetworkConfig,
        projections: Sequence[Projection],
        state_size: int,
        base: dict[str, str | int] | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.state_size = state_size
        self.base = dict(base or {})
        layers = context_layers(config, projections)
        self.encoder = PromptEncoder(config, state_size, layers) if config.generated else None
        self.generator = ShapeGroupedLoRAGenerator(config, projections)

    @property
    def projections(self) -> tuple[Projection, ...]:
        """The projections it writes for."""
        return self.generator.projections

    def forward(
        self,
        prompt_states: Float[Tensor, "prompts tokens *layers state"],
        prompt_mask: Bool[Tensor, "prompts tokens"],
        *,
        generated: bool = True,
        strength: float | None = None,
    ) -> LoRAWeights:
        """Write one adapter for each prompt; ``generated=False`` gives the static part alone, ``strength`` scales the other.

        ``prompt_states`` has an axis of all layers of the base where ``config.source`` is ``layers``.
        """
        if self.encoder is None:
            context = prompt_mask.new_zeros(len(prompt_mask), 0, dtype=torch.float32)  # only its length counts
        else:
            context = self.encoder(prompt_states, prompt_mask)
        lora: LoRAWeights = self.generator(context, generated=generated, strength=strength)
        return lora

    def parameter_groups(self) -> dict[str, list[tuple[str, nn.Parameter]]]:
        """Parameters by how they should move: ``trunk``, ``heads``, and ``static`` (what is added as it is)."""
        groups: dict[str, list[tuple[str, nn.Parameter]]] = {"trunk": [], "heads": [], "static": []}
        for name, parameter in self.named_parameters():
            if ".static_" in name or name.endswith(".gate"):
                groups["static"].append((name, parameter))
            elif ".heads." in name:
                groups["heads"].append((name, parameter))
            else:
                groups["trunk"].append((name, parameter))
        return groups

    # --- persistence ---------------------------------------------------------------------------------

    def write_to(self, folder: Path, dtype: torch.dtype | None = None) -> None:
        """Write weights and config.json into a folder that exists."""
        tensors = {
            name: value.detach().to(dtype or value.dtype).contiguous().cpu()
            for name, value in self.state_dict().items()
        }
        save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": _FORMAT})
        description = {
            "format": _FORMAT,
            "config": to_dict(self.config),
            "state_size": self.state_size,
            "base": self.base,
            "projections": [asdict(projection) for projection in self.projections],
        }
        (folder / CONFIG_FILE).write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")

    def save_pretrained(self, path: str | Path, *, overwrite: bool = False, dtype: torch.dtype | None = None) -> None:
        """Write ``model.safetensors`` and ``config.json`` to a folder, whole or not at all.

        Args:
            path: The folder to create.
            overwrite: Replace a folder that exists.
            dtype: Store the weights in this dtype (they are read back as float32).

        Raises:
            OutputError: The folder exists already or cannot be written.
        """
        with creating_folder(Path(path), overwrite=overwrite) as temporary:
            self.write_to(temporary, dtype)

    @classmethod
    def from_pretrained(cls, path: str | Path) -> HyperNetwork:
        """Read what :meth:`save_pretrained` wrote, as float32, in evaluation mode; nothing is unpickled.

        Raises:
            CheckpointError: A folder that is missing, or files that are truncated or do not fit together.
        """
        path = Path(path)
        for file in (CONFIG_FILE, WEIGHTS_FILE):
            if not is_file(path / file):
                raise CheckpointError(f"{path}: no {file}; expected a folder written by HyperNetwork.save_pretrained")
        description = read_json(path / CONFIG_FILE, CheckpointError)
        try:
            if description["format"] != _FORMAT:
                raise CheckpointError(f"format {str(description['format'])[:80]!r}; expected {_FORMAT!r}")
            config = from_dict(HyperNetworkConfig, description["config"])
            projections = read_projections(description["projections"])
            state_size = whole("state_size", description["state_size"], high=_WIDEST)
            with torch.device("meta"):  # no memory for sizes that the weights do not bear out, no random draws
                hypernetwork = cls(config, projections, state_size, _read_base(description["base"]))
        except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
            raise CheckpointError(
                f"{path / CONFIG_FILE}: not a hypernetwork's configuration ({one_line(error)}); fetch or train it again"
            ) from error
        hypernetwork.load_state_dict(hypernetwork._read_weights(path / WEIGHTS_FILE), assign=True)
        return hypernetwork.eval()

    def load_weights(self, file: Path) -> None:
        """Read weights from a safetensors file into the parameters there are.

        Raises:
            CheckpointError: A truncated file, or tensors of other names, shapes or values that are not finite.
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
            read[name] = value.to(expected[name].dtype, copy=True)  # no view of the file's memory
        return read

    def push_to_hub(self, repo_id: str, *, private: bool = False) -> str:
        """Upload to a model repository of the Hugging Face Hub; returns its address.

        Raises:
            CheckpointError: The hub cannot be reached or refuses.
        """
        import tempfile

        import huggingface_hub

        try:
            api = huggingface_hub.HfApi()
            with tempfile.TemporaryDirectory() as folder:
                self.write_to(Path(folder))
                address = api.create_repo(repo_id, private=private, exist_ok=True)
                api.upload_folder(repo_id=repo_id, folder_path=folder)
        except Exception as error:
            raise CheckpointError(
                f"{repo_id}: cannot be uploaded ({one_line(error)}); check the network, the name and the token"
            ) from error
        return str(address)


def _read_base(values: Any) -> dict[str, str | int]:
    """The fingerprint of a base: texts and whole numbers by name."""
    if not isinstance(values, dict) or not all(type(value) in (str, int) for value in values.values()):
        raise CheckpointError(f"base={str(values)[:80]}; expected texts and whole numbers by name")
    return values
