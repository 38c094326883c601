#include "files.h"

#include <cerrno>
#include <cstring>
#include <fstream>
#include <stdexcept>
#include <vector>

namespace videossm::internal {
namespace {

constexpr size_t kBlockBytes = 1 << 20;

std::ifstream opened(const std::filesystem::path& path) {
    errno = 0;
    std::ifstream file(path, std::ios::binary);
    if (!file) {
        throw std::runtime_error(errno ? std::strerror(errno) : "cannot be opened");
    }
    return file;
}

}  // namespace

std::filesystem::path path_of(const std::string& utf8) { return std::filesystem::u8path(utf8); }

std::string text_of(const std::filesystem::path& path) { return path.u8string(); }

bool is_plain_file(const std::filesystem::path& path) {
    std::error_code error;
    return std::filesystem::symlink_status(path, error).type() == std::filesystem::file_type::regular;
}

std::string read_whole(const std::filesystem::path& path) {
    std::ifstream file = opened(path);
    std::string content(static_cast<size_t>(std::filesystem::file_size(path)), '\0');
    file.read(content.data(), static_cast<std::streamsize>(content.size()));
    content.resize(static_cast<size_t>(file.gcount()));
    if (file.bad()) {
        throw std::runtime_error("cannot be read");
    }
    return content;
}

std::string sha256_of_file(const std::filesystem::path& path) {
    std::ifstream file = opened(path);
    std::vector<char> block(kBlockBytes);
    Sha256 hash;
    do {
        file.read(block.data(), static_cast<std::streamsize>(block.size()));
        hash.update(block.data(), static_cast<size_t>(file.gcount()));
    } while (file);
    if (file.bad()) {
        throw std::runtime_error("cannot be read");
    }
    return hash.digits();
}

}  // namespace videossm::internal
