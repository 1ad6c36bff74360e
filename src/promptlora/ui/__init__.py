"""The web page: prompts become adapters, four answers stream side by side, and attention can be explored.

``studio`` does the work and knows nothing of the page. ``html``, ``look`` and ``compare`` draw its results, ``actions``
defines what each button does, ``page`` combines them, and ``serving`` runs the server. Only ``actions``, ``page`` and
``serving`` import Gradio (the extra ``[ui]``).
"""

from __future__ import annotations

from promptlora.ui.studio import Studio
from promptlora.ui.values import Answers, Compared, Inside, Limits, Written

__all__ = ["Answers", "Compared", "Inside", "Limits", "Studio", "Written"]
