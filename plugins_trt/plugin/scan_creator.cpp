#include "plugin/scan_creator.h"

#include <vector>

#include "plugin/report.h"
#include "plugin/scan_plugin.h"

namespace videossm {
namespace {

using nvinfer1::PluginField;
using nvinfer1::PluginFieldCollection;
using nvinfer1::PluginFieldType;

FieldType type_of(PluginFieldType type) {
    switch (type) {
        case PluginFieldType::kFLOAT32: return FieldType::FLOAT32;
        case PluginFieldType::kINT32: return FieldType::INT32;
        case PluginFieldType::kINT64: return FieldType::INT64;
        default: return FieldType::OTHER;
    }
}

std::vector<Field> fields_of(const PluginFieldCollection* collection) {
    std::vector<Field> fields;
    for (int32_t i = 0; collection && i < collection->nbFields; ++i) {
        const PluginField& field = collection->fields[i];
        fields.push_back({field.name, type_of(field.type), field.data, field.length});
    }
    return fields;
}

}  // namespace

ScanCreator::ScanCreator(const ScanKind& kind) : kind_(&kind) {
    for (const FieldSpec& spec : kind.fields) {
        const bool is_number = spec.kind == FieldKind::NUMBER;
        fields_.emplace_back(spec.name, nullptr,
                             is_number ? PluginFieldType::kFLOAT32 : PluginFieldType::kINT32, 1);
    }
    collection_ = {static_cast<int32_t>(fields_.size()), fields_.data()};
}

nvinfer1::IPluginV3* ScanCreator::createPlugin(const char* /*name*/, const PluginFieldCollection* fields,
                                               nvinfer1::TensorRTPhase phase) noexcept {
    return guarded(static_cast<nvinfer1::IPluginV3*>(nullptr), nullptr, [&]() -> nvinfer1::IPluginV3* {
        const bool of_engine = phase == nvinfer1::TensorRTPhase::kRUNTIME;
        return new ScanPlugin(Scan(*kind_, fields_of(fields), of_engine));
    });
}

}  // namespace videossm
