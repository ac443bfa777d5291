"""Does a search that is killed go on to the same pick?

    python -m benchmarks.search --only resume

A search of 60 evaluations writes its state after each. Its process is killed (SIGKILL) at ten evaluations drawn at
random, each time after the evaluation and before its state is written, and begins again from the file. In the end its
history and its pick are compared with those of a search that was never stopped.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_optim.atomic import write_atomic
from lightning_optim.search import Decision, Evolution, PairwiseSurrogate, SearchSpace, Strategy

EVALUATIONS, KILLS = 60, 10
SPACE = SearchSpace([Decision(name=f"d{number}", options=tuple("abcde"), default=0) for number in range(6)])
STRATEGIES: dict[str, Strategy] = {"pairwise_surrogate": PairwiseSurrogate(), "evolution": Evolution()}


def searched(strategy: Strategy, path: Path, kill_at: int | None = None) -> Mapping[str, Any]:
    """State of a search when it is done; it goes on from a file, and keeps it up to date."""
    search = strategy.start(SPACE, seed=0)
    if path.exists():
        search.load_state_dict(json.loads(path.read_text()))
    while len(search.state_dict()["told"]) < EVALUATIONS:
        proposal = search.ask()
        if proposal is None:
            break
        options = tuple(proposal.candidate.values())
        search.tell(proposal, [random.Random(f"score/{options[:3]}").random() + random.Random(f"{options}").random()])
        if len(search.state_dict()["told"]) == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        write_atomic(path, json.dumps(search.state_dict()).encode())
    return search.state_dict()


def measure() -> Mapping[str, Any]:
    """Whether history and pick are the same, by strategy, and the evaluations at which it was killed."""
    figures: dict[str, Any] = {}
    for name, strategy in STRATEGIES.items():
        kills = sorted(random.Random(f"kills/{name}").sample(range(1, EVALUATIONS + 1), KILLS))
        with tempfile.TemporaryDirectory() as folder:
            whole = searched(strategy, Path(folder) / "whole.json")
            stopped = Path(folder) / "stopped.json"
            for kill_at in kills:
                command = [sys.executable, "-m", "benchmarks.search_resume", name, str(stopped), str(kill_at)]
                code = subprocess.run(command, check=False).returncode
                assert code == -signal.SIGKILL, f"killed at {kill_at}, but it ended with {code}"
            resumed = searched(strategy, stopped)
        figures |= {
            f"{name}_killed_at": str(kills),
            f"{name}_same_history": json.dumps(resumed) == json.dumps(whole),
            f"{name}_same_pick": _pick(resumed) == _pick(whole),
        }
    return figures


def _pick(state: Mapping[str, Any]) -> Any:
    number, _ = max(state["told"], key=lambda entry: entry[1])
    return state["proposed"][number]


if __name__ == "__main__":
    searched(STRATEGIES[sys.argv[1]], Path(sys.argv[2]), int(sys.argv[3]))
