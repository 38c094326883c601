// Counter-based noise: Philox4x32-10 and Box-Muller. See docs/plan-format.md.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace videossm::internal {

using Words = std::array<uint32_t, 4>;

// Random words of `counter` under `key`, the low and the high word of a seed.
Words philox4x32(Words counter, uint64_t key);

// Standard normal numbers of one stream of a batch. `draw` 0 is what a chunk starts from, k + 1 that of pass k.
void noise(uint64_t seed, uint64_t chunk, uint32_t draw, float* values, size_t count);

}  // namespace videossm::internal
