"""60 prompts as users write them: base, prompt in context, adapter, and both, each answer checked by a strict rule.

``python benchmarks/user_prompts.py`` answers the two inputs of each prompt in ``user_prompts.jsonl`` under four
conditions (greedy, at most 32 tokens) and writes ``benchmarks/results/user_prompts.json`` and ``.md``.
``--hypernetwork`` takes the folder of another hypernetwork, ``--device cuda`` a GPU. The prompts are not used for any
decision: they were written before they were first run, and nothing is trained or selected on them.

A check is an object of rules that must all hold; an empty answer fails. Texts are compared without case, surrounding
quotes, final punctuation and repeated spaces, and phrases match only whole words.

* ``equals``: the answer is one of these texts.
* ``contains_all``, ``contains_any``, ``not_contains``: words or phrases.
* ``regex``: the whole answer matches, unchanged except for surrounding white space; a dot also matches line breaks.
* ``max_words``: the answer has at most this many words, split at spaces.
* ``json_keys``: the answer is a JSON object with exactly these keys.
* ``upper``, ``lower``: if true, all letters must have this case.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from promptlora.errors import DataError

PROMPTS = Path(__file__).with_suffix(".jsonl")
KINDS = ("translate", "rewrite", "extract", "classify", "persona", "format", "rule", "refuse")
CONDITIONS = {
    "base": "base, no prompt",
    "in_context": "base, prompt in context",
    "adapter": "adapter",
    "adapter_in_context": "adapter and prompt in context",
}
MAX_NEW_TOKENS = 32


def plain(text: str) -> str:
    """The normalised text that checks compare."""
    text = " ".join(text.casefold().replace("’", "'").split())
    return text.strip("\"'“”`*").rstrip(".!").strip("\"'“”`*").strip()


def _has(answer: str, phrase: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(plain(phrase))}(?!\w)", plain(answer)) is not None


def _json_keys(answer: str, keys: Sequence[str]) -> bool:
    try:
        value = json.loads(answer)
    except ValueError:
        return False
    return isinstance(value, dict) and set(value) == set(keys)


RULES: dict[str, Callable[[str, Any], bool]] = {
    "equals": lambda answer, texts: plain(answer) in {plain(text) for text in texts},
    "contains_all": lambda answer, phrases: all(_has(answer, phrase) for phrase in phrases),
    "contains_any": lambda answer, phrases: any(_has(answer, phrase) for phrase in phrases),
    "not_contains": lambda answer, phrases: not any(_has(answer, phrase) for phrase in phrases),
    "regex": lambda answer, pattern: re.fullmatch(pattern, answer.strip(), re.DOTALL) is not None,
    "max_words": lambda answer, most: len(answer.split()) <= most,
    "json_keys": _json_keys,
    "upper": lambda answer, _: answer == answer.upper(),
    "lower": lambda answer, _: answer == answer.lower(),
}


def passes(answer: str, check: Mapping[str, Any]) -> bool:
    """Whether an answer satisfies all rules of a check; an empty answer never does.

    Raises:
        DataError: The check has no rule or an unknown rule.
    """
    unknown = set(check) - set(RULES)
    if unknown or not check:
        raise DataError(f"check: {sorted(check)}. Expected some of {', '.join(RULES)}. Fix: correct the file.")
    return bool(answer.strip()) and all(RULES[name](answer, value) for name, value in check.items())


def read_prompts(path: Path = PROMPTS) -> list[dict[str, Any]]:
    """The prompts with their kinds, inputs and checks."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def answers_of(lm: Any, prompts: Sequence[str], inputs: Sequence[str], condition: str, batch_size: int) -> list[str]:
    """The answers under one condition; ``inputs[i]`` belongs to ``prompts[i]``."""
    shown = condition.endswith("in_context")
    distinct = list(dict.fromkeys(prompts))
    adapters, index = None, None
    if condition.startswith("adapter"):
        adapters = lm.adapt(distinct, in_context=shown)
        index = [distinct.index(prompt) for prompt in prompts]
    answers: list[str] = lm.generate(
        list(inputs),
        adapters,
        adapter_index=index,
        in_context=list(prompts) if shown else None,
        max_new_tokens=MAX_NEW_TOKENS,
        batch_size=batch_size,
    )
    return answers


def score(items: Sequence[Mapping[str, Any]], answers: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Passed checks by condition and kind, and every answer; ``answers[condition]`` is in the order of the inputs."""
    rows = [(item, one) for item in items for one in item["inputs"]]
    passed: dict[str, dict[str, int]] = {name: defaultdict(int) for name in answers}
    listed = []
    for i, (item, one) in enumerate(rows):
        listed.append({"prompt": item["prompt"], "kind": item["kind"], "input": one["input"], "answers": {}})
        for name, given in answers.items():
            right = passes(given[i], one["check"])
            passed[name][item["kind"]] += right
            listed[-1]["answers"][name] = {"text": given[i], "right": right}
    kinds = [kind for kind in KINDS if any(item["kind"] == kind for item in items)]
    of = {kind: sum(item["kind"] == kind for item, _ in rows) for kind in kinds}
    total = {name: sum(by_kind.values()) for name, by_kind in passed.items()}
    return {
        "checks": len(rows),
        "passed": total,
        "by_kind": {kind: {"checks": of[kind], **{name: passed[name][kind] for name in passed}} for kind in kinds},
        "answers": listed,
    }


def table(values: Mapping[str, Any]) -> str:
    """The scores as a Markdown table."""
    names = list(values["passed"])
    lines = [
        "# Prompts as users write them",
        "",
        f"Checks passed of {values['checks']} (two for each of the prompts of `benchmarks/user_prompts.jsonl`); greedy, "
        f"at most {MAX_NEW_TOKENS} tokens; base {values['base_model']}, hypernetwork {values['hypernetwork']}.",
        "",
        "| kind | checks | " + " | ".join(CONDITIONS[name] for name in names) + " |",
        "| --- | ---: |" + " ---: |" * len(names),
    ]
    lines += [
        f"| {kind} | {row['checks']} | " + " | ".join(str(row[name]) for name in names) + " |"
        for kind, row in values["by_kind"].items()
    ]
    lines.append(f"| all | {values['checks']} | " + " | ".join(str(values["passed"][name]) for name in names) + " |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Answer, score and write the results."""
    from promptlora.adapt.prompt_lora import PromptLoRA
    from promptlora.cli.console import check_device, dtype_named
    from promptlora.files import replacing_file
    from runs import RESULTS, console, positive, write_json

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hypernetwork", help="folder of a hypernetwork; by default the one in the package")
    parser.add_argument("--base", help="base model: folder or Hugging Face id; by default the embedded one")
    parser.add_argument("--device", default="cpu", help="where it runs (default cpu)")
    parser.add_argument("--dtype", default="float32", help="float32 or bfloat16 (default float32)")
    parser.add_argument("--batch-size", type=positive, default=16, help="inputs that run at once (default 16)")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--json", action="store_true", help="print the results as JSON instead of the table")
    options = parser.parse_args()
    items = read_prompts()
    lm = PromptLoRA.from_pretrained(
        options.hypernetwork,
        options.base,
        dtype=dtype_named(options.dtype),
        device=check_device(options.device),
        progress=lambda line: console.print(line, highlight=False),
    )
    rows = [(item["prompt"], one["input"]) for item in items for one in item["inputs"]]
    prompts, inputs = [prompt for prompt, _ in rows], [text for _, text in rows]
    answers = {}
    for name, label in CONDITIONS.items():
        console.print(label, highlight=False)
        answers[name] = answers_of(lm, prompts, inputs, name, options.batch_size)
    values = {
        "base_model": Path(options.base).name if options.base else "SmolLM2-135M-Instruct",
        "hypernetwork": Path(options.hypernetwork).name if options.hypernetwork else "the one in the package",
        **score(items, answers),
    }
    options.output.mkdir(parents=True, exist_ok=True)
    write_json(options.output / "user_prompts.json", values)
    with replacing_file(options.output / "user_prompts.md") as temporary:
        temporary.write_text(table(values), encoding="utf-8")
    print(json.dumps(values, indent=1, ensure_ascii=False) if options.json else table(values), end="\n")
    return 0


if __name__ == "__main__":
    from runs import told

    sys.exit(told(main))
