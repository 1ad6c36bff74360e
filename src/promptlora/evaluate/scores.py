"""Scores of answers, 0 to 100, and the interval of their mean.

It knows texts and rows; nothing of models.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from statistics import fmean

import numpy
from rouge_score.rouge_scorer import RougeScorer

from promptlora.data import Row

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ROUGE = RougeScorer(["rougeL"], use_stemmer=True)


def normalize(text: str) -> str:
    """Lower case, without punctuation, white space folded (as the Natural Instructions benchmark compares)."""
    return re.sub(r"\s+", " ", text.lower().translate(_PUNCTUATION)).strip()


def exact_match(answer: str, outputs: Sequence[str]) -> float:
    """100 when the answer equals one of the outputs after :func:`normalize`, else 0.

    Outputs that punctuation alone makes are compared as they stand.
    """
    ours = normalize(answer) or answer.strip()
    return 100.0 * any(ours == (normalize(output) or output.strip()) for output in outputs)


def rouge_l(answer: str, outputs: Sequence[str]) -> float:
    """ROUGE-L F1 (Lin 2004) with stemming, in percent, against the nearest output."""
    return 100.0 * max(float(_ROUGE.score(output, answer)["rougeL"].fmeasure) for output in outputs)


def first_line(answer: str) -> str:
    """The first line that is not empty."""
    return next((line for line in answer.splitlines() if line.strip()), "")


def score(metric: str, answer: str, outputs: Sequence[str]) -> float:
    """The task's own metric, 0 … 100: ``exact_match`` or ``rougeL``."""
    return exact_match(answer, outputs) if metric == "exact_match" else rouge_l(answer, outputs)


def majority_score(rows: Sequence[Row]) -> float:
    """The score of the most frequent output of these rows, given to all of them."""
    counts = Counter(output for row in rows for output in dict.fromkeys(row.outputs))
    constant = counts.most_common(1)[0][0]
    return fmean(score(row.metric, constant, row.outputs) for row in rows)


def bootstrap_interval(values: Sequence[float], seed: int = 0, draws: int = 10_000) -> tuple[float, float]:
    """95 % percentile interval of the mean, resampling the values (Efron 1979)."""
    rng = numpy.random.default_rng(seed)
    array = numpy.asarray(values, dtype=float)
    means = array[rng.integers(0, len(array), size=(draws, len(array)))].mean(axis=1)
    low, high = numpy.percentile(means, [2.5, 97.5])
    return float(low), float(high)
