from pathlib import Path

from support import run_script


def test_a_strategy_that_derives_from_ddp_averages_gradients_after_a_shrink(tmp_path):
    # Gradients of what a callback owns, 1 and 2, are averaged as well.
    done = run_script(Path(__file__).with_name("shrink_on_two_ranks.py"), cwd=tmp_path)
    assert done.stdout.splitlines().count("4 equal -1.5") == 2
