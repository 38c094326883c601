/* What both entry points of the CPU's library do, around a scan's Shares. */
#ifndef VIDEOSSM_CPU_SCAN_H
#define VIDEOSSM_CPU_SCAN_H

#include "common/checks.h"
#include "cpu/kernels.h"
#include "cpu/threads.h"
#include "cpu/workspace.h"

namespace videossm {

/* How a scan is shared out. A scan adds, from its Params:
 *     void share(params, limit)                         all members below, for at most `limit` threads
 *     int64_t items(params)
 *     void run(params, int64_t item, float* workspace)
 */
struct SharesBase {
    const Kernels* kernels = nullptr;
    int threads = 0;
    int64_t floats = 0;  // of workspace, for a thread
};

/* False, with the error set, where the environment asks for what there is not. */
template <class Shares, class Params>
bool find_shares(Shares& shares, const Params& params) {
    shares.kernels = choose_kernels();
    const int limit = thread_limit();
    if (!shares.kernels || limit == 0) {
        return false;
    }
    shares.share(params, limit);
    return true;
}

/* 0 where the scan will refuse the params. */
template <class Shares, class Params>
size_t scan_workspace(const Params* params) {
    Shares shares;
    if (check_sizes(params) != VIDEOSSM_OK || !find_shares(shares, *params)) {
        return 0;
    }
    return workspace_bytes(shares.threads, shares.floats);
}

template <class Shares, class Params>
videossm_status scan(const Params* params, void* stream) {
    if (const videossm_status status = check_sizes(params)) {
        return status;
    }
    Shares shares;
    if (!find_shares(shares, *params)) {
        return VIDEOSSM_BAD_ARGUMENT;
    }
    const size_t needed = workspace_bytes(shares.threads, shares.floats);
    if (const videossm_status status = check_pointers(params, needed)) {
        return status;
    }
    auto run = [&](int64_t item, int thread) {
        shares.run(*params, item, part_of(params->workspace, thread, shares.floats));
    };
    run_items(stream, shares.items(*params), shares.threads, run);
    return VIDEOSSM_OK;
}

}  // namespace videossm

#endif
