"""Kernel Tuner and pyATF as `search.py` runs them; empty where they are not installed.

Every replay has a new `Searchspace`: one that was used before remembers neighbours of configurations that it has seen,
which makes later searches look better than they are.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from search_spaces import CONDITIONS, Values, condition, names

from tilewright.autotune.recorded import Recorded

_FAILED = 1e20
"""What Kernel Tuner's files say instead of a time is a word; its runner wants a number."""
_STRATEGIES = (
    "adaptive_tabu_greywolf",
    "dual_annealing",
    "genetic_algorithm",
    "diff_evo",
    "hybrid_vndx",
    "pso",
    "simulated_annealing",
    "greedy_ils",
    "random_sample",
)
_SCALED = ("simulated_annealing",)
"""Strategies whose course depends on the budget: run anew for each."""

has_kernel_tuner = importlib.util.find_spec("kernel_tuner") is not None
has_pyatf = importlib.util.find_spec("pyatf") is not None
PEERS: tuple[str, ...] = tuple(f"kernel_tuner {s}" for s in _STRATEGIES) if has_kernel_tuner else ()


def replay_peer(
    recorded: Recorded,
    strategy: str,
    seed: int,
    budgets: Sequence[int],
    reached: Callable[[Sequence[float], float], list[float]],
) -> list[float]:
    """`reached` of one of Kernel Tuner's strategies with its own settings, in its simulation mode."""
    name = strategy.rsplit(maxsplit=1)[-1]
    if name not in _SCALED:
        return reached(_seen(recorded, name, seed, budgets[-1]), recorded.best)
    return [reached(_seen(recorded, name, seed, b), recorded.best)[n] for n, b in enumerate(budgets)]


def _seen(recorded: Recorded, strategy: str, seed: int, budget: int) -> list[float]:
    """The times of the configurations that the strategy evaluates, each once, in order."""
    from kernel_tuner import util
    from kernel_tuner.interface import Options, strategy_map
    from kernel_tuner.runners.simulation import SimulationRunner
    from kernel_tuner.searchspace import Searchspace

    values = {p.name: list(p.values) for p in recorded.space.parameters}
    cache: dict[str, dict[str, Any]] = {}
    for configuration, seconds in recorded.configurations():
        entry: dict[str, Any] = {n: configuration[n] for n in values}
        times = {"time": _FAILED if seconds is None else 1e3 * seconds, "times": [], "compile_time": 0.0}
        entry.update(times, verification_time=0.0, benchmark_time=0.0, strategy_time=0.0, framework_time=0.0)
        if seconds is None:
            entry["time"] = entry["__error__"] = util.RuntimeFailedConfig()
        cache[",".join(str(entry[n]) for n in values)] = entry
    seen: dict[str, float] = {}

    class Runner(SimulationRunner):  # type: ignore[misc]
        def run(self, parameter_space: Any, tuning_options: Any) -> Any:
            configurations = list(parameter_space)
            results = super().run(configurations, tuning_options)
            for c, result in zip(configurations, results, strict=True):
                if result is not None:
                    key = ",".join(str(v) for v in c)
                    seconds = float("inf") if "__error__" in result else float(result["time"]) / 1e3
                    seen.setdefault(key, seconds)
            return results

    random.seed(seed)
    np.random.seed(seed)
    space = Searchspace(None, None, None, from_cache={"tune_params": values, "cache": cache})
    space.max_threads = 1024
    runner = Runner(None, Options({"kernel_name": recorded.kernel}), Options({"quiet": True}), 7, None)
    options = {
        "strategy_options": Options({"max_fevals": budget}),
        "max_fevals": budget,
        "objective": ["time"],
        "objective_higher_is_better": [False],
        "tune_params": values,
        "cache": cache,
        "restrictions": [],
        "restrictions_unmodified": [],
        "metrics": None,
        "verbose": False,
        "budget": util.TuningBudget(None, min(budget, space.size)),
        "simulation_mode": True,
        "cachefile": None,
        "seed": seed,
        "observers": None,
    }
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(util.StopCriterionReached):
        strategy_map[strategy].tune(space, runner, Options(options))
    return list(seen.values())[:budget]


def _kernel_tuner_builds(values: Values) -> int:
    from kernel_tuner.searchspace import Searchspace

    space = Searchspace({n: list(v) for n, v in values.items()}, list(CONDITIONS.values()), 1024, block_size_names=[])
    return int(space.size)


def _pyatf_builds(values: Values) -> int:
    from pyatf import TP, Set
    from pyatf.search_space import SearchSpace

    parameters, known = [], set()
    for name, choices in values.items():
        known.add(name)
        due = [e for e in CONDITIONS.values() if name in names(e) and set(names(e)) <= known]
        parameters.append(TP(name, Set(*choices), condition(" and ".join(due)) if due else None))
    return int(SearchSpace(*parameters, verbosity=0).constrained_size)


BUILDERS: dict[str, Callable[[Values], int]] = {
    **({"pyATF": _pyatf_builds} if has_pyatf else {}),
    **({"Kernel Tuner": _kernel_tuner_builds} if has_kernel_tuner else {}),
}
