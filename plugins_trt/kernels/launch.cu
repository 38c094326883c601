/* The C interface of videossm_scans_cuda. */
#include <cinttypes>
#include <initializer_list>
#include <limits>

#include "common/checks.h"
#include "kernels/gated_delta_launch.h"
#include "kernels/selective_scan_launch.h"
#include "kernels/types.cuh"

namespace videossm {
namespace {

constexpr int64_t MAX_INT = std::numeric_limits<int32_t>::max();
constexpr int64_t MAX_STATE_DIM = 256;
constexpr int64_t VALUE_DIM_STEP = 16;  // columns of a warp
constexpr int64_t MAX_BATCH = 65535;    // thread blocks of a grid along its third axis

struct Limited {
    const char* what;
    int64_t value, at_most;
};

videossm_status check_limits(std::initializer_list<Limited> sizes) {
    for (const Limited& size : sizes) {
        if (size.value > size.at_most) {
            return fail(VIDEOSSM_UNSUPPORTED, "%s: got %" PRId64 ", expected at most %" PRId64, size.what, size.value,
                        size.at_most);
        }
    }
    return VIDEOSSM_OK;
}

videossm_status check_supported(const videossm_gated_delta_params& p) {
    if (p.key_dim != 32 && p.key_dim != 64 && p.key_dim != 128) {
        return fail(VIDEOSSM_UNSUPPORTED, "key_dim: got %" PRId64 ", expected 32, 64 or 128", p.key_dim);
    }
    if (p.value_dim % VALUE_DIM_STEP != 0) {
        return fail(VIDEOSSM_UNSUPPORTED, "value_dim: got %" PRId64 ", expected a multiple of %" PRId64, p.value_dim,
                    VALUE_DIM_STEP);
    }
    /* A block of tokens has 16 at least: their number, and that of a launch's thread blocks, stays an int. */
    return check_limits({{"value_dim", p.value_dim, int64_t{1} << 16},
                         {"tokens", p.tokens, MAX_INT / 2},
                         {"batch", p.batch, MAX_BATCH},
                         {"batch heads", p.batch * p.heads, MAX_INT},
                         {"batch heads tokens / 16", p.batch * p.heads * (p.tokens / 16 + 1), MAX_INT},
                         {"heads value_dim", p.heads * p.value_dim, MAX_INT}});
}

videossm_status check_supported(const videossm_selective_scan_params& p) {
    return check_limits({{"state_dim", p.state_dim, MAX_STATE_DIM},
                         {"tokens", p.tokens, MAX_INT / 2},
                         {"batch channels", p.batch * p.channels, MAX_INT}});
}

/* Pieces of 16 bytes are loaded and stored. */
videossm_status check_aligned(const videossm_gated_delta_params& p) {
    struct Tensor {
        const char* name;
        const void* data;
    };
    for (const Tensor& tensor : {Tensor{"query", p.output ? p.query : nullptr}, Tensor{"key", p.key},
                                 Tensor{"value", p.value}, Tensor{"output", p.output}}) {
        if (reinterpret_cast<uintptr_t>(tensor.data) % PIECE_BYTES != 0) {
            return fail(VIDEOSSM_BAD_ARGUMENT, "%s: got address %p, expected a multiple of %d", tensor.name,
                        tensor.data, PIECE_BYTES);
        }
    }
    return VIDEOSSM_OK;
}

/* Of params with good sizes. */
size_t workspace_bytes(const videossm_gated_delta_params& p) {
    switch (p.dtype) {
        case VIDEOSSM_FP16:
            return gated_delta_workspace<Half>(p);
        case VIDEOSSM_BF16:
            return gated_delta_workspace<BFloat16>(p);
        default:
            return gated_delta_workspace<float>(p);
    }
}

}  // namespace
}  // namespace videossm

using namespace videossm;

VIDEOSSM_EXPORT size_t videossm_gated_delta_workspace(const videossm_gated_delta_params* params) {
    const bool good = check_sizes(params) == VIDEOSSM_OK && check_supported(*params) == VIDEOSSM_OK;
    return good ? workspace_bytes(*params) : 0;
}

VIDEOSSM_EXPORT size_t videossm_selective_scan_workspace(const videossm_selective_scan_params*) { return 0; }

VIDEOSSM_EXPORT videossm_status videossm_gated_delta_scan(const videossm_gated_delta_params* params, void* stream) {
    if (const videossm_status status = check_sizes(params)) {
        return status;
    }
    if (const videossm_status status = check_supported(*params)) {
        return status;
    }
    if (const videossm_status status = check_pointers(params, workspace_bytes(*params))) {
        return status;
    }
    if (const videossm_status status = check_aligned(*params)) {
        return status;
    }
    const auto cuda_stream = static_cast<cudaStream_t>(stream);
    switch (params->dtype) {
        case VIDEOSSM_FP16:
            return gated_delta_scan_on<Half>(*params, cuda_stream);
        case VIDEOSSM_BF16:
            return gated_delta_scan_on<BFloat16>(*params, cuda_stream);
        default:
            return gated_delta_scan_on<float>(*params, cuda_stream);
    }
}

VIDEOSSM_EXPORT videossm_status videossm_selective_scan(const videossm_selective_scan_params* params, void* stream) {
    if (const videossm_status status = check_sizes(params)) {
        return status;
    }
    if (const videossm_status status = check_supported(*params)) {
        return status;
    }
    if (const videossm_status status = check_pointers(params, 0)) {
        return status;
    }
    const auto cuda_stream = static_cast<cudaStream_t>(stream);
    switch (params->dtype) {
        case VIDEOSSM_FP16:
            return selective_scan_on<Half>(*params, cuda_stream);
        case VIDEOSSM_BF16:
            return selective_scan_on<BFloat16>(*params, cuda_stream);
        default:
            return selective_scan_on<float>(*params, cuda_stream);
    }
}
