from __future__ import annotations

import json
from typing import Any

import pytest

from memory import errors
from service.http.problems import from_error

RUNNING = errors.TurnRunning("turn", 3.0)


@pytest.mark.parametrize(
    ("error", "status", "code", "more"),
    [
        (errors.InvalidInput("role", "is wrong"), 400, "invalid_request", {"field": "role"}),
        (
            errors.InvalidInput("role", "is wrong", done=0), 400, "invalid_request",
            {"field": "role", "accepted": 0},
        ),
        (
            errors.BudgetExceeded(needed_tokens=9, budget_tokens=8), 422, "budget_exceeded",
            {"needed_tokens": 9, "budget_tokens": 8},
        ),
        (errors.NotFound("turn"), 404, "not_found", {}),
        (errors.SessionBusy(2.0), 409, "session_busy", {}),
        (errors.TooManyWaiting(2.0), 429, "too_many_waiting", {}),
        (errors.KeyReused(), 422, "idempotency_key_reused", {}),
        (RUNNING, 409, "turn_running", {"turn_id": "turn"}),
        (errors.TurnSuperseded("turn"), 409, "turn_superseded", {"turn_id": "turn"}),
        (errors.Stopping(), 503, "shutting_down", {}),
        (errors.StoreUnavailable("secret"), 503, "store_unavailable", {}),
        (errors.IndexUnavailable("secret"), 503, "index_unavailable", {}),
        (errors.EraseUnfinished("secret"), 503, "index_unavailable", {}),
        (ValueError("secret"), 500, "internal_error", {}),
    ],
)  # fmt: skip
def test_each_error_has_its_status_code_and_members(
    error: Exception, status: int, code: str, more: dict[str, Any]
) -> None:
    problem = from_error(error)
    body = json.loads(problem.body("r1"))
    assert (problem.status, body["status"], body["code"]) == (status, status, code)
    shown = {"type", "title", "status", "detail", "code", "request_id"}
    assert {name: value for name, value in body.items() if name not in shown} == more
    assert "secret" not in body["detail"]


def test_an_errors_own_pause_goes_before_that_of_its_kind() -> None:
    assert from_error(RUNNING).headers()["Retry-After"] == "3"
    assert from_error(errors.Stopping()).headers()["Retry-After"] == "1"
    assert "Retry-After" not in from_error(errors.EraseUnfinished("away")).headers()
