#include "sha256.h"

#include <algorithm>
#include <cstring>

#if defined(__x86_64__) && defined(__GNUC__)
#include <cpuid.h>
#include <immintrin.h>
#define VIDEOSSM_SHA_INSTRUCTIONS
#endif

namespace videossm::internal {
namespace {

// The first 32 bits of the fractional parts of the cube roots of the first 64 primes.
constexpr uint32_t kRound[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

uint32_t rotated(uint32_t word, int bits) { return (word >> bits) | (word << (32 - bits)); }

}  // namespace

void sha256_block_plain(Sha256State& hash, const unsigned char* bytes) {
    uint32_t w[64];
    for (int i = 0; i < 16; ++i) {
        w[i] = uint32_t{bytes[4 * i]} << 24 | uint32_t{bytes[4 * i + 1]} << 16 | uint32_t{bytes[4 * i + 2]} << 8 |
               uint32_t{bytes[4 * i + 3]};
    }
    for (int i = 16; i < 64; ++i) {
        const uint32_t s0 = rotated(w[i - 15], 7) ^ rotated(w[i - 15], 18) ^ (w[i - 15] >> 3);
        const uint32_t s1 = rotated(w[i - 2], 17) ^ rotated(w[i - 2], 19) ^ (w[i - 2] >> 10);
        w[i] = w[i - 16] + s0 + w[i - 7] + s1;
    }
    auto [a, b, c, d, e, f, g, h] = hash;
    for (int i = 0; i < 64; ++i) {
        const uint32_t s1 = rotated(e, 6) ^ rotated(e, 11) ^ rotated(e, 25);
        const uint32_t t1 = h + s1 + ((e & f) ^ (~e & g)) + kRound[i] + w[i];
        const uint32_t s0 = rotated(a, 2) ^ rotated(a, 13) ^ rotated(a, 22);
        const uint32_t t2 = s0 + ((a & b) ^ (a & c) ^ (b & c));
        h = g;
        g = f;
        f = e;
        e = d + t1;
        d = c;
        c = b;
        b = a;
        a = t1 + t2;
    }
    const Sha256State next = {a, b, c, d, e, f, g, h};
    for (size_t i = 0; i < 8; ++i) {
        hash[i] += next[i];
    }
}

#if defined(VIDEOSSM_SHA_INSTRUCTIONS)
bool has_sha_instructions() {
    unsigned a = 0, b = 0, c = 0, d = 0;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b >> 29 & 1) && __builtin_cpu_supports("sse4.1");
}

// The instructions keep the state as ABEF and CDGH, and do four rounds at a time.
__attribute__((target("sha,sse4.1"))) void sha256_block_fast(Sha256State& hash, const unsigned char* bytes) {
    const auto load = [](const void* from) { return _mm_loadu_si128(static_cast<const __m128i*>(from)); };
    const __m128i big_endian = _mm_set_epi64x(0x0c0d0e0f08090a0b, 0x0405060700010203);
    const __m128i badc = _mm_shuffle_epi32(load(&hash[0]), 0xB1), efgh = _mm_shuffle_epi32(load(&hash[4]), 0x1B);
    const __m128i before0 = _mm_alignr_epi8(badc, efgh, 8), before1 = _mm_blend_epi16(efgh, badc, 0xF0);
    __m128i state0 = before0, state1 = before1, w[4];
    for (int i = 0; i < 16; ++i) {
        __m128i& next = w[i % 4];
        if (i < 4) {
            next = _mm_shuffle_epi8(load(bytes + 16 * i), big_endian);
        } else {
            const __m128i last = w[(i + 3) % 4];
            const __m128i part = _mm_add_epi32(_mm_sha256msg1_epu32(next, w[(i + 1) % 4]),
                                               _mm_alignr_epi8(last, w[(i + 2) % 4], 4));
            next = _mm_sha256msg2_epu32(part, last);
        }
        const __m128i sum = _mm_add_epi32(next, load(&kRound[4 * i]));
        state1 = _mm_sha256rnds2_epu32(state1, state0, sum);
        state0 = _mm_sha256rnds2_epu32(state0, state1, _mm_shuffle_epi32(sum, 0x0E));
    }
    state0 = _mm_shuffle_epi32(_mm_add_epi32(state0, before0), 0x1B);
    state1 = _mm_shuffle_epi32(_mm_add_epi32(state1, before1), 0xB1);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(&hash[0]), _mm_blend_epi16(state0, state1, 0xF0));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(&hash[4]), _mm_alignr_epi8(state1, state0, 8));
}
#else
bool has_sha_instructions() { return false; }

void sha256_block_fast(Sha256State& hash, const unsigned char* bytes) { sha256_block_plain(hash, bytes); }
#endif

void Sha256::block(const unsigned char* bytes) {
    if (fast_) {
        sha256_block_fast(hash_, bytes);
    } else {
        sha256_block_plain(hash_, bytes);
    }
}

void Sha256::update(const void* data, size_t size_bytes) {
    auto bytes = static_cast<const unsigned char*>(data);
    while (size_bytes > 0) {
        const size_t filled = size_bytes_ % 64;
        if (filled == 0 && size_bytes >= 64) {
            block(bytes);
            bytes += 64;
            size_bytes -= 64;
            size_bytes_ += 64;
            continue;
        }
        const size_t part = std::min(size_bytes, 64 - filled);
        std::memcpy(pending_.data() + filled, bytes, part);
        bytes += part;
        size_bytes -= part;
        size_bytes_ += part;
        if (size_bytes_ % 64 == 0) {
            block(pending_.data());
        }
    }
}

std::string Sha256::digits() {
    const uint64_t bits = size_bytes_ * 8;
    const unsigned char one = 0x80, zero = 0;
    update(&one, 1);
    while (size_bytes_ % 64 != 56) {
        update(&zero, 1);
    }
    unsigned char length[8];
    for (int i = 0; i < 8; ++i) {
        length[i] = static_cast<unsigned char>(bits >> (56 - 8 * i));
    }
    update(length, 8);
    std::string text;
    for (const uint32_t word : hash_) {
        for (int shift = 28; shift >= 0; shift -= 4) {
            text.push_back("0123456789abcdef"[(word >> shift) & 15]);
        }
    }
    return text;
}

}  // namespace videossm::internal
