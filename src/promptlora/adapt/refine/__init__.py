"""Refinement: a few gradient steps on the adapters of prompts, with many prompts in one batch.

The base and the hypernetwork are not changed. The entry point is ``PromptLoRA.refine``.
"""

from promptlora.adapt.refine.loop import RefineStep as RefineStep
from promptlora.adapt.refine.refine import refine_adapters as refine_adapters
from promptlora.adapt.refine.rows import group_rows as group_rows
from promptlora.adapt.refine.settings import RefineSettings as RefineSettings
