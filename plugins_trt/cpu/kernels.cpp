/* Both scans for one instruction set. The build compiles this file once for each, see cmake/cpu.cmake and
 * vector.h. */
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wsign-conversion"      // in each index into an array of vectors
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // in GCC 12's own headers of the AVX-512 intrinsics
#endif

#include "cpu/kernels.h"

#include "cpu/gated_delta_kernel.h"
#include "cpu/selective_scan_kernel.h"

#define VIDEOSSM_TEXT(name) #name
#define VIDEOSSM_NAME(name) VIDEOSSM_TEXT(name)

namespace videossm {
namespace VIDEOSSM_SET {
namespace {

/* Calls scan<T>(arguments...) for the type that `dtype` names. */
template <template <class> class Scan, class Params, class Item>
void run(const Params& params, const Item& item, float* workspace) {
    switch (params.dtype) {
        case VIDEOSSM_FP32: return Scan<float>(params, item, workspace).run();
        case VIDEOSSM_FP16: return Scan<Half>(params, item, workspace).run();
        case VIDEOSSM_BF16: return Scan<Bfloat16>(params, item, workspace).run();
    }
}

}  // namespace

extern const Kernels kernels;  // else a constant is seen in this file alone

const Kernels kernels = {
    VIDEOSSM_NAME(VIDEOSSM_SET), LANES,
    gated_delta_floats, run<GatedDelta, videossm_gated_delta_params, GatedDeltaItem>,
    selective_scan_floats, run<SelectiveScan, videossm_selective_scan_params, SelectiveScanItem>,
};

}  // namespace VIDEOSSM_SET
}  // namespace videossm
