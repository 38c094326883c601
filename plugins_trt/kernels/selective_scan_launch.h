#ifndef VIDEOSSM_KERNELS_SELECTIVE_SCAN_LAUNCH_H
#define VIDEOSSM_KERNELS_SELECTIVE_SCAN_LAUNCH_H

#include <cuda_runtime.h>

#include "common/checks.h"

namespace videossm {

/* Queues the scan of params that have been checked; defined for each type in selective_scan_<type>.cu. */
template <typename T>
videossm_status selective_scan_on(const videossm_selective_scan_params& params, cudaStream_t stream);

}  // namespace videossm

#endif
