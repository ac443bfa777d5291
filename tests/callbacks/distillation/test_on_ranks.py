"""What learns inside losses ends equal on all ranks, with gradients of the data of all of them."""

from pathlib import Path

from support import run_script


def test_learned_parts_of_every_loss_end_equal_on_two_ranks(tmp_path):
    done = run_script(Path(__file__).with_name("on_ranks.py"), 2, cwd=tmp_path)
    said = sorted(line for line in done.stdout.splitlines() if line.startswith("ddp"))
    # Weight and bias of a hint and of channels, seven of VID, four of CRD.
    assert said == sorted(["ddp equal 15", "ddp_find_unused_parameters_true equal 15"] * 2)
