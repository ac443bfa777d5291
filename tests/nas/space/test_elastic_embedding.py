import pytest
import torch
from torch import nn

from lightning_optim import Targets
from lightning_optim.errors import TargetError
from lightning_optim.nas import ElasticEmbedding
from nas_laws import check_paths, converted


class Recurrent(nn.Module):
    """Two embeddings of one stream, one of them tied to what reads it out."""

    def __init__(self):
        super().__init__()
        self.words, self.kinds, self.norm = nn.Embedding(7, 8), nn.Embedding(2, 8), nn.LayerNorm(8)
        self.up, self.down, self.out = nn.Linear(8, 16), nn.Linear(16, 8), nn.Linear(8, 7, bias=False)
        self.out.weight = self.words.weight

    def forward(self, ids):
        x = self.norm(self.words(ids) + self.kinds(ids % 2))
        return self.out(x + self.down(self.up(x).relu()))


IDS = (torch.randint(7, (2, 5), generator=torch.Generator().manual_seed(0)),)


def embedding(*include, **settings):
    return ElasticEmbedding(targets=Targets(include=include), **settings)


def test_embeddings_of_one_stream_are_one_decision_and_tied_weights_follow():
    torch.manual_seed(0)
    supernet = converted(Recurrent(), IDS, stream=embedding("words", "kinds"))
    assert [(entry.name, entry.options) for entry in supernet.decisions] == [("words:embedding", ("4", "6", "8"))]
    check_paths(supernet, IDS)
    subnet = supernet.extract({"words:embedding": 0})
    assert subnet.out.weight is subnet.words.weight
    assert (subnet.words.embedding_dim, subnet.norm.normalized_shape, subnet.down.out_features) == (4, (4,), 4)


def test_an_embedding_that_is_the_output_is_refused_by_name():
    net = nn.Sequential(nn.Embedding(7, 8))
    with pytest.raises(TargetError, match="the channels of '0' cannot vary"):
        converted(net, IDS, stream=embedding("0"))
    with pytest.raises(ValueError, match="fractions must ascend"):
        embedding("0", fractions=(0.5,))
