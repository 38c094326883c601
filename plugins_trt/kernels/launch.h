/* Launches that say what the device refused. */
#ifndef VIDEOSSM_KERNELS_LAUNCH_H
#define VIDEOSSM_KERNELS_LAUNCH_H

#include <cuda_runtime.h>

#include "common/checks.h"

namespace videossm {

/* Of a thread block: what a kernel has without asking, and what devices of sm_86, 89 and 120 give. */
constexpr int SHARED_BYTES_UNASKED = 48 << 10, SHARED_BYTES_AT_MOST = 99 << 10;

inline videossm_status check_cuda(cudaError_t error, const char* what) {
    if (error == cudaSuccess) {
        return VIDEOSSM_OK;
    }
    static_cast<void>(cudaGetLastError());  // what was reported is not found again by the next caller
    return fail(VIDEOSSM_FAILED, "%s: got '%s' from the device", what, cudaGetErrorString(error));
}

struct LaunchSizes {
    dim3 grid;
    unsigned threads;
    int shared_bytes;
};

/* Queues kernel(task). */
template <typename Task>
videossm_status launch(const char* what, void (*kernel)(Task), const Task& task, const LaunchSizes& sizes,
                       cudaStream_t stream) {
    if (sizes.shared_bytes > SHARED_BYTES_UNASKED) {
        const cudaError_t error =
            cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, sizes.shared_bytes);
        if (error != cudaSuccess) {
            return check_cuda(error, what);
        }
    }
    cudaLaunchConfig_t config = {};
    config.gridDim = sizes.grid;
    config.blockDim = dim3(sizes.threads);
    config.dynamicSmemBytes = static_cast<size_t>(sizes.shared_bytes);
    config.stream = stream;
    return check_cuda(cudaLaunchKernelEx(&config, kernel, task), what);
}

/* Of the current device. */
inline videossm_status count_multiprocessors(int& count) {
    int device = 0;
    cudaError_t error = cudaGetDevice(&device);
    if (error == cudaSuccess) {
        error = cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device);
    }
    return check_cuda(error, "device");
}

}  // namespace videossm

#endif
