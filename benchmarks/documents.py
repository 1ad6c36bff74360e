"""The scores of document adapters, by the source of the document.

``python benchmarks/documents.py``

It reads the evaluation in ``benchmarks/results/documents`` (see ``configs/documents.toml`` for its commands) and
averages the scores over the documents of each source; a document's name begins with its source. Results:
``benchmarks/results/documents_by_source.json``, ``.md``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path
from statistics import fmean
from typing import Any

from promptlora.errors import DataError
from runs import RESULTS, told, write_results


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--report", type=Path, default=RESULTS / "documents" / "report.json", help="the evaluation's report"
    )
    options = parser.parse_args()
    try:
        tasks: dict[str, Any] = json.loads(options.report.read_text(encoding="utf-8"))["tasks"]
        by_source: dict[str, list[Any]] = defaultdict(list)
        for name, task in tasks.items():
            by_source[name.partition("-")[0]].append(task)
        results = {
            source: {
                "documents": len(members),
                "questions": sum(task["rows"] for task in members),
                "strict": {name: fmean(task["strict"][name] for task in members) for name in members[0]["strict"]},
            }
            for source, members in by_source.items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{options.report}: {error!r}; expected report.json of promptlora eval") from error
    conditions = list(dict.fromkeys(name for row in results.values() for name in row["strict"]))
    lines = [
        f"| source | documents | questions | {' | '.join(conditions)} |",
        "|---|" + "---:|" * (2 + len(conditions)),
    ]
    for source, row in results.items():
        scores = " | ".join(f"{row['strict'][name]:.1f}" for name in conditions)
        lines.append(f"| {source} | {row['documents']} | {row['questions']} | {scores} |")
    write_results("documents_by_source", {"results": results}, "\n".join(lines) + "\n", len(results), len(results))
    return 0


if __name__ == "__main__":
    sys.exit(told(main))
