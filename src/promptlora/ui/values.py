"""What the page shows, as plain values: limits, adapters, answers, changes of attention. They know nothing of how they are made or drawn."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from promptlora.inspect import AdapterSpace
from promptlora.lora import LoRAWeights

WRITTEN, BESIDE, SILENT = 0, 1, 2  # the three adapters of Written.stack
WHO = ("base", "in_context", "adapted", "adapted_in_context")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How much one visitor may ask for.

    Attributes:
        prompt_characters: Longest prompt, before its tokens are counted.
        inputs: How many inputs at once.
        input_characters: Longest input.
        new_tokens: Longest answer.
        walk_tokens: Longest text whose attention is shown.
        ablation_inputs: How many inputs the ablation takes.
        adapters: How many adapters are kept, for all visitors together.
        captures: How many walks of one layer are kept.
        rows: How many rows a refinement takes.
        steps: Most steps of a refinement.
    """

    prompt_characters: int = 20_000
    inputs: int = 6
    input_characters: int = 2_000
    new_tokens: int = 96
    walk_tokens: int = 96
    ablation_inputs: int = 3
    adapters: int = 32
    captures: int = 16
    rows: int = 64
    steps: int = 40


@dataclass(frozen=True, kw_only=True)
class Written:
    """An adapter as it is kept.

    Attributes:
        key: Digest of its prompt.
        lora: The adapter.
        stack: Three adapters: the same, the one for use with the prompt in the context as well, and one
            whose update is zero, for the rows of the base.
        seconds: How long writing the first one took.
        reused: It was not written for this request.
    """

    key: str
    lora: LoRAWeights
    stack: LoRAWeights
    seconds: float
    reused: bool = False


@dataclass(frozen=True, kw_only=True)
class Answers:
    """Four answers to each input, as far as they are generated.

    Attributes:
        inputs: The inputs.
        base: Answers of the base.
        in_context: Answers of the base with the prompt before the input.
        adapted: Answers of the base with the adapter, which does not read the prompt.
        adapted_in_context: Answers with both the adapter and the prompt before the input.
        read: Tokens that the model reads for each input: without the prompt, and with it.
        longest: The most tokens that an answer may have.
        cut: Which answers were cut there: four flags for each input, in the order above.
        done: Nothing will be added.
    """

    inputs: tuple[str, ...]
    base: tuple[str, ...]
    in_context: tuple[str, ...]
    adapted: tuple[str, ...]
    adapted_in_context: tuple[str, ...]
    read: tuple[tuple[int, int], ...]
    longest: int
    cut: tuple[tuple[bool, bool, bool, bool], ...]
    done: bool


@dataclass(frozen=True)
class Likely:
    """A possible first token of the answer, and its probability in the base and in the adapted model."""

    token: str
    base: float
    adapted: float


@dataclass(frozen=True, kw_only=True)
class Inside:
    """Where the adapter changes attention in a text, and what it makes likely.

    Attributes:
        tokens: The text of each token.
        template: Which of them the chat template wrote.
        layers: Numbers of the layers that have softmax weights.
        change: Jensen–Shannon distance between the weights of base and adapted, ``[layers, heads, tokens]``.
        likely: The most probable first tokens of the answer in either model, the most probable of the adapted model first.
    """

    tokens: tuple[str, ...]
    template: tuple[bool, ...]
    layers: tuple[int, ...]
    change: Tensor
    likely: tuple[Likely, ...]

    def most(self, token: int) -> tuple[int, int, float]:
        """The layer and head whose weights change most at a token, and their distance."""
        table = self.change[..., token].nan_to_num(-1.0)
        best = int(table.argmax())
        row, head = divmod(best, table.shape[1])
        return self.layers[row], head, float(table[row, head])


@dataclass(frozen=True, kw_only=True)
class Compared:
    """Two prompts side by side.

    Attributes:
        prompts: The two.
        inputs: What both were asked.
        answers: The adapted answers to each input, one for each prompt.
        space: The adapters of the reference prompts, then of these two.
        groups: The task of each of them; empty for these two.
        cosine: Cosine similarity of the two whole updates.
    """

    prompts: tuple[str, str]
    inputs: tuple[str, ...]
    answers: tuple[tuple[str, str], ...]
    space: AdapterSpace
    groups: tuple[str, ...]
    cosine: float


@dataclass(frozen=True, kw_only=True)
class Refined:
    """An adapter after a refinement, and what it says.

    Attributes:
        inputs: The inputs.
        answers: To each input: the answer of the generated adapter, and of the refined one.
        before: Loss of the rows that decide before the first step, in nats; None where it was not measured.
        after: The same of the step that was kept.
        best: The step that was kept; 0 is the generated adapter.
        kept_back: How many rows were kept back to choose it.
        note: What the visitor should know; empty for nothing.
        archive: The refined adapter as a PEFT folder in a ZIP file.
    """

    inputs: tuple[str, ...]
    answers: tuple[tuple[str, str], ...]
    before: float | None
    after: float | None
    best: int
    kept_back: int
    note: str
    archive: Path
