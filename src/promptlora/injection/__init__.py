"""Adds LoRA updates to a frozen model through forward hooks, and removes them again.

``update`` holds the arithmetic of one hook call, ``packed`` the arithmetic for a batch packed into one row, and
``hooks`` the hooks. ``injector`` and ``slots`` hold what the hooks read, and ``owner`` decides who may change it. The
package knows ``LoRAWeights`` and ``Projection``; it knows nothing of hypernetworks or prompts.
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
