"""What loading any pretrained model needs: silent libraries, and whether the hub answers.

It does not know what a model is for.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import logging as hub_logging
from transformers.utils import logging as transformers_logging


@contextmanager
def quiet(bars: bool = False) -> Iterator[None]:
    """Suppress the libraries' warnings, and their progress bars unless ``bars``; restore both on leaving."""
    levels = transformers_logging.get_verbosity(), hub_logging.get_verbosity()
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    hub_logging.set_verbosity(logging.ERROR)
    if not bars:
        transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers_logging.set_verbosity(levels[0])
        hub_logging.set_verbosity(levels[1])
        if shown:
            transformers_logging.enable_progress_bar()


def hub_answers(model: str) -> bool:
    """Whether the hub can be asked about a model: one question, where loading would try again for a minute."""
    try:
        huggingface_hub.model_info(model, timeout=10)
    except HfHubHTTPError as error:
        return error.response.status_code < 500
    except Exception:  # no network, no such host, offline mode
        return False
    return True


def loading_options(source: str) -> dict[str, bool]:
    """How transformers is to load a folder or an id: never its code, and from the hub only if the hub answers."""
    local = Path(source).is_dir() or not hub_answers(source)
    return {"local_files_only": local, "trust_remote_code": False}
