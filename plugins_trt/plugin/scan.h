/* What a plugin knows of its scan, without TensorRT: the tensors that it has, the checks of them, and the
 * call of the C interface. `ScanPlugin` puts TensorRT's interfaces around it. All that refuses throws
 * ScanError.
 */
#ifndef VIDEOSSM_PLUGIN_SCAN_H
#define VIDEOSSM_PLUGIN_SCAN_H

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "plugin/error.h"
#include "plugin/fields.h"
#include "videossm/scans.h"

namespace videossm {

constexpr const char* PLUGIN_NAMESPACE = "videossm";
constexpr const char* PLUGIN_VERSION = "1";
constexpr int MAX_DIMENSIONS = 8;
constexpr int MAX_INPUTS = 9;
constexpr int OUTPUTS = 2;            // what the scan returns for each token, and the last state
constexpr int64_t UNKNOWN_SIZE = -1;  // of a dimension that is known at run time only

enum class ElementType { FP32, FP16, BF16, FP8, INT4, INT8, UINT8, INT32, INT64, BOOL, OTHER };

enum class Role { ACTIVATION, SINGLE };  // fp32, fp16 or bf16, the same in all activations of a scan; or fp32

struct TensorSpec {
    const char* name;
    const char* axes;  // a letter a dimension; a letter stands for one size in all tensors of a scan
    Role role;
    const char* field = nullptr;  // of an optional input: the flag that says whether it is read
};

struct Shape {
    int rank = 0;
    std::array<int64_t, MAX_DIMENSIONS> size{};
};

/* The size of every axis. */
class Sizes {
public:
    Sizes() { sizes_.fill(UNKNOWN_SIZE); }
    int64_t& operator[](char axis) { return sizes_[static_cast<size_t>(axis - 'A')]; }
    int64_t operator[](char axis) const { return sizes_[static_cast<size_t>(axis - 'A')]; }

private:
    std::array<int64_t, 26> sizes_;
};

/* Of one run: device memory, but for the stream. */
struct Buffers {
    const void* const* inputs;
    void* const* outputs;
    void* workspace;
    void* stream;
};

class Scan;

struct ScanKind {
    const char* name;
    const char* axes;  // all of them
    std::vector<TensorSpec> inputs;
    int required_inputs;  // the optional ones come after them
    int state_input;
    std::array<TensorSpec, OUTPUTS> outputs;
    std::vector<FieldSpec> fields;
    size_t (*workspace_bytes)(const Scan& scan, const Sizes& sizes, ElementType activation);
    /* Without buffers: nothing but the status that the library has for these sizes. */
    videossm_status (*run)(const Scan& scan, const Sizes& sizes, ElementType activation,
                           const Buffers* buffers);

    const TensorSpec& input(int index) const { return inputs[static_cast<size_t>(index)]; }
    const TensorSpec& output(int index) const { return outputs[static_cast<size_t>(index)]; }
};

const ScanKind& gated_delta_scan();
const ScanKind& selective_scan();

/* A scan with its fields; a value, copied with the plugin that has it. */
class Scan {
public:
    Scan(const ScanKind& kind, const std::vector<Field>& fields, bool of_engine)
        : kind_(&kind), fields_(kind.name, kind.fields, fields, of_engine) {}

    const ScanKind& kind() const { return *kind_; }
    const Fields& fields() const { return fields_; }
    bool reads(int input) const {
        return !kind_->input(input).field || fields_.flag(kind_->input(input).field);
    }
    bool wants_output() const { return fields_.flag("want_output"); }
    /* The first output, where it is not wanted, is a placeholder of one element that nothing writes. */
    bool is_placeholder(int output) const { return output == 0 && !wants_output(); }

    void check_counts(int inputs, int outputs) const;

    /* Returns the type that all activations have. */
    ElementType check_types(const ElementType* types, int inputs) const;
    ElementType output_type(int output, ElementType activation) const;
    /* Whether tensor `position`, outputs after inputs, may have its type: by the types of the tensors up to
     * it. */
    bool takes_type(int position, const ElementType* types, int inputs) const;

    /* Ranks, and sizes as far as they are known; an input that is not read may have any shape. */
    Sizes check_shapes(const Shape* inputs, int count) const;
    void check_output_shape(int output, const Shape& shape, const Sizes& sizes) const;
    Shape output_shape(int output, const Sizes& sizes) const;

    /* All sizes must be known, and the library must have a kernel for them. */
    void check_supported(const Sizes& sizes, ElementType activation) const;
    /* Enough for all sizes between the two. */
    size_t workspace_bytes(const Sizes& least, const Sizes& most, ElementType activation) const;
    void run(const Sizes& sizes, ElementType activation, const Buffers& buffers) const;

    [[noreturn]] void refuse(const std::string& reason) const { videossm::refuse(kind_->name, reason); }

private:
    void check_known(const Sizes& sizes) const;
    void bind(const TensorSpec& spec, const Shape& shape, Sizes& sizes) const;

    const ScanKind* kind_;
    Fields fields_;
};

const char* name_of(ElementType type);
videossm_dtype dtype_of(ElementType activation);

}  // namespace videossm

#endif
