"""The entry point in ``vllm.general_plugins``, which vLLM calls in each of its processes: API server, engine and workers."""

from __future__ import annotations


def register() -> None:
    """Register the resolver, and repair what this vLLM needs repaired; calling it again changes nothing.

    Raises:
        SettingsError: An environment variable with a value of no use.
    """
    from vllm.lora.resolver import LoRAResolverRegistry

    from promptlora_vllm import base_rows, reloading
    from promptlora_vllm.resolver import NAME, PromptLoRAResolver
    from promptlora_vllm.settings import Settings

    Settings.read()  # before the model is loaded, which takes a while
    if NAME not in LoRAResolverRegistry.get_supported_resolvers():
        LoRAResolverRegistry.register_resolver(NAME, PromptLoRAResolver())
    reloading.install()
    base_rows.install()
