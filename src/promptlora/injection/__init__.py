"""Adding LoRA updates to a frozen model by forward hooks, and removing them again.

``update`` is the arithmetic of one hook call, ``packed`` that of a batch that lies in one row, ``hooks`` the hooks,
``injector`` and ``slots`` what they read, and ``owner`` who may fill it. It knows ``LoRAWeights`` and ``Projection``, and nothing of hypernetworks or prompts.
"""

from promptlora.injection.hooks import make_batched_lora_hook, make_lora_hook
from promptlora.injection.injector import HookBasedLoRAInjector, PreparedLoRA
from promptlora.injection.owner import Owner, Turn, turn_of
from promptlora.injection.packed import PackedPlan, PackedUpdate, add_packed, plan_tokens
from promptlora.injection.slots import AdapterSlots
from promptlora.injection.update import RowPlan, Update, add_update, plan_rows

__all__ = [
    "AdapterSlots",
    "HookBasedLoRAInjector",
    "Owner",
    "PackedPlan",
    "PackedUpdate",
    "PreparedLoRA",
    "RowPlan",
    "Turn",
    "Update",
    "add_packed",
    "add_update",
    "make_batched_lora_hook",
    "make_lora_hook",
    "plan_rows",
    "plan_tokens",
    "turn_of",
]
