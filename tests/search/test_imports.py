import subprocess
import sys
from pathlib import Path

import lightning_optim.search

ROOM = Path(lightning_optim.search.__path__[0])


def test_no_file_of_the_room_loads_torch_or_lightning():
    files = [path.relative_to(ROOM.parents[1]).with_suffix("") for path in sorted(ROOM.rglob("*.py"))]
    names = [".".join(path.parts).removesuffix(".__init__") for path in files]
    assert "lightning_optim.search.strategy.evolution" in names
    code = f"import sys; import {', '.join(names)}; print({{'torch', 'lightning'}} & sys.modules.keys() or 'light')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOM.parents[1])
    assert done.stdout.split() == ["light"]
