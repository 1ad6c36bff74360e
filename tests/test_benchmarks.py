"""The queue and the reports of the long benchmarks: what is done is not done again, and means are the right ones."""

from __future__ import annotations

import gzip
import importlib
import json
import os
import signal
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from promptlora import HyperNetwork, HyperNetworkConfig, find_projections
from promptlora.data import Row
from promptlora.lora import LoRAWeights
from promptlora.models import load_meta
from promptlora.settings import from_dict
from tests.helpers import tiny_llama

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def benches(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return lambda name: importlib.import_module(name)


def test_a_queue_runs_what_is_left_in_order_and_not_what_waits_for_a_failure(benches, tmp_path, monkeypatch):
    runs = benches("runs")
    code = (
        "import sys, pathlib; p = pathlib.Path(sys.argv[1]); p.write_text('x') if 'bad' not in p.name else sys.exit(3)"
    )
    monkeypatch.setattr(runs, "promptlora", lambda command: [sys.executable, "-c", code, *command])

    def job(name: str, *after: object) -> object:
        return runs.Job(name, [str(tmp_path / name)], (tmp_path / name).is_file, list(after))

    first, bad = job("first"), job("bad")
    second, never = job("second", first), job("never", bad)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        assert not runs.work([first, bad, second, never], 2, tmp_path / "logs")
        assert [name for name in ("first", "bad", "second", "never") if (tmp_path / name).is_file()] == [
            "first",
            "second",
        ]
        assert runs.work([first, second], 1, tmp_path / "logs")  # nothing left
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def test_the_table_is_of_complete_rows_with_means_over_tasks_and_seeds(benches, tmp_path):
    unseen = benches("unseen_tasks")
    rows = [
        Row(task=task, prompt=task, input=str(i), outputs=(f"{task}{i}",), metric="exact_match", split="eval")
        for task in ("a", "b")
        for i in range(2)
    ]
    taught = [replace(row, split="train") for row in rows[2:]]  # of b alone

    def answer(name: str, condition: str, right: list[bool], first: int = 0) -> None:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        lines = ["{}"] + [
            json.dumps(
                {"condition": condition, "row": i, "tokens": 7, "text": rows[first + i].outputs[0] if fine else "no"}
            )
            for i, fine in enumerate(right)
        ]
        (folder / "answers.jsonl").write_text("\n".join(lines) + "\n")

    answer("eval-hypernetwork-0", "adapter", [True, True, True, False])
    answer("eval-hypernetwork-1", "adapter", [True, False, False, False])
    answer("eval-hypernetwork-2", "adapter", [True, True, True])  # not complete
    answer("eval-multitask-0", "adapter", [True, False, False, False])
    answer("eval-oracle-b", "adapter", [False, True], first=2)
    values = unseen.report(tmp_path, [*rows, *taught], {})
    results = values["results"]
    assert set(results) == {"hypernetwork, adapter only", "multi-task LoRA", "oracle: a LoRA trained on each task"}
    of_each = results["hypernetwork, adapter only"]["of_each_seed"]
    assert {seed: scores["strict"] for seed, scores in of_each.items()} == {"0": 75.0, "1": 25.0}
    assert results["hypernetwork, adapter only"]["strict"] == 50.0
    assert results["hypernetwork, adapter only"]["tasks"] == {"a": 75.0, "b": 25.0}
    assert results["oracle: a LoRA trained on each task"]["tasks"] == {"b": 50.0}
    difference = values["differences"]["hypernetwork, adapter only - multi-task LoRA"]
    assert difference["points"] == 50.0  # of the seed that both have
    assert (difference["low"], difference["high"]) == (50.0, 50.0)  # the same on both tasks
    assert values["majority"] == 50.0
    assert "| hypernetwork, adapter only | 2 | 50.0 | 75.0, 25.0 |" in unseen.markdown(values)
    assert values["differences"]["oracle: a LoRA trained on each task - hypernetwork, adapter only"]["points"] == 25.0
    assert "| oracle: a LoRA trained on each task (1 tasks that have training rows) | 1 | 50.0 |" in unseen.markdown(
        values
    )
    known = {name: {int(seed): of for seed, of in row["of_each_seed"].items()} for name, row in results.items()}
    assert unseen.report(tmp_path / "another machine", [*rows, *taught], known) == values


def test_what_the_result_file_holds_is_not_measured_again_unless_settings_differ(benches, tmp_path, monkeypatch):
    unseen, runs = benches("unseen_tasks"), benches("runs")
    monkeypatch.setattr(runs, "RESULTS", tmp_path)
    assert unseen.known_scores() == {}
    rows = [Row(task="a", prompt="a", input="i", outputs=("o",), metric="exact_match", split="train")]

    def names(known: dict) -> set[str]:
        return {job.name for job in unseen.make_jobs(tmp_path, tmp_path / "runs", rows, known)}

    everything = names({})
    assert {"train hypernetwork-0", "eval eval-hypernetwork-0", "train oracle-a", "eval eval-baselines-0"} <= everything
    scores = {"strict": 1.0, "first_line": 1.0, "rougeL": 1.0, "tokens": 1.0, "tasks": {"a": 1.0}}
    decided = [name for name, (run, _, _) in unseen.TABLE.items() if run == "hypernetwork"]
    written = {**unseen.settings(), "results": {name: {"of_each_seed": {"0": scores}} for name in decided}}
    runs.write_json(tmp_path / "unseen_tasks.json", written)
    assert names(unseen.known_scores()) == everything - {"train hypernetwork-0", "eval eval-hypernetwork-0"}
    runs.write_json(tmp_path / "unseen_tasks.json", {**written, "vectors": 0.0})
    assert names(unseen.known_scores()) == everything


def test_an_ablation_of_the_result_file_is_kept_unless_its_settings_differ(benches, tmp_path, monkeypatch):
    ablations, runs = benches("ablations"), benches("runs")
    monkeypatch.setattr(runs, "RESULTS", tmp_path)
    assert ablations.known_results() == {}
    row = {"training_loss_last_20": 2.0}
    variants = {"rank 4": ablations.VARIANTS["rank 4"], "rank 16": {"hypernetwork": {"rank": 32}}}
    written = {"reference": ablations.REFERENCE, "variants": variants, "results": {"rank 4": row, "rank 16": row}}
    runs.write_json(tmp_path / "ablations.json", written)
    assert ablations.report(tmp_path / "runs", ablations.known_results())["results"] == {"rank 4": row}
    runs.write_json(tmp_path / "ablations.json", {**written, "reference": {}})
    assert ablations.known_results() == {}


def bench(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, str(BENCHMARKS / name), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)


def test_the_figure_by_number_of_tasks_is_the_same_bytes_for_the_same_runs(benches, tmp_path, monkeypatch):
    ablations = benches("ablations")
    monkeypatch.setattr(ablations, "FIGURE", tmp_path / "figure.svg")
    row = {"validation_loss": 2.0, "validation_wrong": 3.0, "validation_static": 2.5}

    def drawn(**more: dict[str, float]) -> bytes:
        ablations.draw_scaling({"reference": row, "13 training tasks": row, "rank 4": row, **more}, 106)
        return (tmp_path / "figure.svg").read_bytes()

    first = drawn()
    assert first.startswith(b"<?xml")
    assert drawn() == first
    assert drawn(**{"rank 4": {**row, "validation_loss": 9.0}}) == first  # no run of its own number of tasks
    assert drawn(**{"13 training tasks": {**row, "validation_loss": 2.2}}) != first
    assert drawn(**{"reference, seed 1": {**row, "validation_loss": 2.2}}) != first


def test_heads_that_are_said_to_be_as_large_as_the_full_one_are(benches):
    ablations = benches("ablations")
    base = load_meta()

    def size(name: str) -> int:
        config = from_dict(HyperNetworkConfig, ablations.VARIANTS[name].get("hypernetwork", {}))
        with torch.device("meta"):
            made = HyperNetwork(config, find_projections(base), base.config.hidden_size)
        return sum(parameter.numel() for parameter in made.parameters())

    alike = [name for name in ablations.VARIANTS if name.endswith("as many parameters as full")]
    assert len(alike) == 3
    for name in alike:
        assert size(name) == pytest.approx(size("reference"), rel=0.01)


def test_what_a_bench_cannot_use_is_a_line_and_exit_code_2(tmp_path):
    (tmp_path / "empty").mkdir()
    with gzip.open(tmp_path / "empty" / "heldout.jsonl.gz", "wt"):
        pass
    (tmp_path / "text.json").write_text("[]")
    for name, arguments, says in (
        ("unseen_tasks.py", [tmp_path / "nowhere", "-o", tmp_path / "out"], "nowhere: no such folder"),
        ("unseen_tasks.py", [tmp_path / "empty", "-o", tmp_path / "out"], "heldout.jsonl.gz: it holds no row"),
        (
            "ablations.py",
            [tmp_path / "empty", "-o", tmp_path / "out", "--workers", "0"],
            "'0'; expected a whole number",
        ),
        ("ablations.py", [tmp_path / "empty", "-o", tmp_path / "out", "--report"], "train.jsonl.gz: no such file"),
        ("padding.py", [tmp_path / "empty"], "train.jsonl.gz: no such file"),
        ("strength.py", [tmp_path / "nowhere.toml"], "nowhere.toml"),
        ("writing.py", ["--rounds", "x"], "'x'; expected a whole number"),
        ("gpu.py", ["--device", "cpu", "--quick", "--base", tmp_path / "nowhere"], "nowhere"),
        ("documents.py", ["--report", tmp_path / "nowhere.json"], "nowhere.json: "),
        ("documents.py", ["--report", tmp_path / "text.json"], "expected report.json of promptlora eval"),
    ):
        done = bench(name, *arguments)
        assert done.returncode == 2, (name, done.stderr)
        assert says in done.stderr.splitlines()[-1]
        assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_ctrl_c_is_a_line_and_exit_code_130(benches, capfd):
    def stopped() -> int:
        raise KeyboardInterrupt

    assert benches("runs").told(stopped) == 130
    assert capfd.readouterr().err == "stopped; nothing was written\n"


def test_the_gpu_bench_runs_on_a_cpu_and_finds_the_same_results_by_every_way(toy_base, tmp_path):
    result = tmp_path / "gpu.json"
    done = bench("gpu.py", "--device", "cpu", "--quick", "--base", toy_base, "-o", result)
    assert done.returncode == 0, done.stderr
    report = json.loads(result.read_text())
    assert set(report["parity"]) == {"ok", "float64", "float32", "generate", "base"}
    assert all(part is True or part["ok"] is True for part in report["parity"].values())
    assert {row["phase"] for row in report["injection"]} == {"prefill", "decode"}
    assert all(set(row["ratio"]) == {"hooks", "einsum", "peft"} for row in report["injection"])
    (training,) = report["training"]
    assert set(training["stages_ms"]) == {"batch", "adapters", "forward", "backward", "optimizer", "rest"}
    assert min(training["stages_ms"].values()) > 0
    assert training["step_tokens_per_second"] > 0
    assert report["left_out"] == report["failed"] == []
    assert "parity float32  ok" in done.stdout
    late = bench("gpu.py", "--device", "cpu", "--quick", "--base", toy_base, "--minutes", "0")
    assert late.returncode == 1, late.stderr  # no parity check ran
    assert late.stdout.count("left out, no time") == 3


def test_a_case_that_fails_is_named_and_the_others_are_measured(benches, monkeypatch, tmp_path, toy_base, capsys):
    gpu = benches("gpu")

    def full(*arguments):
        raise torch.OutOfMemoryError("no memory\nat all")

    monkeypatch.setattr(gpu, "training_case", full)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # main sets it; as before after the test
    with warnings.catch_warnings():
        arguments = ["--device", "cpu", "--quick", "--base", str(toy_base), "-o", str(tmp_path / "gpu.json")]
        assert gpu.main(arguments) == 1
    report = json.loads((tmp_path / "gpu.json").read_text())
    assert report["failed"] == ["training (2, 2): no memory at all"]
    assert report["parity"]["ok"]
    assert len(report["injection"]) == 2
    assert "failed: training (2, 2): no memory at all" in capsys.readouterr().out


def test_a_device_that_is_not_there_is_said(benches, capsys):
    for device, says in (("tpu", "'tpu'; expected cpu or cuda"), ("cuda", "cuda: torch finds no CUDA device")):
        if device == "cuda" and torch.cuda.is_available():
            continue
        with pytest.raises(SystemExit) as stopped:
            benches("gpu").parse(["--device", device])
        assert stopped.value.code == 2
        assert says in capsys.readouterr().err.splitlines()[-1]


def test_the_gpu_bench_finds_a_hook_that_does_something_else(benches, monkeypatch):
    gpu = benches("gpu")
    model = tiny_llama(torch.float32)
    assert gpu.parity(model, "cpu", True)["ok"]
    right = gpu.injected

    def louder(model, lora):
        return right(model, LoRAWeights(dict(lora.items()), 1.01 * lora.scaling, projections=lora.projections))

    monkeypatch.setattr(gpu, "injected", louder)
    wrong = gpu.parity(model, "cpu", True)
    assert not wrong["ok"]
    assert not wrong["float32"]["ok"]
    assert wrong["base"]["ok"]


@pytest.mark.parametrize("name", sorted(path.name for path in BENCHMARKS.glob("*.py") if path.name != "runs.py"))
def test_every_bench_says_how_it_is_used(name):
    done = bench(name, "--help")
    assert done.returncode == 0, done.stderr
    assert "usage" in done.stdout.lower()
