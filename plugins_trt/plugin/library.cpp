/* What TensorRT looks for in a library of plugins, and all that this one exports. */
#include <NvInferRuntime.h>

#include "plugin/report.h"
#include "plugin/scan_creator.h"

#define VIDEOSSM_PLUGIN_EXPORT extern "C" __attribute__((visibility("default")))

VIDEOSSM_PLUGIN_EXPORT nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count) {
    using Creators = nvinfer1::IPluginCreatorInterface* const*;
    count = 0;
    return videossm::guarded(Creators{nullptr}, nullptr, [&]() -> Creators {
        static videossm::ScanCreator gated_delta(videossm::gated_delta_scan());
        static videossm::ScanCreator selective(videossm::selective_scan());
        static nvinfer1::IPluginCreatorInterface* const creators[] = {&gated_delta, &selective};
        count = 2;
        return creators;
    });
}

VIDEOSSM_PLUGIN_EXPORT void setLoggerFinder(nvinfer1::ILoggerFinder* finder) {
    videossm::set_logger_finder(finder);
}
