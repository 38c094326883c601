/* What every library of the scans checks before it computes, and the text behind videossm_last_error().
 *
 * A library's scan reads:
 *     if (const videossm_status status = check_sizes(params)) return status;
 *     (what this library has no kernel for: return fail(VIDEOSSM_UNSUPPORTED, ...))
 *     if (const videossm_status status = check_pointers(params, bytes needed)) return status;
 * and its workspace function returns 0 where check_sizes does not return VIDEOSSM_OK.
 */
#ifndef VIDEOSSM_COMMON_CHECKS_H
#define VIDEOSSM_COMMON_CHECKS_H

#include <cstddef>
#include <cstdint>

#include "videossm/scans.h"

/* Before the definition of a function of scans.h: all else is hidden. */
#define VIDEOSSM_EXPORT extern "C" __attribute__((visibility("default")))

namespace videossm {

/* No tensor may have more elements; so no product of sizes overflows, workspaces included. */
constexpr int64_t MAX_ELEMENTS = int64_t{1} << 40;

/* Sets videossm_last_error() of this thread, one line `what: got X, expected Y`, and returns `status`. */
[[gnu::format(printf, 2, 3)]] videossm_status fail(videossm_status status, const char* format, ...);

/* Null, sizes, dtype, flags and scale; no pointer inside is looked at. */
videossm_status check_sizes(const videossm_gated_delta_params* params);
videossm_status check_sizes(const videossm_selective_scan_params* params);

/* Of params with good sizes: missing or misaligned tensors, a small workspace, what overlaps an output. A
 * workspace may lie at any address. Addresses are compared and not followed, so they may be a device's. */
videossm_status check_pointers(const videossm_gated_delta_params* params, size_t workspace_bytes);
videossm_status check_pointers(const videossm_selective_scan_params* params, size_t workspace_bytes);

/* Of one element of a good dtype. */
inline size_t element_bytes(videossm_dtype dtype) { return dtype == VIDEOSSM_FP32 ? 4 : 2; }

}  // namespace videossm

#endif
