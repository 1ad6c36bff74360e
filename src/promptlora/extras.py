"""Optional dependencies: one line that names the extra, where a library of an extra is not installed.

It knows names of extras (``pyproject.toml``); it imports none of their libraries.
"""

from __future__ import annotations

from importlib.util import find_spec

from promptlora.errors import MissingExtraError


def need(extra: str, *modules: str) -> None:
    """Check that the top-level modules of an extra can be imported, before the first of them is.

    Args:
        extra: Name of the extra in ``pip install 'promptlora[extra]'``.
        *modules: Names of top-level modules.

    Raises:
        MissingExtraError: At least one is not installed; it names them and the extra.
    """
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        raise MissingExtraError(
            f"{', '.join(missing)}: not installed. Expected the extra {extra!r}. Fix: pip install 'promptlora[{extra}]'"
        )
