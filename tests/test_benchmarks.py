"""The queue and the reports of the long benchmarks: what is done is not done again, and means are the right ones."""

from __future__ import annotations

import gzip
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from promptlora import HyperNetwork, HyperNetworkConfig, PromptLoRA, find_projections
from promptlora.data import Row
from promptlora.errors import DataError
from promptlora.hypernet.reader import check_reader
from promptlora.lora import LoRAWeights
from promptlora.models import base_fingerprint, load_base, load_meta
from promptlora.settings import from_dict, load_toml, to_dict
from promptlora.train.config import TrainConfig
from tests.helpers import tiny_llama
from tests.host_helpers import tiny_network as random_network
from tests.training_helpers import write_jsonl

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


# --- unseen tasks -------------------------------------------------------------------------------------------


def tiny_network(folder: Path, base: Path, seed: int, **options: object) -> Path:
    """A hypernetwork of random weights for a tiny base, saved."""
    model, _ = load_base(base)
    torch.manual_seed(seed)
    config = HyperNetworkConfig(
        source_layer=1, max_prompt_tokens=64, context_size=16, encoder_layers=1, encoder_heads=2, pooling_queries=2,
        trunk_layers=1, rank=2, **options,
    )  # fmt: skip
    network = HyperNetwork(config, find_projections(model), model.config.hidden_size, base_fingerprint(model))
    for name, parameter in network.generator.named_parameters():
        if name.endswith("B.weight") or "static_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    network.save_pretrained(folder)
    return folder


@pytest.fixture
def unseen_run(tmp_path, toy_base):
    """Arguments of the benchmark on a tiny base, two tasks in two files, and networks of random weights."""
    files = []
    for task, letter in (("one/x", "a"), ("two", "b")):
        rows = [
            {"task": task, "prompt": f"say {letter}", "input": f"w{i} w{i + 1}", "outputs": [letter], "split": split}
            for i, split in enumerate(["eval", "eval", "eval", "train", "train", "train", "train"])
        ]
        (tmp_path / letter).mkdir()
        files.append(write_jsonl(tmp_path / letter / "heldout.jsonl", rows))
    others = [{"task": "one/x", "prompts": [f"write {letter}" for letter in "abc"] + ["say a", "never write"]}]
    wordings = write_jsonl(tmp_path / "wordings.jsonl", others)
    networks = [tiny_network(tmp_path / f"hyper{seed}", toy_base, seed) for seed in (0, 1)]
    multitask = tiny_network(tmp_path / "multi" / "final", toy_base, 2, generated=False)
    tiny_network(tmp_path / "oracle" / "one-x", toy_base, 3, generated=False)
    return [
        "--data", *files, "--hypernetworks", f"seed0={networks[0]}", f"seed1={networks[1]}",
        "--by-tasks", f"8={networks[0]}", f"30-a={networks[0]}", f"30-b={networks[1]}",
        "--multitask", f"seed0={multitask.parent}", "--oracle", tmp_path / "oracle", "--wordings", wordings,
        "--base", toy_base, "-o", tmp_path / "runs", "--max-new-tokens", "3", "--batch-size", "2",
    ]  # fmt: skip


def test_the_whole_benchmark_of_unseen_tasks(benches, tmp_path, unseen_run, monkeypatch, capfd):
    unseen, runs = benches("unseen_tasks"), benches("runs")
    monkeypatch.setattr(runs, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(unseen, "FIGURE", tmp_path / "figure.svg")
    arguments = list(map(str, unseen_run))
    assert unseen.main([*arguments, "--only", "base"]) == 0
    assert not (tmp_path / "figure.svg").exists()
    assert unseen.main([*arguments, "--report"]) == 0  # what is done so far
    values = json.loads((tmp_path / "results" / "unseen_tasks.json").read_text())
    assert set(values["results"]) == {name for name, (kind, _) in unseen.TABLE.items() if kind == "base"}
    assert unseen.main(arguments) == 0
    values = json.loads((tmp_path / "results" / "unseen_tasks.json").read_text())
    table = (tmp_path / "results" / "unseen_tasks.md").read_text()
    assert set(values["results"]) == set(unseen.TABLE)
    assert (values["rows"], values["tasks"], values["data"]) == (6, 2, {"a": 1, "b": 1})
    adapter = values["results"]["hypernetwork, adapter only"]
    assert set(adapter["of_each_seed"]) == {"seed0", "seed1"}
    means = [scores["strict"] for scores in adapter["of_each_seed"].values()]
    assert adapter["strict"] == pytest.approx(sum(means) / 2)
    assert values["constants"]["best constant answer, chosen on the scored rows (upper bound)"]["strict"] == 100
    assert table.splitlines()[4].startswith("| best constant answer")
    assert "| oracle: a LoRA trained on each task (1 tasks) |" in table
    left_out = 1 - any(values["results"]["multi-task LoRA, prompt in context"]["tasks"].values())  # a ratio to 0
    assert len(values["differences"]) == len(benches("unseen_table").COMPARISONS) - left_out
    runs_by_count = {count: len(of) for count, of in values["by_training_tasks"].items()}
    assert runs_by_count == {"8": 1, "30": 2}
    assert values["by_training_tasks"]["30"][0] == values["by_training_tasks"]["8"][0]  # the same network
    assert (tmp_path / "figure.svg").read_text().startswith("<?xml")
    asked = values["wordings"]
    assert set(asked) == set(benches("unseen_table").REWORDED)
    assert asked["hypernetwork, adapter only"]["tasks"] == 1  # the other task has no wordings
    assert len(asked["hypernetwork, adapter only"]["each"]) == 5
    first = (tmp_path / "runs" / "wordings" / "1" / "hypernetwork" / "seed0" / "answers.jsonl").read_text()
    assert len(first.splitlines()) == 1 + 3
    capfd.readouterr()
    assert unseen.main(arguments) == 0  # nothing is answered twice
    assert "0 evaluations are left" in capfd.readouterr().err


def test_a_benchmark_out_of_time_keeps_its_answers(benches, tmp_path, unseen_run, monkeypatch, capfd):
    unseen, runs = benches("unseen_tasks"), benches("runs")
    monkeypatch.setattr(runs, "RESULTS", tmp_path / "results")
    arguments = [*map(str, unseen_run), "--minutes", "1"]
    clock = iter(range(0, 10_000, 31))
    monkeypatch.setattr(unseen.time, "monotonic", lambda: next(clock))
    assert unseen.main(arguments) == 1
    assert "stopped after 1 minutes; the same command resumes" in capfd.readouterr().err
    assert (tmp_path / "runs" / "base" / "answers.jsonl").is_file()
    assert (tmp_path / "results" / "unseen_tasks.md").is_file()


def test_seeds_are_averaged_for_each_task_and_aims_are_judged(benches):
    table = benches("unseen_table")
    aim = table.Aim("a", "b", 6, 0)
    assert aim.reached(7, 0.1)
    assert aim.reached(7, -0.1) is False
    assert aim.reached(5, 0.1) is False
    assert table.Aim("a", "b").reached(5, 0) is None
    found = table._compared(
        table.Aim("a", "b", 85, ratio=True), {"a": {"x": 8.0, "y": 10.0}, "b": {"x": 10.0, "y": 10.0}}
    )
    assert found["points"] == pytest.approx(90)
    assert found["reached"] is True
    assert 80 - 1e-9 <= found["low"] <= found["high"] <= 100 + 1e-9
    rows = [Row(task="t", prompt="p", input=str(i), outputs=("x",), metric="exact_match") for i in range(2)]
    spread = table._spread(rows, [["x", "x"], ["x.", "no"]])
    assert spread["each"] == [100, 50]
    assert spread["spread"] == 25
    assert spread["agreement"] == 50


def test_wordings_replace_the_prompt_of_tasks_that_have_enough(benches):
    table = benches("unseen_table")
    rows = [Row(task=t, prompt=t, input="i", outputs=("x",)) for t in "ab"]
    wordings = {"a": ["a", "p", "q", "p", "r", "s"], "b": ["b", "p", "q", "r"]}
    each = [table.reworded(rows, wordings, number) for number in range(table.WORDINGS)]
    assert [[row.prompt for row in of] for of in each] == [["a"], ["p"], ["q"], ["r"], ["s"]]
    assert all(of[0].task == "a" for of in each)


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


def test_a_reader_is_scored_by_the_nearest_neighbours_of_prompts(benches):
    reader = benches("reader")
    meanings = torch.tensor([[0.0, 9.0], [9.0, 0.0], [9.0, 9.0]]).repeat_interleave(2, dim=0)
    near = meanings + torch.tensor([[0.0, 0.1], [0.1, 0.0]]).repeat(3, 1)
    groups = [0, 0, 1, 1, 2, 2]
    assert reader.hits(near, groups).tolist() == [1.0] * 6
    assert reader.hits(near, [0, 1, 1, 2, 2, 0]).tolist() == [0.0] * 6
    large = near * torch.tensor([1.0, 1e4]) + 1e5  # neither scale nor offset of a channel plays a part
    assert reader.hits(large, groups).tolist() == [1.0] * 6
    half = torch.tensor([1.0, 0.0, 1.0, 0.0])
    assert reader.interval(half, [0, 0, 1, 1]) == [0.5, 0.5]
    assert reader.interval(torch.tensor([1.0, 1.0, 0.0, 0.0]), [0, 0, 1, 1]) == [0.0, 1.0]


def test_contexts_are_read_with_the_reader_of_their_hypernetwork(benches, toy_base, tmp_path):
    pair = load_base(str(toy_base), device="cpu")
    network = random_network(pair[0], head="core", prompt_format="chat", reader=True)
    for parameter in network.reader.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    network.save_pretrained(tmp_path / "h")
    prompts = ["say a", "never write b", "w1 w2"]
    found = dict(benches("reader").read(prompts, str(toy_base), [], [tmp_path / "h"]))["context, h"]
    lm = PromptLoRA(*pair, network.eval())
    torch.testing.assert_close(found, network.context(*lm.states.batch(prompts)))
    bare = network.context(*lm.host.prompt_states(network.config).batch(prompts))
    lm.close()
    assert not torch.allclose(found, bare, atol=1e-2)


def test_the_wordings_of_a_task_are_different_and_as_many_for_each(benches, tmp_path):
    reader = benches("reader")
    row = {"input": "x", "outputs": ["y"]}
    tasks = write_jsonl(
        tmp_path / "rows.jsonl", [{"task": t, "prompt": f"own {t}", **row} for t in ("a", "a", "b", "c")]
    )
    lines = [{"task": "a", "prompts": ["own a ", "other a", "more a"]}, {"task": "b", "prompts": ["other b"]}]
    files = [write_jsonl(tmp_path / "words.jsonl", [*lines, {"task": "z", "prompts": ["no", "such"]}])]
    assert reader.read_wordings([tasks], files, 0, 2) == {"a": ["own a", "other a"], "b": ["own b", "other b"]}
    made = reader.read_wordings([tasks], [], 3, 3)
    assert [len(set(several)) for several in made.values()] == [3, 3, 3]
    with pytest.raises(DataError, match="1 of 3 tasks with 3 wordings"):
        reader.read_wordings([tasks], files, 0, 3)


def test_what_a_bench_cannot_use_is_a_line_and_exit_code_2(benches, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # the bench for a card sets it, and it is restored afterwards
    (tmp_path / "empty").mkdir()
    with gzip.open(tmp_path / "empty" / "heldout.jsonl.gz", "wt"):
        pass
    (tmp_path / "text.json").write_text("[]")
    held = tmp_path / "empty" / "heldout.jsonl.gz"
    for name, arguments, says in (
        (
            "unseen_tasks.py",
            ["--data", held, "--hypernetworks", f"s={tmp_path}", "-o", tmp_path / "out"],
            "no config.json; expected the folder of a finished hypernetwork",
        ),
        ("unseen_tasks.py", ["--data", held, "-o", tmp_path / "out"], "heldout.jsonl.gz: it holds no row"),
        (
            "ablations.py",
            [tmp_path / "empty", "-o", tmp_path / "out", "--workers", "0"],
            "'0'; expected a whole number",
        ),
        ("ablations.py", [tmp_path / "empty", "-o", tmp_path / "out", "--report"], "train.jsonl.gz: no such file"),
        ("padding.py", [tmp_path / "empty"], "train.jsonl.gz: no such file"),
        ("function_vectors.py", [tmp_path / "nowhere.toml"], "nowhere.toml"),
        ("gate.py", [tmp_path / "nowhere.toml"], "nowhere.toml"),
        ("recipe.py", [BENCHMARKS.parent / "configs" / "reader.toml", "-o", tmp_path / "out"], "reader=''. Expected"),
        ("reader.py", ["--tasks", tmp_path / "empty"], "empty: it holds no row"),
        ("writing.py", ["--rounds", "x"], "'x'; expected a whole number"),
        ("gpu.py", ["--device", "cpu", "--quick", "--base", tmp_path / "nowhere"], "nowhere"),
        ("documents.py", ["--report", tmp_path / "nowhere.json"], "nowhere.json: "),
        ("documents.py", ["--report", tmp_path / "text.json"], "expected report.json of promptlora eval"),
    ):
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        try:  # in this process: an interpreter for each case would take most of the time
            code = benches("runs").told(benches(name.removesuffix(".py")).main)
        except SystemExit as error:
            code = error.code
        told = capfd.readouterr().err
        assert code == 2, (name, told)
        assert says in told.splitlines()[-1]
        assert "Traceback" not in told
    assert not (tmp_path / "out").exists()
    done = bench("writing.py", "--rounds", "x")  # one of them as a script
    assert (done.returncode, done.stderr.splitlines()[-1].count("expected a whole number")) == (2, 1)


def test_the_gate_of_a_category_is_fitted_on_the_others(benches):
    """Tasks of both signs of a feature want factor 0.25 and 1.25; one category wants the opposite of all others."""
    gate = benches("gate")
    factors = torch.tensor(gate.FACTORS, dtype=torch.float64)
    wanted = torch.tensor([0.25, 1.25] * 4, dtype=torch.float64)
    losses = (factors[None] - wanted[:, None]).abs()
    assert gate.at(losses, torch.full((8,), 0.875, dtype=torch.float64)).tolist() == [0.625, 0.375] * 4
    features = torch.tensor([[-1.0, 1.0], [1.0, 1.0]] * 4, dtype=torch.float64)
    fitted = gate.left_out(features, losses, list("aabbccdd"))
    assert (fitted - wanted).abs().max() < 0.1
    losses[:2] = losses[:2].flip(0)
    fitted = gate.left_out(features, losses, list("aabbccdd"))
    assert (fitted[:2] - wanted[:2]).abs().max() < 0.1  # not what their own losses ask for
    two = gate.left_out(features[:4], losses[:4], list("aabb"))  # each gets what the other one wants
    assert (two - torch.tensor([0.25, 1.25, 1.25, 0.25])).abs().max() < 0.1


def test_short_runs_of_the_recipe_differ_in_one_choice_and_are_averaged_over_seeds(benches, tmp_path):
    recipe, runs = benches("recipe"), benches("runs")
    config = load_toml(TrainConfig, BENCHMARKS.parent / "configs" / "shipped.toml")
    named = recipe.variants(config)
    made = {name: from_dict(TrainConfig, runs.merged(to_dict(config), values)) for name, values in named.items()}
    assert len({recipe.slug(name) for name in named}) == len(named)
    assert [made[f"free, seed {seed}"].seed for seed in range(3)] == [0, 1, 2]
    assert {name: run.data.tasks for name, run in made.items() if run.data.tasks} == {
        "30 tasks, seed 0": 30,
        "120 tasks, seed 0": 120,
    }
    assert made["all collected tasks, seed 0"].data.sources == config.data.sources[:2]
    assert made["all collected tasks, seed 0"].data.wording_files == config.data.wording_files[:3]
    for seed, loss in ((0, 2.0), (1, 2.5), (2, 3.0)):
        folder = tmp_path / f"core-seed-{seed}"
        folder.mkdir()
        lines = [{"step": 1, "loss": loss}, {"step": 2, "loss": loss + 1, "validation_loss": loss}]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "free-seed-0").mkdir()
    (tmp_path / "free-seed-0" / "metrics.jsonl").write_text(json.dumps(lines[0]) + "\n")  # stopped after a step
    rows = recipe.report(tmp_path, named, 2)
    assert {name: row["validation_loss"] for name, row in rows.items()} == {
        "core, seed 0": 2.0, "core, seed 1": 2.5, "core, seed 2": 3.0
    }  # fmt: skip
    assert "| core, mean of 3 seeds | 3.000 | 2.500 |" in recipe.markdown(rows)


def test_free_heads_get_the_same_reader_in_the_free_form(benches, toy_base, tmp_path):
    recipe = benches("recipe")
    model, _ = load_base(str(toy_base), device="cpu")
    reader = random_network(model, head="core", generated=False)
    for core in reader.generator.static_C.values():
        torch.nn.init.normal_(core, std=0.3)
    reader.save_pretrained(tmp_path / "reader")
    free = HyperNetwork.from_pretrained(recipe.free_reader(tmp_path / "reader", tmp_path / "free"))
    config = replace(free.config, generated=True, reader=True, prompt_format="chat")
    check_reader(free, config, free.projections, free.base)  # accepts it
    nothing = torch.zeros(1, 0)
    ours, theirs = (each.generator(nothing, generated=False).detach() for each in (reader, free))
    assert ours.is_shared
    assert not theirs.is_shared
    for name in ours:
        assert ours.delta(name).abs().max() > 0
        torch.testing.assert_close(theirs.delta(name), ours.delta(name))


def test_the_bench_of_refinement_resumes_and_compares_the_same_tasks(benches, toy_base, tmp_path, monkeypatch):
    """Two tiny tasks: what is answered once is not answered again, and the differences are those of the tasks."""
    refine, runs = benches("refine"), benches("runs")
    monkeypatch.setattr(runs, "RESULTS", tmp_path / "results")
    random_network(load_base(str(toy_base), device="cpu")[0], head="core", context_flag=True).save_pretrained(
        tmp_path / "network"
    )
    rows = [
        {"task": f"t/{t}", "prompt": f"say {t}", "input": f"w{i} w{i + t}", "outputs": [f"w{t}"], "split": split}
        for t in (1, 2)
        for split, inputs in (("train", range(40)), ("eval", range(40, 46)))
        for i in inputs
    ]
    data = write_jsonl(tmp_path / "held.jsonl", rows)
    arguments = [
        "--data", data, "-o", tmp_path / "out", "--rows", 4, "--eval-rows", 6, "--base", toy_base, "--hypernetwork", tmp_path / "network",
    ]  # fmt: skip
    assert refine.main([str(value) for value in arguments]) == 0
    files = {path: path.read_bytes() for path in (tmp_path / "out").glob("*.json")}
    assert len(files) == 2
    assert refine.main([str(value) for value in arguments]) == 0
    assert {path: path.read_bytes() for path in files} == files
    report = json.loads((tmp_path / "results" / "refine.json").read_text())
    assert report["tasks"] == 2
    assert {"generated, 0 steps", "refined, 4 rows, from fresh", "refined without labels, 32 inputs"} <= set(
        report["rows"]
    )
    (gain,) = (one for one in report["differences"] if one["ours"] == refine.refined("generated", 4) and one["aim"])
    strict = report["strict"]
    gains = [strict[gain["ours"]][task] - strict[gain["theirs"]][task] for task in ("t/1", "t/2")]
    assert gain["points"] == pytest.approx(sum(gains) / 2)
    assert "its weights were not at hand" in (tmp_path / "results" / "refine.md").read_text()


def test_tasks_together_in_parts_get_the_results_of_each_alone(benches, toy_base, tmp_path, monkeypatch, capfd):
    """Four tasks, one with few rows and two with one prompt: the same answers, losses to rounding, and a table of all."""
    refine, runs = benches("refine"), benches("runs")
    monkeypatch.setattr(runs, "RESULTS", tmp_path / "results")
    random_network(load_base(str(toy_base), device="cpu")[0], head="core", context_flag=True).save_pretrained(
        tmp_path / "network"
    )
    rows = [
        {
            "task": f"t/{t}",
            "prompt": f"say {min(t, 3)}",
            "input": f"w{i} w{i + t}",
            "outputs": [f"w{t}"],
            "split": split,
        }
        for t, count in ((1, 34), (2, 34), (3, 9), (4, 9))
        for split, inputs in (("train", range(count)), ("eval", range(40, 46)))
        for i in inputs
    ]
    data = write_jsonl(tmp_path / "held.jsonl", rows)
    arguments = [
        "--data", data, "--rows", 8, "--eval-rows", 6, "--base", toy_base, "--hypernetwork", tmp_path / "network",
    ]  # fmt: skip

    def run(folder: str, *more: object) -> dict[str, dict[str, object]]:
        assert refine.main([str(value) for value in (*arguments, "-o", tmp_path / folder, *more)]) == 0
        files = [json.loads(path.read_text()) for path in sorted((tmp_path / folder).glob("*.json"))]
        return {values["task"]: values for values in files}

    alone = run("alone")
    report = (tmp_path / "results" / "refine.md").read_text()
    assert "in one call" not in report
    assert len(run("together", "--together", 4, "--part", "1/2")) == 2
    assert (tmp_path / "results" / "refine.md").read_text() == report  # a part writes no table
    together = run("together", "--together", 4, "--part", "2/2")
    assert run("together", "--together", 3) == together  # nothing is done twice
    assert "in one call" in (tmp_path / "results" / "refine.md").read_text()
    assert together.keys() == alone.keys() == {"t/1", "t/2", "t/3", "t/4"}
    widths = set()
    for task, values in together.items():
        assert values["results"].keys() == alone[task]["results"].keys()
        assert (refine.NO_LABELS in values["results"]) == (task in {"t/1", "t/2"})
        for name, found in values["results"].items():
            given = alone[task]["results"][name]
            assert found["answers"] == given["answers"], (task, name)
            assert (found["strict"], found["tokens"]) == (given["strict"], given["tokens"])
            if "record" in found:
                widths.add(found.get("together", 1))
                assert found["record"]["best_step"] == given["record"]["best_step"]
                assert found["record"]["loss_after"] == pytest.approx(given["record"]["loss_after"], rel=1e-3)
    assert max(widths) == 2
    whole = run("whole", "--together", 4)
    for task, values in whole.items():
        for name, found in values["results"].items():
            assert found["answers"] == alone[task]["results"][name]["answers"], (task, name)
    capfd.readouterr()


def test_a_task_that_fails_costs_the_others_of_its_group_nothing(benches):
    refine = benches("refine")
    group = [
        refine.Held(name, [Row(prompt=name, input="a", outputs=["b"], task=name)], [])
        for name in ("good", "bad", "fine")
    ]

    def run(some: list[object]) -> list[dict[str, str]]:
        if any(held.task == "bad" for held in some):
            raise DataError("rows: all are too long")
        return [{"of": held.task} for held in some]

    assert refine.attempted(run, group) == [{"of": "good"}, "rows: all are too long", {"of": "fine"}]
    assert [[held.task for held in part] for part in refine.groups_of(group, 2)] == [["good"], ["bad", "fine"]]


def test_ctrl_c_is_a_line_and_exit_code_130(benches, capfd):
    def stopped() -> int:
        raise KeyboardInterrupt

    assert benches("runs").told(stopped) == 130
    assert capfd.readouterr().err == "stopped; nothing was written\n"


@pytest.fixture
def run_gpu_bench(benches, monkeypatch, toy_base):
    """The bench of a card on the CPU, in this process; what it sets is set back."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", os.environ.get("CUDA_VISIBLE_DEVICES", ""))  # main sets it

    def run(*arguments: object) -> int:
        with warnings.catch_warnings():
            return benches("gpu").main(["--device", "cpu", "--quick", "--base", str(toy_base), *map(str, arguments)])

    return run


def test_the_gpu_bench_runs_on_a_cpu_and_finds_the_same_results_by_every_way(run_gpu_bench, tmp_path, capsys):
    assert run_gpu_bench("-o", tmp_path / "gpu.json") == 0
    report = json.loads((tmp_path / "gpu.json").read_text())
    assert set(report["parity"]) == {"ok", "float64", "float32", "generate", "base"}
    assert all(part is True or part["ok"] is True for part in report["parity"].values())
    assert {row["phase"] for row in report["injection"]} == {"prefill", "decode"}
    assert all(set(row["ratio"]) == {"hooks", "einsum", "peft"} for row in report["injection"])
    (training,) = report["training"]
    assert set(training["stages_ms"]) == {"batch", "adapters", "forward", "backward", "optimizer", "rest"}
    assert min(training["stages_ms"].values()) > 0
    assert training["step_tokens_per_second"] > 0
    assert report["left_out"] == report["failed"] == []
    assert "parity float32  ok" in capsys.readouterr().out
    assert run_gpu_bench("--minutes", "0") == 1  # no parity check ran
    assert capsys.readouterr().out.count("left out, no time") == 3


def test_a_case_that_fails_is_named_and_the_others_are_measured(benches, run_gpu_bench, monkeypatch, tmp_path, capsys):
    def full(*arguments):
        raise torch.OutOfMemoryError("no memory\nat all")

    monkeypatch.setattr(benches("gpu"), "training_case", full)
    assert run_gpu_bench("-o", tmp_path / "gpu.json") == 1
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


@pytest.mark.parametrize(
    "name",
    sorted(
        path.name
        for path in BENCHMARKS.glob("*.py")
        if path.name not in ("runs.py", "unseen_report.py", "unseen_table.py")
    ),
)
def test_every_bench_says_how_it_is_used(name, monkeypatch, capsys):
    """The whole script, ``__main__`` included, in this process: each start of an interpreter would take 5 s."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))  # as Python does for a script
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(BENCHMARKS / name), run_name="__main__")
    assert ended.value.code in (0, None)
    assert "usage" in capsys.readouterr().out.lower()


def test_sizes_of_adapters_are_those_that_are_stated(benches, tmp_path, capsys):
    benches("adapter_sizes").main(["--adapters", "20", "-o", str(tmp_path / "sizes.json")])
    report = json.loads((tmp_path / "sizes.json").read_text())
    sizes = {(row["form"], row["rank"]): row["bytes"] for row in report["one_adapter"]}
    assert sizes["free", 8] == 1_843_200
    assert sizes["core", 16] == 120 * 16 * 16 * 2 <= 64_000
    assert sizes["diagonal", 16] == 120 * 16 * 2
    assert report["resident"]["bytes"] == 20 * sizes["core", 16]
    assert {row["head"] for row in report["hypernetworks"]["heads"]} >= {"full", "core", "diagonal"}
    assert "core       rank  16      61.4 kB a prompt" in capsys.readouterr().out


def test_the_committed_sizes_hold_ten_thousand_prompts_in_a_gigabyte():
    report = json.loads((BENCHMARKS / "results" / "adapter_sizes.json").read_text())
    assert report["resident"]["adapters"] == 10_000
    assert report["resident"]["process_after"] < 1e9


def test_the_forms_that_the_bench_of_injection_compares_are_the_same_updates(benches):
    injection = benches("injection")
    lora = injection.random_lora(find_projections(load_meta(None))[:4], 3, 2, shared=True)
    free = injection.free_lora(lora)
    assert (lora.is_shared, free.is_shared) == (True, False)
    assert all(torch.allclose(lora.delta(name), free.delta(name), atol=1e-6) for name in lora)
    assert all(A.is_contiguous() and B.is_contiguous() for A, B in free.stored.values())


def serving_part(adapters: float = 2.2) -> dict[str, object]:
    """Two complete rounds of four arms, the second ten times slower, and one that was stopped."""
    latency = {"p50": 0.1, "p99": 0.4}
    times = {"adapters": adapters, "context": 4.0, "prefix cache": 2.0, "generate": 2.0}

    def one(wall: float, *answers: str) -> dict[str, object]:
        return {"wall": wall, "answers": answers, "first_token": latency, "between_tokens": latency, "reused_tokens": 8,
                "first_token_steps": {"p50": 2, "p99": 3}, "prompt_seconds": 0.25}  # fmt: skip

    rounds = [{arm: one(factor * wall, "a", "b") for arm, wall in times.items()} for factor in (1, 10)]
    rounds[1]["adapters"]["answers"] = ("other", "b")
    costs = {"wall": 0.5, "bytes": 1000}
    return {
        "requests": {**dict.fromkeys(times, 2), "context": 1}, "rounds": [*rounds, {"adapters": one(1.0)}],
        "adapter": costs, "idle": {"p50": 0.1, "p99": 0.2},
    }  # fmt: skip


SERVING = {"output_tokens": 24, "kv_bytes": 100, "itemsize": 4}


def test_the_report_of_serving_divides_within_a_round_and_by_request(benches):
    report = benches("serving_parts.report")
    part = serving_part()
    assert len(report.complete(part)) == 2
    found = report.cell(part, 50, SERVING, "wall")
    assert found["arms"]["adapters"]["relative_to_generate"] == 1.1
    assert found["ratios"]["throughput of 'adapters' / 'generate'"] == round(1 / 1.1, 3)
    assert found["ratios"]["time of 'context' / 'adapters'"] == round(4.0 / 1.1, 3)  # one request against two
    assert found["ratios"]["time of 'adapters' / 'prefix cache'"] == 1.1
    assert found["ratios"]["time of 'vLLM adapters' / 'adapters'"] is None
    assert found["equal_answers"]["adapters"] == "3 of 4 answers are those of 'generate'"
    assert found["p99_relative_to_alone"] == 2.0
    assert found["memory"]["prompts_per_gb"] == {
        "adapter": 1_000_000, "adapter in bfloat16": 2_000_000, "prefix cache": 200_000,
    }  # fmt: skip
    assert report.cell({"requests": {"adapters": 2}, "rounds": [{}]}, 50, SERVING, "wall") is None


def test_the_report_of_serving_says_from_when_on_an_adapter_pays(benches):
    report = benches("serving_parts.report")
    seconds = {"adapters": 1.0, "context": 3.0, "prefix cache": 1.2}
    even = report.break_even(seconds, write=0.5, read=0.3)
    assert even["requests_of_a_prompt_to_beat_context"] == 0.25
    assert even["requests_of_a_prompt_to_beat_prefix_cache"] == 1.0
    assert even["misses_of_the_prefix_cache_from_which_adapters_are_faster"] == 0.0
    even = report.break_even({**seconds, "adapters": 1.35}, write=0.5, read=0.3)
    assert even["requests_of_a_prompt_to_beat_prefix_cache"] is None
    assert even["misses_of_the_prefix_cache_from_which_adapters_are_faster"] == 0.5
    cells = {
        str(length): {
            "arms": {"context": {"seconds_per_request": time}, "adapters": {"seconds_per_request": 1.5}},
            "memory": {"bytes": {"adapter": 1000}},
        }
        for length, time in ((50, 2.0), (400, 9.0))
    }
    found = report.by_length(cells, SERVING)
    assert found == {"smaller_from_prompt_tokens": 10.0, "faster_than_context_from_tokens": 25}


def test_the_report_of_serving_holds_each_aim_against_its_figure(benches):
    report = benches("serving_parts.report")

    def reached(adapters: float, length: int) -> dict[str, bool]:
        found = report.cell(serving_part(adapters), length, SERVING, "wall")
        return {what: ok for what, _, _, ok in report.aims(length, found)}

    fast, slow = reached(2.2, 400), reached(2.8, 400)
    throughput, context, cache = (
        "throughput, relative to `generate`", "time of `context` relative to `adapters`", "time relative to `prefix cache`",
    )  # fmt: skip
    assert (fast[throughput], fast[context], fast[cache]) == (True, True, True)
    assert (slow[throughput], slow[context], slow[cache]) == (False, False, False)
    assert reached(2.8, 50)[context]  # it need only be ahead there
    assert fast["prompts per GB, relative to `prefix cache`"]
    assert not reached(2.2, 50)["prompts per GB, relative to `prefix cache`"]  # 5 times as many, not 20


def test_an_arm_of_serving_that_takes_too_long_runs_the_first_requests(benches):
    workload = benches("serving_parts.workload")
    assert workload.affordable(lambda count: 2.0 * count, 150, 64, 16) == 64
    assert workload.affordable(lambda count: 2.0 * count, 150, 512, 16) == 64
    assert workload.affordable(lambda count: 100.0 * count, 150, 512, 16) == 32
    made = workload.Workload(
        ("a", "b", "c"), ((1,), (2,), (3,)), tuple(workload.Request(i % 3, (9, i)) for i in range(6))
    )
    assert made.first(2) == workload.Workload(("a", "b"), ((1,), (2,)), made.requests[:2])
    assert made.read(made.first(2).requests[1]) == (2, 9, 1)
