"""Write the examples in README.md: answers of the weights in the package to prompts that a rule chooses.

``python scripts/readme_examples.py`` writes the block between the two markers, ``--check`` exits with 1 when an example
is not true any more. The rule: the first prompt of each kind in ``benchmarks/user_prompts.jsonl``, with its first input.
Nothing is trained or chosen on these prompts.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
START, END = "<!-- examples: start (python scripts/readme_examples.py) -->", "<!-- examples: end -->"
LONGEST = 60  # characters of an answer that are shown
CITY = ("Extract the name of the city from the sentence.", "She flew to Paris on Monday.")


def chosen() -> list[tuple[str, str]]:
    """The first prompt of each kind with its first input."""
    lines = (ROOT / "benchmarks" / "user_prompts.jsonl").read_text(encoding="utf-8").splitlines()
    first: dict[str, tuple[str, str]] = {}
    for item in map(json.loads, lines):
        first.setdefault(item["kind"], (item["prompt"], item["inputs"][0]["input"]))
    return list(first.values())


def _cell(text: str) -> str:
    shown = " ".join(text.split()).replace("|", "\\|").replace("`", "'")
    return f"`{shown[:LONGEST]}{'…' if len(shown) > LONGEST else ''}`" if shown else "(nothing)"


def block(lm: Any) -> str:
    """The text between the markers."""
    examples = [CITY, *chosen()]
    prompts, inputs = [prompt for prompt, _ in examples], [text for _, text in examples]
    options = {"max_new_tokens": 24}
    ways = [
        lm.generate(inputs, in_context=prompts, **options),
        lm.generate(inputs, lm.adapt(prompts), **options),
        lm.generate(inputs, lm.adapt(prompts, in_context=True), in_context=prompts, **options),
    ]
    lines = [
        "| prompt | input | base, prompt in context | adapter alone | adapter and prompt in context |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {prompt} | {text} | {' | '.join(_cell(way[i]) for way in ways)} |"
        for i, (prompt, text) in enumerate(examples)
        if i
    ]
    sample = [
        f'$ promptlora run --prompt "{CITY[0]}" "{CITY[1]}" --max-new-tokens 24',
        f"base, prompt in context     {' '.join(ways[0][0].split())}",
        f"adapted                     {ways[1][0]}",
        f"adapted, prompt in context  {ways[2][0]}",
    ]
    return "\n".join(["```console", *sample, "```", "", *lines])


def written(readme: str, text: str) -> str:
    """The README with the block put in."""
    before, _, rest = readme.partition(START)
    _, _, after = rest.partition(END)
    return f"{before}{START}\n\n{text}\n\n{END}{after}"


def main() -> int:
    """Write or check the examples."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit 1 when an example is not true any more"
    )
    options = parser.parse_args()
    from promptlora import PromptLoRA

    readme = README.read_text(encoding="utf-8")
    new = written(readme, block(PromptLoRA.from_pretrained(device="cpu")))
    if options.check:
        if new != readme:
            sys.stderr.write("an example in README.md is not true any more: run python scripts/readme_examples.py\n")
        return int(new != readme)
    README.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
