"""``PromptLoRAResolver``: a model name that vLLM does not know, ``promptlora:<id>``, to the adapter of that id."""

from __future__ import annotations

import logging

from starlette.exceptions import HTTPException
from vllm.lora.request import LoRARequest
from vllm.lora.resolver import LoRAResolver

from promptlora_vllm.settings import PREFIX
from promptlora_vllm.shared import sidecar
from promptlora_vllm.sidecar import SidecarError, UnknownAdapterError
from promptlora_vllm.store import StoreError, is_key

NAME = "promptlora"
log = logging.getLogger("vllm.promptlora")


class PromptLoRAResolver(LoRAResolver):  # type: ignore[misc]
    """Finds adapters in the store, and asks the sidecar for others."""

    async def resolve_lora(self, base_model_name: str, lora_name: str) -> LoRARequest | None:
        """The adapter of a name; None, which is a 404, where it is not one of ours or the sidecar does not know it.

        Args:
            base_model_name: The name of the base; the sidecar writes for one base alone.
            lora_name: The name of the model in a request.

        Raises:
            HTTPException: The sidecar or the store cannot be used. vLLM passes it on to the client.
        """
        key = lora_name.removeprefix(PREFIX)
        if not lora_name.startswith(PREFIX) or not is_key(key):
            return None
        try:
            folder = await sidecar().folder(key)
        except UnknownAdapterError:
            return None
        except SidecarError as error:
            headers = None if error.retry_after is None else {"Retry-After": str(error.retry_after)}
            raise HTTPException(error.status, str(error), headers) from error
        except StoreError as error:
            log.error("%s", error)
            raise HTTPException(500, "The adapter cannot be stored. The reason is in the log.") from error
        return LoRARequest(lora_name=lora_name, lora_int_id=number_of(key), lora_path=str(folder))


def number_of(key: str) -> int:
    """A positive number for an id, the same in every process. vLLM 0.32 replaces it by a counter."""
    return int(key[:15], 16) + 1
