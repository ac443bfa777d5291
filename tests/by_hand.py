"""Outputs of two networks, as losses are given them, and what a hand computes from a row of logits."""

import math

import torch

from lightning_optim.distillation import Context, Observation

CONTEXT = Context(progress=0.0, batch=None)


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def compare(loss, student, teacher, **kwargs):
    return loss(Observation((), kwargs, student), Observation((), {}, teacher), CONTEXT)


def softmax(row, temperature):
    powers = [math.exp(value / temperature) for value in row]
    return [power / sum(powers) for power in powers]
