"""The hypernetwork: prompt states to a context, and a context to a LoRA for every projection."""

from promptlora.hypernet.config import HyperNetworkConfig as HyperNetworkConfig
from promptlora.hypernet.encoder import PromptEncoder as PromptEncoder
from promptlora.hypernet.generator import ShapeGroupedLoRAGenerator as ShapeGroupedLoRAGenerator
from promptlora.hypernet.network import HyperNetwork as HyperNetwork
