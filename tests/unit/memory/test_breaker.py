from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from memory.breaker import Breaker

FAILURES, PROBE_SECONDS = 3, 10.0


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def breaker(clock: Clock | None = None) -> Breaker:
    return Breaker(failures=FAILURES, probe_seconds=PROBE_SECONDS, clock=clock or Clock())


def opened(clock: Clock) -> Breaker:
    made = breaker(clock)
    assert [made.failed() for _ in range(FAILURES)] == [False] * (FAILURES - 1) + [True]
    return made


@given(st.lists(st.booleans(), max_size=50))
def test_it_opens_after_so_many_failures_in_a_row_and_closes_on_the_first_success(
    outcomes: list[bool],
) -> None:
    made, in_a_row = breaker(), 0
    for good in outcomes:
        was_open = in_a_row >= FAILURES
        in_a_row = 0 if good else in_a_row + 1
        changed = made.succeeded() if good else made.failed()
        assert changed == (was_open if good else in_a_row == FAILURES)
        assert (made.state == "closed") == (in_a_row < FAILURES)


def test_while_open_one_probe_is_allowed_now_and_then() -> None:
    clock = Clock()
    made = opened(clock)
    assert not made.allows()
    assert made.state == "open"
    clock.now += PROBE_SECONDS
    assert [made.allows() for _ in range(5)] == [True] + [False] * 4
    assert made.state == "half_open"
    assert not made.failed(), "it was open already"
    assert made.state == "open"
    clock.now += PROBE_SECONDS - 0.1
    assert not made.allows()
    clock.now += 0.1
    assert made.allows()
    assert made.succeeded()
    assert made.state == "closed"
    assert all(made.allows() for _ in range(5))


def test_a_probe_without_an_outcome_does_not_keep_it_open_for_ever() -> None:
    clock = Clock()
    made = opened(clock)
    clock.now += PROBE_SECONDS
    assert made.allows()
    clock.now += PROBE_SECONDS
    assert made.allows()


class Calls(RuleBasedStateMachine):
    """Calls of which any number run at once, against the plainest model of a breaker."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.breaker = breaker(self.clock)
        self.running = self.in_a_row = 0
        self.opened_or_probed = 0.0

    @rule(seconds=st.floats(0, 2 * PROBE_SECONDS))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule()
    def call(self) -> None:
        due = self.clock.now >= self.opened_or_probed + PROBE_SECONDS
        allowed = self.breaker.allows()
        assert allowed == (self.in_a_row < FAILURES or due)
        if allowed:
            self.running += 1
            if self.in_a_row >= FAILURES:
                self.opened_or_probed = self.clock.now

    @precondition(lambda self: self.running)
    @rule(good=st.booleans())
    def end(self, good: bool) -> None:
        self.running -= 1
        if good:
            self.in_a_row = 0
            self.breaker.succeeded()
        else:
            self.in_a_row += 1
            if self.breaker.failed():
                self.opened_or_probed = self.clock.now

    @precondition(lambda self: self.running)
    @rule()
    def cancel(self) -> None:
        self.running -= 1

    @invariant()
    def open_only_after_failures(self) -> None:
        assert (self.breaker.state == "closed") == (self.in_a_row < FAILURES)


TestCalls = Calls.TestCase
