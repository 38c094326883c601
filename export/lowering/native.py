"""Scans to the operators of libvideossm_onnxruntime, for ONNX Runtime on a CPU: they stay nodes of our domain.

    before  output, last = videossm::GatedDeltaScan<scale, normalize_key, normalize_query>(
                query, key, value, decay, beta, state)
    after   the same, in types that the library takes (see `typed`), an output that nothing reads left out ("")

Each scan stays as it is: joining the heads of several ones, as other lowerings do, would cost a CPU more than it gains.

Constraints: those of `typed`.
"""

from __future__ import annotations

from onnx import ModelProto, NodeProto, helper

from videossm.export.lowering.graph import ScanNode, formals, replace_scans
from videossm.export.lowering.typed import typed
from videossm.export.schemas import DOMAIN, GATED_DELTA_SCAN, SELECTIVE_SCAN


def lower_native(model: ModelProto) -> ModelProto:
    """Types every scan in `model` itself, and returns it. Raises LoweringError naming a node that cannot be."""
    replace_scans(model, [GATED_DELTA_SCAN, SELECTIVE_SCAN], _lowered)
    return model


def _lowered(scan: ScanNode) -> list[NodeProto]:
    node, own = scan.node, typed(scan)
    inputs = [own.inputs.get(name, "") for name in formals(node.op_type)]
    while not inputs[-1]:
        inputs.pop()
    lowered = helper.make_node(node.op_type, inputs, own.outputs, name=node.name, domain=DOMAIN, **scan.attributes())
    lowered.metadata_props.extend(node.metadata_props)
    before, after = own.casts
    return [*before, lowered, *after]
