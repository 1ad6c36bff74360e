"""What ``/v1/adapters`` and ``/v1/jobs`` take and return, as pydantic models."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from promptlora.server.errors import ApiError
from promptlora.server.jobs import Job
from promptlora.server.schema import ErrorBody, Example, Strict, Text

ADAPTER_ID = Field(description="64 hexadecimal digits.", max_length=128)


class AdapterRequest(Strict):
    """``POST /v1/adapters``: a prompt, a prompt with examples, or a prompt with rows or inputs to refine on."""

    prompt: Text
    examples: list[Example] = Field(default=[], max_length=64, description="Read with the prompt, in one pass.")
    in_context: bool = Field(False, description="Write it for a base that also reads the prompt.")
    rows: list[Example] | None = Field(
        None,
        min_length=2,
        max_length=4096,
        description="Gradient steps follow on these rows, as a job; see `/v1/jobs`.",
    )
    inputs: list[Text] | None = Field(
        None,
        min_length=2,
        max_length=4096,
        description="Gradient steps follow towards what a teacher that reads the prompt answers to these inputs, as a job. With "
        "`rows` too, the rows only decide which step is best.",
    )
    steps: int | None = Field(None, ge=1, le=10_000, description="Gradient steps; needs `rows` or `inputs`.")


class Adapter(BaseModel):
    """A stored adapter."""

    id: str = Field(description="A hash of hypernetwork, base, prompt, examples and refinement.")
    object: Literal["adapter"] = "adapter"
    model: str = Field(description="The name of the model that uses it.")
    created: int
    bytes: int = Field(description="Size without the factors that all adapters share.")
    seconds: float = Field(description="How long writing it took.")
    prompt_tokens: int = Field(description="Tokens of the prompt, examples included.")
    in_context: bool
    refined: bool = Field(description="Whether gradient steps made it better; false where the start was the best.")
    distance: float | None = Field(
        description="One minus the cosine of the prompt to the nearest training prompt, from 0 to 2, without examples; null where "
        "the hypernetwork or, since it last started, the server does not know it."
    )
    far: bool | None = Field(
        description="Whether the prompt is farther than nine of ten prompts of task categories that were held out of training."
    )


class AdapterName(BaseModel):
    """An adapter of a list."""

    id: str
    object: Literal["adapter"] = "adapter"
    model: str


class AdapterList(BaseModel):
    """The adapters that the caller may use."""

    object: Literal["list"] = "list"
    data: list[AdapterName]


class Deleted(BaseModel):
    """What a deletion answers."""

    id: str
    object: Literal["adapter"] = "adapter"
    deleted: bool = True


class JobAnswer(BaseModel):
    """A refinement."""

    id: str
    object: Literal["job"] = "job"
    created: int
    status: Literal["queued", "running", "succeeded", "failed", "cancelled"]
    step: int
    steps: int | None = Field(description="Steps in all; null before the first.")
    adapter: str | None = Field(description="The id of the refined adapter, once the job has succeeded.")
    note: str = Field(description="What is to be said of the adapter, such as rows that were left out.")
    error: ErrorBody | None
    ended: int | None


class JobList(BaseModel):
    """The caller's jobs, the oldest first."""

    object: Literal["list"] = "list"
    data: list[JobAnswer]


def job_answer(job: Job) -> JobAnswer:
    """A job as it is now."""
    return JobAnswer(
        id=job.id,
        created=int(job.created),
        status=job.status,
        step=job.step,
        steps=job.steps,
        adapter=job.result,
        note=job.note,
        error=_error(job.error),
        ended=None if job.ended is None else int(job.ended),
    )


def _error(error: ApiError | None) -> ErrorBody | None:
    return None if error is None else ErrorBody.model_validate(error.body()["error"])
