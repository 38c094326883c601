/* A scan as a TensorRT layer. TensorRT calls it to build an engine (types, shapes, formats, workspace, fields
 * to serialise) and to run it (sizes, then the scan itself on a stream).
 *
 * It always has two outputs. Where the field `want_output` is 0 the first is a placeholder of one element
 * that nothing writes: dropping it would make the last state the first output, in conflict with the
 * operator's schema.
 */
#ifndef VIDEOSSM_PLUGIN_SCAN_PLUGIN_H
#define VIDEOSSM_PLUGIN_SCAN_PLUGIN_H

#include <NvInferRuntime.h>

#include <string>
#include <vector>

#include "plugin/scan.h"

namespace videossm {

class ScanPlugin final : public nvinfer1::IPluginV3,
                         public nvinfer1::IPluginV3OneCore,
                         public nvinfer1::IPluginV3OneBuildV2,
                         public nvinfer1::IPluginV3OneRuntime {
public:
    explicit ScanPlugin(const Scan& scan) : scan_(scan), description_(scan.fields().description()) {}

    // IPluginV3
    nvinfer1::IPluginCapability* getCapabilityInterface(
        nvinfer1::PluginCapabilityType type) noexcept override;
    nvinfer1::IPluginV3* clone() noexcept override;

    // IPluginV3OneCore
    const char* getPluginName() const noexcept override { return scan_.kind().name; }
    const char* getPluginVersion() const noexcept override { return PLUGIN_VERSION; }
    const char* getPluginNamespace() const noexcept override { return PLUGIN_NAMESPACE; }

    // IPluginV3OneBuildV2
    int32_t configurePlugin(const nvinfer1::DynamicPluginTensorDesc* in, int32_t inputs,
                            const nvinfer1::DynamicPluginTensorDesc* out, int32_t outputs) noexcept override;
    int32_t getOutputDataTypes(nvinfer1::DataType* output_types, int32_t outputs,
                               const nvinfer1::DataType* input_types, int32_t inputs) const noexcept override;
    int32_t getOutputShapes(const nvinfer1::DimsExprs* in, int32_t inputs,
                            const nvinfer1::DimsExprs* shape_inputs, int32_t shape_input_count,
                            nvinfer1::DimsExprs* out, int32_t outputs,
                            nvinfer1::IExprBuilder& builder) noexcept override;
    bool supportsFormatCombination(int32_t position, const nvinfer1::DynamicPluginTensorDesc* tensors,
                                   int32_t inputs, int32_t outputs) noexcept override;
    int32_t getNbOutputs() const noexcept override { return OUTPUTS; }
    size_t getWorkspaceSize(const nvinfer1::DynamicPluginTensorDesc* in, int32_t inputs,
                            const nvinfer1::DynamicPluginTensorDesc* out,
                            int32_t outputs) const noexcept override;
    int32_t getAliasedInput(int32_t output) noexcept override;
    const char* getTimingCacheID() noexcept override { return description_.c_str(); }
    const char* getMetadataString() noexcept override { return description_.c_str(); }

    // IPluginV3OneRuntime
    int32_t onShapeChange(const nvinfer1::PluginTensorDesc* in, int32_t inputs,
                          const nvinfer1::PluginTensorDesc* out, int32_t outputs) noexcept override;
    int32_t enqueue(const nvinfer1::PluginTensorDesc* in, const nvinfer1::PluginTensorDesc* out,
                    const void* const* inputs, void* const* outputs, void* workspace,
                    cudaStream_t stream) noexcept override;
    nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext* context) noexcept override;
    const nvinfer1::PluginFieldCollection* getFieldsToSerialize() noexcept override;

private:
    nvinfer1::IErrorRecorder* recorder() const noexcept {
        return context_ ? context_->getErrorRecorder() : nullptr;
    }

    Scan scan_;
    std::string description_;
    nvinfer1::IPluginResourceContext* context_ = nullptr;  // TensorRT's; it outlives what is attached to it
    std::vector<nvinfer1::PluginField> fields_;            // that it serialises
    nvinfer1::PluginFieldCollection collection_{};
};

}  // namespace videossm

#endif
