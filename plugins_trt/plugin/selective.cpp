#include "plugin/scan.h"

namespace videossm {
namespace {

enum Input { U, DELTA, A, B, C, STATE, D, Z, DELTA_BIAS };

videossm_selective_scan_params params_of(const Scan& scan, const Sizes& sizes, ElementType activation) {
    videossm_selective_scan_params params{};
    params.batch = sizes['B'];
    params.channels = sizes['D'];
    params.tokens = sizes['T'];
    params.state_dim = sizes['N'];
    params.dtype = dtype_of(activation);
    params.delta_softplus = scan.fields().flag("delta_softplus");
    return params;
}

size_t workspace_bytes(const Scan& scan, const Sizes& sizes, ElementType activation) {
    const videossm_selective_scan_params params = params_of(scan, sizes, activation);
    return videossm_selective_scan_workspace(&params);
}

videossm_status run(const Scan& scan, const Sizes& sizes, ElementType activation, const Buffers* buffers) {
    videossm_selective_scan_params params = params_of(scan, sizes, activation);
    if (!buffers) {
        return videossm_selective_scan(&params, nullptr);
    }
    // An input that is not read may be a placeholder, or lie beyond the end of the inputs.
    const auto optional = [&](Input input) { return scan.reads(input) ? buffers->inputs[input] : nullptr; };
    params.u = buffers->inputs[U];
    params.delta = buffers->inputs[DELTA];
    params.A = static_cast<const float*>(buffers->inputs[A]);
    params.B = buffers->inputs[B];
    params.C = buffers->inputs[C];
    params.state = static_cast<const float*>(buffers->inputs[STATE]);
    params.D = static_cast<const float*>(optional(D));
    params.z = optional(Z);
    params.delta_bias = static_cast<const float*>(optional(DELTA_BIAS));
    params.y = scan.wants_output() ? buffers->outputs[0] : nullptr;
    params.last_state = static_cast<float*>(buffers->outputs[1]);
    params.workspace = buffers->workspace;
    params.workspace_bytes = videossm_selective_scan_workspace(&params);
    return videossm_selective_scan(&params, buffers->stream);
}

}  // namespace

const ScanKind& selective_scan() {
    static const ScanKind kind = [] {
        ScanKind made{};
        made.name = "SelectiveScan";
        made.axes = "BDTN";
        made.inputs = {{"u", "BDT", Role::ACTIVATION},
                       {"delta", "BDT", Role::ACTIVATION},
                       {"A", "DN", Role::SINGLE},
                       {"B", "BNT", Role::ACTIVATION},
                       {"C", "BNT", Role::ACTIVATION},
                       {"state", "BDN", Role::SINGLE},
                       {"D", "D", Role::SINGLE, "has_D"},
                       {"z", "BDT", Role::ACTIVATION, "has_z"},
                       {"delta_bias", "D", Role::SINGLE, "has_delta_bias"}};
        made.required_inputs = 6;
        made.state_input = STATE;
        made.outputs = {{{"y", "BDT", Role::ACTIVATION}, {"last_state", "BDN", Role::SINGLE}}};
        made.fields = {{"delta_softplus", FieldKind::FLAG, Missing::REFUSED},
                       {"has_D", FieldKind::FLAG, Missing::REFUSED},
                       {"has_z", FieldKind::FLAG, Missing::REFUSED},
                       {"has_delta_bias", FieldKind::FLAG, Missing::REFUSED},
                       {"want_output", FieldKind::FLAG, Missing::ONE},
                       {"state_in_place", FieldKind::FLAG, Missing::ZERO}};
        made.workspace_bytes = workspace_bytes;
        made.run = run;
        return made;
    }();
    return kind;
}

}  // namespace videossm
