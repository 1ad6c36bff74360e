"""What clients of OpenAI's API may send, as pydantic models; they are also the OpenAPI document.

A field that changes the answer and is not supported takes its neutral value alone, so that a client is told. Fields that
do not change the answer (``user``, ``metadata``, …) are accepted. Any other name is refused, as OpenAI does.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

MOST_ANSWERS = 8
MOST_TOP_LOGPROBS = 20
_INT64 = (1 << 63) - 1


def _unicode(text: str) -> str:
    """Refuse half of a surrogate pair, which JSON can write and no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"character {error.start} is half of a surrogate pair; expected Unicode text") from error
    return text


Unicode = Annotated[str, AfterValidator(_unicode)]
EmptyList = Annotated[list[Any], Field(max_length=0)]
EmptyDict = Annotated[dict[str, Any], Field(max_length=0)]
Zero = Annotated[float, Field(ge=0, le=0)]
Text = Annotated[Unicode, Field(min_length=1)]
Stop = Annotated[Unicode, Field(min_length=1, max_length=256)]
Stops = Annotated[list[Stop], Field(max_length=4)]
Ids = Annotated[list[Annotated[int, Field(ge=0, le=_INT64)]], Field(min_length=1)]


class Strict(BaseModel):
    """No conversion of types, no unknown field, no number that is not finite."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class Part(BaseModel):
    """A part of a message. This server reads text alone."""

    model_config = ConfigDict(strict=True, extra="ignore")

    type: Literal["text"] = Field(description="Parts of other kinds (images, audio, files) are refused.")
    text: Unicode


class Message(BaseModel):
    """A message of a conversation. Other fields of an answer that is sent back are not read."""

    model_config = ConfigDict(strict=True, extra="ignore")

    role: Literal["system", "developer", "user", "assistant"]
    content: Unicode | list[Part] | None = None
    name: str | None = Field(None, description="Not read.")
    tool_calls: EmptyList | None = None
    function_call: None = None


class Example(Strict):
    """An input of a task and the output that is wanted."""

    input: Unicode
    output: Text


class PromptField(Strict):
    """How this request uses adapters; sent by OpenAI's client in ``extra_body={"promptlora": {…}}``."""

    prompt: Text | None = Field(
        None,
        description="The prompt that becomes the adapter, for the model `promptlora`; for a stored adapter with `in_context`, its prompt, which the base reads.",
    )
    examples: list[Example] = Field(
        default=[], max_length=64, description="Examples of the task, read with the prompt."
    )
    in_context: bool = Field(False, description="The base reads the prompt too, before the first input of the user.")
    strength: float = Field(1.0, gt=0, le=4, description="Factor of the adapter's update.")
    deadline: float | None = Field(None, gt=0, le=86_400, description="Seconds until the answer must be complete.")


class StreamOptions(Strict):
    """Options of a stream."""

    include_usage: bool | None = Field(None, description="End with a chunk that holds the usage.")
    include_obfuscation: bool | None = Field(None, description="Accepted; nothing is obfuscated.")


class ResponseFormat(BaseModel):
    """The form of the answer."""

    model_config = ConfigDict(strict=True, extra="ignore")

    type: Literal["text"]


class Request(Strict):
    """What chat and text completions have in common."""

    model: str = Field(
        description="The base's name, `promptlora`, or `adapter:<id>`; see `/v1/models`.", max_length=512
    )
    max_tokens: int | None = Field(None, ge=1, le=_INT64, description="Longest answer; cut to what the base takes.")
    temperature: float | None = Field(None, ge=0, le=2, description="0, the default here, is the most likely answer.")
    top_p: float | None = Field(None, gt=0, le=1)
    n: int | None = Field(None, ge=1, le=MOST_ANSWERS)
    stop: Stop | Stops | None = Field(None, description="The answer ends before the first of these texts.")
    seed: int | None = Field(None, ge=-_INT64 - 1, le=_INT64, description="The same seed gives the same answer.")
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    promptlora: PromptField | None = None
    user: str | None = Field(None, description="Accepted without effect.")
    frequency_penalty: Zero | None = None
    presence_penalty: Zero | None = None
    logit_bias: EmptyDict | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop texts."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


class ChatRequest(Request):
    """``POST /v1/chat/completions``."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1, le=_INT64, description="As `max_tokens`, which it overrides.")
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MOST_TOP_LOGPROBS)
    response_format: ResponseFormat | None = None
    modalities: Annotated[list[Literal["text"]], Field(max_length=1)] | None = None
    tools: EmptyList | None = None
    tool_choice: Literal["none", "auto"] | None = None
    functions: EmptyList | None = None
    function_call: Literal["none", "auto"] | None = None
    audio: None = None
    prediction: None = None
    web_search_options: None = None
    parallel_tool_calls: bool | None = Field(None, description="Accepted without effect, as the fields below.")
    metadata: dict[str, str] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    reasoning_effort: str | None = None
    verbosity: str | None = None


class CompletionRequest(Request):
    """``POST /v1/completions``."""

    prompt: Unicode | Ids | Annotated[list[Unicode | Ids], Field(min_length=1, max_length=64)] = Field(
        description="A text to continue, its token ids, or a list of either. It is not the prompt of an adapter: that goes "
        "into `promptlora.prompt`."
    )
    logprobs: int | None = Field(None, ge=0, le=MOST_TOP_LOGPROBS)
    echo: Literal[False] | None = None
    suffix: Annotated[str, Field(max_length=0)] | None = None
    best_of: Literal[1] | None = None

    @property
    def inputs(self) -> list[str | list[int]]:
        """The texts or token ids, as a list."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [self.prompt]
        return self.prompt


# --- answers -----------------------------------------------------------------------------------------------


class AdapterUse(BaseModel):
    """What the adapter of a request did."""

    adapter: str | None = Field(description="The id of the adapter; null for the base.")
    prompt_tokens_saved: int | None = Field(
        description="Tokens that the base would have read besides, had the prompt been in its context; null for an "
        "adapter whose prompt is not in the request."
    )
    stopped: Literal["deadline"] | None = Field(None, description="An answer was cut by the request's deadline.")


class Usage(BaseModel):
    """Tokens that the base read and wrote."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    promptlora: AdapterUse


class TopLogprob(BaseModel):
    """A token that could have come, and its log-probability in nats."""

    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(TopLogprob):
    """A token of the answer."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    """Log-probabilities of an answer in a chat."""

    content: list[TokenLogprob]
    refusal: None = None


class TextLogprobs(BaseModel):
    """Log-probabilities of a text completion."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class AnswerMessage(BaseModel):
    """The assistant's message."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatChoice(BaseModel):
    """One answer."""

    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length"]


class TextChoice(BaseModel):
    """One continuation."""

    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: Literal["stop", "length"]


class ChatCompletion(BaseModel):
    """The answer of ``POST /v1/chat/completions``."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    system_fingerprint: str


class TextCompletion(BaseModel):
    """The answer of ``POST /v1/completions``."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[TextChoice]
    usage: Usage
    system_fingerprint: str


class Model(BaseModel):
    """A model that a request may name."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "promptlora"


class ModelList(BaseModel):
    """The answer of ``GET /v1/models``."""

    object: Literal["list"] = "list"
    data: list[Model]


class ErrorBody(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(BaseModel):
    """The JSON of every error."""

    error: ErrorBody
