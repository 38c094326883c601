/* libvideossm_onnxruntime: the scans as operators of ONNX Runtime on a CPU, for graphs of the lowering `native`. */
#include <algorithm>
#include <cstdlib>
#include <map>
#include <mutex>
#include <string>

#include "common/checks.h"
#include "cpu/threads.h"
#include "custom_ops/kernels.h"
#include "custom_ops/operator.h"

namespace videossm {
namespace {

struct Operators {
    explicit Operators(int threads) : gated_delta(threads), selective_scan(threads), domain("videossm") {
        domain.Add(&gated_delta);
        domain.Add(&selective_scan);
    }

    const Operator<GatedDeltaKernel> gated_delta;
    const Operator<SelectiveScanKernel> selective_scan;
    Ort::CustomOpDomain domain;
};

/* For all sessions of so many threads; sessions refer to them as long as they live. */
const Ort::CustomOpDomain& operators_for(const std::string& threads) {
    static std::mutex mutex;
    static std::map<int, Operators>& made = *new std::map<int, Operators>;
    const std::lock_guard<std::mutex> lock(mutex);
    const int count = std::clamp(std::atoi(threads.c_str()), 0, MAX_THREADS);
    return made.try_emplace(count, count).first->second.domain;
}

}  // namespace
}  // namespace videossm

VIDEOSSM_EXPORT OrtStatus* ORT_API_CALL RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) {
    const OrtApi* const api = base->GetApi(ORT_API_VERSION);
    if (!api) {  // a later one has all that an earlier one has, so this asks for a status in the earliest
        return base->GetApi(1)->CreateStatus(ORT_NOT_IMPLEMENTED, "videossm: got an ONNX Runtime older than the header "
                                                                  "that this library was built with; upgrade it");
    }
    Ort::InitApi(api);
    return videossm::as_status([&] {
        Ort::UnownedSessionOptions session(options);
        session.Add(videossm::operators_for(session.GetConfigEntryOrDefault("videossm.threads", "0")));
    });
}
