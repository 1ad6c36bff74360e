"""Optional dependencies: a one-line error names the extra if one of its libraries is not installed.

It knows the names of extras (``pyproject.toml``); it imports none of their libraries.
"""

from __future__ import annotations

from importlib.util import find_spec

from promptlora.errors import MissingExtraError


def need(extra: str, *modules: str) -> None:
    """Check that the top-level modules of an extra are installed, without importing them.

    Args:
        extra: Name of the extra in ``pip install 'promptlora[extra]'``.
        *modules: Names of top-level modules.

    Raises:
        MissingExtraError: At least one module is not installed; the message names the modules and the extra.
    """
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        raise MissingExtraError(
            f"{', '.join(missing)}: not installed. Expected the extra {extra!r}. Fix: pip install 'promptlora[{extra}]'"
        )
