"""Prompts to adapters, and adapters to answers: what a user holds."""

from promptlora.adapt.prompt_lora import Chat as Chat
from promptlora.adapt.prompt_lora import PromptLoRA as PromptLoRA
from promptlora.adapt.prompt_lora import shipped_hypernetwork as shipped_hypernetwork
