// SHA-256 (FIPS 180-4), so that a plan opens without a library of cryptography.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

namespace videossm::internal {

using Sha256State = std::array<uint32_t, 8>;

// Of 64 bytes. The fast one, some seven times as fast, needs has_sha_instructions(): weights are gigabytes.
void sha256_block_plain(Sha256State& hash, const unsigned char* bytes);
void sha256_block_fast(Sha256State& hash, const unsigned char* bytes);
bool has_sha_instructions();

class Sha256 {
public:
    void update(const void* data, size_t size_bytes);
    // 64 hexadecimal digits. Call it once, at the end.
    std::string digits();

private:
    void block(const unsigned char* bytes);

    const bool fast_ = has_sha_instructions();
    Sha256State hash_ = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    std::array<unsigned char, 64> pending_{};
    uint64_t size_bytes_ = 0;
};

}  // namespace videossm::internal
