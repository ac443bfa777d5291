"""Files of clients, which import what is not installed here, or are an application of their own."""

import pytest

collect_ignore = ["hydra_template", "projects"]


@pytest.fixture(autouse=True)
def _seeds_of_lightning_end_here(monkeypatch):
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        monkeypatch.setenv(name, "0")  # what a client sets instead is put back
