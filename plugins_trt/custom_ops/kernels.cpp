#include "custom_ops/kernels.h"

#include "custom_ops/call.h"

namespace videossm {
namespace {

/* 0 where it is left out. */
int32_t flag(const OrtKernelInfo* info, const char* name) {
    int64_t value = 0;
    const Ort::Status status(Ort::GetApi().KernelInfoGetAttribute_int64(info, name, &value));
    return status.IsOK() && value != 0;
}

}  // namespace

GatedDeltaKernel::GatedDeltaKernel(const OrtKernelInfo* info)
    : scale(Ort::ConstKernelInfo(info).GetAttribute<float>("scale")),
      normalize_key(flag(info, "normalize_key")),
      normalize_query(flag(info, "normalize_query")) {}

void GatedDeltaKernel::compute(OrtKernelContext* context) const {
    const Call call(context, NAME);
    const Shape key = call.shape(1, "key", 4);
    const Shape value = {key[0], key[1], key[2], call.shape(2, "value", 4)[3]};
    const Shape gates = {key[0], key[1], key[2]}, state = {key[0], key[2], key[3], value[3]};
    videossm_gated_delta_params params = {};
    params.batch = key[0];
    params.tokens = key[1];
    params.heads = key[2];
    params.key_dim = key[3];
    params.value_dim = value[3];
    params.dtype = call.dtype(1, "key");
    params.scale = scale;
    params.normalize_key = normalize_key;
    params.normalize_query = normalize_query;
    params.query = call.input(0, "query", key, params.dtype);
    params.key = call.input(1, "key", key, params.dtype);
    params.value = call.input(2, "value", value, params.dtype);
    params.decay = call.floats(3, "decay", gates);
    params.beta = call.floats(4, "beta", gates);
    params.state = call.floats(5, "state", state);
    params.output = call.output(0, value);
    params.last_state = static_cast<float*>(call.output(1, state));
    call.run(params, videossm_gated_delta_workspace(&params), videossm_gated_delta_scan);
}

SelectiveScanKernel::SelectiveScanKernel(const OrtKernelInfo* info) : delta_softplus(flag(info, "delta_softplus")) {}

void SelectiveScanKernel::compute(OrtKernelContext* context) const {
    const Call call(context, NAME);
    const Shape u = call.shape(0, "u", 3);
    const Shape A = {u[1], call.shape(2, "A", 2)[1]}, B = {u[0], A[1], u[2]}, D = {u[1]}, state = {u[0], u[1], A[1]};
    videossm_selective_scan_params params = {};
    params.batch = u[0];
    params.channels = u[1];
    params.tokens = u[2];
    params.state_dim = A[1];
    params.dtype = call.dtype(0, "u");
    params.delta_softplus = delta_softplus;
    params.u = call.input(0, "u", u, params.dtype);
    params.delta = call.input(1, "delta", u, params.dtype);
    params.A = call.floats(2, "A", A);
    params.B = call.input(3, "B", B, params.dtype);
    params.C = call.input(4, "C", B, params.dtype);
    params.state = call.floats(5, "state", state);
    params.D = call.floats(6, "D", D);
    params.z = call.input(7, "z", u, params.dtype);
    params.delta_bias = call.floats(8, "delta_bias", D);
    params.y = call.output(0, u);
    params.last_state = static_cast<float*>(call.output(1, state));
    call.run(params, videossm_selective_scan_workspace(&params), videossm_selective_scan);
}

}  // namespace videossm
