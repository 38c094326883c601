// Safetensors files: a header in JSON with every tensor's dtype, shape and place, then the tensors without gaps.
#pragma once

#include <map>
#include <string>
#include <string_view>

#include "manifest.h"

namespace videossm::internal {

struct StoredTensor {
    std::string code;  // F32, ..
    Shape shape;
    std::string_view data;  // a part of the file's content
};

struct Safetensors {
    std::map<std::string, std::string> metadata;
    std::map<std::string, StoredTensor> tensors;
};

// What is wrong with the content, for the middle of a line.
struct SafetensorsError {
    std::string what;
};

// Throws SafetensorsError.
Safetensors parse_safetensors(std::string_view content);

// The length and the header of a file of `tensors`, whose data follow in the order of their names.
std::string safetensors_header(const std::map<std::string, TensorSpec>& tensors,
                               const std::map<std::string, std::string>& metadata);

const char* code_of(DType dtype);

}  // namespace videossm::internal
