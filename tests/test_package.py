"""The package as users get it: the sdist, the wheel built from it, the core alone, and what a missing extra says."""

from __future__ import annotations

import ast
import importlib
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email.parser import Parser
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest

import promptlora
from promptlora.errors import MissingExtraError, PromptLoRAError
from promptlora.extras import need

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def run(command: list[object], folder: Path, **environment: str) -> str:
    """What a command prints, in an environment without the repository on the path of Python."""
    kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run(
        [str(word) for word in command],
        cwd=folder,
        env={**kept, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def build(kind: str, source: Path, output: Path) -> Path:
    run(
        [sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", output],
        source,
        PYTHONPATH=os.pathsep.join(sys.path),
    )
    (made,) = output.iterdir()
    return made


@pytest.fixture(scope="module")
def sdist(tmp_path_factory) -> Path:
    return build("sdist", ROOT, tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def unpacked(sdist, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    (root,) = folder.iterdir()
    return root


@pytest.fixture(scope="module")
def wheel(unpacked, tmp_path_factory) -> Path:
    """Built from the sdist alone, as pip would."""
    return build("wheel", unpacked, tmp_path_factory.mktemp("wheel"))


def requirements(name: str) -> list[str]:
    """The installed distributions that one requires on this machine, itself included, without extras."""
    from packaging.requirements import Requirement

    found: list[str] = []
    waiting = [name]
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in found:
            continue
        try:
            required = [Requirement(text) for text in distribution(name).requires or ()]
        except PackageNotFoundError:
            continue
        found.append(name)
        waiting += [r.name for r in required if r.marker is None or r.marker.evaluate({"extra": ""})]
    return found


@pytest.fixture(scope="module")
def core(wheel, tmp_path_factory) -> Path:
    """A folder for ``PYTHONPATH``: the wheel, and links to what its core dependencies need; no extra, no repository."""
    folder = tmp_path_factory.mktemp("core")
    run([sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", folder, wheel], folder)
    from packaging.requirements import Requirement

    for text in PROJECT["dependencies"]:
        for name in requirements(Requirement(text).name):
            for file in distribution(name).files or ():
                top = file.parts[0]
                if top not in ("..", "__pycache__", "bin") and not top.endswith(".pth") and not (folder / top).exists():
                    (folder / top).symlink_to(Path(str(distribution(name).locate_file(top))))
    return folder


def in_core(core: Path, folder: Path, program: str) -> str:
    """What a program prints in an empty folder, with the core alone: ``-S`` leaves out site-packages."""
    return run([sys.executable, "-S", "-c", program], folder, PYTHONPATH=str(core))


def test_the_version_has_one_source(wheel, sdist):
    assert re.fullmatch(r"\d+\.\d+\.\d+", promptlora.__version__)
    assert wheel.name == f"promptlora-{promptlora.__version__}-py3-none-any.whl"
    assert sdist.name == f"promptlora-{promptlora.__version__}.tar.gz"


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    source = {
        f"promptlora/{path.relative_to(ROOT / 'src' / 'promptlora')}"
        for path in (ROOT / "src" / "promptlora").rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = Parser().parsestr(archive.read(f"promptlora-{promptlora.__version__}.dist-info/METADATA").decode())
    assert {name for name in names if ".dist-info/" not in name} == source
    assert {"promptlora/py.typed", "promptlora/pretrained/model.safetensors"} <= names
    assert set(PROJECT["optional-dependencies"]) == set(metadata.get_all("Provides-Extra"))
    core = [line for line in metadata.get_all("Requires-Dist") if "extra ==" not in line]
    assert len(core) == len(PROJECT["dependencies"])
    assert metadata["Description-Content-Type"] == "text/markdown"


def test_the_sdist_holds_what_its_tests_read(unpacked):
    for folder in ("tests", "benchmarks", "configs", "docs", "scripts"):
        here = {p.relative_to(ROOT) for p in (ROOT / folder).rglob("*") if p.is_file() and "__pycache__" not in p.parts}
        assert here <= {path.relative_to(unpacked) for path in (unpacked / folder).rglob("*")}, folder
    for file in ("README.md", "CHANGELOG.md", "LICENSE", "Makefile", "constraints.txt", "mkdocs.yml", "pyproject.toml"):
        assert (unpacked / file).read_bytes() == (ROOT / file).read_bytes()


def test_the_core_works_without_extras_and_without_the_repository(core, tmp_path):
    printed = in_core(
        core,
        tmp_path,
        "import sys, torch, promptlora\n"
        "from promptlora import HookBasedLoRAInjector, HyperNetwork, LoRAWeights, PromptLoRA, capture_attention, merge_lora\n"
        "from promptlora.adapt import shipped_hypernetwork\n"
        "import promptlora.cli, promptlora.data, promptlora.evaluate, promptlora.teacher\n"
        "network = HyperNetwork.from_pretrained(shipped_hypernetwork())\n"
        "print(promptlora.__file__, len(network.projections))\n"
        "from promptlora import MissingExtraError, Trainer\n"
        "try:\n    Trainer(None)\nexcept MissingExtraError as error:\n    print(error)\n"
        "print(promptlora.cli.main(['--version']), promptlora.cli.main(['ui']))\n",
    ).splitlines()
    assert printed[0] == f"{core / 'promptlora' / '__init__.py'} 120"
    assert printed[1] == (
        "accelerate, tensorboard, tomli_w: not installed. Expected the extra 'train'. Fix: pip install 'promptlora[train]'"
    )
    assert printed[2:] == [f"promptlora {promptlora.__version__}", "0 2"]


def test_the_console_script_of_the_wheel(core, tmp_path):
    printed = run([sys.executable, "-S", core / "bin" / "promptlora", "--version"], tmp_path, PYTHONPATH=str(core))
    assert printed == f"promptlora {promptlora.__version__}\n"


def test_a_missing_extra_is_one_line_that_names_it():
    need("train", "json")  # there
    with pytest.raises(
        MissingExtraError, match=r"^no_such_a, no_such_b: .*'serve'.* pip install 'promptlora\[serve\]'$"
    ):
        need("serve", "no_such_a", "json", "no_such_b")
    assert issubclass(MissingExtraError, ImportError)
    assert issubclass(MissingExtraError, PromptLoRAError)


def test_extras_in_messages_are_declared():
    named = set()
    for path in (ROOT / "src").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        named |= set(re.findall(r'need\("(\w+)"', text)) | set(re.findall(r"promptlora\[(\w+)\]", text))
    named.discard("extra")  # of the helper's own docstring
    assert {"train", "data", "eval", "ui", "plot", "embedded"} <= named <= set(PROJECT["optional-dependencies"])


@pytest.mark.parametrize("package", ["promptlora", "promptlora.data"])
def test_names_that_are_imported_when_first_used_are_those_that_type_checkers_see(package: str) -> None:
    module = importlib.import_module(package)
    tree = ast.parse(Path(module.__file__ or "").read_text(encoding="utf-8"))
    seen = {
        alias.asname or alias.name
        for block in tree.body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == set(module._HOME)
    assert all(getattr(module, name) is not None for name in seen)
