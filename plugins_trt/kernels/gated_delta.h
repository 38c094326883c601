/* What goes to the kernels of GatedDeltaScan, and between them.
 *
 * A head's tokens are taken in blocks of C. Within a block, token i sees what token j < i wrote, decayed by
 * e^(g_{j+1} + ... + g_i); with A_ij = beta_i e^(...) k_i . k_j below the diagonal, what the tokens write are
 *     w = (I + A)^-1 beta (v - e^(g_0 + ... + g_i) S^T k)
 * for the state S before the block. `gated_delta_prepare` computes what does not depend on S, for all blocks at once,
 * one Record each; `gated_delta_scan` goes through the blocks of a head with S in registers.
 */
#ifndef VIDEOSSM_KERNELS_GATED_DELTA_H
#define VIDEOSSM_KERNELS_GATED_DELTA_H

#include "kernels/types.cuh"

namespace videossm {

/* C. Shorter for fp32, whose tiles take twice the shared memory. */
template <typename T>
constexpr int BLOCK = sizeof(T) == 2 ? 32 : 16;

/* What is added to a row of a tile in shared memory, so that no two of a warp's lanes meet in a bank. */
constexpr int ROW_PADDING = 8;

/* Factors of a block's tokens. r is 1 / |key| where keys are to be normalised, 1 where not; |query| likewise. */
template <typename T>
struct Gates {
    float entered[BLOCK<T>];  // r e^(g_0 + ... + g_i): S to token i
    float left[BLOCK<T>];     // r e^(g_{i+1} + ... + g_{C-1}): what token i wrote to the end of the block
    float read[BLOCK<T>];     // scale / |query| e^(g_0 + ... + g_i)
    float carry;              // e^(g_0 + ... + g_{C-1}): S to the end of the block
    float unused[3];
};

template <typename T>
struct alignas(PIECE_BYTES) Record {
    T inverse[BLOCK<T>][BLOCK<T>];    // (I + A)^-1 beta
    T attention[BLOCK<T>][BLOCK<T>];  // scale e^(...) q_i . k_j, where an output is wanted
    Gates<T> gates;
};

template <typename T>
struct GatedDeltaTask {
    const T* query;       // [B, T, H, d_k]
    const T* key;         // [B, T, H, d_k]
    const T* value;       // [B, T, H, d_v]
    const float* decay;   // [B, T, H]
    const float* beta;    // [B, T, H]
    const float* state;   // [B, H, d_k, d_v]
    T* output;            // [B, T, H, d_v]
    float* last_state;    // [B, H, d_k, d_v], may be `state`
    Record<T>* records;   // [B, H, blocks]
    T* normalized_key;    // [B, T, H, d_k] or null: then normalised keys go to Gates and products
    int batch_heads, tokens, heads, value_dim, blocks;  // B H, T, H, d_v, ceil(T / C)
    float scale;
    bool normalize_key, normalize_query;

    /* Row of a token in the tensors [B, T, H, .]; the next token's is `heads` further. */
    __host__ __device__ int64_t row(int batch_head, int token) const {
        return (int64_t{batch_head / heads} * tokens + token) * heads + batch_head % heads;
    }
};

}  // namespace videossm

#endif
