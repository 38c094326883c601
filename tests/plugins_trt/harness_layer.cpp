#include "harness_layer.h"

#include <algorithm>
#include <iterator>
#include <stdexcept>

namespace videossm::harness {
namespace {

DataType type_of(ElementType type) {
    switch (type) {
        case ElementType::FP16: return DataType::kHALF;
        case ElementType::BF16: return DataType::kBF16;
        case ElementType::INT8: return DataType::kINT8;
        default: return DataType::kFLOAT;
    }
}

PluginFieldType type_of(FieldType type) {
    switch (type) {
        case FieldType::FLOAT32: return PluginFieldType::kFLOAT32;
        case FieldType::INT32: return PluginFieldType::kINT32;
        case FieldType::INT64: return PluginFieldType::kINT64;
        case FieldType::OTHER: break;
    }
    return PluginFieldType::kCHAR;
}

PluginTensorDesc desc_of(const Shape& shape, ElementType type) {
    PluginTensorDesc desc{};
    desc.dims.nbDims = shape.rank;
    std::copy(shape.size.begin(), shape.size.end(), desc.dims.d);
    desc.type = type_of(type);
    desc.format = TensorFormat::kLINEAR;
    return desc;
}

DynamicPluginTensorDesc of_static_size(const PluginTensorDesc& desc) {
    return {desc, desc.dims, desc.dims, desc.dims};
}

std::vector<DynamicPluginTensorDesc> all_dynamic(const std::vector<PluginTensorDesc>& descs) {
    std::vector<DynamicPluginTensorDesc> result;
    std::transform(descs.begin(), descs.end(), std::back_inserter(result), of_static_size);
    return result;
}

}  // namespace

FakeLoggerFinder finder;

Descs::Descs(const Problem& problem) {
    for (const Tensor& tensor : problem.inputs) {
        in.push_back(desc_of(tensor.shape, tensor.type));
    }
    for (size_t i = 0; i < OUTPUTS; ++i) {
        const auto& spec = problem.kind->outputs[i];
        const bool is_placeholder = problem.expected[i].empty();
        // The first output is like the third input or the first, the last state like the state.
        const bool is_gated = std::string(problem.kind->name) == "GatedDeltaScan";
        const auto like = i == 1 ? static_cast<size_t>(problem.kind->state_input) : is_gated ? 2 : 0;
        Shape shape = like < problem.inputs.size() ? problem.inputs[like].shape : Shape{};
        if (is_placeholder) {
            shape.size.fill(1);
        }
        out.push_back(desc_of(shape, spec.role == Role::SINGLE ? ElementType::FP32 : problem.activation));
    }
}

std::vector<DynamicPluginTensorDesc> Descs::dynamic_in() const { return all_dynamic(in); }

std::vector<DynamicPluginTensorDesc> Descs::dynamic_out() const { return all_dynamic(out); }

std::string errors() {
    std::string text;
    for (const std::string& error : finder.logger.errors) {
        text += (text.empty() ? "" : "; ") + error;
    }
    finder.logger.errors.clear();
    return text;
}

nvinfer1::IPluginCreatorV3One& creator_of(const std::string& name) {
    int32_t count = 0;
    nvinfer1::IPluginCreatorInterface* const* const creators = getCreators(count);
    for (int32_t i = 0; i < count; ++i) {
        auto* const creator = static_cast<nvinfer1::IPluginCreatorV3One*>(creators[i]);
        if (name == creator->getPluginName()) {
            return *creator;
        }
    }
    throw std::runtime_error("creators: got none of " + name);
}

Plugin create(const std::string& kind, const std::vector<Field>& fields, TensorRTPhase phase) {
    std::vector<PluginField> collected;
    for (const Field& field : fields) {
        collected.emplace_back(field.name, field.data, type_of(field.type), field.length);
    }
    const PluginFieldCollection collection{static_cast<int32_t>(collected.size()), collected.data()};
    return Plugin(creator_of(kind).createPlugin("a name", &collection, phase));
}

Plugin create(const Problem& problem) {
    return create(problem.kind->name, FieldStore(problem).fields, TensorRTPhase::kBUILD);
}

Build& build_of(nvinfer1::IPluginV3& plugin) {
    return *static_cast<Build*>(plugin.getCapabilityInterface(PluginCapabilityType::kBUILD));
}

Runtime& runtime_of(nvinfer1::IPluginV3& plugin) {
    return *static_cast<Runtime*>(plugin.getCapabilityInterface(PluginCapabilityType::kRUNTIME));
}

std::vector<DimsExprs> expressions_of(const Descs& descs, FakeExprBuilder& builder) {
    std::vector<DimsExprs> expressions;
    for (const PluginTensorDesc& desc : descs.in) {
        DimsExprs dims{};
        dims.nbDims = desc.dims.nbDims;
        for (int32_t i = 0; i < desc.dims.nbDims; ++i) {
            dims.d[i] = builder.size(desc.dims.d[i]);
        }
        expressions.push_back(dims);
    }
    return expressions;
}

int32_t output_types(Build& build, const Descs& descs, DataType* types) {
    std::vector<DataType> input_types;
    for (const PluginTensorDesc& desc : descs.in) {
        input_types.push_back(desc.type);
    }
    return build.getOutputDataTypes(types, OUTPUTS, input_types.data(), descs.inputs());
}

int32_t output_shapes(Build& build, const Descs& descs, DimsExprs* shapes, FakeExprBuilder& builder) {
    const std::vector<DimsExprs> in = expressions_of(descs, builder);
    return build.getOutputShapes(in.data(), descs.inputs(), nullptr, 0, shapes, OUTPUTS, builder);
}

int32_t configure(Build& build, const Descs& descs) {
    const auto in = descs.dynamic_in();
    const auto out = descs.dynamic_out();
    return build.configurePlugin(in.data(), descs.inputs(), out.data(), OUTPUTS);
}

int32_t change_shapes(Runtime& runtime, const Descs& descs) {
    return runtime.onShapeChange(descs.in.data(), descs.inputs(), descs.out.data(), OUTPUTS);
}

}  // namespace videossm::harness
