// A plan's folder, opened strictly: every listed file has its size and hash.
#pragma once

#include <filesystem>
#include <string>

#include "manifest.h"

namespace videossm::internal {

struct PlanFiles {
    std::filesystem::path folder;
    Manifest manifest;
};

// `path`: of the folder, or of any file in it. Throws Error, naming the file and the field.
PlanFiles open_plan_files(const std::string& path);

}  // namespace videossm::internal
