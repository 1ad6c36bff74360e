"""Lists of numbers: sums, extremes, filters, order."""

from __future__ import annotations

from functools import partial
from itertools import accumulate, pairwise

from promptlora.data.synthetic.family import choice, family

_f = partial(family, "lists of numbers")
_COMMAS = "Separate them with commas.|Use commas between the numbers.|Write them with a comma and a space between."

NUMBER_LISTS = (
    _f("sum", "numbers", sum, "add up the numbers of {x}|compute the sum of {x}|What is the sum of {x}?", "the sum of {x}|the total of all numbers of {x}"),
    _f("largest", "numbers", max, "find the largest number of {x}|copy the greatest number of {x}|Which number of {x} is the largest?", "the largest number of {x}|the maximum of {x}"),
    _f("smallest", "numbers", min, "find the smallest number of {x}|copy the least number of {x}|Which number of {x} is the smallest?", "the smallest number of {x}|the minimum of {x}"),
    _f("kth-number", "numbers", lambda v, k: v[k - 1] if len(v) >= k else None, "copy the {k:th} number of {x}|name number {k} of {x} in order", "the {k:th} number of {x}", k=(1, 2, 3, 4)),
    _f("last-number", "numbers", lambda v: v[-1], "copy the last number of {x}|name the number that {x} ends with", "the last number of {x}|the final number of {x}"),
    _f("second-largest", "numbers", lambda v: sorted(v)[-2], "find the second largest number of {x}|name the number of {x} that only one other exceeds", "the second largest number of {x}"),
    _f("range", "numbers", lambda v: max(v) - min(v), "subtract the smallest number of {x} from the largest|compute the range of {x}, largest minus smallest", "the difference between the largest and the smallest number of {x}"),
    _f("sort-numbers", "numbers", sorted, "sort {x} from small to large|put the numbers of {x} in ascending order", "the numbers of {x} in ascending order", _COMMAS),
    _f("sort-numbers-down", "numbers", lambda v: sorted(v, reverse=True), "sort {x} from large to small|put the numbers of {x} in descending order", "the numbers of {x} in descending order", _COMMAS),
    _f("reverse-numbers", "numbers", lambda v: v[::-1], "write the numbers of {x} from last to first|reverse the order of {x} without sorting", "the numbers of {x} in reversed order of writing", _COMMAS),
    _f("add-to-each", "numbers", lambda v, k: [n + k for n in v], "add {k} to each number of {x}|raise every number of {x} by {k}", "each number of {x} plus {k}, in order", _COMMAS, k=(1, 2, 3, 5, 10, 100)),
    _f("subtract-from-each", "numbers", lambda v, k: [n - k for n in v], "subtract {k} from each number of {x}|lower every number of {x} by {k}", "each number of {x} minus {k}, in order", _COMMAS, k=(1, 2, 3, 10)),
    _f("multiply-each", "numbers", lambda v, k: [n * k for n in v], "multiply each number of {x} by {k}|take every number of {x} times {k}", "each number of {x} times {k}, in order", _COMMAS, k=(2, 3, 10)),
    _f("above", "numbers", lambda v, n: [m for m in v if m > n] if 0 < sum(m > n for m in v) < len(v) else None, "keep only the numbers of {x} above {n}|list the numbers of {x} that are greater than {n}", "the numbers of {x} greater than {n}, in order", _COMMAS, n=(10, 15, 20, 25, 30, 40)),
    _f("below", "numbers", lambda v, n: [m for m in v if m < n] if 0 < sum(m < n for m in v) < len(v) else None, "keep only the numbers of {x} below {n}|list the numbers of {x} that are less than {n}", "the numbers of {x} less than {n}, in order", _COMMAS, n=(15, 20, 25, 30, 40, 50)),
    _f("parity-filter", "numbers", lambda v, kind: [n for n in v if (n % 2 == 0) == (kind == "even")] or None, "keep only the {kind} numbers of {x}|list the {kind} numbers of {x}", "the {kind} numbers of {x}, in order", _COMMAS, kind=("even", "odd")),
    _f("count-above", "numbers", lambda v, n: sum(m > n for m in v), "count the numbers of {x} that are greater than {n}|How many numbers of {x} are above {n}?", "how many numbers of {x} are above {n}", "Use digits.|Write a number in digits.", n=(10, 20, 30, 40)),
    _f("count-parity", "numbers", lambda v, kind: sum((n % 2 == 0) == (kind == "even") for n in v), "count the {kind} numbers of {x}|How many {kind} numbers are there in {x}?", "the number of {kind} numbers in {x}", "Use digits.|Write a number in digits.", kind=("even", "odd")),
    _f("first-plus-last", "numbers", lambda v: v[0] + v[-1], "add the first and the last number of {x}|compute first number plus last number of {x}", "the sum of the first and the last number of {x}"),
    _f("largest-plus-smallest", "numbers", lambda v: max(v) + min(v), "add the largest and the smallest number of {x}|compute maximum plus minimum of {x}", "the sum of the largest and the smallest number of {x}"),
    _f("median", "numbers", lambda v: sorted(v)[len(v) // 2] if len(v) % 2 else None, "find the median of {x}|sort {x} and take the number in the middle", "the median of {x}|the middle number of {x} after sorting"),
    _f("sum-of-parity", "numbers", lambda v, kind: sum(n for n in v if (n % 2 == 0) == (kind == "even")) or None, "add up only the {kind} numbers of {x}|compute the sum of the {kind} numbers of {x}", "the sum of the {kind} numbers of {x}", kind=("even", "odd")),
    _f("place-of-largest", "numbers", lambda v: v.index(max(v)) + 1, "give the position of the largest number of {x}, counted from 1|At which position (1, 2, 3 and so on) of {x} stands the largest number?", "the position of the largest number in {x}, counted from 1"),
    _f("drop-extreme", "numbers", lambda v, which: [n for n in v if n != (min(v) if which == "smallest" else max(v))], "delete the {which} number of {x}|remove the {which} number and keep the others of {x} in order", "{x} without its {which} number", _COMMAS, which=("smallest", "largest")),
    _f("running-total", "numbers", lambda v: list(accumulate(v)) if len(v) < 5 else None, "give the running totals of {x}|replace each number of {x} by the sum of it and all before it", "the running totals of {x}", _COMMAS),
    _f("gaps", "numbers", lambda v: [b - a for a, b in pairwise(v)] if list(v) == sorted(v) else None, "give the differences between neighbours of {x}, later minus earlier|subtract each number of {x} from the one after it", "the differences between consecutive numbers of {x}", _COMMAS),
    _f("nearest", "numbers", lambda v, n: min(v, key=lambda m: abs(m - n)) if len({abs(m - n) for m in v}) == len(v) else None, "find the number of {x} that is nearest to {n}|Which number of {x} is closest to {n}?", "the number of {x} nearest to {n}", n=(10, 20, 25, 30, 40, 50)),
    _f("parity-marks", "numbers", lambda v, a, b: "".join(a if n % 2 == 0 else b for n in v), "write {a} for each even and {b} for each odd number of {x}, without spaces|replace even numbers of {x} by {a} and odd ones by {b}, joined without commas", "one character per number of {x}: {a} for even, {b} for odd, joined", a="ex0+", b="oy1-"),
    _f("size-words", "numbers", lambda v, n: ["big" if m > n else "small" for m in v] if len(v) < 6 else None, "replace each number of {x} that is above {n} by big and each other one by small|write big for numbers of {x} over {n}, small for the rest", "big or small for each number of {x}, where big is above {n}", "Separate the words with commas.|Use commas.", n=(20, 30, 40)),
    _f("last-digits", "numbers", lambda v: [n % 10 for n in v], "give the last digit of each number of {x}|replace every number of {x} by its last digit", "the last digits of the numbers of {x}, in order", _COMMAS),
    _f("sum-with-plus", "numbers", lambda v: " + ".join(map(str, v)), "write {x} as an addition without its result, with plus signs|replace the commas of {x} by plus signs with spaces around", "{x} with plus signs instead of commas and a space on each side"),
    *choice("list questions", "sum-over", "numbers", lambda v, n: "yes" if sum(v) > n else "no", {"yes": "the sum of {x} is above {n}", "no": "it is not"}, "say whether the numbers of {x} add up to more than {n}|Is the sum of {x} greater than {n}?", n=(90, 110, 130)),
    *choice("list questions", "holds-large", "numbers", lambda v, n: "yes" if max(v) > n else "no", {"yes": "{x} holds a number above {n}", "no": "it does not"}, "say whether {x} holds a number greater than {n}|Is any number of {x} above {n}?", n=(48, 50, 52)),
)  # fmt: skip
