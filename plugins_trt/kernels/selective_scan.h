/* What goes to the kernels of SelectiveScan. Shapes: see videossm_selective_scan_params. */
#ifndef VIDEOSSM_KERNELS_SELECTIVE_SCAN_H
#define VIDEOSSM_KERNELS_SELECTIVE_SCAN_H

#include "kernels/types.cuh"

namespace videossm {

template <typename T>
struct SelectiveScanTask {
    const T *u, *delta, *B, *C;
    const float *A, *state;
    const float* D;           // or null
    const T* z;               // or null
    const float* delta_bias;  // or null
    T* y;                     // or null: then C, D and z are not read
    float* last_state;        // may be `state`
    int batch, channels, tokens, state_dim;
    bool delta_softplus;
};

}  // namespace videossm

#endif
