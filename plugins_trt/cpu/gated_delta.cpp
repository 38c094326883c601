#include <algorithm>

#include "cpu/scan.h"

namespace videossm {
namespace {

constexpr double SMALL = 2e6;  // multiplications; fewer are done before another thread has woken

/* A head is an item, or, where threads would be idle, some panels of a head's columns. Items of one head each
 * compute what its columns share. */
struct GatedDeltaShares : SharesBase {
    int64_t items_of_head = 1;
    int64_t columns = 0;  // of an item

    void share(const videossm_gated_delta_params& p, int limit) {
        const int64_t panel = 2 * kernels->lanes, panels = (p.value_dim + panel - 1) / panel;
        const int64_t heads = p.batch * p.heads;
        const auto width = [&](int64_t split) {  // of an item, in columns
            return (panels + split - 1) / split * panel;
        };
        const auto work = [&](int64_t split) {  // of an item, in multiplications
            const double keys = static_cast<double>(p.key_dim), values = static_cast<double>(width(split));
            return static_cast<double>(p.tokens) * (32 * keys + values * (3 * keys + 32));
        };
        const auto longest = [&](int64_t split) {  // of a thread
            return work(split) * static_cast<double>((heads * split + limit - 1) / limit);
        };
        const bool small = work(1) * static_cast<double>(heads) < SMALL;
        for (int64_t split = 2; !small && split <= std::min<int64_t>(panels, limit); ++split) {
            if (longest(split) < longest(items_of_head)) {
                items_of_head = split;
            }
        }
        columns = width(items_of_head);
        items_of_head = (p.value_dim + columns - 1) / columns;
        threads = small ? 1 : static_cast<int>(std::min<int64_t>(limit, heads * items_of_head));
        floats = kernels->gated_delta_floats(p, columns);
    }

    int64_t items(const videossm_gated_delta_params& p) const { return p.batch * p.heads * items_of_head; }

    void run(const videossm_gated_delta_params& p, int64_t number, float* workspace) const {
        const int64_t head = number / items_of_head, first = number % items_of_head * columns;
        const int64_t own = std::min(columns, p.value_dim - first);
        const GatedDeltaItem item = {head / p.heads, head % p.heads, first, own};
        kernels->gated_delta(p, item, workspace);
    }
};

}  // namespace
}  // namespace videossm

using namespace videossm;

VIDEOSSM_EXPORT size_t videossm_gated_delta_workspace(const videossm_gated_delta_params* params) {
    return scan_workspace<GatedDeltaShares>(params);
}

VIDEOSSM_EXPORT videossm_status videossm_gated_delta_scan(const videossm_gated_delta_params* params,
                                                          void* stream) {
    return scan<GatedDeltaShares>(params, stream);
}
