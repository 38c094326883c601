#include "plugin/scan_plugin.h"

#include <algorithm>
#include <cstring>

#include "plugin/report.h"

namespace videossm {
namespace {

using nvinfer1::DataType;
using nvinfer1::Dims;
using nvinfer1::DimsExprs;
using nvinfer1::DynamicPluginTensorDesc;
using nvinfer1::PluginField;
using nvinfer1::PluginTensorDesc;
using nvinfer1::TensorFormat;

constexpr int32_t OK = 0;
constexpr int32_t REFUSED = -1;

using Types = std::array<ElementType, MAX_INPUTS + OUTPUTS>;
using Shapes = std::array<Shape, MAX_INPUTS>;

ElementType type_of(DataType type) {
    switch (type) {
        case DataType::kFLOAT: return ElementType::FP32;
        case DataType::kHALF: return ElementType::FP16;
        case DataType::kBF16: return ElementType::BF16;
        case DataType::kFP8: return ElementType::FP8;
        case DataType::kINT4: return ElementType::INT4;
        case DataType::kINT8: return ElementType::INT8;
        case DataType::kUINT8: return ElementType::UINT8;
        case DataType::kINT32: return ElementType::INT32;
        case DataType::kINT64: return ElementType::INT64;
        case DataType::kBOOL: return ElementType::BOOL;
        default: return ElementType::OTHER;
    }
}

DataType type_for_tensorrt(ElementType type) {
    return type == ElementType::FP16   ? DataType::kHALF
           : type == ElementType::BF16 ? DataType::kBF16
                                       : DataType::kFLOAT;
}

Shape shape_of(const Dims& dims) {
    Shape shape;
    shape.rank = dims.nbDims;
    std::copy_n(dims.d, std::clamp(dims.nbDims, 0, MAX_DIMENSIONS), shape.size.begin());
    return shape;
}

/* Sizes that are no constants of the network are unknown. */
Shape shape_of(const DimsExprs& dims) {
    Shape shape;
    shape.rank = dims.nbDims;
    for (int i = 0; i < std::min(dims.nbDims, MAX_DIMENSIONS); ++i) {
        const nvinfer1::IDimensionExpr* const size = dims.d[i];
        shape.size[static_cast<size_t>(i)] =
            size && size->isConstant() ? size->getConstantValue() : UNKNOWN_SIZE;
    }
    return shape;
}

/* Of a tensor whose unknown sizes take those of `bound`. */
Shape shape_of(const DynamicPluginTensorDesc& tensor, const Dims& bound) {
    Shape shape = shape_of(tensor.desc.dims);
    for (int i = 0; i < std::min(shape.rank, MAX_DIMENSIONS); ++i) {
        int64_t& size = shape.size[static_cast<size_t>(i)];
        size = size == UNKNOWN_SIZE ? bound.d[i] : size;
    }
    return shape;
}

/* The size that the first input with that axis has for it. */
const nvinfer1::IDimensionExpr* size_of(const Scan& scan, char axis, const DimsExprs* in) {
    for (int i = 0; i < scan.kind().required_inputs; ++i) {
        const char* const axes = scan.kind().input(i).axes;
        if (const char* const found = std::strchr(axes, axis)) {
            return in[i].d[found - axes];
        }
    }
    scan.refuse(std::string(1, axis) + ": got no input that has it, expected one");
}

template <typename Source>
Shapes shapes_of(const Source& shape, int32_t count) {
    Shapes shapes;
    for (int32_t i = 0; i < count; ++i) {
        shapes[static_cast<size_t>(i)] = shape(i);
    }
    return shapes;
}

Sizes least_sizes(const Scan& scan, const DynamicPluginTensorDesc* in, int32_t inputs) {
    return scan.check_shapes(shapes_of([&](int32_t i) { return shape_of(in[i], in[i].min); }, inputs).data(),
                             inputs);
}

Sizes most_sizes(const Scan& scan, const DynamicPluginTensorDesc* in, int32_t inputs) {
    return scan.check_shapes(shapes_of([&](int32_t i) { return shape_of(in[i], in[i].max); }, inputs).data(),
                             inputs);
}

Sizes sizes_of(const Scan& scan, const PluginTensorDesc* in, int32_t inputs) {
    return scan.check_shapes(shapes_of([&](int32_t i) { return shape_of(in[i].dims); }, inputs).data(),
                             inputs);
}

template <typename Source>
Types types_of(const Source& type, int32_t count) {
    Types types{};
    for (int32_t i = 0; i < count; ++i) {
        types[static_cast<size_t>(i)] = type_of(type(i));
    }
    return types;
}

ElementType check_types(const Scan& scan, const PluginTensorDesc* in, int32_t inputs) {
    return scan.check_types(types_of([&](int32_t i) { return in[i].type; }, inputs).data(), inputs);
}

void check_linear(const Scan& scan, const char* name, TensorFormat format) {
    if (format != TensorFormat::kLINEAR) {
        scan.refuse(std::string(name) + ": got format " + std::to_string(static_cast<int>(format)) +
                    ", expected linear");
    }
}

void check_output(const Scan& scan, int32_t output, const PluginTensorDesc& tensor, ElementType activation) {
    const char* const name = scan.kind().output(output).name;
    check_linear(scan, name, tensor.format);
    const ElementType expected = scan.output_type(output, activation);
    if (type_of(tensor.type) != expected) {
        scan.refuse(std::string(name) + ": got type " + name_of(type_of(tensor.type)) + ", expected " +
                    name_of(expected));
    }
}

}  // namespace

nvinfer1::IPluginCapability* ScanPlugin::getCapabilityInterface(
    nvinfer1::PluginCapabilityType type) noexcept {
    switch (type) {
        case nvinfer1::PluginCapabilityType::kCORE: return static_cast<nvinfer1::IPluginV3OneCore*>(this);
        case nvinfer1::PluginCapabilityType::kBUILD: return static_cast<nvinfer1::IPluginV3OneBuildV2*>(this);
        case nvinfer1::PluginCapabilityType::kRUNTIME:
            return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
    }
    return nullptr;
}

nvinfer1::IPluginV3* ScanPlugin::clone() noexcept { return attachToContext(nullptr); }

int32_t ScanPlugin::configurePlugin(const DynamicPluginTensorDesc* in, int32_t inputs,
                                    const DynamicPluginTensorDesc* out, int32_t outputs) noexcept {
    return guarded(REFUSED, recorder(), [&] {
        scan_.check_counts(inputs, outputs);
        const auto types = types_of([&](int32_t i) { return in[i].desc.type; }, inputs);
        const ElementType activation = scan_.check_types(types.data(), inputs);
        for (int32_t i = 0; i < inputs; ++i) {
            check_linear(scan_, scan_.kind().input(i).name, in[i].desc.format);
        }
        for (int32_t i = 0; i < outputs; ++i) {
            check_output(scan_, i, out[i].desc, activation);
        }
        scan_.check_supported(least_sizes(scan_, in, inputs), activation);
        scan_.check_supported(most_sizes(scan_, in, inputs), activation);
        return OK;
    });
}

int32_t ScanPlugin::getOutputDataTypes(DataType* output_types, int32_t outputs, const DataType* input_types,
                                       int32_t inputs) const noexcept {
    return guarded(REFUSED, recorder(), [&] {
        scan_.check_counts(inputs, outputs);
        const auto types = types_of([&](int32_t i) { return input_types[i]; }, inputs);
        const ElementType activation = scan_.check_types(types.data(), inputs);
        for (int32_t i = 0; i < outputs; ++i) {
            output_types[i] = type_for_tensorrt(scan_.output_type(i, activation));
        }
        return OK;
    });
}

int32_t ScanPlugin::getOutputShapes(const DimsExprs* in, int32_t inputs, const DimsExprs* /*shape_inputs*/,
                                    int32_t shape_input_count, DimsExprs* out, int32_t outputs,
                                    nvinfer1::IExprBuilder& builder) noexcept {
    return guarded(REFUSED, recorder(), [&] {
        scan_.check_counts(inputs, outputs);
        if (shape_input_count != 0) {
            scan_.refuse("shape inputs: got " + std::to_string(shape_input_count) + ", expected none");
        }
        scan_.check_shapes(shapes_of([&](int32_t i) { return shape_of(in[i]); }, inputs).data(), inputs);
        for (int32_t i = 0; i < outputs; ++i) {
            const char* const axes = scan_.kind().output(i).axes;
            out[i].nbDims = scan_.output_shape(i, Sizes()).rank;
            for (int32_t j = 0; j < out[i].nbDims; ++j) {
                out[i].d[j] = scan_.is_placeholder(i) ? builder.constant(1) : size_of(scan_, axes[j], in);
            }
        }
        return OK;
    });
}

bool ScanPlugin::supportsFormatCombination(int32_t position, const DynamicPluginTensorDesc* tensors,
                                           int32_t inputs, int32_t outputs) noexcept {
    return guarded(false, recorder(), [&] {
        scan_.check_counts(inputs, outputs);
        if (position < 0 || position >= inputs + outputs) {
            return false;
        }
        const auto types = types_of([&](int32_t i) { return tensors[i].desc.type; }, position + 1);
        return tensors[position].desc.format == TensorFormat::kLINEAR &&
               scan_.takes_type(position, types.data(), inputs);
    });
}

size_t ScanPlugin::getWorkspaceSize(const DynamicPluginTensorDesc* in, int32_t inputs,
                                    const DynamicPluginTensorDesc* /*out*/, int32_t outputs) const noexcept {
    return guarded(size_t{0}, recorder(), [&] {
        scan_.check_counts(inputs, outputs);
        const auto types = types_of([&](int32_t i) { return in[i].desc.type; }, inputs);
        const ElementType activation = scan_.check_types(types.data(), inputs);
        return scan_.workspace_bytes(least_sizes(scan_, in, inputs), most_sizes(scan_, in, inputs),
                                     activation);
    });
}

int32_t ScanPlugin::getAliasedInput(int32_t output) noexcept {
    return output == 1 && scan_.fields().flag("state_in_place") ? scan_.kind().state_input : -1;
}

int32_t ScanPlugin::onShapeChange(const PluginTensorDesc* in, int32_t inputs, const PluginTensorDesc* out,
                                  int32_t outputs) noexcept {
    return guarded(REFUSED, recorder(), [&] {
        scan_.check_counts(inputs, outputs);
        const ElementType activation = check_types(scan_, in, inputs);
        for (int32_t i = 0; i < inputs; ++i) {
            check_linear(scan_, scan_.kind().input(i).name, in[i].format);
        }
        const Sizes sizes = sizes_of(scan_, in, inputs);
        for (int32_t i = 0; i < outputs; ++i) {
            check_output(scan_, i, out[i], activation);
            scan_.check_output_shape(i, shape_of(out[i].dims), sizes);
        }
        scan_.check_supported(sizes, activation);
        return OK;
    });
}

int32_t ScanPlugin::enqueue(const PluginTensorDesc* in, const PluginTensorDesc* /*out*/,
                            const void* const* inputs, void* const* outputs, void* workspace,
                            cudaStream_t stream) noexcept {
    return guarded(REFUSED, recorder(), [&] {
        // TensorRT called onShapeChange for these tensors, so what is not read here was checked there.
        const int count = scan_.kind().required_inputs;
        const ElementType activation = check_types(scan_, in, count);
        scan_.run(sizes_of(scan_, in, count), activation, {inputs, outputs, workspace, stream});
        return OK;
    });
}

nvinfer1::IPluginV3* ScanPlugin::attachToContext(nvinfer1::IPluginResourceContext* context) noexcept {
    return guarded(static_cast<nvinfer1::IPluginV3*>(nullptr), recorder(), [&]() -> nvinfer1::IPluginV3* {
        auto* const copy = new ScanPlugin(scan_);
        copy->context_ = context;
        return copy;
    });
}

const nvinfer1::PluginFieldCollection* ScanPlugin::getFieldsToSerialize() noexcept {
    using Collection = const nvinfer1::PluginFieldCollection*;
    return guarded(Collection{nullptr}, recorder(), [&]() -> Collection {
        fields_.clear();
        for (size_t i = 0; i < scan_.kind().fields.size(); ++i) {
            const FieldSpec& spec = scan_.kind().fields[i];
            const FieldValue& value = scan_.fields()[i];
            if (spec.kind == FieldKind::NUMBER) {
                fields_.emplace_back(spec.name, &value.number, nvinfer1::PluginFieldType::kFLOAT32, 1);
            } else {
                fields_.emplace_back(spec.name, &value.flag, nvinfer1::PluginFieldType::kINT32, 1);
            }
        }
        collection_ = {static_cast<int32_t>(fields_.size()), fields_.data()};
        return &collection_;
    });
}

}  // namespace videossm
