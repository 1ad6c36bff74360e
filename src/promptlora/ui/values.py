"""The page's values as plain data: limits, adapters, answers, changes of attention. They know nothing of drawing."""

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
    """Limits per visitor.

    Attributes:
        prompt_characters: Maximum length of a prompt in characters, checked before its tokens are counted.
        inputs: Maximum number of inputs at once.
        input_characters: Maximum length of an input in characters.
        new_tokens: Maximum length of an answer in tokens.
        walk_tokens: Maximum length, in tokens, of a text whose attention is shown.
        ablation_inputs: Maximum number of inputs of the ablation.
        adapters: Number of adapters that are cached, for all visitors together.
        captures: Number of single-layer captures that are cached.
        rows: Maximum number of rows of a refinement.
        steps: Maximum number of steps of a refinement.
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
    """An adapter in the cache.

    Attributes:
        key: Hash of its prompt.
        lora: The adapter.
        stack: Three adapters: the same one, the one for use with the prompt also in the context, and one with a zero
            update for the rows of the base.
        seconds: Time that it took to write ``lora``.
        reused: Whether it was already in the cache.
    """

    key: str
    lora: LoRAWeights
    stack: LoRAWeights
    seconds: float
    reused: bool = False


@dataclass(frozen=True, kw_only=True)
class Answers:
    """Four answers per input, as far as they are generated.

    Attributes:
        inputs: The inputs.
        base: Answers of the base.
        in_context: Answers of the base with the prompt before the input.
        adapted: Answers of the base with the adapter, which does not read the prompt.
        adapted_in_context: Answers with both the adapter and the prompt before the input.
        read: Tokens that the model reads for each input: without the prompt, and with it.
        longest: Maximum number of tokens of an answer.
        cut: Whether each answer was cut off at that length: four flags per input, in the order above.
        done: Whether the answers are complete.
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
    """Where the adapter changes attention in a text, and which tokens it makes likely.

    Attributes:
        tokens: The text of each token.
        template: For each token, whether it comes from the chat template.
        layers: Indices of the layers that have softmax weights.
        change: Jensen–Shannon distance between the weights of base and adapted, ``[layers, heads, tokens]``.
        likely: The most probable first tokens of the answer in either model, sorted by probability in the adapted
            model.
    """

    tokens: tuple[str, ...]
    template: tuple[bool, ...]
    layers: tuple[int, ...]
    change: Tensor
    likely: tuple[Likely, ...]

    def most(self, token: int) -> tuple[int, int, float]:
        """The layer and head whose weights change most at a token, and the distance."""
        table = self.change[..., token].nan_to_num(-1.0)
        best = int(table.argmax())
        row, head = divmod(best, table.shape[1])
        return self.layers[row], head, float(table[row, head])


@dataclass(frozen=True, kw_only=True)
class Compared:
    """Two prompts side by side.

    Attributes:
        prompts: The two prompts.
        inputs: The inputs that both were tested on.
        answers: The adapted answers to each input, one per prompt.
        space: The adapters of the reference prompts, followed by those of these two.
        groups: The task of each adapter in ``space``; empty for these two.
        cosine: Cosine similarity of the two complete updates.
    """

    prompts: tuple[str, str]
    inputs: tuple[str, ...]
    answers: tuple[tuple[str, str], ...]
    space: AdapterSpace
    groups: tuple[str, ...]
    cosine: float


@dataclass(frozen=True, kw_only=True)
class Refined:
    """An adapter after a refinement, and its answers.

    Attributes:
        inputs: The inputs.
        answers: For each input, the answer of the generated adapter and that of the refined adapter.
        before: Loss on the kept-back rows before the first step, in nats; None if it was not measured.
        after: The same loss after the step that was selected.
        best: The step that was selected; 0 is the generated adapter.
        kept_back: Number of rows that were kept back to select it.
        note: A note for the visitor; empty if there is none.
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
