#include "json.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <locale>
#include <sstream>
#include <unordered_set>

namespace videossm::internal {
namespace {

constexpr int kMostDepth = 200;
constexpr size_t kMostDigits = 4300;  // of an integer, as in Python
constexpr int kMostValues = 1 << 22;  // half a gigabyte of them

void append_utf8(std::string& out, char32_t c) {
    auto put = [&out](char32_t byte) { out.push_back(static_cast<char>(static_cast<unsigned char>(byte))); };
    if (c < 0x80) {
        put(c);
    } else if (c < 0x800) {
        put(0xC0 | (c >> 6));
        put(0x80 | (c & 0x3F));
    } else if (c < 0x10000) {
        put(0xE0 | (c >> 12));
        put(0x80 | ((c >> 6) & 0x3F));
        put(0x80 | (c & 0x3F));
    } else {
        put(0xF0 | (c >> 18));
        put(0x80 | ((c >> 12) & 0x3F));
        put(0x80 | ((c >> 6) & 0x3F));
        put(0x80 | (c & 0x3F));
    }
}

// Whatever the locale of the process is.
double real_of(std::string_view text) {
#if defined(__cpp_lib_to_chars)
    double value = 0;
    const auto result = std::from_chars(text.data(), text.data() + text.size(), value);
    if (result.ec == std::errc()) {
        return value;
    }
#endif
    std::istringstream stream{std::string(text)};  // also tells too large from too small
    stream.imbue(std::locale::classic());
    double slow = 0;
    stream >> slow;
    if (stream.fail() && std::abs(slow) > 1) {
        throw JsonError{"a number that is not finite"};
    }
    return slow;
}

class Parser {
public:
    explicit Parser(std::string_view text) : text_(text) {}

    Json whole() {
        Json value = any(0);
        skip_space();
        if (at_ != text_.size()) {
            fail("something after its end");
        }
        return value;
    }

private:
    [[noreturn]] void fail(const std::string& what) const { throw JsonError{what + " at byte " + std::to_string(at_)}; }

    char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }

    void skip_space() {
        while (at_ < text_.size() && (peek() == ' ' || peek() == '\t' || peek() == '\n' || peek() == '\r')) {
            ++at_;
        }
    }

    bool take(char c) {
        skip_space();
        if (at_ >= text_.size() || text_[at_] != c) {
            return false;
        }
        ++at_;
        return true;
    }

    void expect(char c) {
        if (!take(c)) {
            fail(std::string("no ") + c);
        }
    }

    Json any(int depth) {
        if (depth > kMostDepth) {
            fail("more than " + std::to_string(kMostDepth) + " levels");
        }
        if (++values_ > kMostValues) {
            fail("more than " + std::to_string(kMostValues) + " values");
        }
        skip_space();
        switch (peek()) {
            case '{': return object(depth);
            case '[': return array(depth);
            case '"': return string_value();
            case 't': return word("true", Json::Kind::boolean, true);
            case 'f': return word("false", Json::Kind::boolean, false);
            case 'n': return word("null", Json::Kind::null, false);
            default: return number();
        }
    }

    Json word(std::string_view expected, Json::Kind kind, bool boolean) {
        if (text_.substr(at_, expected.size()) != expected) {
            fail("an unknown word");
        }
        at_ += expected.size();
        Json value;
        value.kind = kind;
        value.boolean = boolean;
        return value;
    }

    Json object(int depth) {
        Json value;
        value.kind = Json::Kind::object;
        ++at_;
        if (take('}')) {
            return value;
        }
        std::unordered_set<std::string> keys;
        do {
            skip_space();
            std::string key = string();
            if (!keys.insert(key).second) {
                fail("the key " + json_quoted(key.substr(0, 60)) + " twice in one object");
            }
            expect(':');
            value.members.emplace_back(std::move(key), any(depth + 1));
        } while (take(','));
        expect('}');
        return value;
    }

    Json array(int depth) {
        Json value;
        value.kind = Json::Kind::array;
        ++at_;
        if (take(']')) {
            return value;
        }
        do {
            value.items.push_back(any(depth + 1));
        } while (take(','));
        expect(']');
        return value;
    }

    Json string_value() {
        Json value;
        value.kind = Json::Kind::string;
        value.string = string();
        return value;
    }

    std::string string() {
        if (peek() != '"') {
            fail("no string");
        }
        ++at_;
        std::string out;
        while (true) {
            if (at_ >= text_.size()) {
                fail("a string without an end");
            }
            const auto c = static_cast<unsigned char>(text_[at_]);
            if (c == '"') {
                ++at_;
                return out;
            }
            if (c == '\\') {
                escape(out);
            } else if (c < 0x20) {
                fail("a control character");
            } else {
                const CodePoint point = code_point(text_, at_);
                if (point.bytes == 0) {
                    fail("no UTF-8");
                }
                out.append(text_.substr(at_, point.bytes));
                at_ += point.bytes;
            }
        }
    }

    void escape(std::string& out) {
        ++at_;
        const char c = peek();
        ++at_;
        static constexpr std::string_view kFrom = "\"\\/bfnrt", kTo = "\"\\/\b\f\n\r\t";
        if (const size_t found = kFrom.find(c); c != '\0' && found != std::string_view::npos) {
            out.push_back(kTo[found]);
            return;
        }
        if (c != 'u') {
            fail("an unknown escape");
        }
        char32_t point = hex4();
        if (point >= 0xD800 && point < 0xDC00 && text_.substr(at_, 2) == "\\u") {
            at_ += 2;
            const char32_t low = hex4();
            if (low < 0xDC00 || low > 0xDFFF) {
                fail("half a surrogate pair");
            }
            point = 0x10000 + ((point - 0xD800) << 10) + (low - 0xDC00);
        } else if (point >= 0xD800 && point <= 0xDFFF) {
            fail("half a surrogate pair");
        }
        append_utf8(out, point);
    }

    char32_t hex4() {
        char32_t value = 0;
        for (int i = 0; i < 4; ++i, ++at_) {
            const char c = peek();
            const int digit = c >= '0' && c <= '9' ? c - '0'
                            : c >= 'a' && c <= 'f' ? c - 'a' + 10
                            : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                                   : -1;
            if (digit < 0) {
                fail("no four hexadecimal digits");
            }
            value = value * 16 + static_cast<char32_t>(digit);
        }
        return value;
    }

    size_t digits() {
        const size_t start = at_;
        while (peek() >= '0' && peek() <= '9') {
            ++at_;
        }
        if (at_ == start) {
            fail("no value");
        }
        return at_ - start;
    }

    Json number() {
        const size_t start = at_;
        const bool negative = peek() == '-';
        at_ += negative;
        const char first = peek();
        const size_t whole_digits = digits();
        if ((first == '0' && whole_digits > 1) || whole_digits > kMostDigits) {
            fail("a wrong number");
        }
        bool real = false;
        if (peek() == '.') {
            real = true;
            ++at_;
            digits();
        }
        if (peek() == 'e' || peek() == 'E') {
            real = true;
            ++at_;
            at_ += peek() == '+' || peek() == '-';
            digits();
        }
        const std::string_view text = text_.substr(start, at_ - start);
        Json value;
        value.negative = negative;
        if (!real) {
            const auto result = std::from_chars(text.data(), text.data() + text.size(), value.integer);
            const bool fits = result.ec == std::errc();
            value.kind = fits ? Json::Kind::integer : Json::Kind::large_integer;
            value.real = fits ? static_cast<double>(value.integer) : 0;
        } else {
            value.kind = Json::Kind::real;
            value.real = real_of(text);
        }
        return value;
    }

    std::string_view text_;
    size_t at_ = 0;
    int values_ = 0;
};

}  // namespace

Json Json::parse(std::string_view text) { return Parser(text).whole(); }

const Json* Json::find(std::string_view key) const {
    const auto found = std::find_if(members.begin(), members.end(), [&](const Member& m) { return m.first == key; });
    return found == members.end() ? nullptr : &found->second;
}

std::string Json::shown() const {
    char text[40];
    switch (kind) {
        case Kind::null: return "null";
        case Kind::boolean: return boolean ? "true" : "false";
        case Kind::integer: return std::to_string(integer);
        case Kind::large_integer: return "an integer beyond 64 bits";
        case Kind::real: std::snprintf(text, sizeof text, "%.9g", real); return text;
        case Kind::string: return string.size() <= 56 ? json_quoted(string) : json_quoted(string.substr(0, 53)) + "..";
        case Kind::array: return "an array of " + std::to_string(items.size());
        case Kind::object: return "an object";
    }
    return "";
}

std::string json_quoted(std::string_view text) {
    std::string out = "\"";
    for (const char c : text) {
        char escaped[8];
        if (c == '"' || c == '\\') {
            out += {'\\', c};
        } else if (static_cast<unsigned char>(c) < 0x20 || c == 0x7F) {
            std::snprintf(escaped, sizeof escaped, "\\u%04x", static_cast<unsigned>(c));
            out += escaped;
        } else {
            out.push_back(c);
        }
    }
    return out + '"';
}

CodePoint code_point(std::string_view text, size_t index) {
    const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[index + i]); };
    const unsigned first = byte(0);
    const unsigned length = first < 0x80 ? 1 : first < 0xC2 ? 0 : first < 0xE0 ? 2 : first < 0xF0 ? 3 : first < 0xF5 ? 4 : 0;
    if (length == 0 || index + length > text.size()) {
        return {0, 0};
    }
    char32_t value = length == 1 ? first : first & (0x7Fu >> length);
    for (unsigned i = 1; i < length; ++i) {
        if ((byte(i) & 0xC0) != 0x80) {
            return {0, 0};
        }
        value = (value << 6) | (byte(i) & 0x3F);
    }
    static constexpr char32_t kLeast[] = {0, 0, 0x80, 0x800, 0x10000};
    if (value < kLeast[length] || value > 0x10FFFF || (value >= 0xD800 && value <= 0xDFFF)) {
        return {0, 0};
    }
    return {value, length};
}

}  // namespace videossm::internal
