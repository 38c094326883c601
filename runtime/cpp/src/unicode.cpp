#include "unicode.h"

#include <algorithm>
#include <iterator>

namespace videossm::internal {
namespace {

struct Range {
    char32_t first, last;
};

constexpr Range kWords[] = {
#include "unicode_words.inc"
};

}  // namespace

bool is_white_space(char32_t c) {
    return (c >= 0x09 && c <= 0x0D) || c == 0x20 || c == 0x85 || c == 0xA0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200A) ||
           c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

bool is_word_character(char32_t c) {
    const Range* after = std::upper_bound(std::begin(kWords), std::end(kWords), c,
                                          [](char32_t value, const Range& range) { return value < range.first; });
    return after != std::begin(kWords) && c <= (after - 1)->last;
}

}  // namespace videossm::internal
