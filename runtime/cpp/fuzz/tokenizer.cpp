// Bytes up to the first zero as a tokenizer.json, what comes after it as a prompt. Without a file that holds, the
// prompt is for the last one that did.
#include <cstdint>
#include <memory>

#include "error.h"
#include "json.h"
#include "tokenizer.h"

using namespace videossm::internal;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    static std::unique_ptr<WordLevel> last;
    const std::string bytes(reinterpret_cast<const char*>(data), size);
    const size_t end = bytes.find('\0');
    try {
        if (auto read = WordLevel::read(bytes.substr(0, end))) {
            last = std::move(read);
        }
    } catch (const JsonError&) {
    }
    if (!last || end == std::string::npos) {
        return 0;
    }
    for (const bool refuses : {true, false}) {
        std::vector<int64_t> ids, mask;
        try {
            encode_prompt(*last, Text{8, 0, refuses}, bytes.substr(end + 1), ids, mask);
            if (ids.size() != 8 || mask.size() != 8) {
                __builtin_trap();
            }
        } catch (const Error& error) {
            if (std::string(error.what()).find('\n') != std::string::npos) {
                __builtin_trap();  // not one line
            }
        }
    }
    return 0;
}
