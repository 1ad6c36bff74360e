"""The web page: prompts become adapters, four answers stream side by side, and attention can be walked through.

``studio`` does the work and knows no page; ``html``, ``look`` and ``compare`` draw what it made; ``actions`` says what each
button does; ``page`` puts them together; ``serving`` runs the server. Gradio (the extra ``[ui]``) is imported by
``actions``, ``page`` and ``serving`` alone.
"""

from __future__ import annotations

from promptlora.ui.studio import Studio
from promptlora.ui.values import Answers, Compared, Inside, Limits, Written

__all__ = ["Answers", "Compared", "Inside", "Limits", "Studio", "Written"]
