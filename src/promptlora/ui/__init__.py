"""The web page: prompts become adapters, three answers stream side by side, and attention can be walked through.

``studio`` does the work and knows no page; ``html`` and ``figures`` draw what it made; ``page`` puts them together;
``serving`` runs the server. Gradio and Plotly (the extra ``[ui]``) are imported by ``figures``, ``page`` and
``serving`` alone.
"""

from __future__ import annotations

from promptlora.ui.studio import Answers, Inside, Limits, Studio, Written

__all__ = ["Answers", "Inside", "Limits", "Studio", "Written"]
