"""``/v1/adapters`` and ``/v1/jobs``: prompts to stored adapters, refinement, and download as PEFT folders."""

from __future__ import annotations

import io
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool

from promptlora.engine import AdapterEntry
from promptlora.hypernet.distance import PromptDistance
from promptlora.lora import LoRAWeights
from promptlora.lora.origin import ChatFiles
from promptlora.lora.peft.writing import VLLM_RANKS
from promptlora.server.adapters_schema import (
    Adapter,
    AdapterList,
    AdapterName,
    AdapterRequest,
    Deleted,
    JobAnswer,
    JobList,
    job_answer,
)
from promptlora.server.errors import ApiError
from promptlora.server.refinement import refining
from promptlora.server.service import STORED, Service

_JOB: dict[int | str, dict[str, Any]] = {202: {"model": JobAnswer, "description": "A refinement has begun."}}
_ZIP: dict[int | str, dict[str, Any]] = {
    200: {"description": "A PEFT folder.", "content": {"application/zip": {"schema": {"type": "string"}}}}
}


def described(entry: AdapterEntry, created: float, distance: PromptDistance | None) -> Adapter:
    """A stored adapter as its owner sees it."""
    return Adapter(
        id=entry.key,
        model=f"{STORED}{entry.key}",
        created=int(created),
        bytes=entry.nbytes,
        seconds=entry.seconds,
        prompt_tokens=entry.prompt_tokens,
        in_context=entry.in_context,
        refined=entry.refined,
        distance=None if distance is None else distance.distance,
        far=None if distance is None else distance.far,
    )


def peft_zip(lora: LoRAWeights, name: str, pad_rank: int | str | None, chat: ChatFiles | None) -> bytes:
    """The PEFT folder of an adapter as a zip file.

    Args:
        lora: The adapter.
        name: The name of the folder, which its card bears.
        pad_rank: As for ``save_peft``.
        chat: Writes the tokenizer and its chat template; None leaves them out, and the card too.
    """
    packed = io.BytesIO()
    with tempfile.TemporaryDirectory(prefix="promptlora-peft-") as place:
        folder = Path(place) / name
        lora.save_peft(folder, pad_rank=pad_rank, chat=chat, card=chat is not None)
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:
            for file in sorted(folder.iterdir()):
                archive.write(file, file.name)
    return packed.getvalue()


def routes(service: Service) -> APIRouter:
    """The endpoints of adapters and jobs.

    Args:
        service: The server.
    """
    router = APIRouter(prefix="/v1", tags=["Adapters"])

    @router.post("/adapters", response_model=Adapter, responses=_JOB)
    async def create_adapter(request: Request, body: AdapterRequest) -> Any:
        """Write the adapter of a prompt, or return the one that is there; with `rows` or `inputs` refine it in a job."""
        owner = request.state.owner
        if body.steps is not None and not body.rows and not body.inputs:
            raise ApiError(400, "steps: nothing to refine on. Expected rows or inputs beside them.", param="steps")
        entry = await service.write(owner, body.prompt, body.examples, body.in_context)
        if not body.rows and not body.inputs:
            await service.keep(entry)
            return described(entry, service.created(owner, entry), await service.measure(entry.key, body.prompt))
        job = service.jobs.start(owner, refining(service, owner, body, entry))
        return JSONResponse(job_answer(job).model_dump(), status_code=202)

    @router.get("/adapters", response_model=AdapterList)
    async def list_adapters(request: Request) -> AdapterList:
        """The adapters that the caller may use."""
        keys = await service.all(request.state.owner)
        return AdapterList(data=[AdapterName(id=key, model=f"{STORED}{key}") for key in keys])

    @router.get("/adapters/{id}", response_model=Adapter)
    async def retrieve_adapter(request: Request, id: str) -> Adapter:
        """One adapter."""
        owner = request.state.owner
        entry = await service.find(owner, id)
        return described(entry, service.created(owner, entry), service.distance(id))

    @router.delete("/adapters/{id}", response_model=Deleted)
    async def delete_adapter(request: Request, id: str) -> Deleted:
        """Delete an adapter of the caller; others that sent the same prompt keep theirs."""
        await service.forget(request.state.owner, id)
        return Deleted(id=id)

    @router.get("/adapters/{id}/peft", response_class=Response, responses=_ZIP)
    async def download_adapter(
        request: Request,
        id: str,
        pad_rank: str | None = Query(
            None,
            pattern="^(auto|[1-9][0-9]{0,3})$",
            description="Pad with zeros to this rank, or with `auto` to the next that vLLM takes.",
        ),
        card: bool = Query(True, description="Add the model card, the tokenizer and its chat template."),
    ) -> Response:
        """The adapter as a zip of a PEFT folder with its chat template, which PEFT and vLLM load."""
        entry = await service.find(request.state.owner, id)
        rank = int(pad_rank) if pad_rank and pad_rank.isdecimal() else pad_rank
        if isinstance(rank, int) and rank > VLLM_RANKS[-1]:
            raise ApiError(
                400,
                f"pad_rank: {rank}. Expected at most {VLLM_RANKS[-1]}, the largest that vLLM takes.",
                param="pad_rank",
            )
        name = f"adapter-{entry.key[:12]}"
        packed = await run_in_threadpool(peft_zip, entry.lora, name, rank, service.lm.chat_export if card else None)
        headers = {"Content-Disposition": f'attachment; filename="{name}.zip"'}
        return Response(packed, media_type="application/zip", headers=headers)

    @router.get("/jobs", response_model=JobList)
    async def list_jobs(request: Request) -> JobList:
        """The caller's jobs."""
        return JobList(data=[job_answer(job) for job in service.jobs.of(request.state.owner)])

    @router.get("/jobs/{id}", response_model=JobAnswer)
    async def retrieve_job(request: Request, id: str) -> JobAnswer:
        """The progress of a job."""
        return job_answer(service.jobs.get(request.state.owner, id))

    @router.delete("/jobs/{id}", response_model=JobAnswer)
    async def cancel_job(request: Request, id: str) -> JobAnswer:
        """Cancel a job; one that runs stops at its next step."""
        return job_answer(service.jobs.cancel(request.state.owner, id))

    return router
