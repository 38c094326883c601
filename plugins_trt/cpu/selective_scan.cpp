#include <algorithm>

#include "cpu/scan.h"

namespace videossm {
namespace {

constexpr double SMALL = 2e5;         // exponentials; fewer are done before another thread has woken
constexpr int64_t MOST_VECTORS = 16;  // of channels in an item, which share B and C
constexpr int64_t ITEMS = 3;          // for each thread, so that a slow one does not hold up the others

/* An item is some channels of one batch entry. */
struct SelectiveScanShares : SharesBase {
    int64_t items_of_batch = 0;
    int64_t channels = 0;  // of an item

    void share(const videossm_selective_scan_params& p, int limit) {
        const int64_t states = p.batch * p.channels * p.state_dim;
        const double work = static_cast<double>(states) * static_cast<double>(p.tokens);
        const int64_t vectors = (p.channels + kernels->lanes - 1) / kernels->lanes;
        threads = work < SMALL ? 1 : static_cast<int>(std::min<int64_t>(limit, p.batch * vectors));
        // Items of a batch entry.
        const int64_t wanted = threads == 1 ? 1 : (ITEMS * threads + p.batch - 1) / p.batch;
        channels = std::clamp<int64_t>(vectors / wanted, 1, MOST_VECTORS) * kernels->lanes;
        items_of_batch = (p.channels + channels - 1) / channels;
        floats = kernels->selective_scan_floats(p, channels);
    }

    int64_t items(const videossm_selective_scan_params& p) const { return p.batch * items_of_batch; }

    void run(const videossm_selective_scan_params& p, int64_t number, float* workspace) const {
        const int64_t first = number % items_of_batch * channels;
        const int64_t own = std::min(channels, p.channels - first);
        const SelectiveScanItem item = {number / items_of_batch, first, own};
        kernels->selective_scan(p, item, workspace);
    }
};

}  // namespace
}  // namespace videossm

using namespace videossm;

VIDEOSSM_EXPORT size_t videossm_selective_scan_workspace(const videossm_selective_scan_params* params) {
    return scan_workspace<SelectiveScanShares>(params);
}

VIDEOSSM_EXPORT videossm_status videossm_selective_scan(const videossm_selective_scan_params* params,
                                                        void* stream) {
    return scan<SelectiveScanShares>(params, stream);
}
