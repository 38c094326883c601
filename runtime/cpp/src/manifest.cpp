#include "manifest.h"

#include <algorithm>
#include <limits>

namespace videossm::internal {

const char* name_of(DType dtype) {
    static constexpr const char* kNames[] = {"float32", "float16", "bfloat16", "int64", "int32", "uint8"};
    return kNames[static_cast<int>(dtype)];
}

size_t size_of(DType dtype) {
    static constexpr size_t kSizes[] = {4, 2, 2, 8, 4, 1};
    return kSizes[static_cast<int>(dtype)];
}

uint64_t TensorSpec::size_bytes() const {
    uint64_t size = size_of(dtype);
    for (const int64_t side : shape) {
        if (side > 0 && size > std::numeric_limits<uint64_t>::max() / static_cast<uint64_t>(side)) {
            return std::numeric_limits<uint64_t>::max();
        }
        size *= static_cast<uint64_t>(side);
    }
    return size;
}

const EngineSpec* Manifest::engine(std::string_view engine_name) const {
    const auto found = engine_index.find(engine_name);
    return found == engine_index.end() ? nullptr : &engines[found->second].second;
}

const State* Manifest::state(std::string_view state_name) const {
    const auto found = state_index.find(state_name);
    return found == state_index.end() ? nullptr : &states[found->second];
}

const TensorSpec& Manifest::sample() const {
    // The contract has seen to it that there is one; not every pass need read it.
    for (const Pass& pass : passes) {
        for (const Input& tensor : engine(pass.engine)->inputs) {
            if (tensor.source == "sample") {
                return tensor;
            }
        }
    }
    return states.front();
}

std::vector<std::string> Manifest::called(std::string_view when, std::string_view or_when) const {
    std::vector<std::string> names;
    for (const Call& call : calls) {
        if (call.when == when || (!or_when.empty() && call.when == or_when)) {
            names.push_back(call.engine);
        }
    }
    return names;
}

Shape Manifest::whole_shape(const State& state) const {
    Shape shape = state.shape;
    if (state.kind == "ring" && window) {
        shape[1] *= window->chunks;
    }
    return shape;
}

std::map<std::string, TensorSpec> Manifest::kept() const {
    std::map<std::string, TensorSpec> tensors;
    bool rings = false;
    for (const State& state : states) {
        if (state.kind == "ring") {
            rings = true;
            tensors[state.name] = {state.name, state.dtype, whole_shape(state)};
        } else if (state.kind == "carry" && !state.per_pass) {
            tensors[state.name] = {state.name, state.dtype, state.shape};
        } else if (state.kind == "carry") {
            for (size_t pass = 0; pass < passes.size(); ++pass) {
                const std::string name = state.name + "@" + std::to_string(pass);
                tensors[name] = {name, state.dtype, state.shape};
            }
        }
    }
    if (rings && text && window) {  // a new prompt needs the clean samples again
        Shape shape = sample().shape;
        shape[1] *= window->chunks;
        tensors[kSample] = {kSample, DType::float32, shape};
    }
    return tensors;
}

std::string_view state_read(std::string_view source) {
    for (const std::string_view prefix : {std::string_view("state."), std::string_view("evicted.")}) {
        if (source.substr(0, prefix.size()) == prefix && source.find('\n') == std::string_view::npos) {
            return source.substr(prefix.size());
        }
    }
    return {};
}

bool is_name(std::string_view text) {
    const auto letter = [](char c) {
        return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_';
    };
    return !text.empty() && letter(text[0]) && std::all_of(text.begin(), text.end(), [&](char c) {
        return letter(c) || c == '.' || c == '+' || c == '-';
    });
}

}  // namespace videossm::internal
