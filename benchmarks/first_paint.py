"""Time from the loaded model to the page of ``promptlora ui``: until the first paint, and until the button is there.

    python benchmarks/first_paint.py -o benchmarks/results/first_paint.json

The server runs in a separate process, and each round starts a fresh Chromium. The browser opens the page once the
server reports that it answers. Times are in seconds from the moment at which the model was loaded.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from playwright.sync_api import sync_playwright

SERVER = """
import sys, time
from promptlora import PromptLoRA
from promptlora.ui.serving import serve

def load():
    lm = PromptLoRA.from_pretrained()
    print(time.time(), flush=True)
    return lm

serve(load, host="127.0.0.1", port=int(sys.argv[1]), base_name="base", ready=lambda url: print(time.time(), flush=True))
"""


def one_round(chromium: str) -> dict[str, float]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        server = subprocess.Popen(
            [sys.executable, "-c", SERVER, str(port)], stdout=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL
        )
        try:
            assert server.stdout is not None
            loaded, answers = float(server.stdout.readline()), float(server.stdout.readline())
            tab = browser.new_page()
            tab.goto(f"http://127.0.0.1:{port}/")
            tab.wait_for_selector("#go")
            usable = time.time()
            painted = tab.evaluate(
                "(performance.timeOrigin + performance.getEntriesByName('first-contentful-paint')[0].startTime) / 1000"
            )
        finally:
            server.terminate()
            server.wait()
            browser.close()
    return {"answers": answers - loaded, "first_paint": painted - loaded, "button": usable - loaded}


def main() -> None:
    """Measure, print and write the results."""
    parser = argparse.ArgumentParser(description="Seconds from the loaded model to the page.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("-o", "--output", type=Path, required=True)
    given = parser.parse_args()
    chromium = shutil.which("chromium")
    if chromium is None:
        raise SystemExit("error: no chromium on this machine; expected Debian's; apt-get install chromium")
    rounds = [one_round(chromium) for _ in range(given.rounds)]
    cpu = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), "")
    result = {
        "what": "seconds after the model was loaded",
        "cpu": cpu.partition(":")[2].strip(),
        "cores": os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 1),
        "median": {name: round(statistics.median(one[name] for one in rounds), 2) for name in rounds[0]},
        "rounds": [{name: round(value, 2) for name, value in one.items()} for one in rounds],
    }
    given.output.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result["median"]))


if __name__ == "__main__":
    main()
