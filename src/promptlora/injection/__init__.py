"""Adding LoRA updates to a frozen model by forward hooks, and taking them away again.

``update`` is the arithmetic of one hook call, ``injector`` the hooks and what they read. It knows
``LoRAWeights`` and ``Projection``, and nothing of hypernetworks or prompts.
"""

from promptlora.injection.injector import HookBasedLoRAInjector, make_batched_lora_hook, make_lora_hook
from promptlora.injection.update import RowPlan, Update, add_update, plan_rows

__all__ = [
    "HookBasedLoRAInjector",
    "RowPlan",
    "Update",
    "add_update",
    "make_batched_lora_hook",
    "make_lora_hook",
    "plan_rows",
]
