"""Converts ``LoRAWeights`` to and from PEFT folders, and merges adapters into the weights of a model.

``physical`` converts logical projections to the modules that PEFT sees, and back; ``writing`` and ``reading`` know
PEFT's files; ``merging`` knows weights. PEFT itself is never imported. Only this package handles PEFT's transposed
shapes (``lora_A.weight`` is ``[rank, in]``, ``lora_B.weight`` is ``[out, rank]``).
"""

from promptlora.lora.peft.merging import merge_lora
from promptlora.lora.peft.reading import load_peft, named_base
from promptlora.lora.peft.writing import VLLM_RANKS, PeftReport, peft_config, peft_state_dict, save_peft

__all__ = [
    "VLLM_RANKS",
    "PeftReport",
    "load_peft",
    "merge_lora",
    "named_base",
    "peft_config",
    "peft_state_dict",
    "save_peft",
]
