"""Options for loading any pretrained model, and a check whether the Hub answers.

It knows nothing of the purpose of a model.
"""

from __future__ import annotations

from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError

from promptlora.reading import is_dir


def hub_answers(model: str) -> bool:
    """Whether the Hub answers a single request about a model; loading itself would retry for a minute."""
    try:
        huggingface_hub.model_info(model, timeout=10)
    except HfHubHTTPError as error:
        return error.response.status_code < 500
    except Exception:  # no network, no such host, offline mode
        return False
    return True


def loading_options(source: str) -> dict[str, bool]:
    """The options for loading a folder or an id: remote code is never run, and the Hub is used only if it answers."""
    local = is_dir(Path(source)) or not hub_answers(source)
    return {"local_files_only": local, "trust_remote_code": False}
