"""ONNX graph of the classifier, built node by node.

The graph takes one document per row, padded on the right. The network pads on the left, in chunks that it skips; the outputs
are equal, because a token's output does not depend on later tokens and the pooling masks the padding. So a caller needs no
chunks. torch's exporter is not used: it fixes the number of tokens of the second LSTM to that of the example input. The
trade-off: the network is implemented twice, so each export is compared with the model.

b: documents, T: tokens of the longest, E: width of the embedding, H: hidden size, F: features, C: outputs.
"""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ulmfit_dist import __version__
from ulmfit_dist.config.schema import ClassifierConfig
from ulmfit_dist.data.vocab import PAD_ID
from ulmfit_dist.models.dropout import RowDropout, WeightDropout
from ulmfit_dist.models.layers import SigmoidRange
from ulmfit_dist.models.networks import encoder_of
from ulmfit_dist.models.qrnn import QRNN, QRNNLayer

if TYPE_CHECKING:
    import onnx

OPSET, IR_VERSION = 18, 10
"""Versions of the operators and of the file format, which runtimes since 2024 support."""


class Graph:
    """Nodes and constants of a graph under construction. Values are referred to by name."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, value: Any) -> str:
        """Add a constant, from a tensor or numbers; return its name."""
        from onnx import numpy_helper

        array = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(array, name))
        return name

    def add(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """Add a node; return the name of its output."""
        (name,) = self.add_with_outputs(1, operator, *inputs, **attributes)
        return name

    def add_with_outputs(self, num_outputs: int, operator: str, *inputs: str, **attributes: Any) -> list[str]:
        """Add a node of several outputs; return their names."""
        from onnx import helper

        names = [f"{operator.lower()}_{len(self.nodes)}_{i}" for i in range(num_outputs)]
        self.nodes.append(helper.make_node(operator, inputs, names, **attributes))
        return names


def classifier_graph(model: nn.Module, settings: ClassifierConfig) -> onnx.ModelProto:
    """Return the graph of a classifier: `ids`, int64 [documents, tokens], to its output, float32 [documents, outputs].

    The output is named `probabilities`, or `values` for a regression.

    Args:
        model: the classifier, as `load_model` returns it.
        settings: the classifier section of the config.
    """
    from onnx import TensorProto, helper

    graph = Graph()
    ids_Tb = graph.add("Transpose", "ids", perm=[1, 0])
    pooled_bE = _encoder(graph, model, settings, ids_Tb)
    answers_bC = _answers(graph, _head(graph, model, pooled_bE), settings.target)
    name = output_name(settings.target)
    graph.nodes.append(helper.make_node("Identity", [answers_bC], [name]))
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["documents", "tokens"])
    *_, last = (layer for layer in model[1].modules() if isinstance(layer, nn.Linear))  # type: ignore[index]
    answers = helper.make_tensor_value_info(name, TensorProto.FLOAT, ["documents", last.out_features])
    return helper.make_model(
        helper.make_graph(graph.nodes, "classifier", [ids], [answers], graph.constants),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="ulmfit_dist",
        producer_version=__version__,
    )


def output_name(target: str) -> str:
    """Return the name of the graph's output."""
    return "values" if target == "regression" else "probabilities"


def _answers(graph: Graph, outputs_bC: str, target: str) -> str:
    if target == "category":
        return graph.add("Softmax", outputs_bC, axis=1)
    return graph.add("Sigmoid", outputs_bC) if target == "multicategory" else outputs_bC


def _encoder(graph: Graph, model: nn.Module, settings: ClassifierConfig, ids_Tb: str) -> str:
    """Return the input of the head, [b, 3E]: `concat_pool` of the output of the layers."""
    from onnx import TensorProto

    encoder: Any = encoder_of(model)
    text_Tb = graph.add("Not", graph.add("Equal", ids_Tb, graph.constant(PAD_ID)))
    position_T1 = _positions(graph, ids_Tb)
    marked_Tb = graph.add("Mul", position_T1, graph.add("Cast", text_Tb, to=TensorProto.INT64))
    last_b = graph.add("ReduceMax", marked_Tb, graph.constant([0]), keepdims=0)
    length_b = graph.add("Cast", graph.add("Add", last_b, graph.constant(1)), to=TensorProto.INT32)

    output_TbE, last_1bE = graph.add("Gather", graph.constant(encoder.encoder.weight), ids_Tb), ""
    for rnn in encoder.rnns:
        if isinstance(encoder, QRNN):
            output_TbE = qrnn_layer(graph, rnn.layers[0], output_TbE)
        else:
            output_TbE, last_1bE = _lstm(graph, rnn, output_TbE, length_b)

    chunk_b = graph.add("Div", last_b, graph.constant(settings.seq_len))
    num_skipped_chunks_b = graph.add("Sub", chunk_b, graph.constant(settings.max_len // settings.seq_len - 1))
    start_b = graph.add("Mul", num_skipped_chunks_b, graph.constant(settings.seq_len))
    pooled_Tb = graph.add("And", text_Tb, graph.add("GreaterOrEqual", position_T1, start_b))
    pooled_Tb1 = graph.add("Unsqueeze", pooled_Tb, graph.constant([2]))
    max_bE = _reduce(graph, "ReduceMax", graph.add("Where", pooled_Tb1, output_TbE, graph.constant(np.float32(-np.inf))))
    sum_bE = _reduce(graph, "ReduceSum", graph.add("Where", pooled_Tb1, output_TbE, graph.constant(np.float32(0))))
    count_b1 = _reduce(graph, "ReduceSum", graph.add("Cast", pooled_Tb1, to=TensorProto.FLOAT))
    if isinstance(encoder, QRNN):
        is_last_Tb1 = graph.add("Unsqueeze", graph.add("Equal", position_T1, last_b), graph.constant([2]))
        last_bE = _reduce(graph, "ReduceSum", graph.add("Where", is_last_Tb1, output_TbE, graph.constant(np.float32(0))))
    else:
        last_bE = graph.add("Squeeze", last_1bE, graph.constant([0]))
    return graph.add("Concat", last_bE, max_bE, graph.add("Div", sum_bE, count_b1), axis=1)


def _positions(graph: Graph, ids_Tb: str) -> str:
    """Return 0, 1, ... T - 1 as a column, [T, 1]."""
    num_tokens = graph.add("Gather", graph.add("Shape", ids_Tb), graph.constant(0))
    position_T = graph.add("Range", graph.constant(0), num_tokens, graph.constant(1))
    return graph.add("Unsqueeze", position_T, graph.constant([1]))


def _reduce(graph: Graph, operator: str, values_TbE: str) -> str:
    return graph.add(operator, values_TbE, graph.constant([0]), keepdims=0)


def _lstm(graph: Graph, rnn: WeightDropout, input_TbE: str, length_b: str) -> tuple[str, str]:
    """Return an LSTM's output, [T, b, H], and its output at each document's last token, [1, b, H]."""
    lstm: Any = rnn.module
    weights = [lstm.weight_ih_l0, rnn.weight_hh_l0_raw, torch.cat([lstm.bias_ih_l0, lstm.bias_hh_l0])]
    constants = [graph.constant(_reorder_gates(weight, lstm.hidden_size)[None]) for weight in weights]
    output_T1bH, last_1bH = graph.add_with_outputs(2, "LSTM", input_TbE, *constants, length_b, hidden_size=lstm.hidden_size)
    return graph.add("Squeeze", output_T1bH, graph.constant([1])), last_1bH


def qrnn_layer(graph: Graph, layer: QRNNLayer, input_TbI: str) -> str:
    """Return a QRNN layer's output, [T, b, H]: one product, and a Scan over the tokens for the recurrence."""
    window_TbI = input_TbI
    if layer.window == 2:
        padded_TbI = graph.add("Pad", input_TbI, graph.constant([1, 0, 0, 0, 0, 0]))
        before_TbI = graph.add("Slice", padded_TbI, *map(graph.constant, ([0], [-1], [0])))
        window_TbI = graph.add("Concat", input_TbI, before_TbI, axis=2)
    product_TbG = graph.add("MatMul", window_TbI, graph.constant(layer.linear.weight_raw.t().contiguous()))
    gates_TbG = graph.add("Add", product_TbG, graph.constant(layer.linear.module.bias))
    sizes = graph.constant([layer.n_out] * 3)
    z_TbH, f_TbH, o_TbH = graph.add_with_outputs(3, "Split", gates_TbG, sizes, axis=2)
    z_TbH, f_TbH, o_TbH = graph.add("Tanh", z_TbH), graph.add("Sigmoid", f_TbH), graph.add("Sigmoid", o_TbH)
    zeros_bH = graph.add("Mul", graph.add("Gather", z_TbH, graph.constant(0)), graph.constant(np.float32(0)))
    _, h_TbH = graph.add_with_outputs(2, "Scan", zeros_bH, z_TbH, f_TbH, num_scan_inputs=2, body=_recurrence())
    return graph.add("Mul", o_TbH, h_TbH)


def _recurrence() -> onnx.GraphProto:
    """Return the step of a Scan: h, z and f, each [b, H], to the next h, as the state and as the output."""
    from onnx import TensorProto, helper

    step = Graph()
    change_bH = step.add("Mul", "f", step.add("Sub", "z", "h"))
    step.nodes.append(helper.make_node("Add", ["h", change_bH], ["next_h"]))
    step.nodes.append(helper.make_node("Identity", ["next_h"], ["output"]))
    inputs, outputs = (
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, None]) for name in names]
        for names in (("h", "z", "f"), ("next_h", "output"))
    )
    return helper.make_graph(step.nodes, "recurrence", inputs, outputs)


def _reorder_gates(weight: Tensor, hidden_size: int) -> Tensor:
    """Reorder blocks of torch's gates (input, forget, cell, output) to ONNX's (input, output, forget, cell)."""
    gates = weight.split(hidden_size)
    return torch.cat([gates[i + gate] for i in range(0, len(gates), 4) for gate in (0, 3, 1, 2)])


def _head(graph: Graph, model: nn.Module, x_bF: str) -> str:
    """Return the network's output, [b, C]."""
    blocks = (block if isinstance(block, nn.Sequential) else [block] for block in model[1].layers)  # type: ignore[index]
    for layer in chain.from_iterable(blocks):
        if isinstance(layer, nn.BatchNorm1d):
            statistics = (layer.weight, layer.bias, layer.running_mean, layer.running_var)
            x_bF = graph.add("BatchNormalization", x_bF, *map(graph.constant, statistics), epsilon=layer.eps)
        elif isinstance(layer, nn.Linear):
            bias = [] if layer.bias is None else [graph.constant(layer.bias)]
            x_bF = graph.add("Gemm", x_bF, graph.constant(layer.weight), *bias, transB=1)
        elif isinstance(layer, nn.ReLU):
            x_bF = graph.add("Relu", x_bF)
        elif isinstance(layer, SigmoidRange):
            spread, low = (graph.constant(np.float32(value)) for value in (layer.high - layer.low, layer.low))
            x_bF = graph.add("Add", graph.add("Mul", graph.add("Sigmoid", x_bF), spread), low)
        else:
            assert isinstance(layer, RowDropout), layer
    return x_bF
