"""``/v1/models``: what a request may name as its model."""

from __future__ import annotations

from fastapi import APIRouter, Request

from promptlora.server.schema import Model, ModelList
from promptlora.server.service import STORED, WRITER, Service, unknown_model


def routes(service: Service) -> APIRouter:
    """The endpoints of models.

    Args:
        service: The server.
    """
    router = APIRouter(prefix="/v1/models", tags=["OpenAI"])

    def named(name: str) -> Model:
        return Model(id=name, created=service.started)

    @router.get("", response_model=ModelList)
    async def list_models(request: Request) -> ModelList:
        """The base, `promptlora`, and the caller's adapters as `adapter:<id>`."""
        stored = [f"{STORED}{key}" for key in await service.all(request.state.owner)]
        return ModelList(data=[named(name) for name in (service.settings.model_name, WRITER, *stored)])

    @router.get("/{model:path}", response_model=Model)
    async def retrieve_model(request: Request, model: str) -> Model:
        """One model."""
        if model.startswith(STORED):
            await service.find(request.state.owner, model.removeprefix(STORED))
        elif model not in (service.settings.model_name, WRITER):
            raise unknown_model(model, service.settings.model_name)
        return named(model)

    return router
