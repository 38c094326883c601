/* The scans as kernels of ONNX Runtime: inputs and attributes are those of export/schemas.py. */
#ifndef VIDEOSSM_CUSTOM_OPS_KERNELS_H
#define VIDEOSSM_CUSTOM_OPS_KERNELS_H

#include "custom_ops/api.h"

namespace videossm {

class GatedDeltaKernel {
public:
    static constexpr const char* NAME = "GatedDeltaScan";
    static constexpr size_t INPUTS = 6, REQUIRED = 6, LIKE[] = {2, 5};

    GatedDeltaKernel(const OrtKernelInfo* info, int threads);
    void compute(OrtKernelContext* context) const;

private:
    const int threads;  // of the session
    const float scale;
    const int32_t normalize_key, normalize_query;
};

class SelectiveScanKernel {
public:
    static constexpr const char* NAME = "SelectiveScan";
    static constexpr size_t INPUTS = 9, REQUIRED = 6, LIKE[] = {0, 5};

    SelectiveScanKernel(const OrtKernelInfo* info, int threads);
    void compute(OrtKernelContext* context) const;

private:
    const int threads;
    const int32_t delta_softplus;
};

}  // namespace videossm

#endif
