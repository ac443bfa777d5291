"""Graphs of an ONNX model: the main one, and the bodies of its branches and loops."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def graphs_of(graph: Any) -> Iterator[Any]:
    """Yield a ``GraphProto`` and those of its branches and loops, outer before inner; inner ones read outer values."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            inner = ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs)
            for child in inner:
                yield from graphs_of(child)


def nodes_of(graph: Any) -> list[Any]:
    """Return the nodes of a ``GraphProto``, those of its branches and loops included."""
    return [node for each in graphs_of(graph) for node in each.node]
