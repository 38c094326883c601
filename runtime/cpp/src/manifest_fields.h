// Fields of a manifest, each checked by itself: its type, its range, its words. All throw Error with the field named.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <limits>
#include <string>
#include <string_view>
#include <vector>

#include "json.h"

namespace videossm::internal {

constexpr size_t kAny = std::numeric_limits<size_t>::max();

// `field`: with dots, empty for the whole manifest.
[[noreturn]] void fail_field(const std::string& field, const std::string& why);
[[noreturn]] void wrong_field(const std::string& field, const Json& value, const std::string& expected);
std::string joined(const std::string& field, const std::string& name);

// An object, whose fields are asked for in the order of the schema. end() refuses all others.
class Fields {
public:
    Fields(const Json& value, std::string field);

    const Json* optional(const std::string& name);
    const Json& required(const std::string& name);
    std::string at(const std::string& name) const { return joined(field_, name); }
    void end() const;

private:
    const Json& value_;
    const std::string field_;
    std::vector<std::string> known_;
};

bool is_listed_file(std::string_view text);  // bare, or in the folder of the report

const std::string& string_of(const Json& value, const std::string& field, size_t least, size_t most);
const std::string& text200(const Json& value, const std::string& field);
const std::string& name_in(const Json& value, const std::string& field);
const std::string& file_in(const Json& value, const std::string& field);
const std::string& sha256_in(const Json& value, const std::string& field);
const std::string& architecture_in(const Json& value, const std::string& field);
const std::string& one_of(const Json& value, const std::string& field, std::initializer_list<const char*> words);
int64_t integer_in(const Json& value, const std::string& field, int64_t least, int64_t most);
double real_in(const Json& value, const std::string& field, double least, double most);
bool flag(Fields& fields, const std::string& name);  // false where it is missing

// A member's name, which is a field's part too.
void check_key(const std::string& key, const std::string& field, bool (*fits)(std::string_view), const char* what);

// Calls `each(item, its field)`.
template <typename Each>
void list_in(const Json& value, const std::string& field, size_t least, size_t most, const Each& each) {
    if (!value.is(Json::Kind::array)) {
        wrong_field(field, value, "an array");
    }
    if (value.items.size() < least || value.items.size() > most) {
        wrong_field(field, value, "one of " + std::to_string(least) + " to " + std::to_string(most));
    }
    for (size_t i = 0; i < value.items.size(); ++i) {
        each(value.items[i], joined(field, std::to_string(i)));
    }
}

// Calls `each(name, value, its field)`.
template <typename Each>
void members_of(const Json& value, const std::string& field, const Each& each) {
    if (!value.is(Json::Kind::object)) {
        wrong_field(field, value, "an object");
    }
    for (const Json::Member& member : value.members) {
        each(member.first, member.second, joined(field, member.first));
    }
}

}  // namespace videossm::internal
