"""Refinement: a few gradient steps on the adapters of prompts, many prompts in one batch.

The base and the hypernetwork stay as they are. ``PromptLoRA.refine`` is the way in.
"""

from promptlora.adapt.refine.loop import RefineStep as RefineStep
from promptlora.adapt.refine.refine import refine_adapters as refine_adapters
from promptlora.adapt.refine.rows import group_rows as group_rows
from promptlora.adapt.refine.settings import RefineSettings as RefineSettings
