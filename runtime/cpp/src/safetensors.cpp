#include "safetensors.h"

#include <algorithm>
#include <vector>

#include "json.h"

namespace videossm::internal {
namespace {

constexpr uint64_t kMostHeaderBytes = 100'000'000;
constexpr DType kDTypes[] = {DType::float32, DType::float16, DType::bfloat16, DType::int64, DType::int32, DType::uint8};

[[noreturn]] void fail(const std::string& what) { throw SafetensorsError{what}; }

uint64_t size_in(const Json& value, const char* what) {
    if (!value.is(Json::Kind::integer) || value.integer < 0) {
        fail(std::string(what) + " that is no size");
    }
    return static_cast<uint64_t>(value.integer);
}

struct Placed {
    uint64_t start = 0, stop = 0;
    StoredTensor tensor;
};

Placed read_tensor(const Json& entry, std::string_view data) {
    const Json* dtype = entry.find("dtype");
    const Json* shape = entry.find("shape");
    const Json* offsets = entry.find("data_offsets");
    if (entry.members.size() != 3 || !dtype || !shape || !offsets || !dtype->is(Json::Kind::string) ||
        !shape->is(Json::Kind::array) || !offsets->is(Json::Kind::array) || offsets->items.size() != 2) {
        fail("a tensor without dtype, shape and data_offsets");
    }
    const auto known = std::find_if(std::begin(kDTypes), std::end(kDTypes),
                                    [&](DType each) { return dtype->string == code_of(each); });
    if (known == std::end(kDTypes)) {
        fail("an unknown dtype");
    }
    Placed placed;
    placed.tensor.code = dtype->string;
    TensorSpec spec{"", *known, {}};
    for (const Json& side : shape->items) {
        spec.shape.push_back(static_cast<int64_t>(size_in(side, "a side")));
    }
    placed.start = size_in(offsets->items[0], "an offset");
    placed.stop = size_in(offsets->items[1], "an offset");
    if (placed.start > placed.stop || placed.stop > data.size() || placed.stop - placed.start != spec.size_bytes()) {
        fail("a tensor whose size is not that of its shape");
    }
    placed.tensor.shape = std::move(spec.shape);
    placed.tensor.data = data.substr(placed.start, placed.stop - placed.start);
    return placed;
}

}  // namespace

const char* code_of(DType dtype) {
    static constexpr const char* kCodes[] = {"F32", "F16", "BF16", "I64", "I32", "U8"};
    return kCodes[static_cast<int>(dtype)];
}

Safetensors parse_safetensors(std::string_view content) {
    if (content.size() < 8) {
        fail("less than 8 bytes");
    }
    uint64_t length = 0;
    for (size_t i = 8; i-- > 0;) {
        length = length << 8 | static_cast<unsigned char>(content[i]);
    }
    if (length > kMostHeaderBytes || length > content.size() - 8) {
        fail("a header beyond the end");
    }
    const std::string_view data = content.substr(8 + length);
    Json header;
    try {
        header = Json::parse(content.substr(8, length));
    } catch (const JsonError& error) {
        fail(error.what);
    }
    if (!header.is(Json::Kind::object)) {
        fail("a header that is no object");
    }
    Safetensors file;
    std::vector<std::pair<uint64_t, uint64_t>> places;
    for (const auto& [name, entry] : header.members) {
        if (name == "__metadata__") {
            for (const auto& [key, value] : entry.members) {
                if (!value.is(Json::Kind::string)) {
                    fail("metadata that is no text");
                }
                file.metadata.emplace(key, value.string);
            }
            continue;
        }
        Placed placed = read_tensor(entry, data);
        places.emplace_back(placed.start, placed.stop);
        file.tensors.emplace(name, std::move(placed.tensor));
    }
    std::sort(places.begin(), places.end());
    uint64_t end = 0;
    for (const auto& [start, stop] : places) {
        if (start != end) {
            fail("tensors that overlap or leave a gap");
        }
        end = stop;
    }
    if (end != data.size()) {
        fail("data that no tensor has");
    }
    return file;
}

std::string safetensors_header(const std::map<std::string, TensorSpec>& tensors,
                               const std::map<std::string, std::string>& metadata) {
    std::string header = "{\"__metadata__\":{";
    const char* separator = "";
    for (const auto& [key, value] : metadata) {
        header += separator + json_quoted(key) + ":" + json_quoted(value);
        separator = ",";
    }
    header += "}";
    uint64_t start = 0;
    for (const auto& [name, spec] : tensors) {
        const uint64_t stop = start + spec.size_bytes();
        header += "," + json_quoted(name) + ":{\"dtype\":\"" + code_of(spec.dtype) + "\",\"shape\":[";
        separator = "";
        for (const int64_t side : spec.shape) {
            header += separator + std::to_string(side);
            separator = ",";
        }
        header += "],\"data_offsets\":[" + std::to_string(start) + "," + std::to_string(stop) + "]}";
        start = stop;
    }
    header += "}";
    header.append((8 - header.size() % 8) % 8, ' ');
    std::string length;
    for (uint64_t size = header.size(), i = 0; i < 8; ++i, size >>= 8) {
        length.push_back(static_cast<char>(size & 0xFF));
    }
    return length + header;
}

}  // namespace videossm::internal
