"""Single numbers: notation, digits, arithmetic, calculations and short stories."""

from __future__ import annotations

from functools import partial
from math import prod

from promptlora.data.synthetic.family import choice, family, ordinal
from promptlora.data.synthetic.pools_data import in_words, roman

_n = partial(family, "number formats")
_d = partial(family, "digits")
_a = partial(family, "arithmetic")
_c = partial(choice, "number questions")
_DIGITS = "Use digits.|Write a number in digits."


def rounded(number: int, unit: int) -> int | None:
    """The nearest multiple of the unit; a number in the middle between two has none."""
    return None if number % unit * 2 == unit else (number + unit // 2) // unit * unit


NUMBERS = (
    _n("number-to-words", "number small", in_words, "write {x} in words|spell out {x} in English", "{x} in English words|{x} spelled out", 'Do not use "and".|Leave out the word "and".'),
    _n("words-to-number", "spelled", lambda v: v, "write {x} in digits|turn the words of {x} into digits", "{x} in digits|{x} as figures"),
    _n("to-roman", "small", roman, "write {x} in Roman numerals|convert {x} to a Roman numeral", "{x} in Roman numerals|the Roman numeral for {x}"),
    _n("from-roman", "roman", lambda v: v, "write {x} in ordinary digits|convert {x} to a decimal number", "{x} in ordinary digits|the value of {x} in decimal digits"),
    _n("to-binary", "small", lambda v, sign: f"{sign}{v:b}" if v < 64 else None, 'write {x} in binary digits, starting with "{sign}"|convert {x} to base 2 and begin with "{sign}"', '{x} in base 2 after the prefix "{sign}"', sign=("0b", "b", "#")),
    _n("binary", "small", lambda v: f"{v:b}" if v < 64 else None, "write {x} in binary|convert {x} to base 2", "{x} in binary digits|{x} in base 2, without a prefix"),
    _n("from-binary", "binary", lambda v: v, "write {x} as a decimal number|convert {x} from base 2 to base 10", "{x} in decimal digits|the decimal value of {x}"),
    _n("to-hex", "small", lambda v: f"{v:x}", "write {x} in hexadecimal with small letters and no prefix|convert {x} to base 16, in lower case and without 0x", "{x} in hexadecimal, lower case, no prefix"),
    _n("ordinal", "number small", ordinal, "write {x} as an ordinal such as 21st|turn {x} into an ordinal number with st, nd, rd or th", "{x} as an ordinal in digits, such as 3rd|the ordinal of {x} with its ending, as in 12th"),
    _n("thousands", "big", lambda v, sign: f"{v:,}".replace(",", sign), 'put "{sign}" between groups of three digits of {x}|write {x} with "{sign}" as the thousands separator', '{x} with "{sign}" as the thousands separator', sign=(",", ".", "'", "_")),
    _n("zero-pad", "small number", lambda v, k: f"{v:0{k}d}", "pad {x} with zeros on the left to {k} digits|write {x} with {k} digits by adding zeros in front", "{x} with leading zeros, {k} digits in all", k=(5, 6, 8)),
    _n("as-decimal", "number small", lambda v, k: f"{v}.{'0' * k}", "write {x} with {k} digits after the decimal point|show {x} to {k} decimal places", "{x} with {k} decimal places", k=(1, 2, 3)),
    _n("decimal-to-percent", "decimal", lambda v: f"{v}%", "write {x} as a percentage|convert {x} to percent with the % sign", "{x} as a whole percentage with the % sign"),
    _n("percent-to-decimal", "percent", lambda v: f"0.{v:02d}", "write {x} as a decimal number with two places|convert {x} to a decimal with two digits after the point", "{x} as a decimal number with two places"),
    _n("percent-to-fraction", "percent", lambda v: f"{v}/100", "write {x} as a fraction of 100, not reduced|convert {x} to hundredths as in 7/100", "{x} as a fraction with 100 below, not reduced"),
    _n("percent-rest", "percent", lambda v: f"{100 - v}%", "subtract {x} from 100%|say how many percent are missing from {x} to 100%", "the percentage that {x} lacks to 100%", "Use the % sign.|Write it with %."),
    _n("scientific", "large", lambda v: v, "write {x} in scientific notation such as 3.4e5|convert {x} to the form d.de followed by the power of ten", "{x} in scientific notation, as in 3.4e5"),
    _n("even-odd-word", "small", lambda v: f"{v} is {'even' if v % 2 == 0 else 'odd'}", 'say of {x} that it is even or odd, as in "7 is odd"|complete with even or odd: {x}, the word "is", then the kind', 'a phrase such as "7 is odd" about {x}'),
    _n("signed", "small number", lambda v, sign: f"{sign}{v}", 'put "{sign}" directly before {x}|write {x} with "{sign}" attached in front', '{x} with "{sign}" directly in front', sign=("No. ", "#", "+", "-", "x", "n=")),
    _d("digit-sum", "number", lambda v: sum(map(int, str(v))), "add the digits of {x}|compute the digit sum of {x}|What do the digits of {x} add up to?", "the sum of the digits of {x}"),
    _d("digit-product", "number", lambda v: prod(map(int, str(v))) if v < 1000 else None, "multiply the digits of {x}|compute the product of all digits of {x}", "the product of the digits of {x}"),
    _d("count-digits", "number big", lambda v: len(str(v)), "count the digits of {x}|How many digits does {x} have?", "the number of digits of {x}", _DIGITS),
    _d("first-digit", "number big", lambda v: str(v)[0], "copy the first digit of {x}|name the leading digit of {x}|What is the first digit of {x}?", "the first digit of {x}"),
    _d("last-digit", "number big", lambda v: str(v)[-1], "copy the last digit of {x}|name the final digit of {x}|What is the last digit of {x}?", "the last digit of {x}"),
    _d("largest-digit", "number big", lambda v: max(str(v)), "find the largest digit of {x}|Which digit of {x} is the largest?", "the largest digit of {x}"),
    _d("smallest-digit", "number big", lambda v: min(str(v)), "find the smallest digit of {x}|Which digit of {x} is the smallest?", "the smallest digit of {x}"),
    _d("reverse-digits", "number", lambda v: str(v)[::-1], "write the digits of {x} in reverse order|read {x} from right to left and write the digits", "the digits of {x} from last to first"),
    _d("sort-digits", "number big", lambda v: "".join(sorted(str(v))), "sort the digits of {x} from small to large and join them|write the digits of {x} in ascending order without spaces", "the digits of {x} in ascending order, joined"),
    _d("space-digits", "number big", lambda v, sign: sign.join(str(v)), 'write "{sign}" between the digits of {x}|separate the digits of {x} with "{sign}" and no spaces', 'the digits of {x} with "{sign}" between them', sign=("-", ".", "/", "+", "_")),
    _d("double-digits", "number", lambda v: "".join(c * 2 for c in str(v)), "write every digit of {x} twice|repeat each digit of {x} directly after itself", "{x} with each digit doubled, as in 1122"),
    _d("replace-digit", "number big", lambda v, a, b: str(v).replace(a, b) if a in str(v) and a != b else None, "replace every digit {a} of {x} by {b}|write {b} for each {a} in {x}", "{x} with each digit {a} changed to {b}", a="12345", b="6789"),
    _d("swap-end-digits", "number", lambda v: str(v)[-1] + str(v)[1:-1] + str(v)[0] if v > 9 else None, "swap the first and the last digit of {x}|exchange the outer two digits of {x}", "{x} with its first and last digit exchanged"),
    _a("round-to", "number", rounded, "round {x} to the nearest multiple of {unit}|give the multiple of {unit} that is nearest to {x}", "{x} rounded to the nearest {unit}", unit=(10, 100)),
    _a("add", "number small", lambda v, k: v + k, "add {k} to {x}|increase {x} by {k}|What is {x} plus {k}?", "{x} plus {k}|the sum of {x} and {k}", k=(1, 2, 3, 5, 7, 9, 10, 11, 20, 25, 50, 100)),
    _a("subtract", "number", lambda v, k: v - k if v >= k else None, "subtract {k} from {x}|decrease {x} by {k}|What is {x} minus {k}?", "{x} minus {k}", k=(1, 2, 3, 4, 5, 7, 9, 10)),
    _a("multiply", "small", lambda v, k: v * k, "multiply {x} by {k}|compute {k} times {x}|What is {x} times {k}?", "{x} times {k}|the product of {x} and {k}", k=(2, 3, 4, 5, 10, 11, 100)),
    _a("halve", "small number", lambda v: v // 2 if v % 2 == 0 else None, "divide {x} by two|halve {x}|What is half of {x}?", "half of {x}"),
    _a("square", "small", lambda v: v * v if v < 26 else None, "square {x}|multiply {x} by itself", "the square of {x}|{x} times itself"),
    _a("remainder", "small", lambda v, k: v % k, "divide {x} by {k} and give the remainder|compute {x} modulo {k}", "the remainder of {x} divided by {k}", k=(3, 4, 5, 7, 10)),
    _a("percent-of", "number", lambda v, p: v * p // 100 if v * p % 100 == 0 else None, "compute {p} percent of {x}|What is {p}% of {x}?", "{p} percent of {x}", p=(10, 50, 20, 25)),
    _a("successor", "number spelled", lambda v, way: v + 1 if way == "after" else v - 1, "give the whole number directly {way} {x}|Which whole number comes directly {way} {x}?", "the whole number directly {way} {x}", _DIGITS, way=("after", "before")),
    _a("next-multiple", "small number", lambda v, k: (v // k + 1) * k, "give the smallest multiple of {k} that is greater than {x}|find the next multiple of {k} above {x}", "the next multiple of {k} above {x}", k=(5, 10, 100)),
    _a("count-on", "small", lambda v, k: [v + k, v + 2 * k, v + 3 * k], "continue from {x} in steps of {k} and give the next three numbers|count on three times by {k} from {x}, without {x} itself", "the three numbers after {x} in steps of {k}", "Separate them with commas.|Use commas.", k=(1, 2, 3, 5, 10)),
    _a("opposite-number", "signed", lambda v: -v, "change the sign of {x}|multiply {x} by minus one", "{x} with the opposite sign|the negative of {x}"),
    _a("absolute", "signed", abs, "give the absolute value of {x}|write {x} without its sign", "the absolute value of {x}|{x} without a sign"),
    _a("calculate", "sum", lambda v: v["result"], "carry out {x}|compute the result of {x}|What is the result of {x}?", "the result of {x}|the value of {x}", "The sign * means times.|Read * as times."),
    _a("calculate-words", "spoken-sum", lambda v: v, "compute {x} and answer in digits|carry out {x} and write the result as a number in digits", "the result of {x} in digits"),
    _a("calculate-to-words", "spoken-sum", in_words, "compute {x} and answer in words|carry out {x} and spell out the result in English", "the result of {x} in English words"),
    _a("operation-name", "sum equation", lambda v: {"+": "addition", "-": "subtraction", "*": "multiplication"}[v["sign"]], "name the operation of {x}|Which operation does {x} use?", "the name of the operation in {x}", "Choose addition, subtraction or multiplication.|Possible answers: addition, subtraction, multiplication."),
    _a("swap-operands", "sum", lambda v: f"{v['second']} {v['sign']} {v['first']}" if v["first"] != v["second"] else None, "swap the two numbers of {x} and do not compute anything|exchange the numbers left and right of the sign in {x}", "{x} with its two numbers exchanged, not computed"),
    _a("sum-in-words", "sum", lambda v: f"{in_words(v['first'])} { {'+': 'plus', '-': 'minus', '*': 'times'}[v['sign']] } {in_words(v['second'])}", "read {x} aloud in words with plus, minus or times and do not compute it|spell out {x} in English without the result", "{x} in words, with plus, minus or times, not computed"),
    _a("full-equation", "sum", lambda v: f"{v['first']} {v['sign']} {v['second']} = {v['result']}", "copy {x} and complete it with = and the result|write {x}, then an equals sign and its value", "{x} as a full equation with its result", "The sign * means times.|Read * as times."),
    _a("fill-gap", "gap", lambda v: v, "find the number that belongs in the place of the question mark|solve {x} for the question mark|Which number must replace the question mark?", "the number that the question mark stands for"),
    _a("next-in-sequence", "sequence", lambda v: v["next"], "continue {x} by one number|find the number that comes next in {x}|Which number comes next in {x}?", "the next number of {x}"),
    _a("step-of-sequence", "sequence", lambda v: v["step"], "give the constant step between the numbers of {x}|By how much does {x} grow from one number to the next?", "the step by which {x} grows"),
    _a("story-total", "story", lambda v: v["total"], "work out how many things the person has at the end|solve {x}: how many are there in the end|How many does the person have now?", "how many things the person of {x} has at the end", _DIGITS),
    _a("larger", "number-pair", max, "copy the larger number of {x}|Which number of {x} is greater?", "the larger number of {x}"),
    _a("smaller", "number-pair", min, "copy the smaller number of {x}|Which number of {x} is less?", "the smaller number of {x}"),
    _a("difference", "number-pair", lambda v: abs(v[0] - v[1]), "subtract the smaller number of {x} from the larger|How far apart are the two numbers?", "the difference of the two numbers, larger minus smaller"),
    _a("pair-sum", "number-pair", sum, "add the two numbers|compute the sum of {x}", "the sum of the two numbers"),
    _a("compare-sign", "number-pair", lambda v: f"{v[0]} {'<' if v[0] < v[1] else '>'} {v[1]}", 'write < or > instead of "and" in {x} so that it is true|compare the two numbers with < or >, as in 3 < 8, in their order', "the two numbers in their order with the right sign, < or >, between, as in 3 < 8"),
    _a("between", "number-pair", lambda v: (v[0] + v[1]) // 2 if sum(v) % 2 == 0 else None, "find the number halfway between the two|compute the mean of {x}", "the mean of the two numbers"),
    *_c("even-odd", "number small", lambda v: "even" if v % 2 == 0 else "odd", {"even": "{x} is even", "odd": "{x} is odd"}, "say whether {x} is even or odd|Is {x} even or odd?"),
    *_c("multiple-of", "number small", lambda v, k: "yes" if v % k == 0 else "no", {"yes": "{x} is divisible by {k}", "no": "it is not"}, "say whether {x} is divisible by {k}|Is {x} a multiple of {k}?", k=(3, 4, 5, 10)),
    *_c("greater-than", "number", lambda v, n: "greater" if v > n else "less" if v < n else None, {"greater": "{x} is above {n}", "less": "{x} is below {n}"}, "compare {x} with {n}: greater or less|Is {x} greater or less than {n}?", n=(50, 100, 500, 1000)),
    *_c("small-compared", "small", lambda v, n: "yes" if v > n else "no", {"yes": "{x} is above {n}", "no": "it is not"}, "say whether {x} is above {n}|Is {x} larger than {n}?", n=(12, 20, 30, 40)),
    *_c("is-true", "equation", lambda v: v["true"], {"yes": "{x} is right", "no": "it is wrong"}, "check {x} (* means times)|Is {x} correct?"),
    *_c("prime", "small", lambda v: "yes" if v > 1 and all(v % k for k in range(2, v)) else "no", {"yes": "{x} is a prime number", "no": "it is not"}, "say whether {x} is a prime number|Is {x} prime?"),
    *_c("sign", "signed", lambda v: "negative" if v < 0 else "positive", {"negative": "{x} is below zero", "positive": "{x} is above zero"}, "say whether {x} is positive or negative|Is {x} positive or negative?"),
    *_c("digit-count", "number", lambda v: {2: "two digits", 3: "three digits", 4: "four digits"}[len(str(v))], {"two digits": "{x} has two digits", "three digits": "{x} has three digits", "four digits": "{x} has four digits"}, "say how many digits {x} has|Does {x} have two, three or four digits?"),
    *_c("holds-digit", "number big", lambda v, a: "yes" if a in str(v) else "no", {"yes": "the digit {a} occurs in {x}", "no": "it does not"}, "say whether {x} holds the digit {a}|Is there a {a} among the digits of {x}?", a="0123456789"),
    *_c("story-direction", "story", lambda v: v["grows"], {"yes": "the person has more things at the end", "no": "there are fewer"}, "say whether the person has more at the end than at the start|Does the person of {x} gain anything?"),
    *_c("near-hundred", "number", lambda v: "round" if v % 10 == 0 else "not round", {"round": "{x} ends in 0", "not round": "{x} does not end in 0"}, "call {x} round if it ends in 0 and not round otherwise|Is {x} round (ends in 0) or not round?"),
)  # fmt: skip
