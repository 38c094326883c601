// JSON, read strictly: UTF-8, no key twice in one object, finite numbers, at most 200 levels deep.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace videossm::internal {

class Json {
public:
    enum class Kind { null, boolean, integer, large_integer, real, string, array, object };
    using Member = std::pair<std::string, Json>;

    Kind kind = Kind::null;
    bool boolean = false;
    bool negative = false;       // of a large_integer, which is beyond int64
    int64_t integer = 0;
    double real = 0;             // of an integer too
    std::string string;
    std::vector<Json> items;
    std::vector<Member> members; // in the order of the text

    // Throws JsonError.
    static Json parse(std::string_view text);

    // null where there is no such member, or this is no object.
    const Json* find(std::string_view key) const;
    bool is(Kind other) const { return kind == other; }
    bool is_string(std::string_view text) const { return kind == Kind::string && string == text; }

    // As an error shows it, cut short.
    std::string shown() const;
};

// What is wrong with the text, for the middle of a line.
struct JsonError {
    std::string what;
};

// `text`, which is valid UTF-8, in quotes and escaped.
std::string json_quoted(std::string_view text);

// The code point at `index` of a UTF-8 text, and how many bytes it takes; 0 bytes where it is not valid.
struct CodePoint {
    char32_t value;
    unsigned bytes;
};
CodePoint code_point(std::string_view text, size_t index);

}  // namespace videossm::internal
