"""Every transfer loss beside the same written by hand: the formula in torch's functions, for one place of each network.

Tests compare bits: where additions may come in several orders, a form has them in the order of the product.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F

from distilled_by_hand import LEARNING_RATE, NARROW, WIDE, exactly, in_full
from lightning_optim.distillation import (
    CRD,
    DIST,
    DKD,
    PKT,
    RKD,
    VID,
    AttentionMap,
    AttentionTransfer,
    ChannelWise,
    GeneralizedJSD,
    Hint,
    Huber,
    MeanSquaredError,
    MiniLMRelations,
    ReverseKL,
    SimilarityPreserving,
    SoftTarget,
)
from lightning_optim.schedule import Linear

PLACE = {"student": "net.block"}
LEARNS = PLACE | {"learning_rate": LEARNING_RATE}
SMALL_CRD = CRD(**LEARNS, dimension=8, temperature=0.5)

# B samples, C channels or classes, P positions of a map, H heads


def positions(maps):
    """``[B, C, H, W]`` as ``[B, P, C]``."""
    return maps.permute(0, 2, 3, 1).flatten(1, 2)


def vectors(maps):
    """``[B, C, H, W]`` as one vector a sample, ``[B, C]``."""
    return positions(maps).mean(1)


def direction(rows, dim=1):
    scaled = rows / rows.detach().abs().amax(dim, keepdim=True)
    return scaled * (scaled**2).sum(dim, keepdim=True).rsqrt()


def soften(seen, temperature):
    """Logarithms of the student's and of the teacher's class probabilities."""
    return ((logits / temperature).log_softmax(1) for logits in seen.logits)


def kl(p, q, dim=-1):
    """Divergence of what has the logarithms ``q`` from what has ``p``."""
    return (p.exp() * (p - q)).sum(dim)


class Formula(nn.Module):
    """Calls a function of what is seen, in which nothing learns."""

    def __init__(self, formula):
        super().__init__()
        self.formula = formula

    def forward(self, seen):
        return self.formula(seen)


def soft_target(seen, temperature=4.0):
    p, q = soften(seen, temperature)
    return temperature**2 * kl(q, p).mean()


def cooling_soft_target(seen):
    return soft_target(seen, 8.0 - 6.0 * seen.progress)


def standardized_soft_target(seen):
    both = (logits - logits.mean(1, keepdim=True) for logits in seen.logits)
    p, q = ((each * ((each**2).sum(1, keepdim=True) / 4).rsqrt() / 4.0).log_softmax(1) for each in both)
    return 16.0 * kl(q, p).mean()


def reverse_kl(seen):
    p, q = soften(seen, 1.0)
    return kl(p, q).mean()


def generalized_jsd(seen):
    p, q = soften(seen, 1.0)
    m = torch.logaddexp(q + math.log(0.5), p + math.log(0.5))
    return (0.5 * kl(q, m) + 0.5 * kl(p, m)).mean()


def dkd(seen):
    is_label = F.one_hot(seen.labels, 4).bool()
    others, binary = [], []
    for log in soften(seen, 4.0):
        rest = log[~is_label].view(-1, 3)
        others.append(rest.log_softmax(1))
        binary.append(torch.stack([log[is_label], rest.logsumexp(1)], 1))
    return 16.0 * (kl(binary[1], binary[0]) + 8.0 * kl(others[1], others[0])).mean()


def dist(seen):
    p, q = (logits.softmax(1) for logits in seen.logits)
    parts = []
    for dim in (1, 0):
        mine, theirs = (direction(each - each.mean(dim, keepdim=True), dim) for each in (p, q))
        parts.append((1.0 - (mine * theirs).sum(dim)).mean())
    return parts[0] + parts[1]


def mean_squared_error(seen):
    return F.mse_loss(*seen.logits)


def huber(seen):
    return F.huber_loss(*seen.logits, delta=0.2)


def attention_map(seen):
    mine, theirs = (direction((each.abs() ** 2.0).mean(1).flatten(1)) for each in seen.maps)
    return 0.5 * ((mine - theirs) ** 2).sum(1).mean()


def pkt(seen):
    with exactly():
        probabilities = []
        for each in seen.maps:
            units = direction(vectors(each))
            similar = (units @ units.T + 1.0) / 2.0
            others = similar[~torch.eye(len(similar), dtype=torch.bool)].view(len(similar), -1)
            probabilities.append(others / others.sum(1, keepdim=True))
        p, q = probabilities
        return (q * (q / p).log()).sum(1).mean()


def rkd(seen):
    with exactly():
        distances, angles = [], []
        for each in seen.maps:
            rows = vectors(each)
            between, size = rows[None] - rows[:, None], len(rows)
            pairs = [(i, j) for i in range(size) for j in range(size) if i != j]
            triplets = [(*pair, k) for pair in pairs for k in range(size) if k not in pair]
            lengths = torch.stack([torch.linalg.vector_norm(between[pair]) for pair in pairs])
            distances.append(lengths / lengths.mean())
            towards = direction(between.masked_fill(torch.eye(size).bool()[..., None], 1.0), 2)
            cosines = towards @ towards.transpose(1, 2)
            angles.append(torch.stack([cosines[at] for at in triplets]))
        return F.smooth_l1_loss(*distances) + 2.0 * F.smooth_l1_loss(*angles)


def similarity_preserving(seen):
    with exactly():
        flat = (each.flatten(1) for each in seen.maps)
        mine, theirs = (direction(each @ each.T) for each in flat)
        return F.mse_loss(mine, theirs)


def minilm_relations(seen):
    with exactly():
        relations = []
        for each in seen.maps:
            heads = positions(each).unflatten(2, (2, -1)).transpose(1, 2)
            relations.append((heads @ heads.mT / heads.shape[-1] ** 0.5).log_softmax(-1))
        return kl(relations[1], relations[0]).mean()


def softmax_of_sum_one(logits):
    """Softmax as the kernels round it: divided by its sum, which is 1 but for rounding."""
    probabilities = logits.softmax(-1)
    return probabilities / probabilities.sum(-1, keepdim=True)


def attention_transfer(seen):
    """A sum whose gradient is that of the divergence, ``(p - q) * scale`` in each head's logits, as in the loss."""
    (mine, my_key), (theirs, their_key) = seen.attentions
    scale, their_scale = (query.shape[-1] ** -0.5 for query in (mine, theirs))
    share = 1.0 / mine[..., 0].numel()
    total = 0.0
    for sample in range(len(mine)):
        for head in range(2):
            logits = mine[sample, head] @ my_key[sample, head].T
            p = softmax_of_sum_one(in_full(logits.detach()) * scale)
            q = softmax_of_sum_one(in_full(theirs[sample, head] @ their_key[sample, head].T) * their_scale)
            total = total + (in_full(logits) * ((p - q) * (scale * share))).sum()
    return total


def attention_transfer_of_means(seen):
    mean = []
    for query, key in seen.attentions:
        # Keys in one piece, as where they are repeated for the queries that share them: products add up in its order.
        scores = in_full(query @ key.contiguous().mT) * query.shape[-1] ** -0.5
        mean.append(scores.softmax(-1).mean(1))
    p, q = mean
    return (q * (q.log() - p.log())).sum(-1).mean()


class Projected(nn.Module):
    """Learns the map of the student's channels to the teacher's."""

    def __init__(self):
        super().__init__()
        self.project = nn.Linear(NARROW, WIDE)


class HintByHand(Projected):
    def forward(self, seen):
        mine, theirs = seen.maps
        return F.mse_loss(in_full(self.project(mine.movedim(1, -1)).movedim(-1, 1)), theirs)


class ChannelWiseByHand(Projected):
    def forward(self, seen):
        mine, theirs = map(positions, seen.maps)
        p, q = ((each / 4.0).log_softmax(1) for each in (in_full(self.project(mine)), theirs))
        return 16.0 * kl(q, p, 1).mean()


class VIDByHand(nn.Module):
    def __init__(self):
        super().__init__()
        self.alpha = nn.Parameter((torch.full((WIDE,), 5.0 - 1e-5).double().expm1().log()).float())
        hidden = [nn.Linear(NARROW, WIDE), nn.ReLU(), nn.Linear(WIDE, WIDE), nn.ReLU()]
        self.mean = nn.Sequential(*hidden, nn.Linear(WIDE, WIDE))

    def forward(self, seen):
        with exactly():
            mine, theirs = map(positions, seen.maps)
            variance = F.softplus(self.alpha) + 1e-5
            return 0.5 * (variance.log() + (theirs - self.mean(mine)) ** 2 / variance).mean()


class CRDByHand(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(NARROW, 8), nn.Linear(WIDE, 8)

    def forward(self, seen):
        with exactly():
            mine, theirs = map(vectors, seen.maps)
            mine, theirs = direction(self.first(mine)), direction(self.second(theirs))
            scores, labels = mine @ theirs.T / 0.5, torch.arange(len(mine))
            return F.cross_entropy(scores, labels) + F.cross_entropy(scores.T, labels)


class SumByHand(nn.Module):
    """Several losses at once."""

    def __init__(self, *makers):
        super().__init__()
        self.parts = nn.ModuleList(make() for make in makers)

    def forward(self, seen):
        return sum(part(seen) for part in self.parts)


# By the name of the leaf, and what is particular about it: the loss or losses, and what makes the same by hand.
CASES = {
    "attention_map": (AttentionMap(**PLACE), lambda: Formula(attention_map)),
    "attention_transfer": (AttentionTransfer(student="net.attend"), lambda: Formula(attention_transfer)),
    "attention_transfer, of means": (
        AttentionTransfer(student="net.attend", heads="mean"),
        lambda: Formula(attention_transfer_of_means),
    ),
    "channel_wise": (ChannelWise(**LEARNS), ChannelWiseByHand),
    "crd": (SMALL_CRD, CRDByHand),
    "dist": (DIST(), lambda: Formula(dist)),
    "dkd": (DKD(), lambda: Formula(dkd)),
    "generalized_jsd": (GeneralizedJSD(), lambda: Formula(generalized_jsd)),
    "hint": (Hint(**LEARNS), HintByHand),
    "hint, with others": (
        {"hint": Hint(**LEARNS), "channels": ChannelWise(**LEARNS), "crd": SMALL_CRD, "soft": SoftTarget()},
        lambda: SumByHand(HintByHand, ChannelWiseByHand, CRDByHand, lambda: Formula(soft_target)),
    ),
    "huber": (Huber(delta=0.2), lambda: Formula(huber)),
    "mean_squared_error": (MeanSquaredError(), lambda: Formula(mean_squared_error)),
    "minilm_relations": (MiniLMRelations(**PLACE, relation_heads=2), lambda: Formula(minilm_relations)),
    "pkt": (PKT(**PLACE), lambda: Formula(pkt)),
    "reverse_kl": (ReverseKL(), lambda: Formula(reverse_kl)),
    "rkd": (RKD(**PLACE), lambda: Formula(rkd)),
    "similarity_preserving": (SimilarityPreserving(**PLACE), lambda: Formula(similarity_preserving)),
    "soft_target": (SoftTarget(), lambda: Formula(soft_target)),
    "soft_target, cooling": (SoftTarget(temperature=Linear(start=8.0, end=2.0)), lambda: Formula(cooling_soft_target)),
    "soft_target, standardized": (SoftTarget(standardize=True), lambda: Formula(standardized_soft_target)),
    "vid": (VID(**LEARNS), VIDByHand),
}
