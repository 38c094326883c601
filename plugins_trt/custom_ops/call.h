/* One call of an operator: its tensors, checked, and what runs the scan. */
#ifndef VIDEOSSM_CUSTOM_OPS_CALL_H
#define VIDEOSSM_CUSTOM_OPS_CALL_H

#include <cstdint>
#include <string>
#include <vector>

#include "custom_ops/api.h"
#include "custom_ops/threads.h"
#include "videossm/scans.h"

namespace videossm {

using Shape = std::vector<int64_t>;

/* What does not fit together is thrown as std::exception: a graph comes with a plan, and is not trusted. */
class Call {
public:
    /* `threads`: of the session; 0: not known. */
    Call(OrtKernelContext* context_, const char* operator_name_, int threads)
        : context(context_), operator_name(operator_name_), session_threads(threads) {}

    /* Of input `index`, which must have `rank` dimensions. */
    Shape shape(size_t index, const char* name, size_t rank) const;

    /* Of input `index`, which must be fp32, fp16 or bf16. */
    videossm_dtype dtype(size_t index, const char* name) const;

    /* The elements of input `index`, of `shape` and `dtype`. Null for one that is left out; the scan refuses it if it
     * is needed. */
    const void* input(size_t index, const char* name, const Shape& shape, videossm_dtype dtype) const;
    const float* floats(size_t index, const char* name, const Shape& shape) const {
        return static_cast<const float*>(input(index, name, shape, VIDEOSSM_FP32));
    }

    /* The elements of output `index`; null where nothing reads it. */
    void* output(size_t index, const Shape& shape) const;

    /* Runs `scan` on the threads of the session, in a workspace that the calling thread keeps. */
    template <class Params>
    void run(Params params, size_t workspace_bytes, videossm_status (*scan)(const Params*, void*)) const {
        params.workspace = workspace(workspace_bytes);
        params.workspace_bytes = workspace_bytes;
        if (scan(&params, context) != VIDEOSSM_OK) {
            refuse(videossm_last_error());
        }
    }

private:
    Ort::ConstValue tensor(size_t index) const;  // null for one that is left out
    [[noreturn]] void refuse(const std::string& why) const;
    static void* workspace(size_t bytes);

    OrtKernelContext* const context;
    const char* const operator_name;
    const SessionThreads session_threads;
};

}  // namespace videossm

#endif
