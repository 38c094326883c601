#include "common/checks.h"

#include <cinttypes>
#include <cmath>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <initializer_list>
#include <limits>

namespace videossm {
namespace {

thread_local char last_error[256] = "";

[[gnu::format(printf, 1, 2)]] videossm_status refuse(const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(last_error, sizeof last_error, format, arguments);
    va_end(arguments);
    return VIDEOSSM_BAD_ARGUMENT;
}

/* The first failure stays; later checks are skipped, so that they may rely on earlier ones. */
class SizeChecks {
public:
    SizeChecks& positive(const char* name, int64_t value) {
        if (ok() && value < 1) {
            status = refuse("%s: got %" PRId64 ", expected at least 1", name, value);
        }
        return *this;
    }

    SizeChecks& elements(const char* tensor, std::initializer_list<int64_t> sizes) {
        int64_t product = 1;
        for (const int64_t size : sizes) {
            if (!ok()) {
                return *this;
            }
            if (size > MAX_ELEMENTS / product) {
                status = refuse("sizes of %s: got more than 2^40 elements, expected fewer", tensor);
                return *this;
            }
            product *= size;
        }
        return *this;
    }

    SizeChecks& dtype(const videossm_dtype& dtype) {
        int number;  // C may have put in any, which C++ may not read as an enum
        static_assert(sizeof number == sizeof dtype, "an enum of C is an int");
        std::memcpy(&number, &dtype, sizeof number);
        if (ok() && (number < VIDEOSSM_FP32 || number > VIDEOSSM_BF16)) {
            status = refuse("dtype: got %d, expected 0 (fp32), 1 (fp16) or 2 (bf16)", number);
        }
        return *this;
    }

    SizeChecks& flag(const char* name, int32_t value) {
        if (ok() && value != 0 && value != 1) {
            status = refuse("%s: got %" PRId32 ", expected 0 or 1", name, value);
        }
        return *this;
    }

    SizeChecks& finite(const char* name, float value) {
        if (ok() && !std::isfinite(value)) {
            status = refuse("%s: got %g, expected a finite number", name, double{value});
        }
        return *this;
    }

    bool ok() const { return status == VIDEOSSM_OK; }

    videossm_status status = VIDEOSSM_OK;
};

struct Tensor {
    const char* name;
    const void* data;
    size_t bytes;
    size_t element_bytes;
    bool required = true;
    const char* when = "";  // it is required

    uintptr_t begin() const { return reinterpret_cast<uintptr_t>(data); }
    uintptr_t end() const { return begin() + bytes; }
};

bool overlap(const Tensor& a, const Tensor& b) {
    return a.data && b.data && a.begin() < b.end() && b.begin() < a.end();
}

videossm_status check_tensor(const Tensor& tensor) {
    if (!tensor.data && tensor.required) {
        return refuse("%s: got null, expected a tensor%s", tensor.name, tensor.when);
    }
    if (tensor.begin() % tensor.element_bytes != 0) {
        return refuse("%s: got address %p, expected a multiple of %zu", tensor.name, tensor.data,
                      tensor.element_bytes);
    }
    if (tensor.bytes > std::numeric_limits<uintptr_t>::max() - tensor.begin()) {
        return refuse("%s: got address %p, expected %zu bytes there", tensor.name, tensor.data, tensor.bytes);
    }
    return VIDEOSSM_OK;
}

/* `written`: the workspace among them. `state` and `last_state` may be one tensor, and must be if they
 * overlap. */
videossm_status check_tensors(std::initializer_list<Tensor> read, std::initializer_list<Tensor> written,
                              const void* state, const void* last_state) {
    for (const auto& tensors : {read, written}) {
        for (const Tensor& tensor : tensors) {
            if (const videossm_status status = check_tensor(tensor)) {
                return status;
            }
        }
    }
    for (const Tensor* output = written.begin(); output != written.end(); ++output) {
        for (const Tensor& input : read) {
            const bool in_place = input.data == state && output->data == last_state && state == last_state;
            if (overlap(input, *output) && !in_place) {
                return refuse("%s: got memory of %s, expected memory of its own", output->name, input.name);
            }
        }
        for (const Tensor* other = written.begin(); other != output; ++other) {
            if (overlap(*other, *output)) {
                return refuse("%s: got memory of %s, expected memory of its own", output->name, other->name);
            }
        }
    }
    return VIDEOSSM_OK;
}

videossm_status check_workspace(const void* workspace, size_t got, size_t needed) {
    if (got < needed) {
        return refuse("workspace_bytes: got %zu, expected at least %zu", got, needed);
    }
    if (!workspace && needed > 0) {
        return refuse("workspace: got null, expected %zu bytes", needed);
    }
    return VIDEOSSM_OK;
}

size_t bytes_of(std::initializer_list<int64_t> sizes, size_t element_bytes) {
    size_t product = element_bytes;
    for (const int64_t size : sizes) {
        product *= static_cast<size_t>(size);
    }
    return product;
}

}  // namespace

videossm_status fail(videossm_status status, const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(last_error, sizeof last_error, format, arguments);
    va_end(arguments);
    return status;
}

videossm_status check_sizes(const videossm_gated_delta_params* params) {
    if (!params) {
        return refuse("params: got null, expected the scan's parameters");
    }
    const auto& p = *params;
    return SizeChecks()
        .positive("batch", p.batch)
        .positive("tokens", p.tokens)
        .positive("heads", p.heads)
        .positive("key_dim", p.key_dim)
        .positive("value_dim", p.value_dim)
        .elements("key", {p.batch, p.tokens, p.heads, p.key_dim})
        .elements("value", {p.batch, p.tokens, p.heads, p.value_dim})
        .elements("state", {p.batch, p.heads, p.key_dim, p.value_dim})
        .dtype(p.dtype)
        .finite("scale", p.scale)
        .flag("normalize_key", p.normalize_key)
        .flag("normalize_query", p.normalize_query)
        .status;
}

videossm_status check_sizes(const videossm_selective_scan_params* params) {
    if (!params) {
        return refuse("params: got null, expected the scan's parameters");
    }
    const auto& p = *params;
    return SizeChecks()
        .positive("batch", p.batch)
        .positive("channels", p.channels)
        .positive("tokens", p.tokens)
        .positive("state_dim", p.state_dim)
        .elements("u", {p.batch, p.channels, p.tokens})
        .elements("B", {p.batch, p.state_dim, p.tokens})
        .elements("state", {p.batch, p.channels, p.state_dim})
        .dtype(p.dtype)
        .flag("delta_softplus", p.delta_softplus)
        .status;
}

videossm_status check_pointers(const videossm_gated_delta_params* params, size_t workspace_bytes) {
    const auto& p = *params;
    if (const videossm_status status = check_workspace(p.workspace, p.workspace_bytes, workspace_bytes)) {
        return status;
    }
    const size_t item = element_bytes(p.dtype);
    const size_t keys = bytes_of({p.batch, p.tokens, p.heads, p.key_dim}, item);
    const size_t values = bytes_of({p.batch, p.tokens, p.heads, p.value_dim}, item);
    const size_t gates = bytes_of({p.batch, p.tokens, p.heads}, sizeof(float));
    const size_t states = bytes_of({p.batch, p.heads, p.key_dim, p.value_dim}, sizeof(float));
    const void* const query = p.output ? p.query : nullptr;  // else it is not read, and may be anything
    return check_tensors(
        {
            {"query", query, keys, item, p.output != nullptr, " where output is given"},
            {"key", p.key, keys, item},
            {"value", p.value, values, item},
            {"decay", p.decay, gates, sizeof(float)},
            {"beta", p.beta, gates, sizeof(float)},
            {"state", p.state, states, sizeof(float)},
        },
        {
            {"output", p.output, values, item, false},
            {"last_state", p.last_state, states, sizeof(float)},
            {"workspace", p.workspace, p.workspace ? p.workspace_bytes : 0, 1, false},
        },
        p.state, p.last_state);
}

videossm_status check_pointers(const videossm_selective_scan_params* params, size_t workspace_bytes) {
    const auto& p = *params;
    if (const videossm_status status = check_workspace(p.workspace, p.workspace_bytes, workspace_bytes)) {
        return status;
    }
    const size_t item = element_bytes(p.dtype);
    const size_t rows = bytes_of({p.batch, p.channels, p.tokens}, item);
    const size_t columns = bytes_of({p.batch, p.state_dim, p.tokens}, item);
    const size_t channels = bytes_of({p.channels}, sizeof(float));
    const size_t states = bytes_of({p.batch, p.channels, p.state_dim}, sizeof(float));
    // What only y needs is not read without it.
    const bool wanted = p.y != nullptr;
    return check_tensors(
        {
            {"u", p.u, rows, item},
            {"delta", p.delta, rows, item},
            {"A", p.A, bytes_of({p.channels, p.state_dim}, sizeof(float)), sizeof(float)},
            {"B", p.B, columns, item},
            {"C", wanted ? p.C : nullptr, columns, item, wanted, " where y is given"},
            {"state", p.state, states, sizeof(float)},
            {"D", wanted ? p.D : nullptr, channels, sizeof(float), false},
            {"z", wanted ? p.z : nullptr, rows, item, false},
            {"delta_bias", p.delta_bias, channels, sizeof(float), false},
        },
        {
            {"y", p.y, rows, item, false},
            {"last_state", p.last_state, states, sizeof(float)},
            {"workspace", p.workspace, p.workspace ? p.workspace_bytes : 0, 1, false},
        },
        p.state, p.last_state);
}

}  // namespace videossm

VIDEOSSM_EXPORT const char* videossm_last_error(void) { return videossm::last_error; }
