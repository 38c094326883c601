#include "state.h"

#include <algorithm>
#include <cstring>
#include <fstream>
#include <limits>
#include <set>
#include <stdexcept>

#if defined(__unix__) || defined(__APPLE__)
#include <fcntl.h>
#include <unistd.h>
#endif

#include "error.h"
#include "files.h"
#include "half.h"
#include "json.h"
#include "safetensors.h"

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "tensors are written as they lie in memory, which must be little-endian"
#endif

namespace videossm::internal {
namespace {

namespace fs = std::filesystem;

const char* const kFormat = "videossm-state";
const char* const kFormatVersion = "2";
const char* const kAgain = "; resume from another one";

[[noreturn]] void fail(const std::string& where, const std::string& got, const std::string& expected) {
    throw state_error(where + ": got " + got + ", expected " + expected + kAgain);
}

std::string list_of(const std::vector<std::string>& texts) {
    std::string out = "[";
    for (const std::string& text : texts) {
        out += (out.size() > 1 ? "," : "") + json_quoted(text);
    }
    return out + "]";
}

std::string rollout_json(const StateHeader& header) {
    std::vector<std::string> seeds;
    for (const uint64_t seed : header.seeds) {
        seeds.push_back(std::to_string(seed));
    }
    return "{\"prompts\":" + list_of(header.prompts) +
           ",\"next_prompts\":" + (header.next_prompts ? list_of(*header.next_prompts) : "null") +
           ",\"seeds\":" + list_of(seeds) + ",\"chunk\":" + json_quoted(std::to_string(header.chunk)) + "}";
}

// To the disk, whatever happens to the machine.
void sync(const fs::path& path) {
#if defined(__unix__) || defined(__APPLE__)
    const int descriptor = ::open(path.c_str(), O_RDONLY);
    if (descriptor >= 0) {
        ::fsync(descriptor);
        ::close(descriptor);
    }
#else
    (void)path;
#endif
}

std::vector<std::string> texts_in(const std::string& where, const Json& value) {
    if (!value.is(Json::Kind::array)) {
        fail(where, value.shown(), "an array of texts");
    }
    std::vector<std::string> texts;
    for (const Json& item : value.items) {
        if (!item.is(Json::Kind::string)) {
            fail(where + "." + std::to_string(texts.size()), item.shown(), "a text");
        }
        texts.push_back(item.string);
    }
    return texts;
}

// As text: numbers beyond 2^53 are not safe in JSON. `most`: the largest.
uint64_t number_in(const std::string& where, const std::string& text, uint64_t most) {
    const bool digits = !text.empty() && text.size() <= 20 && text.find_first_not_of("0123456789") == std::string::npos;
    if (digits && (text[0] != '0' || text.size() == 1)) {
        uint64_t value = 0;
        for (const char c : text) {
            const auto digit = static_cast<uint64_t>(c - '0');
            if (value > (most - digit) / 10) {
                fail(where, shown(text), "at most " + std::to_string(most));
            }
            value = value * 10 + digit;
        }
        return value;
    }
    fail(where, json_quoted(shown(text)), "a number of decimal digits");
}

StateHeader read_rollout(const std::string& where, const std::string& text) {
    Json value;
    try {
        value = Json::parse(text);
    } catch (const JsonError& error) {
        fail(where + "rollout", "no valid JSON (" + error.what + ")", "an object");
    }
    if (!value.is(Json::Kind::object)) {
        fail(where + "rollout", value.shown(), "an object");
    }
    const auto required = [&](const char* name) -> const Json& {
        const Json* found = value.find(name);
        if (!found) {
            fail(where + "rollout." + name, "nothing", "this field");
        }
        return *found;
    };
    StateHeader header;
    header.prompts = texts_in(where + "rollout.prompts", required("prompts"));
    if (const Json& next = required("next_prompts"); !next.is(Json::Kind::null)) {
        header.next_prompts = texts_in(where + "rollout.next_prompts", next);
    }
    for (const std::string& seed : texts_in(where + "rollout.seeds", required("seeds"))) {
        const std::string field = where + "rollout.seeds." + std::to_string(header.seeds.size());
        header.seeds.push_back(number_in(field, seed, std::numeric_limits<uint64_t>::max()));
    }
    const Json& chunk = required("chunk");
    if (!chunk.is(Json::Kind::string)) {
        fail(where + "rollout.chunk", chunk.shown(), "a text");
    }
    header.chunk = static_cast<int64_t>(number_in(where + "rollout.chunk", chunk.string, (uint64_t{1} << 48) - 1));
    for (const Json::Member& member : value.members) {
        if (member.first != "prompts" && member.first != "next_prompts" && member.first != "seeds" && member.first != "chunk") {
            fail(where + "rollout." + shown(member.first), "an unknown field", "prompts, next_prompts, seeds, chunk");
        }
    }
    return header;
}

StateHeader read_header(const std::string& path, const std::string& where, const Manifest& manifest,
                        const std::map<std::string, std::string>& metadata) {
    const auto said = [&](const char* key) {
        const auto found = metadata.find(key);
        return found == metadata.end() ? std::string() : found->second;
    };
    if (said("format") != kFormat) {
        throw state_error("state: got " + shown(path) + ", a safetensors file of something else, expected a saved state; choose another");
    }
    if (said("format_version") != kFormatVersion) {
        throw state_error(where + ": format_version: got " + shown(said("format_version")) + ", expected " +
                          kFormatVersion + "; save it again");
    }
    if (said("stream_identity") != manifest.stream_identity) {
        throw state_error(where + ": stream_identity: got one of '" + shown(said("plan_name")) + "' (" +
                          shown(said("stream_identity"), 12) + "), expected one of '" + manifest.name + "' (" +
                          manifest.stream_identity.substr(0, 12) + "); resume with a plan of that model");
    }
    const StateHeader header = read_rollout(where + ": metadata: ", said("rollout"));
    check_header(where + ": metadata", header, manifest);
    return header;
}

bool is_float(DType dtype) { return dtype == DType::float32 || dtype == DType::float16 || dtype == DType::bfloat16; }

float float_at(const char* data, DType dtype) {
    if (dtype == DType::float32) {
        float value;
        std::memcpy(&value, data, sizeof value);
        return value;
    }
    uint16_t bits;
    std::memcpy(&bits, data, sizeof bits);
    return dtype == DType::bfloat16 ? from_bfloat16(bits) : from_float16(bits);
}

// What the file holds of a tensor, in the plan's dtype.
std::vector<char> converted(const std::string& where, const TensorSpec& spec, const StoredTensor& found, int64_t chunk) {
    if (found.shape != spec.shape) {
        fail(where, "another shape", "that of the plan");
    }
    DType dtype = spec.dtype;
    if (found.code != code_of(spec.dtype)) {
        for (const DType other : {DType::float32, DType::float16, DType::bfloat16}) {
            dtype = found.code == code_of(other) ? other : dtype;
        }
        if (dtype == spec.dtype || !is_float(spec.dtype)) {
            fail(where, found.code, code_of(spec.dtype));
        }
    }
    const bool zeros_alone = chunk == 0;
    if (!is_float(dtype)) {
        if (zeros_alone && found.data.find_first_not_of('\0') != std::string_view::npos) {
            fail(where, "values before the first chunk", "zeros");
        }
        return {found.data.begin(), found.data.end()};
    }
    const size_t from = size_of(dtype), to = size_of(spec.dtype), count = found.data.size() / from;
    std::vector<char> values(count * to);
    for (size_t i = 0; i < count; ++i) {
        const char* source = found.data.data() + i * from;
        char* target = values.data() + i * to;
        const float value = float_at(source, dtype);
        if (!std::isfinite(value)) {
            fail(where, "a value that is not finite", "numbers");
        }
        if (zeros_alone && value != 0) {
            fail(where, "values before the first chunk", "zeros");
        }
        if (dtype == spec.dtype) {
            std::memcpy(target, source, from);
        } else if (spec.dtype == DType::float32) {
            std::memcpy(target, &value, sizeof value);
        } else {
            const uint16_t bits = spec.dtype == DType::bfloat16 ? to_bfloat16(value) : to_float16(value);
            std::memcpy(target, &bits, sizeof bits);
            if (!std::isfinite(float_at(target, spec.dtype))) {
                throw state_error(where + ": got " + std::to_string(value) + ", expected what " + name_of(spec.dtype) +
                                  " can hold; resume with a plan in fp32");
            }
        }
    }
    return values;
}

}  // namespace

void check_header(const std::string& where, const StateHeader& header, const Manifest& manifest) {
    const auto batch = static_cast<size_t>(manifest.stream.batch);
    const size_t prompts = manifest.text ? batch : 0;
    const bool none_in_force = header.chunk == 0 && header.next_prompts && header.prompts.empty();
    const auto check = [&](const char* field, size_t count, size_t expected) {
        if (count != expected) {
            fail(where + ": rollout." + field, std::to_string(count),
                 std::to_string(expected) + ", for the plan's batch of " + std::to_string(batch));
        }
    };
    if (!none_in_force) {
        check("prompts", header.prompts.size(), prompts);
    }
    if (header.next_prompts) {
        check("next_prompts", header.next_prompts->size(), prompts);
    }
    check("seeds", header.seeds.size(), batch);
    if (manifest.stream.chunks && header.chunk > *manifest.stream.chunks) {
        fail(where + ": rollout.chunk", std::to_string(header.chunk),
             "at most " + std::to_string(*manifest.stream.chunks) + ", the clip's chunks");
    }
}

void save_state(const std::string& path, const Manifest& manifest, const StateFile& state) {
    const fs::path target = path_of(path);
    if (!target.has_filename() || fs::is_directory(target)) {
        throw state_error("state: got '" + shown(path) + "', which is a folder, expected a file; add a name");
    }
    const std::string header = safetensors_header(manifest.kept(), {{"format", kFormat},
                                                                    {"format_version", kFormatVersion},
                                                                    {"stream_identity", manifest.stream_identity},
                                                                    {"plan_name", manifest.name},
                                                                    {"rollout", rollout_json(state.header)}});
    const fs::path temporary = target.parent_path() / path_of("." + text_of(target.filename()) + ".tmp");
    std::ofstream file(temporary, std::ios::binary | std::ios::trunc);
    file.write(header.data(), static_cast<std::streamsize>(header.size()));
    for (const auto& [name, values] : state.tensors) {
        file.write(values.data(), static_cast<std::streamsize>(values.size()));
    }
    file.close();
    std::error_code error;
    if (file) {
        sync(temporary);
        fs::rename(temporary, target, error);
        sync(target.has_parent_path() ? target.parent_path() : fs::path("."));
    }
    if (!file || error) {
        fs::remove(temporary, error);
        throw state_error("state: cannot write " + shown(path) + "; choose a folder that exists and has room");
    }
}

StateFile load_state(const std::string& path, const Manifest& manifest) {
    const fs::path file = path_of(path);
    std::error_code none;
    if (!fs::is_regular_file(file, none)) {
        throw state_error("state: got " + shown(path) + ", which is no file, expected a saved state; check the path");
    }
    // Floats may be of twice the size; what is larger is none of this plan, and is not read.
    uint64_t most = 1 << 24;
    for (const auto& [name, spec] : manifest.kept()) {
        most += 2 * spec.size_bytes();
    }
    std::string content;
    try {
        if (fs::file_size(file) > most) {
            throw std::runtime_error("more bytes than a state of this plan can have");
        }
        content = read_whole(file);
    } catch (const std::runtime_error& error) {
        throw state_error("state: got " + shown(path) + " truncated or damaged (" + shown(error.what()) + ")" + kAgain);
    }
    return parse_state(path, content, manifest);
}

StateFile parse_state(const std::string& path, std::string_view content, const Manifest& manifest) {
    const std::string where = "state: " + shown(path);
    Safetensors file;
    try {
        file = parse_safetensors(content);
    } catch (const SafetensorsError& error) {
        throw state_error("state: got " + shown(path) + " truncated or damaged (" + shown(error.what) + ")" + kAgain);
    }
    StateFile state;
    state.header = read_header(path, where, manifest, file.metadata);
    const std::map<std::string, TensorSpec> kept = manifest.kept();
    std::set<std::string_view> names;
    for (const auto& [name, spec] : kept) {
        names.insert(name);
    }
    for (const auto& [name, tensor] : file.tensors) {
        names.insert(name);
    }
    for (const std::string_view each : names) {
        const std::string name(each);
        if (kept.count(name) != file.tensors.count(name)) {
            fail(where + ": tensor " + shown(name), kept.count(name) ? "none" : "one", kept.count(name) ? "one" : "none");
        }
    }
    for (const auto& [name, spec] : kept) {
        state.tensors[name] = converted(where + ": tensor " + name, spec, file.tensors.at(name), state.header.chunk);
    }
    return state;
}

}  // namespace videossm::internal
