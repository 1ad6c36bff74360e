"""The hypernetwork: it encodes prompt states into a context, and generates a LoRA for every projection from it."""

from promptlora.hypernet.config import HyperNetworkConfig as HyperNetworkConfig
from promptlora.hypernet.encoder import PromptEncoder as PromptEncoder
from promptlora.hypernet.generator import ShapeGroupedLoRAGenerator as ShapeGroupedLoRAGenerator
from promptlora.hypernet.network import HyperNetwork as HyperNetwork
