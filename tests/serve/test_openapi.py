"""The OpenAPI document says what the server does: schemathesis tries to find where it does not."""

from __future__ import annotations

import hypothesis
import pytest

schemathesis = pytest.importorskip("schemathesis", reason="no schemathesis: make test installs it")
from schemathesis import GenerationMode  # noqa: E402 (after the check that it is there)
from schemathesis.checks import load_all_checks  # noqa: E402
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance  # noqa: E402

load_all_checks()
EXAMPLES = 6  # of each operation, right and wrong
SETTINGS = hypothesis.settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(hypothesis.HealthCheck),
    phases=[hypothesis.Phase.generate],
)


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
def test_no_server_error_and_no_contradiction(server, mode):
    """Which words a model knows is no matter of a schema: 422 is right for texts that it allows."""
    document = schemathesis.openapi.from_url(f"{server.url}/api/openapi.json")
    asked = set()

    def check(case):
        if len(server.host.streams) > 3:
            server.clear()
        if "id" in case.path_parameters and not case.path.endswith("video.mp4") and case.method != "DELETE":
            case.path_parameters["id"] = next(iter(server.host.streams), None) or server.create("red")["id"]
        response = case.call(timeout=30)
        # To refuse a wrong body for its size is right, though schemathesis does not think of it.
        too_large = [negative_data_rejection] if response.status_code == 413 else []
        case.validate_response(response, excluded_checks=[positive_data_acceptance, *too_large])
        asked.add((case.method, case.path))

    for result in document.get_all_operations():
        cases = result.ok().as_strategy(generation_mode=mode)
        try:
            SETTINGS(hypothesis.given(cases)(lambda case: check(case)))()
        except hypothesis.errors.Unsatisfiable:
            assert mode is GenerationMode.NEGATIVE, "what takes nothing can be asked nothing wrong"
    assert len(asked) >= (13 if mode is GenerationMode.POSITIVE else 4), sorted(asked)


def test_every_path_is_in_the_document(server):
    document = server.ask("GET", "/api/openapi.json").json()
    assert {"/api/streams", "/api/streams/{id}/fork", "/api/states", "/metrics"} <= document["paths"].keys()
    assert document["components"]["schemas"].keys() >= {"StreamInfo", "NewStream", "Error", "PromptMessage"}
