/* The activations' types, as bits: what computes with them is in ptx.cuh. */
#ifndef VIDEOSSM_KERNELS_TYPES_CUH
#define VIDEOSSM_KERNELS_TYPES_CUH

#include <cstdint>

namespace videossm {

struct Half {
    uint16_t bits;
};

struct BFloat16 {
    uint16_t bits;
};

constexpr int WARP = 32;
constexpr unsigned FULL_WARP = 0xffffffffu;

/* Bytes of the widest load and store of a thread. */
constexpr int PIECE_BYTES = 16;

template <typename T>
constexpr int PIECE = PIECE_BYTES / static_cast<int>(sizeof(T));  // numbers of it

}  // namespace videossm

#endif
