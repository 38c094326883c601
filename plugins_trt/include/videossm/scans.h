/* The two scans behind one C interface: `videossm_scans_cuda` runs them on a CUDA stream,
 * `videossm_scans_cpu` on threads of the calling process. Both libraries define the functions below; link
 * one of them.
 *
 * All tensors are dense in C order, of at most 2^40 elements. Nothing is allocated during a scan: the caller
 * gives the workspace, at any address. Outputs overlap neither inputs nor each other, but for `last_state`,
 * which may be `state`. Functions may be called from any thread; on CUDA the current device is used and the
 * work is queued on `stream`.
 *
 * On the CPU the environment says how: VIDEOSSM_THREADS (1 to 256; the system's number of cores without it)
 * and VIDEOSSM_CPU (generic, avx2 or avx512; the best there is without it). Both are read at every call, and
 * the size of the workspace depends on them.
 */
#ifndef VIDEOSSM_SCANS_H
#define VIDEOSSM_SCANS_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum { VIDEOSSM_FP32 = 0, VIDEOSSM_FP16 = 1, VIDEOSSM_BF16 = 2 } videossm_dtype;

typedef enum {
    VIDEOSSM_OK = 0,
    VIDEOSSM_BAD_ARGUMENT = 1,  /* videossm_last_error() names it */
    VIDEOSSM_UNSUPPORTED = 2,   /* a size or type that this library has no kernel for */
    VIDEOSSM_FAILED = 3         /* the device refused */
} videossm_status;

/* GatedDeltaScan. Per head and token:
 *   S = exp(decay) S;  S += key (beta (value - S^T key))^T;  output = scale S^T query
 */
typedef struct {
    int64_t batch, tokens, heads;  /* B, T, H */
    int64_t key_dim, value_dim;    /* d_k, d_v */
    videossm_dtype dtype;          /* of query, key, value, output */
    float scale;
    int32_t normalize_key;    /* 1: key / max(|key|, 1e-12) over d_k */
    int32_t normalize_query;  /* the same for query */
    const void* query;        /* [B, T, H, d_k]; not read where output is null */
    const void* key;          /* [B, T, H, d_k] */
    const void* value;        /* [B, T, H, d_v] */
    const float* decay;       /* [B, T, H], at most 0 */
    const float* beta;        /* [B, T, H] */
    const float* state;       /* [B, H, d_k, d_v] */
    void* output;             /* [B, T, H, d_v], or null: only the state is wanted */
    float* last_state;        /* [B, H, d_k, d_v] */
    void* workspace;
    size_t workspace_bytes;
} videossm_gated_delta_params;

/* SelectiveScan (Mamba-1), as selective_scan_fn of mamba-ssm. Per channel and step:
 *   dt = delta + delta_bias, or its softplus;  x = exp(dt A) x + dt B u;  y = (C . x + D u) silu(z)
 */
typedef struct {
    int64_t batch, channels, tokens;  /* B, D, T */
    int64_t state_dim;                /* N */
    videossm_dtype dtype;             /* of u, delta, B, C, z, y */
    int32_t delta_softplus;
    const void* u;            /* [B, D, T] */
    const void* delta;        /* [B, D, T] */
    const float* A;           /* [D, N], negative */
    const void* B;            /* [B, N, T] */
    const void* C;            /* [B, N, T] */
    const float* state;       /* [B, D, N] */
    const float* D;           /* [D], or null */
    const void* z;            /* [B, D, T], or null */
    const float* delta_bias;  /* [D], or null */
    void* y;                  /* [B, D, T], or null: only the state is wanted; C, D, z are not read then */
    float* last_state;        /* [B, D, N] */
    void* workspace;
    size_t workspace_bytes;
} videossm_selective_scan_params;

/* Bytes that `workspace` must have for these sizes; pointers are not read. 0 for sizes that are refused. */
size_t videossm_gated_delta_workspace(const videossm_gated_delta_params* params);
size_t videossm_selective_scan_workspace(const videossm_selective_scan_params* params);

/* `stream`: a cudaStream_t; ignored on the CPU, where the work is done on return. */
videossm_status videossm_gated_delta_scan(const videossm_gated_delta_params* params, void* stream);
videossm_status videossm_selective_scan(const videossm_selective_scan_params* params, void* stream);

/* Of the last call of this thread that did not return VIDEOSSM_OK: one line, `what: got X, expected Y`. */
const char* videossm_last_error(void);

#ifdef __cplusplus
}
#endif

#endif
