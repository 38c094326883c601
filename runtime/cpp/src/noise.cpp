#include "noise.h"

#include <cmath>

#include "elementary.h"

namespace videossm::internal {

Words philox4x32(Words c, uint64_t key) {
    auto k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
    for (int round = 0; round < 10; ++round) {
        const uint64_t product0 = uint64_t{c[0]} * 0xD2511F53, product1 = uint64_t{c[2]} * 0xCD9E8D57;
        c = {static_cast<uint32_t>(product1 >> 32) ^ c[1] ^ k0, static_cast<uint32_t>(product1),
             static_cast<uint32_t>(product0 >> 32) ^ c[3] ^ k1, static_cast<uint32_t>(product0)};
        k0 += 0x9E3779B9;
        k1 += 0xBB67AE85;
    }
    return c;
}

void noise(uint64_t seed, uint64_t chunk, uint32_t draw, float* values, size_t count) {
    const auto uniform = [](uint32_t word) { return (word + 0.5) * 0x1p-32; };
    for (size_t i = 0; i < count; i += 4) {
        const Words words = philox4x32({static_cast<uint32_t>(i / 4), draw, static_cast<uint32_t>(chunk),
                                        static_cast<uint32_t>(chunk >> 32)}, seed);
        float block[4];
        for (size_t pair = 0; pair < 4; pair += 2) {
            const double radius = std::sqrt(-2.0 * exact_log(uniform(words[pair])));
            const CosSin turn = exact_cos_sin(uniform(words[pair + 1]));
            block[pair] = static_cast<float>(radius * turn.cosine);
            block[pair + 1] = static_cast<float>(radius * turn.sine);
        }
        for (size_t k = 0; k < 4 && i + k < count; ++k) {
            values[i + k] = block[k];
        }
    }
}

}  // namespace videossm::internal
