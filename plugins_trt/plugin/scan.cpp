#include "plugin/scan.h"

#include <algorithm>
#include <cstring>

namespace videossm {
namespace {

std::string name_of_axis(char axis) {
    return axis == 'K' ? "d_k" : axis == 'V' ? "d_v" : std::string(1, axis);
}

std::string shape_of(const TensorSpec& spec) {
    std::string text = "[";
    for (const char* axis = spec.axes; *axis; ++axis) {
        text += (axis == spec.axes ? "" : ", ") + name_of_axis(*axis);
    }
    return text + "]";
}

int rank_of(const TensorSpec& spec) { return static_cast<int>(std::strlen(spec.axes)); }

}  // namespace

const char* name_of(ElementType type) {
    switch (type) {
        case ElementType::FP32: return "fp32";
        case ElementType::FP16: return "fp16";
        case ElementType::BF16: return "bf16";
        case ElementType::FP8: return "fp8";
        case ElementType::INT4: return "int4";
        case ElementType::INT8: return "int8";
        case ElementType::UINT8: return "uint8";
        case ElementType::INT32: return "int32";
        case ElementType::INT64: return "int64";
        case ElementType::BOOL: return "bool";
        case ElementType::OTHER: break;
    }
    return "one without a name";
}

videossm_dtype dtype_of(ElementType activation) {
    return activation == ElementType::FP32   ? VIDEOSSM_FP32
           : activation == ElementType::FP16 ? VIDEOSSM_FP16
                                             : VIDEOSSM_BF16;
}

void Scan::check_counts(int inputs, int outputs) const {
    const int most = static_cast<int>(kind_->inputs.size());
    int least = 0;  // up to the last one that is read
    for (int i = 0; i < most; ++i) {
        least = reads(i) ? i + 1 : least;
    }
    if (inputs < least || inputs > most) {
        refuse("inputs: got " + std::to_string(inputs) + ", expected " + std::to_string(least) +
               (least < most ? " to " + std::to_string(most) : "") + " by the fields " +
               fields_.description());
    }
    if (outputs != OUTPUTS) {
        refuse("outputs: got " + std::to_string(outputs) + ", expected " + std::to_string(OUTPUTS));
    }
}

ElementType Scan::check_types(const ElementType* types, int inputs) const {
    for (int i = 0; i < inputs; ++i) {
        if (takes_type(i, types, inputs)) {
            continue;
        }
        const TensorSpec& spec = kind_->input(i);
        const std::string expected = spec.role == Role::SINGLE ? "fp32"
                                     : i == 0
                                         ? "fp32, fp16 or bf16"
                                         : std::string(name_of(types[0])) + " as " + kind_->input(0).name;
        refuse(std::string(spec.name) + ": got type " + name_of(types[i]) + ", expected " + expected +
               "; cast it");
    }
    return types[0];
}

ElementType Scan::output_type(int output, ElementType activation) const {
    return kind_->output(output).role == Role::ACTIVATION ? activation : ElementType::FP32;
}

bool Scan::takes_type(int position, const ElementType* types, int inputs) const {
    const ElementType type = types[position];
    if (position >= inputs) {
        return type == output_type(position - inputs, types[0]);
    }
    if (kind_->input(position).role == Role::SINGLE) {
        return type == ElementType::FP32;
    }
    const bool is_known = type == ElementType::FP32 || type == ElementType::FP16 || type == ElementType::BF16;
    return position == 0 ? is_known : type == types[0];
}

void Scan::bind(const TensorSpec& spec, const Shape& shape, Sizes& sizes) const {
    if (shape.rank != rank_of(spec)) {
        refuse(std::string(spec.name) + ": got rank " + std::to_string(shape.rank) + ", expected " +
               std::to_string(rank_of(spec)) + ", " + shape_of(spec));
    }
    for (int i = 0; i < shape.rank; ++i) {
        const int64_t size = shape.size[static_cast<size_t>(i)];
        int64_t& known = sizes[spec.axes[i]];
        if (size == UNKNOWN_SIZE) {
            continue;
        }
        if (size < 1 || (known != UNKNOWN_SIZE && size != known)) {
            refuse(std::string(spec.name) + ": got " + name_of_axis(spec.axes[i]) + " = " +
                   std::to_string(size) + " in " + shape_of(spec) + ", expected " +
                   (known == UNKNOWN_SIZE ? "at least 1" : std::to_string(known) + " as before it"));
        }
        known = size;
    }
}

Sizes Scan::check_shapes(const Shape* inputs, int count) const {
    Sizes sizes;
    for (int i = 0; i < count; ++i) {
        if (reads(i)) {
            bind(kind_->input(i), inputs[i], sizes);
        }
    }
    return sizes;
}

Shape Scan::output_shape(int output, const Sizes& sizes) const {
    const TensorSpec& spec = kind_->output(output);
    Shape shape;
    shape.rank = rank_of(spec);
    for (int i = 0; i < shape.rank; ++i) {
        shape.size[static_cast<size_t>(i)] = is_placeholder(output) ? 1 : sizes[spec.axes[i]];
    }
    return shape;
}

void Scan::check_output_shape(int output, const Shape& shape, const Sizes& sizes) const {
    if (is_placeholder(output)) {
        return;  // nothing is written, so any memory will do
    }
    Sizes known = sizes;
    bind(kind_->output(output), shape, known);
}

void Scan::check_known(const Sizes& sizes) const {
    for (const char* axis = kind_->axes; *axis; ++axis) {
        if (sizes[*axis] == UNKNOWN_SIZE) {
            refuse(name_of_axis(*axis) + ": got no size, expected one");
        }
    }
}

void Scan::check_supported(const Sizes& sizes, ElementType activation) const {
    check_known(sizes);
    // Every library of the scans says what it has no kernel for before it looks at a pointer; there are none
    // here, so nothing is computed.
    if (kind_->run(*this, sizes, activation, nullptr) == VIDEOSSM_UNSUPPORTED) {
        refuse(videossm_last_error());
    }
}

size_t Scan::workspace_bytes(const Sizes& least, const Sizes& most, ElementType activation) const {
    check_known(least);
    check_known(most);
    // The largest of all corners: a library may want more memory for fewer heads, if it splits them further.
    size_t bytes = 0;
    const size_t axes = std::strlen(kind_->axes);
    for (size_t corner = 0; corner < size_t{1} << axes; ++corner) {
        Sizes sizes;
        for (size_t i = 0; i < axes; ++i) {
            const char axis = kind_->axes[i];
            sizes[axis] = corner >> i & 1 ? most[axis] : least[axis];
        }
        bytes = std::max(bytes, kind_->workspace_bytes(*this, sizes, activation));
    }
    return bytes;
}

void Scan::run(const Sizes& sizes, ElementType activation, const Buffers& buffers) const {
    if (wants_output() && !buffers.outputs[0]) {  // null would tell the library that it is not wanted
        refuse(std::string(kind_->output(0).name) + ": got null, expected a tensor");
    }
    const videossm_status status = kind_->run(*this, sizes, activation, &buffers);
    if (status != VIDEOSSM_OK) {
        throw ScanError(std::string(kind_->name) + ": " + videossm_last_error(),
                        status == VIDEOSSM_FAILED ? ScanError::Cause::DEVICE : ScanError::Cause::ARGUMENT);
    }
}

}  // namespace videossm
