"""Scores of answers (0 to 100), the best constant answer, and intervals of means and ratios.

It knows texts and rows; it knows nothing of models.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from statistics import fmean
from typing import Any

import numpy

from promptlora.data import Row
from promptlora.extras import need

MAX_CANDIDATES = 300  # distinct outputs of a task that are tried as its constant answer, the most frequent first
_MAX_CHOOSING_ROWS = 300  # maximum number of rows on which a constant answer is chosen

_PUNCTUATION = str.maketrans("", "", string.punctuation)


@lru_cache(maxsize=1 << 16)
def normalize(text: str) -> str:
    """Lower case, without punctuation, with single spaces (the comparison of the Natural Instructions benchmark)."""
    return re.sub(r"\s+", " ", text.lower().translate(_PUNCTUATION)).strip()


def _comparable(text: str) -> str:
    """The text that exact match compares: the normalized text, or the text itself if it has only punctuation."""
    return normalize(text) or text.strip()


def exact_match(answer: str, outputs: Sequence[str]) -> float:
    """100 if the answer equals one of the outputs after :func:`normalize`, else 0.

    Outputs with only punctuation are compared unchanged.
    """
    ours = _comparable(answer)
    return 100.0 * any(ours == _comparable(output) for output in outputs)


@lru_cache(maxsize=1)
def _tokenizer() -> Any:
    need("eval", "rouge_score")
    from rouge_score.tokenizers import DefaultTokenizer

    return DefaultTokenizer(use_stemmer=True)


@lru_cache(maxsize=1 << 16)
def _words(text: str) -> tuple[str, ...]:
    return tuple(_tokenizer().tokenize(text))


@lru_cache(maxsize=1 << 16)
def _positions(text: str) -> dict[str, int]:
    """Map each word of a text to a bit mask of its positions."""
    masks: dict[str, int] = {}
    for i, word in enumerate(_words(text)):
        masks[word] = masks.get(word, 0) | 1 << i
    return masks


def _f1(answer: str, output: str) -> float:
    """F1 of the longest common subsequence of the words of two texts, from 0 to 1.

    The length comes from a bit-parallel algorithm (Crochemore et al. 2001): a few integer operations per word of the
    answer instead of a table, so that hundreds of constant answers can be scored on hundreds of rows.
    """
    ours, theirs = _words(answer), _words(output)
    if not ours or not theirs:
        return 0.0
    masks, every = _positions(output), (1 << len(theirs)) - 1
    state = every
    for word in ours:
        hits = state & masks.get(word, 0)
        state = ((state + hits) | (state - hits)) & every
    common = len(theirs) - state.bit_count()
    precision, recall = common / len(ours), common / len(theirs)
    return 2 * precision * recall / (precision + recall) if common else 0.0


def rouge_l(answer: str, outputs: Sequence[str]) -> float:
    """ROUGE-L F1 (Lin 2004) with stemming, in percent, against the most similar output.

    The values are those of the ``rouge_score`` package, whose tokenizer and stemmer are used.
    """
    return 100.0 * max(_f1(answer, output) for output in outputs)


def first_line(answer: str) -> str:
    """The first line that is not empty."""
    return next((line for line in answer.splitlines() if line.strip()), "")


def score(metric: str, answer: str, outputs: Sequence[str]) -> float:
    """Score an answer by the task's own metric, ``exact_match`` or ``rougeL``, from 0 to 100."""
    return exact_match(answer, outputs) if metric == "exact_match" else rouge_l(answer, outputs)


def constant_score(rows: Sequence[Row], answer: str) -> float:
    """The mean score of one answer given to all rows."""
    return fmean(score(row.metric, answer, row.outputs) for row in rows)


def best_constant(rows: Sequence[Row]) -> str:
    """The output that has the highest score when it is given to all of these rows.

    Candidates are the distinct outputs of the rows. Exact match considers all of them. ROUGE-L considers the most
    frequent ones, at most ``MAX_CANDIDATES`` (300), on at most the first 300 rows. The most frequent output is not
    always the best: with ROUGE-L, a text that shares words with many outputs scores higher than a frequent text that
    shares none. Among candidates with equal scores, the more frequent one is returned, then the earlier one.

    Args:
        rows: Rows of one task, one or more.
    """
    chosen = rows[:_MAX_CHOOSING_ROWS]
    counts = Counter(output for row in rows for output in dict.fromkeys(row.outputs))
    candidates = [output for output, _ in counts.most_common()]
    if all(row.metric == "exact_match" for row in rows):  # all candidates at once: count the rows that accept each
        accepted = Counter(key for row in rows for key in {_comparable(output) for output in row.outputs})
        return max(candidates, key=lambda output: accepted[_comparable(output)])
    return max(candidates[:MAX_CANDIDATES], key=lambda output: constant_score(chosen, output))


def bootstrap_interval(values: Sequence[float], seed: int = 0, draws: int = 10_000) -> tuple[float, float]:
    """95 % percentile interval of the mean, resampling the values (Efron 1979)."""
    array = numpy.asarray(values, dtype=float)
    low, high = numpy.percentile(array[_resampled(len(array), seed, draws)].mean(axis=1), [2.5, 97.5])
    return float(low), float(high)


def ratio_interval(
    above: Sequence[float], below: Sequence[float], seed: int = 0, draws: int = 10_000
) -> tuple[float, float]:
    """95 % percentile interval of ``mean(above) / mean(below)``, resampling pairs of values.

    Draws with a denominator of 0 are left out; the interval is (nan, nan) if this applies to all draws.
    """
    chosen = _resampled(len(above), seed, draws)
    tops, bottoms = (numpy.asarray(values, dtype=float)[chosen].mean(axis=1) for values in (above, below))
    ratios = tops[bottoms > 0] / bottoms[bottoms > 0]
    if not len(ratios):
        return float("nan"), float("nan")
    low, high = numpy.percentile(ratios, [2.5, 97.5])
    return float(low), float(high)


def _resampled(count: int, seed: int, draws: int) -> numpy.ndarray:
    return numpy.random.default_rng(seed).integers(0, count, size=(draws, count))
