// Files of a plan and of states, by paths in UTF-8.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

#include "sha256.h"

namespace videossm::internal {

std::filesystem::path path_of(const std::string& utf8);
std::string text_of(const std::filesystem::path& path);

// A regular file, and no link to one.
bool is_plain_file(const std::filesystem::path& path);

// Throws std::runtime_error with the system's words.
std::string read_whole(const std::filesystem::path& path);
std::string sha256_of_file(const std::filesystem::path& path);

}  // namespace videossm::internal
