"""The user-facing API: it converts prompts to adapters, and answers inputs with adapters."""

from promptlora.adapt.adapted_base import AdaptedBase as AdaptedBase
from promptlora.adapt.adapted_base import Chat as Chat
from promptlora.adapt.prompt_lora import PromptLoRA as PromptLoRA
from promptlora.adapt.prompt_lora import shipped_hypernetwork as shipped_hypernetwork
