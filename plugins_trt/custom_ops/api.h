/* ONNX Runtime's interface, which is given when the library is registered and not linked. */
#ifndef VIDEOSSM_CUSTOM_OPS_API_H
#define VIDEOSSM_CUSTOM_OPS_API_H

#define ORT_API_MANUAL_INIT
#include <onnxruntime_cxx_api.h>

namespace videossm {

/* What `work` throws, as a status. */
template <class Work>
OrtStatusPtr as_status(Work&& work) noexcept {
    try {
        work();
        return nullptr;
    } catch (const std::exception& error) {
        return Ort::GetApi().CreateStatus(ORT_FAIL, error.what());
    }
}

}  // namespace videossm

#endif
