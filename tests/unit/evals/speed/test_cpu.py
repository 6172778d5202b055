from __future__ import annotations

import os
import time

from evals.speed.cpu import CpuFigures, cpu_seconds, table


def test_the_time_of_a_process_grows_with_its_work() -> None:
    before, began = cpu_seconds(os.getpid()), time.process_time()
    while time.process_time() - began < 0.1:
        pass
    assert cpu_seconds(os.getpid()) - before >= 0.05


def test_two_checkouts_are_shown_with_their_ratio() -> None:
    alone = CpuFigures(turns=10, rounds=3, ms=4.0)
    assert "ratio" not in table(alone)
    both = CpuFigures(turns=10, rounds=3, ms=4.0, against="x", against_ms=5.0, ratio=0.8)
    assert table(both).endswith("| this checkout | 4.0 |\n| the other | 5.0 |\n| ratio | 0.8 |\n")
