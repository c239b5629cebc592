"""The benchmark of budgets: its figures and its words."""

from __future__ import annotations

from budgets import Outcome, Tuned, text
from figures import timing


def test_the_quick_budgets_share() -> None:
    searches = {"quick": Tuned(5.0, 40, {}), "exhaustive": Tuned(200.0, 3000, {"crashed": 2})}
    times = {"untuned": timing([0.02]), "quick": timing([0.01]), "exhaustive": timing([0.008, 0.008])}
    found = Outcome("m.onnx", "pocl", 1, searches, times)
    assert (round(found.share, 9), found.time_share) == (0.8, 0.025)
    lines = text(found).splitlines()
    assert "| untuned | - | - | 20.00 | 20.00 to 20.00 |" in lines
    assert "| exhaustive | 200 | 3000 | 8.00 | 8.00 to 8.00 |" in lines
    assert lines[-2:] == ["quick: 80.0% of the speed in 2.5% of the time", "90% missed"]
