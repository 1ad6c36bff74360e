"""LoRA matrices: the container, products of updates, and PEFT's formats."""

from promptlora.lora.weights import LoRAWeights as LoRAWeights
