"""The Python of README and tutorial runs as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.real
@pytest.mark.parametrize("page", ["README.md", "docs/tutorial.md"])
def test_the_code_of_a_page_runs(page, tmp_path, monkeypatch, capsys):
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert blocks
    monkeypatch.chdir(tmp_path)
    values: dict[str, object] = {}
    exec("\n".join(blocks), values)
    values["lm"].close()


def test_every_public_name_of_the_package_exists():
    import promptlora

    for name in promptlora.__all__:
        assert getattr(promptlora, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        promptlora.nothing  # noqa: B018
