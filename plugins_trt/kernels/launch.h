/* Launches that say what the device refused. */
#ifndef VIDEOSSM_KERNELS_LAUNCH_H
#define VIDEOSSM_KERNELS_LAUNCH_H

#include <cuda_runtime.h>

#include "common/checks.h"

namespace videossm {

constexpr size_t SHARED_BYTES_UNASKED = size_t{48} << 10;  // more of them a kernel must be allowed
constexpr unsigned MAX_GRID_Y = 65535;

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
    size_t shared_bytes;
};

/* Queues kernel(task). */
template <typename Task>
videossm_status launch(const char* what, void (*kernel)(Task), const Task& task, const LaunchSizes& sizes,
                       cudaStream_t stream) {
    if (sizes.shared_bytes > SHARED_BYTES_UNASKED) {
        const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                       static_cast<int>(sizes.shared_bytes));
        if (error != cudaSuccess) {
            return check_cuda(error, what);
        }
    }
    cudaLaunchConfig_t config = {};
    config.gridDim = sizes.grid;
    config.blockDim = dim3(sizes.threads);
    config.dynamicSmemBytes = sizes.shared_bytes;
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
