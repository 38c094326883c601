/* What the kernels and their launches use of CUDA's runtime, for the emulator. */
#ifndef VIDEOSSM_EMULATED_CUDA_RUNTIME_H
#define VIDEOSSM_EMULATED_CUDA_RUNTIME_H

#include <math.h>

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>

#include "emulator.h"

#define __host__
#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(bytes) alignas(bytes)

/* threadIdx and its kin: objects whose members ask the emulator. */
namespace emulator {
template <Dim Place::*DIM, unsigned Dim::*AXIS>
struct Axis {
    operator unsigned() const { return (place().*DIM).*AXIS; }
};

template <Dim Place::*DIM>
struct Axes {
    Axis<DIM, &Dim::x> x;
    Axis<DIM, &Dim::y> y;
    Axis<DIM, &Dim::z> z;
};
}  // namespace emulator

constexpr emulator::Axes<&emulator::Place::thread> threadIdx = {};
constexpr emulator::Axes<&emulator::Place::block> blockIdx = {};
constexpr emulator::Axes<&emulator::Place::block_dim> blockDim = {};

struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(16) uint4 {
    uint32_t x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }

inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a < b ? b : a; }

inline float __uint_as_float(uint32_t bits) {
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}
inline uint32_t __float_as_uint(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof x);
    return bits;
}
inline float __fdividef(float x, float y) { return x / y; }

inline void __syncthreads() { emulator::block_barrier(); }
inline void __syncwarp() {
    emulator::exchange("__syncwarp", nullptr, [](const emulator::Lanes&) {});
}

/* A shuffle within groups of `width` lanes; `source` is of the group, and out of it the lane's own. */
namespace emulator {
template <typename T>
struct Shuffled {
    T given, got;
    int source, width;
};

template <typename T>
T shuffle(T x, int source, int width) {
    Shuffled<T> mine = {x, x, source, width};
    exchange("shuffle", &mine, [](const Lanes& lanes) {
        for (int lane = 0; lane < LANES; ++lane) {
            auto& to = *static_cast<Shuffled<T>*>(lanes[static_cast<size_t>(lane)]);
            if (to.source >= 0 && to.source < to.width) {
                const int from = lane / to.width * to.width + to.source;
                to.got = static_cast<Shuffled<T>*>(lanes[static_cast<size_t>(from)])->given;
            }
        }
    });
    return mine.got;
}
}  // namespace emulator

template <typename T>
T __shfl_sync(unsigned, T x, int source, int width = 32) {
    return emulator::shuffle(x, source % width, width);
}
template <typename T>
T __shfl_up_sync(unsigned, T x, unsigned step, int width = 32) {
    return emulator::shuffle(x, emulator::place().lane % width - static_cast<int>(step), width);
}
template <typename T>
T __shfl_xor_sync(unsigned, T x, int mask, int width = 32) {
    return emulator::shuffle(x, (emulator::place().lane % width) ^ mask, width);
}

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1 };
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount = 16 };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
using cudaStream_t = void*;

struct dim3 : emulator::Dim {
    dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : emulator::Dim{x_, y_, z_} {}
};

struct cudaLaunchConfig_t {
    dim3 gridDim, blockDim;
    size_t dynamicSmemBytes = 0;
    cudaStream_t stream = nullptr;
};

namespace emulator {
/* What devices of sm_86, 89 and 120 give a thread block at most, and what all give without being asked. */
constexpr size_t SHARED_BYTES_AT_MOST = 99 << 10;
constexpr size_t SHARED_BYTES_UNASKED = 48 << 10;

inline std::map<const void*, size_t>& shared_bytes_asked() {
    static std::map<const void*, size_t> asked;
    return asked;
}
}  // namespace emulator

template <typename Kernel>
cudaError_t cudaFuncSetAttribute(Kernel* kernel, cudaFuncAttribute, int bytes) {
    if (bytes < 0 || static_cast<size_t>(bytes) > emulator::SHARED_BYTES_AT_MOST) {
        return cudaErrorInvalidValue;
    }
    emulator::shared_bytes_asked()[reinterpret_cast<const void*>(kernel)] = static_cast<size_t>(bytes);
    return cudaSuccess;
}

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
    const auto asked = emulator::shared_bytes_asked().find(reinterpret_cast<const void*>(kernel));
    const bool unasked = asked == emulator::shared_bytes_asked().end();
    const size_t limit = unasked ? emulator::SHARED_BYTES_UNASKED : asked->second;
    const dim3& grid = config->gridDim;
    if (config->dynamicSmemBytes > limit || grid.x > INT32_MAX || grid.y > UINT16_MAX || grid.z > UINT16_MAX) {
        return cudaErrorInvalidValue;
    }
    emulator::launch(config->gridDim, config->blockDim, config->dynamicSmemBytes, [&] { kernel(arguments...); });
    return cudaSuccess;
}

inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t error) { return error == cudaSuccess ? "no error" : "invalid value"; }
inline cudaError_t cudaGetDevice(int* device) {
    *device = 0;
    return cudaSuccess;
}

/* So that a test can choose how a scan is shared out. */
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
    const char* text = std::getenv("VIDEOSSM_EMULATOR_MULTIPROCESSORS");
    *value = text ? std::atoi(text) : 1;
    return cudaSuccess;
}

#endif
