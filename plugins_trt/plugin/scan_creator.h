/* Makes plugins of one scan: from a network's fields, and from those that an engine has kept. */
#ifndef VIDEOSSM_PLUGIN_SCAN_CREATOR_H
#define VIDEOSSM_PLUGIN_SCAN_CREATOR_H

#include <NvInferRuntime.h>

#include <vector>

#include "plugin/scan.h"

namespace videossm {

class ScanCreator final : public nvinfer1::IPluginCreatorV3One {
public:
    explicit ScanCreator(const ScanKind& kind);

    nvinfer1::IPluginV3* createPlugin(const char* name, const nvinfer1::PluginFieldCollection* fields,
                                      nvinfer1::TensorRTPhase phase) noexcept override;
    const nvinfer1::PluginFieldCollection* getFieldNames() noexcept override { return &collection_; }
    const char* getPluginName() const noexcept override { return kind_->name; }
    const char* getPluginVersion() const noexcept override { return PLUGIN_VERSION; }
    const char* getPluginNamespace() const noexcept override { return PLUGIN_NAMESPACE; }

private:
    const ScanKind* kind_;
    std::vector<nvinfer1::PluginField> fields_;
    nvinfer1::PluginFieldCollection collection_{};
};

}  // namespace videossm

#endif
