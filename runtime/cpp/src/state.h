// A rollout's state on disk: one safetensors file, as in docs/plan-format.md.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "manifest.h"

namespace videossm::internal {

struct StateHeader {
    std::vector<std::string> prompts;  // in force; none before the first chunk
    std::optional<std::vector<std::string>> next_prompts;  // set, but not yet in force
    std::vector<uint64_t> seeds;
    int64_t chunk = 0;  // the one to make next
};

struct StateFile {
    StateHeader header;
    std::map<std::string, std::vector<char>> tensors;  // those of Manifest::kept(), in its dtypes
};

// Writes `path` whole or not at all. Throws Error when it cannot be written.
void save_state(const std::string& path, const Manifest& manifest, const StateFile& state);

// Reads a state of a plan with the same stream; floats are converted to the dtypes of `manifest`. Throws Error that
// says what differs, also for values that are not finite.
StateFile load_state(const std::string& path, const Manifest& manifest);

// The same of the content of the file `path`.
StateFile parse_state(const std::string& path, std::string_view content, const Manifest& manifest);

// Throws Error unless prompts and seeds are as many as the batch has streams, and the clip goes that far.
void check_header(const std::string& where, const StateHeader& header, const Manifest& manifest);

}  // namespace videossm::internal
