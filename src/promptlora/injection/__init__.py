"""Adding LoRA updates to a frozen model by forward hooks, and taking them away again.

``update`` is the arithmetic of one hook call, ``hooks`` the hooks, ``injector`` what they read, and ``owner`` who may
fill it. It knows ``LoRAWeights`` and ``Projection``, and nothing of hypernetworks or prompts.
"""

from promptlora.injection.hooks import make_batched_lora_hook, make_lora_hook
from promptlora.injection.injector import HookBasedLoRAInjector, PreparedLoRA
from promptlora.injection.owner import Owner, Turn, turn_of
from promptlora.injection.update import RowPlan, Update, add_update, plan_rows

__all__ = [
    "HookBasedLoRAInjector",
    "Owner",
    "PreparedLoRA",
    "RowPlan",
    "Turn",
    "Update",
    "add_update",
    "make_batched_lora_hook",
    "make_lora_hook",
    "plan_rows",
    "turn_of",
]
