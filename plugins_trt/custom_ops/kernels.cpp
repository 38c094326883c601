#include "custom_ops/kernels.h"

#include <stdexcept>
#include <string>

#include "custom_ops/call.h"

namespace videossm {
namespace {

/* Throws where there is none of that name and type: the exporter writes all. */
template <class Value>
Value attribute(const OrtKernelInfo* info, const char* operator_name, const char* name) {
    try {
        return Ort::ConstKernelInfo(info).GetAttribute<Value>(name);
    } catch (const Ort::Exception& error) {
        throw std::invalid_argument(std::string(operator_name) + ": " + name + ": got none that fits (" + error.what() +
                                    "), expected one");
    }
}

/* 2, which a scan refuses, for what is neither 0 nor 1. */
int32_t flag(const OrtKernelInfo* info, const char* operator_name, const char* name) {
    const auto value = attribute<int64_t>(info, operator_name, name);
    return value == 0 || value == 1 ? static_cast<int32_t>(value) : 2;
}

}  // namespace

GatedDeltaKernel::GatedDeltaKernel(const OrtKernelInfo* info, int threads_)
    : threads(threads_),
      scale(attribute<float>(info, NAME, "scale")),
      normalize_key(flag(info, NAME, "normalize_key")),
      normalize_query(flag(info, NAME, "normalize_query")) {}

void GatedDeltaKernel::compute(OrtKernelContext* context) const {
    const Call call(context, NAME, threads);
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

SelectiveScanKernel::SelectiveScanKernel(const OrtKernelInfo* info, int threads_)
    : threads(threads_), delta_softplus(flag(info, NAME, "delta_softplus")) {}

void SelectiveScanKernel::compute(OrtKernelContext* context) const {
    const Call call(context, NAME, threads);
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
