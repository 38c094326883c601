#ifndef VIDEOSSM_KERNELS_GATED_DELTA_LAUNCH_H
#define VIDEOSSM_KERNELS_GATED_DELTA_LAUNCH_H

#include <cuda_runtime.h>

#include "common/checks.h"

namespace videossm {

/* Of params with good sizes; defined for each type in gated_delta_<type>.cu. */
template <typename T>
size_t gated_delta_workspace(const videossm_gated_delta_params& params);

/* Queues the scan of params that have been checked. */
template <typename T>
videossm_status gated_delta_scan_on(const videossm_gated_delta_params& params, cudaStream_t stream);

}  // namespace videossm

#endif
