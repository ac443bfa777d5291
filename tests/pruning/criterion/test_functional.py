import torch
from scipy.stats import rankdata

from lightning_optim.pruning.criterion.functional import ranks, ranks_in_rows


def test_ranks_are_those_of_scipy():
    torch.manual_seed(0)
    scores = torch.randint(0, 20, (7, 9)).float()
    expected = torch.from_numpy(rankdata(scores.flatten()).reshape(7, 9)) / 63
    torch.testing.assert_close(ranks(scores), expected)


def test_ranks_in_rows_are_those_of_each_row():
    torch.manual_seed(0)
    scores = torch.randint(0, 5, (4, 3, 3)).float()
    expected = [torch.from_numpy(rankdata(row.flatten(), method="ordinal").reshape(3, 3)) / 9 for row in scores]
    torch.testing.assert_close(ranks_in_rows(scores), torch.stack(expected).float())
