#include <algorithm>

#include "common/checks.h"
#include "cpu/kernels.h"
#include "cpu/threads.h"
#include "cpu/workspace.h"

namespace videossm {
namespace {

constexpr double SMALL = 2e5;         // exponentials; fewer are done before another thread has woken
constexpr int64_t MOST_VECTORS = 16;  // of channels in an item, which share B and C
constexpr int64_t ITEMS = 3;          // for each thread, so that a slow one does not hold up the others

/* How a scan is shared out: an item is some channels of one batch entry. */
struct Shares {
    const Kernels* kernels = nullptr;
    int threads = 0;
    int64_t items_of_batch = 0;
    int64_t channels = 0;  // of an item
    int64_t floats = 0;    // of workspace, for a thread

    /* False, with the error set, where the environment asks for what there is not. */
    bool find(const videossm_selective_scan_params& p) {
        kernels = choose_kernels();
        const int limit = thread_limit();
        if (!kernels || limit == 0) {
            return false;
        }
        const int64_t states = p.batch * p.channels * p.state_dim;
        const double work = static_cast<double>(states) * static_cast<double>(p.tokens);
        const int64_t vectors = (p.channels + kernels->lanes - 1) / kernels->lanes;
        threads = work < SMALL ? 1 : static_cast<int>(std::min<int64_t>(limit, p.batch * vectors));
        // Items of a batch entry.
        const int64_t wanted = threads == 1 ? 1 : (ITEMS * threads + p.batch - 1) / p.batch;
        channels = std::clamp<int64_t>(vectors / wanted, 1, MOST_VECTORS) * kernels->lanes;
        items_of_batch = (p.channels + channels - 1) / channels;
        floats = kernels->selective_scan_floats(p, channels);
        return true;
    }
};

}  // namespace
}  // namespace videossm

using namespace videossm;

VIDEOSSM_EXPORT size_t videossm_selective_scan_workspace(const videossm_selective_scan_params* params) {
    Shares shares;
    if (check_sizes(params) != VIDEOSSM_OK || !shares.find(*params)) {
        return 0;
    }
    return workspace_bytes(shares.threads, shares.floats);
}

VIDEOSSM_EXPORT videossm_status videossm_selective_scan(const videossm_selective_scan_params* params, void*) {
    if (const videossm_status status = check_sizes(params)) {
        return status;
    }
    Shares shares;
    if (!shares.find(*params)) {
        return VIDEOSSM_BAD_ARGUMENT;
    }
    const size_t needed = workspace_bytes(shares.threads, shares.floats);
    if (const videossm_status status = check_pointers(params, needed)) {
        return status;
    }
    auto scan = [&](int64_t number, int thread) {
        const int64_t first = number % shares.items_of_batch * shares.channels;
        const int64_t channels = std::min(shares.channels, params->channels - first);
        const SelectiveScanItem item = {number / shares.items_of_batch, first, channels};
        shares.kernels->selective_scan(*params, item, part_of(params->workspace, thread, shares.floats));
    };
    run_items(params->batch * shares.items_of_batch, shares.threads, scan);
    return VIDEOSSM_OK;
}
