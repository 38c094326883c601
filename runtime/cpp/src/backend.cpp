#include "backend.h"

#include "error.h"

namespace videossm::internal {

std::unique_ptr<Backend> open_backend(const Manifest& manifest, int threads) {
    if (threads < 0) {
        throw argument_error("threads: got " + std::to_string(threads) + ", expected 1 or more, or 0 for the backend's own number; change it");
    }
#if defined(VIDEOSSM_WITH_ONNXRUNTIME)
    if (manifest.backend == "onnxruntime") {
        return open_onnxruntime(manifest, threads);
    }
#endif
    throw backend_error("backend: got a plan for " + manifest.backend +
                        ", which this library was built without, expected it built in; build it with that backend");
}

}  // namespace videossm::internal
