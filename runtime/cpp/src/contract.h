// What the two parts of the contract share: contract.cpp has the program, contract_engines.cpp single engines.
#pragma once

#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "manifest.h"

namespace videossm::internal::contract {

using Words = std::set<std::string, std::less<>>;

// What an engine may read beside states and scalars, and the kinds of states that it may read and write, by when it
// runs: in a pass, or in a call (prompt, before, evict, after).
struct Moment {
    const char* name;
    Words readable, read_kinds, written_kinds;
};

const Moment& moment_named(std::string_view name);

// One engine at one moment of the program. `where`: the field that says so. `pass`: null for a call.
struct Run {
    const Moment* moment;
    std::string name;
    const EngineSpec* engine;
    std::string where;
    const Pass* pass = nullptr;

    bool is(std::string_view other) const { return other == moment->name; }
};

// Throws Error.
[[noreturn]] void fail(const std::string& field, const std::string& got, const std::string& expected);

// The first of `names` that is there more than once is refused.
void check_unique(const std::string& where, const std::vector<std::string_view>& names);
void check_type(const std::string& where, const TensorSpec& tensor, DType dtype, const Shape& shape);
// All that can be said of one engine at one moment.
void check_run(const Manifest& manifest, const Run& run);

std::string text_of(const Shape& shape);
// The first of `names`, for a message.
std::string listed(const std::vector<std::string>& names);

}  // namespace videossm::internal::contract
