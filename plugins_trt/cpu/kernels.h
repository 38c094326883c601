/* What kernels.cpp gives for one instruction set, and what the entry points must know of it. */
#ifndef VIDEOSSM_CPU_KERNELS_H
#define VIDEOSSM_CPU_KERNELS_H

#include <stdint.h>

#include "videossm/scans.h"

namespace videossm {

/* One head of one batch entry, and of its value_dim the columns from `first` on: they do not know of each
 * other. */
struct GatedDeltaItem {
    int64_t batch, head;
    int64_t first, columns;
};

/* Channels `first` to `first + channels - 1` of one batch entry. */
struct SelectiveScanItem {
    int64_t batch;
    int64_t first, channels;
};

/* Workspaces are aligned to 64 bytes; the functions that size them count floats. */
struct Kernels {
    const char* name;
    int64_t lanes;  // floats in a vector: items start at multiples of it, or of twice as many for gated_delta
    int64_t (*gated_delta_floats)(const videossm_gated_delta_params& params, int64_t columns);
    void (*gated_delta)(const videossm_gated_delta_params& params, const GatedDeltaItem& item,
                        float* workspace);
    int64_t (*selective_scan_floats)(const videossm_selective_scan_params& params, int64_t channels);
    void (*selective_scan)(const videossm_selective_scan_params& params, const SelectiveScanItem& item,
                           float* workspace);
};

#if defined(VIDEOSSM_X86)
namespace avx512 {
extern const Kernels kernels;
}
namespace avx2 {
extern const Kernels kernels;
}
#endif
namespace generic {
extern const Kernels kernels;
}

/* The best set that this processor has, or the one that VIDEOSSM_CPU names (generic, avx2, avx512). Null,
 * with the error set, where it names something else or more than the processor has. */
const Kernels* choose_kernels();

}  // namespace videossm

#endif
