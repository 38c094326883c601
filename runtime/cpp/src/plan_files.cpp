#include "plan_files.h"

#include <stdexcept>

#include "error.h"
#include "files.h"

namespace videossm::internal {
namespace {

namespace fs = std::filesystem;

constexpr uint64_t kMostBytes = uint64_t{1} << 26;  // of a manifest: that of the largest model known has a hundredth
const char* const kCopy = "; copy or export the plan again";

fs::path folder_of(const std::string& given) {
    std::error_code error;
    fs::path path = path_of(given);
    if (fs::is_regular_file(path, error)) {
        path = path.parent_path();
        if (path.filename() == "report" && !fs::is_regular_file(path / kManifestFile, error)) {
            path = path.parent_path();
        }
        path = path.empty() ? fs::path(".") : path;
    }
    if (!fs::is_directory(path, error)) {
        throw plan_error("plan: got " + shown(given) +
                         ", which does not exist, expected a folder that videossm-export wrote; check it");
    }
    if (!fs::is_regular_file(path / kManifestFile, error)) {
        throw plan_error(std::string(kManifestFile) + ": missing in " + shown(given) +
                         ", expected a folder that videossm-export wrote; check the path");
    }
    return path;
}

[[noreturn]] void unreadable(const std::string& name, const std::exception& error) {
    throw plan_error(name + ": cannot be read (" + shown(error.what()) + "); check its permissions");
}

Manifest read_manifest_of(const fs::path& folder) {
    std::string content;
    try {
        const uint64_t size = fs::file_size(folder / kManifestFile);
        if (size > kMostBytes) {
            throw plan_error(std::string(kManifestFile) + ": got " + std::to_string(size) + " bytes, expected at most " +
                             std::to_string(kMostBytes) + "; export the plan again");
        }
        content = read_whole(folder / kManifestFile);
    } catch (const Error&) {
        throw;
    } catch (const std::runtime_error& error) {
        unreadable(kManifestFile, error);
    }
    return parse_manifest(content);
}

void verify(const fs::path& folder, const std::string& name, const File& file) {
    const fs::path path = folder / path_of(name);
    if (!is_plain_file(path)) {
        throw plan_error(name + ": missing in " + shown(text_of(folder)) +
                         ", expected the file that manifest.json lists in files, and no link" + kCopy);
    }
    try {
        const uint64_t size = fs::file_size(path);
        if (size != file.size_bytes) {
            throw plan_error(name + ": size_bytes: got " + std::to_string(size) + ", expected " +
                             std::to_string(file.size_bytes) + kCopy);
        }
        const std::string digits = sha256_of_file(path);
        if (digits != file.sha256) {
            throw plan_error(name + ": sha256: got " + digits.substr(0, 16) + ".., expected " +
                             file.sha256.substr(0, 16) + ".. (altered)" + kCopy);
        }
    } catch (const Error&) {
        throw;
    } catch (const std::runtime_error& error) {
        unreadable(name, error);
    }
}

}  // namespace

PlanFiles open_plan_files(const std::string& path) {
    PlanFiles plan;
    plan.folder = folder_of(path);
    plan.manifest = read_manifest_of(plan.folder);
    for (const auto& [name, file] : plan.manifest.files) {
        verify(plan.folder, name, file);
    }
    return plan;
}

}  // namespace videossm::internal
