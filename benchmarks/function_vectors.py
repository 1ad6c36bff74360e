"""What function vectors add to generated adapters: which factor, which layers, and how many neutral inputs.

``python benchmarks/function_vectors.py configs/shipped.toml``

Measures the loss of a hypernetwork's adapters, in nats, on rows of the tasks that its configuration holds out of
training: without vectors, with vectors at several factors, depths and numbers of neutral inputs, with vectors of
another task's prompt, and with the prompt in the context. The tasks of the result tables are not used. Results:
``benchmarks/results/function_vectors.json``.
"""

from __future__ import annotations

import sys

import torch

from promptlora import LoRAWeights, PromptLoRA
from promptlora.adapt.function_vectors import (
    MIDDLE,
    NEUTRAL_INPUT,
    VARIED_INPUTS,
    add_function_vectors,
    constant_readers,
)
from promptlora.train.reading import read_training_data
from promptlora.train.validation import Validation
from runs import RESULTS, console, heldout_config, heldout_parser, told, write_json

FACTOR = 0.5
FACTORS = (0.25, 0.75, 1.0)
DEPTHS = ((0.0, 1.0), (1 / 3, 2 / 3))  # beside the middle


def main() -> int:
    options = heldout_parser(__doc__, RESULTS / "function_vectors.json").parse_args()
    torch.set_num_threads(options.threads)
    config = heldout_config(options.config)
    lm = PromptLoRA.from_pretrained(hypernetwork=options.hypernetwork)
    held = Validation(lm.host, read_training_data(config).held, config)
    prompts = [held.prompts[task] for task in held.tasks]
    plain, rows = lm.adapt(prompts, vectors=0.0), []

    def note(what: str, lora: LoRAWeights, adapter_of: dict[str, int] = held.right, **shown: bool) -> None:
        rows.append({"what": what, "loss": held.loss(lora, adapter_of, **shown)})
        console.print(f"{what}: {rows[-1]['loss']:.3f}", highlight=False)

    def richer(
        factor: float, layers: tuple[float, float] = MIDDLE, inputs: tuple[str, ...] = (NEUTRAL_INPUT,)
    ) -> LoRAWeights:
        return add_function_vectors(lm.host, plain, prompts, factor, constant_readers(lm.host, layers), inputs)

    note("no vectors", plain)
    chosen = richer(FACTOR)
    note(f"vectors, factor {FACTOR}", chosen)
    note("another prompt's adapter", plain, held.wrong)
    note("another prompt's adapter and vectors", chosen, held.wrong)
    for factor in FACTORS:
        note(f"vectors, factor {factor}", richer(factor))
    for low, high in DEPTHS:
        note(f"vectors, factor {FACTOR}, from {low:.2f} to {high:.2f} of the depth", richer(FACTOR, (low, high)))
    note(f"vectors, factor {FACTOR}, {len(VARIED_INPUTS)} neutral inputs", richer(FACTOR, inputs=VARIED_INPUTS))
    note("prompt in context", lm.adapt(prompts, vectors=0.0, in_context=True), in_context=True)
    write_json(options.output, {"config": options.config.name, "tasks": len(prompts), "results": rows})
    return 0


if __name__ == "__main__":
    sys.exit(told(main))
