#include "backend.h"

#include "error.h"

namespace videossm::internal {

std::unique_ptr<Backend> open_backend(const Manifest& manifest, int threads, int device) {
    const bool on_cpu = manifest.backend == "onnxruntime";
    if (threads < 0 || (threads > 0 && !on_cpu)) {
        throw argument_error("threads: got " + std::to_string(threads) + " for " + manifest.backend + ", expected " +
                             (on_cpu ? "1 or more, or 0 for the backend's own number; change it" : "0, as they are a CPU's; leave it out"));
    }
    if (device != 0 && on_cpu) {
        throw argument_error("device: got " + std::to_string(device) + " for " + manifest.backend +
                             ", expected 0, as it runs on the CPU here; leave it out");
    }
#if defined(VIDEOSSM_WITH_ONNXRUNTIME)
    if (on_cpu) {
        return open_onnxruntime(manifest, threads);
    }
#endif
#if defined(VIDEOSSM_WITH_TENSORRT)
    if (!on_cpu) {
        return open_tensorrt(manifest, device);
    }
#endif
    throw backend_error("backend: got a plan for " + manifest.backend +
                        ", which this library was built without, expected it built in; build it with that backend");
}

std::string tensor_text(const std::string& type, const Shape& shape) {
    std::string text = type;
    for (size_t i = 0; i < shape.size(); ++i) {
        text += (i ? "x" : " ") + std::to_string(shape[i]);
    }
    return text;
}

void check_tensors(const std::string& where, const TensorTexts& listed, const TensorTexts& found) {
    const auto in = [](const TensorTexts& all, const std::string& name) {
        const auto each = all.find(name);
        return each == all.end() ? std::string("none") : each->second;
    };
    TensorTexts names = listed;
    names.insert(found.begin(), found.end());
    for (const auto& [name, ignored] : names) {
        if (in(listed, name) != in(found, name)) {
            throw backend_error(where + ": " + shown(name) + ": got " + in(found, name) + ", expected " +
                                in(listed, name) + " by manifest.json; export the plan again");
        }
    }
}

}  // namespace videossm::internal
