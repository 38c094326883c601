#include <algorithm>

#include "common/checks.h"
#include "cpu/kernels.h"
#include "cpu/threads.h"
#include "cpu/workspace.h"

namespace videossm {
namespace {

constexpr double SMALL = 2e6;  // multiplications; fewer are done before another thread has woken

/* How a scan is shared out: a head is an item, or, where threads would be idle, some panels of a head's
 * columns. Items of one head each compute what its columns share. */
struct Shares {
    const Kernels* kernels = nullptr;
    int threads = 0;
    int64_t items_of_head = 1;
    int64_t columns = 0;  // of an item
    int64_t floats = 0;   // of workspace, for a thread

    /* False, with the error set, where the environment asks for what there is not. */
    bool find(const videossm_gated_delta_params& p) {
        kernels = choose_kernels();
        const int limit = thread_limit();
        if (!kernels || limit == 0) {
            return false;
        }
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
        return true;
    }
};

}  // namespace
}  // namespace videossm

using namespace videossm;

VIDEOSSM_EXPORT size_t videossm_gated_delta_workspace(const videossm_gated_delta_params* params) {
    Shares shares;
    if (check_sizes(params) != VIDEOSSM_OK || !shares.find(*params)) {
        return 0;
    }
    return workspace_bytes(shares.threads, shares.floats);
}

VIDEOSSM_EXPORT videossm_status videossm_gated_delta_scan(const videossm_gated_delta_params* params, void*) {
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
        const int64_t head = number / shares.items_of_head;
        const int64_t first = number % shares.items_of_head * shares.columns;
        const int64_t columns = std::min(shares.columns, params->value_dim - first);
        const GatedDeltaItem item = {head / params->heads, head % params->heads, first, columns};
        shares.kernels->gated_delta(*params, item, part_of(params->workspace, thread, shares.floats));
    };
    run_items(params->batch * params->heads * shares.items_of_head, shares.threads, scan);
    return VIDEOSSM_OK;
}
