/* A layer as TensorRT sees it: the descriptions of its tensors, its plugin, and the calls that it makes of
 * it. */
#ifndef VIDEOSSM_TESTS_HARNESS_LAYER_H
#define VIDEOSSM_TESTS_HARNESS_LAYER_H

#include <memory>
#include <string>
#include <vector>

#include "harness_problem.h"
#include "harness_tensorrt.h"

extern "C" nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count);
extern "C" void setLoggerFinder(nvinfer1::ILoggerFinder* finder);

namespace videossm::harness {

using nvinfer1::DataType;
using nvinfer1::Dims;
using nvinfer1::DimsExprs;
using nvinfer1::DynamicPluginTensorDesc;
using nvinfer1::PluginCapabilityType;
using nvinfer1::PluginField;
using nvinfer1::PluginFieldCollection;
using nvinfer1::PluginFieldType;
using nvinfer1::PluginTensorDesc;
using nvinfer1::TensorFormat;
using nvinfer1::TensorRTPhase;

using Build = nvinfer1::IPluginV3OneBuildV2;
using Runtime = nvinfer1::IPluginV3OneRuntime;
using Plugin = std::unique_ptr<nvinfer1::IPluginV3>;

extern FakeLoggerFinder finder;

/* What was logged since the last call, `; ` between two messages. */
std::string errors();

/* The descriptions of a layer's tensors. */
struct Descs {
    explicit Descs(const Problem& problem);

    std::vector<DynamicPluginTensorDesc> dynamic_in() const;
    std::vector<DynamicPluginTensorDesc> dynamic_out() const;
    int32_t inputs() const { return static_cast<int32_t>(in.size()); }

    std::vector<PluginTensorDesc> in, out;
};

nvinfer1::IPluginCreatorV3One& creator_of(const std::string& name);
Plugin create(const std::string& kind, const std::vector<Field>& fields, TensorRTPhase phase);
Plugin create(const Problem& problem);
Build& build_of(nvinfer1::IPluginV3& plugin);
Runtime& runtime_of(nvinfer1::IPluginV3& plugin);

/* Sizes of the inputs as TensorRT hands them to getOutputShapes; `builder` keeps them. */
std::vector<DimsExprs> expressions_of(const Descs& descs, FakeExprBuilder& builder);

/* Each returns what the plugin does. */
int32_t output_types(Build& build, const Descs& descs, DataType* types);
int32_t output_shapes(Build& build, const Descs& descs, DimsExprs* shapes, FakeExprBuilder& builder);
int32_t configure(Build& build, const Descs& descs);
int32_t change_shapes(Runtime& runtime, const Descs& descs);

/* All that may be wrong with the plugin of this problem, which is one of each scan with all inputs. */
void check_refusals(const Problem& good);

}  // namespace videossm::harness

#endif
