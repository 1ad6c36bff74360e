"""LoRA matrices: the container and its two storage forms, products of updates, and PEFT's formats."""

from promptlora.lora.forms import Free as Free
from promptlora.lora.forms import Shared as Shared
from promptlora.lora.origin import AdapterOrigin as AdapterOrigin
from promptlora.lora.weights import LoRAWeights as LoRAWeights
from promptlora.lora.weights import row_number as row_number
