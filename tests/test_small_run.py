"""The small training run that a clone can do: its data are in the repository and are what its script writes."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from promptlora.cli import main
from promptlora.settings import from_dict, load_toml, save_toml, to_dict
from promptlora.train.config import TrainConfig

ROOT = Path(__file__).parent.parent
SMALL = ROOT / "configs" / "small.toml"


def test_the_data_are_what_the_script_writes(tmp_path):
    command = str(Path(sys.executable).with_name("promptlora"))
    subprocess.run(
        ["bash", ROOT / "scripts/small_data.sh", tmp_path],
        check=True, capture_output=True, timeout=300, env={**os.environ, "PROMPTLORA": command},
    )  # fmt: skip
    for name in ("rows.jsonl.gz", "wordings.jsonl.gz"):
        committed, written = (
            gzip.decompress((folder / name).read_bytes()) for folder in (SMALL.with_suffix(""), tmp_path)
        )
        assert committed == written, f"{name} is not what scripts/small_data.sh writes; run it"


def test_its_files_are_in_the_repository():
    config = load_toml(TrainConfig, SMALL)
    for name in (*config.data.sources, *config.data.wording_files):
        assert not Path(name).is_absolute()
        assert (ROOT / name).resolve().is_relative_to(ROOT)
        assert (ROOT / name).stat().st_size < 200_000


@pytest.mark.real
def test_two_steps_of_it_from_the_root_of_a_clone(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    values = to_dict(load_toml(TrainConfig, SMALL))
    from_small = {**values, "output": str(tmp_path / "run"), "steps": 2, "margin_every": 9, "prompts_per_batch": 3}
    save_toml(from_dict(TrainConfig, from_small), tmp_path / "two.toml")
    assert main(["train", str(tmp_path / "two.toml"), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["step"] == 2
    assert 0 < result["loss"] < 20
    assert (tmp_path / "run/final/model.safetensors").is_file()
