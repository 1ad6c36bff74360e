"""Lists training tasks that share a goal with a held-out task or have broken answers; training drops them.

``python benchmarks/data_overlap.py DATA`` reads ``train.jsonl.gz`` and ``heldout.jsonl.gz`` of each folder inside
``DATA``, prints the pairs and writes ``benchmarks/results/data_overlap.json`` (names and reasons, no data).
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from promptlora.data import read_rows
from promptlora.data.selection import clean_tasks, same_goal
from promptlora.errors import DataError, PromptLoRAError
from promptlora.files import replacing_file

RESULTS = Path(__file__).parent / "results" / "data_overlap.json"


def overlap(folder: Path) -> dict[str, object]:
    """The pairs and the broken tasks of all data folders inside ``folder``.

    Raises:
        DataError: No folder inside it has both files.
    """
    folders = sorted(p.parent for p in folder.glob("*/heldout.jsonl.gz") if (p.parent / "train.jsonl.gz").is_file())
    if not folders:
        raise DataError(
            f"{folder}: no data. Expected folders with train.jsonl.gz and heldout.jsonl.gz. Fix: pass the folder above them."
        )
    training, broken = clean_tasks([row for f in folders for row in read_rows(f / "train.jsonl.gz")])
    heldout = [row for f in folders for row in read_rows(f / "heldout.jsonl.gz")]
    pairs = same_goal(training, heldout)
    return {
        "folders": [f.name for f in folders],
        "training_tasks": len({row.task for row in training}) + len(broken),
        "heldout_tasks": len({row.task for row in heldout}),
        "dropped": sorted({*broken, *(pair.training for pair in pairs)}),
        "broken": broken,
        "pairs": [{"training": p.training, "heldout": p.heldout, "reason": p.reason} for p in pairs],
    }


def main(arguments: list[str] | None = None) -> int:
    """Print the pairs and write the result file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path, help="the folder that holds the data folders")
    parser.add_argument("--output", type=Path, default=RESULTS, help="file to write")
    args = parser.parse_args(arguments)
    try:
        result = overlap(args.data)
        with replacing_file(args.output) as temporary:
            temporary.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    except PromptLoRAError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{result['training_tasks']} training tasks, {result['heldout_tasks']} held-out tasks")
    for task, reason in result["broken"].items():  # type: ignore[attr-defined]
        print(f"dropped {task}: {reason}")
    for pair in result["pairs"]:  # type: ignore[attr-defined]
        print(f"dropped {pair['training']}: near {pair['heldout']} ({pair['reason']})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
