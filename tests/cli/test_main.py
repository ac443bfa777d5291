import subprocess
import sys
from pathlib import Path

import lightning_optim
import lightning_optim.conf


def test_help_shows_every_group_and_option_with_its_line(call):
    answer = call("--help")
    assert answer.code == 0
    folder = Path(lightning_optim.conf.__path__[0])
    for path in folder.rglob("*.yaml"):
        if path.parent.name != "lightning_optim":  # those are the sub-commands' own
            first = next(line for line in path.read_text().splitlines() if line[:2] == "# " and "@package" not in line)
            assert path.stem in answer.out
            assert str(path.parent.relative_to(folder)).removeprefix("lightning_optim/") in answer.out
            assert first.split()[1] in answer.out
    assert "run=" in answer.out


def test_help_is_ours_wherever_it_stands(call):
    assert call("compress", "--help").out == call("seed=1", "-h").out == call("--help").out


def test_version(call):
    assert call("--version").out == f"lightning-optim {lightning_optim.__version__}\n"


def test_the_configuration_can_be_printed_and_nothing_runs(call, contents):
    answer = call("compress", "--cfg", "job", "seed=3", "data=fashion_mnist")
    assert answer.code == 0
    assert "seed: 3" in answer.out
    assert "stem_stride: 2" in answer.out  # what suits this data set came along
    assert contents() == {}


def test_a_module_of_ones_own_takes_none_of_the_demo_models_keywords(call):
    answer = call("--cfg", "job", "--package", "model", "model._target_=my.Module", "+model.width=64")
    assert answer.code == 0
    assert set(answer.out.split("\n")) >= {"_target_: my.Module", "width: 64"}
    assert not any(word in answer.out for word in ("lr:", "network:"))


def test_python_dash_m_is_the_same_program_and_starts_without_torch(tmp_path):
    code = (
        "import runpy, sys; sys.argv = ['lightning-optim', '--version'];"
        "runpy.run_module('lightning_optim', run_name='__main__');"
        "assert not {'torch', 'lightning', 'hydra'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("lightning-optim ")
