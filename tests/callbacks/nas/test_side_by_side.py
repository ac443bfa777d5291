from pathlib import Path

import torch
from torch.utils.data import DataLoader, DistributedSampler, SequentialSampler, TensorDataset

from lightning_optim.callbacks.nas import side_by_side
from lightning_optim.callbacks.nas.side_by_side import whole_data
from lightning_optim.callbacks.trainer.strategy import StrategyKind
from support import quiet, run_script


def test_ranks_judge_candidates_side_by_side_and_find_the_same(tmp_path):
    said = run_script(Path(__file__).with_name("search_on_two_ranks.py"), cwd=tmp_path).stdout
    assert said.count("alike") == 2, said


def test_the_whole_of_the_data_is_known_behind_a_distributed_sampler_alone(monkeypatch):
    trainer = quiet()
    data = TensorDataset(torch.arange(7.0))
    shared = DataLoader(data, batch_size=2, sampler=DistributedSampler(data, 2, 0, shuffle=False))
    assert whole_data(trainer, shared) is None  # of one process
    monkeypatch.setattr(side_by_side, "strategy_kind", lambda _: StrategyKind.DDP)
    monkeypatch.setattr(type(trainer), "world_size", 2)
    whole = whole_data(trainer, shared)
    assert isinstance(whole.sampler, SequentialSampler)
    assert torch.cat([batch[0] for batch in whole]).tolist() == list(range(7))
    assert list(whole_data(trainer, {"a": shared, "b": DataLoader(data)})) == ["a", "b"]
    assert len(whole_data(trainer, [shared])) == 1
    assert whole_data(trainer, [shared, [1, 2]]) is None  # shares of its own, which nobody knows
    assert whole_data(trainer, DataLoader(data, shuffle=True)) is None
