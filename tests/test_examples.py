"""The Python of README and tutorial runs as it stands there."""

from __future__ import annotations

import importlib.util
import re
from functools import partialmethod
from pathlib import Path

import pytest

from promptlora.adapt.prompt_lora import PromptLoRA
from promptlora.hypernet.network import HyperNetwork

ROOT = Path(__file__).parent.parent


@pytest.mark.real
@pytest.mark.parametrize("page", ["README.md", "docs/tutorial.md"])
def test_the_code_of_a_page_runs(page, tmp_path, monkeypatch, capsys):
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert blocks
    monkeypatch.chdir(tmp_path)
    # As the page says, but with a few steps where it leaves their number open; benchmarks/refine.py measures all of them.
    monkeypatch.setattr(PromptLoRA, "refine", partialmethod(PromptLoRA.refine, steps=4))
    values: dict[str, object] = {}
    exec("\n".join(blocks), values)
    values["lm"].close()


def test_every_public_name_of_the_package_exists():
    import promptlora

    for name in promptlora.__all__:
        assert getattr(promptlora, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        promptlora.nothing  # noqa: B018


@pytest.mark.real
def test_the_examples_of_the_readme_are_true(smollm):
    """They are chosen by a rule, not by their answers; see scripts/readme_examples.py."""
    spec = importlib.util.spec_from_file_location("readme_examples", ROOT / "scripts" / "readme_examples.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    lm = PromptLoRA(*smollm, HyperNetwork.from_pretrained(ROOT / "src/promptlora/pretrained"))
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    try:
        assert script.written(readme, script.block(lm)) == readme, "run python scripts/readme_examples.py"
    finally:
        lm.close()
    assert len(script.chosen()) == 8
