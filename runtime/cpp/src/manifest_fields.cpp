#include "manifest_fields.h"

#include <algorithm>

#include "error.h"
#include "manifest.h"

namespace videossm::internal {
namespace {

size_t characters(std::string_view text) {
    return static_cast<size_t>(std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xC0) != 0x80; }));
}

bool is_file(std::string_view text) { return is_name(text); }  // bare: no separators, no drive, not hidden, not ".."

bool is_sha256(std::string_view text) {
    return text.size() == 64 && text.find_first_not_of("0123456789abcdef") == std::string_view::npos;
}

bool is_architecture(std::string_view text) {
    return text.size() >= 5 && text.size() <= 7 && text.substr(0, 3) == "sm_" && text[3] != '0' &&
           text.find_first_not_of("0123456789", 3) == std::string_view::npos;
}

const std::string& matching(const Json& value, const std::string& field, bool (*fits)(std::string_view), const char* what) {
    const std::string& text = string_of(value, field, 0, 200);
    if (!fits(text)) {
        wrong_field(field, value, what);
    }
    return text;
}

bool boolean_in(const Json& value, const std::string& field) {
    if (!value.is(Json::Kind::boolean)) {
        wrong_field(field, value, "true or false");
    }
    return value.boolean;
}

}  // namespace

void fail_field(const std::string& field, const std::string& why) {
    throw plan_error(std::string(kManifestFile) + ": " + shown(field.empty() ? "the whole" : field) + ": " + why +
                     "; export the plan again");
}

std::string joined(const std::string& field, const std::string& name) { return field.empty() ? name : field + "." + name; }

void wrong_field(const std::string& field, const Json& value, const std::string& expected) {
    fail_field(field, "got " + value.shown() + ", expected " + expected);
}

Fields::Fields(const Json& value, std::string field) : value_(value), field_(std::move(field)) {
    if (!value.is(Json::Kind::object)) {
        wrong_field(field_, value, "an object");
    }
}

const Json* Fields::optional(const std::string& name) {
    known_.push_back(name);
    return value_.find(name);
}

const Json& Fields::required(const std::string& name) {
    const Json* found = optional(name);
    if (!found) {
        fail_field(at(name), "got nothing, expected this field");
    }
    return *found;
}

void Fields::end() const {
    for (const Json::Member& member : value_.members) {
        if (std::find(known_.begin(), known_.end(), member.first) == known_.end()) {
            fail_field(at(member.first), "got an unknown field, expected only those of schema version 2");
        }
    }
}

bool is_listed_file(std::string_view text) {
    constexpr std::string_view kFolder = "report/";
    return is_name(text.substr(0, kFolder.size()) == kFolder ? text.substr(kFolder.size()) : text);
}

const std::string& string_of(const Json& value, const std::string& field, size_t least, size_t most) {
    if (!value.is(Json::Kind::string)) {
        wrong_field(field, value, "a text");
    }
    const size_t length = characters(value.string);
    if (length < least || length > most) {
        wrong_field(field, value, "a text of " + std::to_string(least) + " to " + std::to_string(most) + " characters");
    }
    return value.string;
}

const std::string& text200(const Json& value, const std::string& field) { return string_of(value, field, 1, 200); }

const std::string& name_in(const Json& value, const std::string& field) {
    return matching(value, field, is_name, "a name of letters, digits and _ . + -");
}

const std::string& file_in(const Json& value, const std::string& field) {
    return matching(value, field, is_file, "a bare file name inside the plan");
}

const std::string& sha256_in(const Json& value, const std::string& field) {
    return matching(value, field, is_sha256, "64 hexadecimal digits");
}

void check_key(const std::string& key, const std::string& field, bool (*fits)(std::string_view), const char* what) {
    if (characters(key) > 200 || !fits(key)) {
        fail_field(joined(field, key), "got " + json_quoted(key.substr(0, 60)) + ", expected " + what);
    }
}

int64_t integer_in(const Json& value, const std::string& field, int64_t least, int64_t most) {
    if (!value.is(Json::Kind::integer) || value.integer < least || value.integer > most) {
        wrong_field(field, value, "an integer from " + std::to_string(least) + " to " + std::to_string(most));
    }
    return value.integer;
}

double real_in(const Json& value, const std::string& field, double least, double most) {
    const bool number = value.is(Json::Kind::real) || value.is(Json::Kind::integer);
    if (!number || value.real < least || value.real > most) {
        wrong_field(field, value, "a number from " + std::to_string(least) + " to " + std::to_string(most));
    }
    return value.real;
}

const std::string& architecture_in(const Json& value, const std::string& field) {
    return matching(value, field, is_architecture, "sm_ and digits");
}

const std::string& one_of(const Json& value, const std::string& field, std::initializer_list<const char*> words) {
    std::string expected;
    for (const char* word : words) {
        if (value.is_string(word)) {
            return value.string;
        }
        expected += (expected.empty() ? "one of " : ", ") + std::string(word);
    }
    wrong_field(field, value, expected);
}

bool flag(Fields& fields, const std::string& name) {
    const Json* found = fields.optional(name);
    return found && boolean_in(*found, fields.at(name));
}

std::string shown(const std::string& text, size_t most_bytes) {
    std::string line;
    for (const char c : text) {
        const bool space = static_cast<unsigned char>(c) <= 0x20 || c == 0x7F;
        if (!space) {
            line.push_back(c);
        } else if (!line.empty() && line.back() != ' ') {
            line.push_back(' ');
        }
    }
    if (line.size() > most_bytes) {
        while (most_bytes > 0 && (line[most_bytes] & 0xC0) == 0x80) {
            --most_bytes;
        }
        line = line.substr(0, most_bytes) + "..";
    }
    return line;
}

}  // namespace videossm::internal
