"""Removal of metadata from ONNX files: of what no runtime reads."""

from __future__ import annotations

from typing import Any

from lightning_optim.export.onnx_file.graphs import graphs_of


def strip_model(model: Any) -> None:
    """Drop metadata, doc strings and intermediate shapes in place, and shorten internal names.

    Exporters write Python stack traces and module paths into every node; in a small model they outweigh
    the weights. Names of the model's inputs and outputs stay.

    Args:
        model: An ``onnx.ModelProto``.
    """
    graphs = list(graphs_of(model.graph))
    for item in (model, *model.functions):
        _strip_item(item)
    for function in model.functions:
        for node in function.node:
            _strip_item(node)
        del function.value_info[:]
    for graph in graphs:
        for item in (graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
            _strip_item(item)
        del graph.value_info[:]
    _shorten_names(model.graph, graphs)


def _strip_item(item: Any) -> None:
    del item.metadata_props[:]
    item.ClearField("doc_string")


def _shorten_names(main: Any, graphs: list[Any]) -> None:
    kept = {value.name for value in (*main.input, *main.output)}
    short: dict[str, str] = {"": "", **{name: name for name in kept}}

    def rename(name: str) -> str:
        if name not in short:
            # Values of the main graph and of its branches share one table: a branch may read outer values.
            candidate = f"{len(short):x}"
            while candidate in kept:
                candidate = f"_{candidate}"
            short[name] = candidate
        return short[name]

    for graph in graphs:
        for value in (*graph.input, *graph.output, *graph.initializer):
            value.name = rename(value.name)
        for node in graph.node:
            node.ClearField("name")
            node.input[:] = [rename(name) for name in node.input]
            node.output[:] = [rename(name) for name in node.output]
