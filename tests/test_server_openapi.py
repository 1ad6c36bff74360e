"""The OpenAPI document against the running server, with requests that schemathesis makes up from it."""

from __future__ import annotations

import hypothesis
import pytest
import schemathesis
from schemathesis import GenerationMode
from schemathesis.checks import load_all_checks
from schemathesis.specs.openapi.checks import positive_data_acceptance

from tests.server_helpers import BASE, serving, tiny_lm

load_all_checks()
KEY = "key-of-the-document"
OPERATIONS = [
    ("GET", "/health"),
    ("GET", "/metrics"),
    ("GET", "/v1/adapters"),
    ("POST", "/v1/adapters"),
    ("GET", "/v1/adapters/{id}"),
    ("DELETE", "/v1/adapters/{id}"),
    ("GET", "/v1/adapters/{id}/peft"),
    ("GET", "/v1/jobs"),
    ("GET", "/v1/jobs/{id}"),
    ("DELETE", "/v1/jobs/{id}"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/{model}"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
]


@pytest.fixture(scope="module")
def document():
    lm = tiny_lm()
    with serving(lm, keys=[KEY], most_tokens=4, most_jobs=4, deadline=20.0) as served:
        yield schemathesis.openapi.from_url(f"{served.url}/openapi.json", headers={"Authorization": f"Bearer {KEY}"})
    lm.close()


def test_the_document_names_all_endpoints(document):
    found = [(method.upper(), path) for path, methods in document.raw_schema["paths"].items() for method in methods]
    assert sorted(found) == sorted(OPERATIONS)


def check(document, method: str, path: str, mode: GenerationMode, examples: int) -> list[int]:
    """Every answer has a status, a type and a body that the document says, and none is a failure of the server."""
    statuses = []

    @hypothesis.settings(
        max_examples=examples, deadline=None, database=None, suppress_health_check=list(hypothesis.HealthCheck)
    )
    @hypothesis.seed(0)
    @hypothesis.given(case=document[path][method].as_strategy(generation_mode=mode))
    def run(case):
        if mode == GenerationMode.POSITIVE and isinstance(case.body, dict) and "model" in case.body:
            case.body["stream"] = len(str(case.body)) % 3 == 0
            case.body["model"] = "promptlora" if len(case.body) % 2 else BASE  # a made-up name is not found
            if isinstance(case.body.get("promptlora"), dict):
                case.body["promptlora"].pop("deadline", None)  # too short a one is answered with 504
        # Whether a text fits the encoder, the context and the chat template is not said by a schema.
        answer = case.call_and_validate(
            excluded_checks=[positive_data_acceptance], headers={"Authorization": f"Bearer {KEY}"}
        )
        statuses.append(answer.status_code)

    run()
    return statuses


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_every_answer_is_one_of_the_document(document, method, path):
    statuses = check(document, method, path, GenerationMode.POSITIVE, 20)
    if "{" not in path:
        assert {200, 202} & set(statuses)
    if "{" in path or method == "POST":
        check(document, method, path, GenerationMode.NEGATIVE, 20)


@pytest.mark.nightly
@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_every_answer_is_one_of_the_document_long(document, method, path):
    check(document, method, path, GenerationMode.POSITIVE, 200)
    if "{" in path or method == "POST":
        check(document, method, path, GenerationMode.NEGATIVE, 200)
