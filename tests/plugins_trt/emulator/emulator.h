/* Runs CUDA kernels on a host, one thread block after the other, a block's threads as fibers of one host thread.
 *
 * A fiber runs until it meets others: at a barrier of its block, or at an exchange, an instruction that the 32 lanes of
 * a warp execute together. Which fiber goes on is drawn from a seed, one warp as far as it gets and then another, so
 * that a barrier too few shows as numbers that change with the seed. Shared memory starts as NaN and ends at a page
 * that nobody may touch. An asynchronous copy reads and writes as late as it may: at the wait for it.
 *
 * The kernels' source is compiled as it is, with this folder's cuda_runtime.h and kernels/ptx.cuh in place of CUDA's
 * and the kernels' own. What it cannot show: how fast anything is, and whether two words of shared memory race within
 * the fibers' turns.
 */
#ifndef VIDEOSSM_EMULATOR_H
#define VIDEOSSM_EMULATOR_H

#include <array>
#include <cstddef>
#include <functional>

namespace emulator {

constexpr int LANES = 32;

struct Dim {
    unsigned x = 1, y = 1, z = 1;
};

struct Place {
    Dim thread, block, block_dim, grid_dim;
    int lane = 0;
    unsigned char* shared = nullptr;
};

/* Of the fiber that runs. */
const Place& place();

/* Of each lane, in an exchange. */
using Lanes = std::array<void*, LANES>;

/* Waits for the warp's other lanes, all of which call this with the same `what`; the last one calls `all` with what
 * every lane brought. */
void exchange(const char* what, void* mine, void (*all)(const Lanes& lanes));

/* __syncthreads. */
void block_barrier();

/* 16 bytes, or as many zeros, when the group that they belong to is waited for; NaN until then. */
void copy_async(void* shared, const void* global, bool valid);
void commit_copies();
void wait_copies(int groups);

/* Aborts, with a line on stderr, where fibers wait for ones that never come. */
void launch(Dim grid, Dim block, size_t shared_bytes, const std::function<void()>& kernel);

}  // namespace emulator

#endif
