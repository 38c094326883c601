/* libvideossm_onnxruntime: the scans as operators of ONNX Runtime on a CPU, for graphs of the lowering `native`. */
#include "common/checks.h"
#include "custom_ops/kernels.h"
#include "custom_ops/operator.h"

VIDEOSSM_EXPORT OrtStatus* ORT_API_CALL RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) {
    const OrtApi* const api = base->GetApi(ORT_API_VERSION);
    if (!api) {  // a later one has all that an earlier one has, so this asks for a status in the earliest
        return base->GetApi(1)->CreateStatus(ORT_NOT_IMPLEMENTED, "videossm: got an ONNX Runtime older than the header "
                                                                  "that this library was built with; upgrade it");
    }
    Ort::InitApi(api);
    return videossm::as_status([&] {
        static const videossm::Operator<videossm::GatedDeltaKernel> gated_delta;
        static const videossm::Operator<videossm::SelectiveScanKernel> selective_scan;
        static const Ort::CustomOpDomain domain = [] {  // for all sessions
            Ort::CustomOpDomain made("videossm");
            made.Add(&gated_delta);
            made.Add(&selective_scan);
            return made;
        }();
        Ort::UnownedSessionOptions(options).Add(domain);
    });
}
