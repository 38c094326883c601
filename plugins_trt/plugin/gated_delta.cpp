#include "plugin/scan.h"

namespace videossm {
namespace {

enum Input { QUERY, KEY, VALUE, DECAY, BETA, STATE };

videossm_gated_delta_params params_of(const Scan& scan, const Sizes& sizes, ElementType activation) {
    videossm_gated_delta_params params{};
    params.batch = sizes['B'];
    params.tokens = sizes['T'];
    params.heads = sizes['H'];
    params.key_dim = sizes['K'];
    params.value_dim = sizes['V'];
    params.dtype = dtype_of(activation);
    params.scale = scan.fields().number("scale");
    params.normalize_key = scan.fields().flag("normalize_key");
    params.normalize_query = scan.fields().flag("normalize_query");
    return params;
}

size_t workspace_bytes(const Scan& scan, const Sizes& sizes, ElementType activation) {
    const videossm_gated_delta_params params = params_of(scan, sizes, activation);
    return videossm_gated_delta_workspace(&params);
}

videossm_status run(const Scan& scan, const Sizes& sizes, ElementType activation, const Buffers* buffers) {
    videossm_gated_delta_params params = params_of(scan, sizes, activation);
    if (!buffers) {
        return videossm_gated_delta_scan(&params, nullptr);
    }
    params.query = buffers->inputs[QUERY];
    params.key = buffers->inputs[KEY];
    params.value = buffers->inputs[VALUE];
    params.decay = static_cast<const float*>(buffers->inputs[DECAY]);
    params.beta = static_cast<const float*>(buffers->inputs[BETA]);
    params.state = static_cast<const float*>(buffers->inputs[STATE]);
    params.output = scan.wants_output() ? buffers->outputs[0] : nullptr;
    params.last_state = static_cast<float*>(buffers->outputs[1]);
    params.workspace = buffers->workspace;
    params.workspace_bytes = videossm_gated_delta_workspace(&params);
    return videossm_gated_delta_scan(&params, buffers->stream);
}

}  // namespace

const ScanKind& gated_delta_scan() {
    static const ScanKind kind = [] {
        ScanKind made{};
        made.name = "GatedDeltaScan";
        made.axes = "BTHKV";
        made.inputs = {{"query", "BTHK", Role::ACTIVATION}, {"key", "BTHK", Role::ACTIVATION},
                       {"value", "BTHV", Role::ACTIVATION}, {"decay", "BTH", Role::SINGLE},
                       {"beta", "BTH", Role::SINGLE},       {"state", "BHKV", Role::SINGLE}};
        made.required_inputs = 6;
        made.state_input = STATE;
        made.outputs = {{{"output", "BTHV", Role::ACTIVATION}, {"last_state", "BHKV", Role::SINGLE}}};
        made.fields = {{"scale", FieldKind::NUMBER, Missing::REFUSED},
                       {"normalize_key", FieldKind::FLAG, Missing::ZERO},
                       {"normalize_query", FieldKind::FLAG, Missing::ZERO},
                       {"want_output", FieldKind::FLAG, Missing::ONE},
                       {"state_in_place", FieldKind::FLAG, Missing::ZERO}};
        made.workspace_bytes = workspace_bytes;
        made.run = run;
        return made;
    }();
    return kind;
}

}  // namespace videossm
