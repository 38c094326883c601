// ONNX Runtime on a CPU: one session an engine, every tensor bound once to memory of ours.
//
// Its library is loaded when the first plan is opened, and not linked: what is linked is bound to the one version that
// the symbols name, while its interface is kept from version to version.
#define ORT_API_MANUAL_INIT
#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <cstdlib>

#include "backend.h"
#include "error.h"
#include "files.h"
#include "host_memory.h"
#include "placement.h"
#include "shared_library.h"

#if defined(_WIN32)
#define VIDEOSSM_ONNXRUNTIME_FILE "onnxruntime.dll"
#elif defined(__APPLE__)
#define VIDEOSSM_ONNXRUNTIME_FILE "libonnxruntime.dylib"
#else
#define VIDEOSSM_ONNXRUNTIME_FILE "libonnxruntime.so.1"
#endif

namespace videossm::internal {
namespace {

// Throws Error. It is loaded once, whoever comes first, and stays, as its threads may outlive the last plan.
const OrtApiBase& library() {
    static const OrtApiBase& base = *[] {
        const char* const file = VIDEOSSM_ONNXRUNTIME_FILE;
        const auto get = reinterpret_cast<const OrtApiBase*(ORT_API_CALL*)()>(symbol_of(file, "OrtGetApiBase"));
        const OrtApi* api = get()->GetApi(ORT_API_VERSION);
        if (!api) {
            throw backend_error(std::string("backend: got ") + file + " " + get()->GetVersionString() + ", expected 1." +
                                std::to_string(ORT_API_VERSION) + " or later; install a later one");
        }
        Ort::InitApi(api);
        return get();
    }();
    return base;
}

constexpr std::pair<DType, ONNXTensorElementDataType> kTypes[] = {
    {DType::float32, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT},   {DType::float16, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16},
    {DType::bfloat16, ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16}, {DType::int64, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64},
    {DType::int32, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32},     {DType::uint8, ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8}};

ONNXTensorElementDataType onnx_type(DType dtype) {
    return std::find_if(std::begin(kTypes), std::end(kTypes), [&](const auto& pair) { return pair.first == dtype; })->second;
}

// y = MatMulInteger(a, b), serialised: a uint8, b int8, y int32.
constexpr char kInt8Product[] =
    "\x08\x04:>\n\x18\n\x01" "a\n\x01" "b\x12\x01y\"\rMatMulInteger\x12\x01gZ\t\n\x01" "a\x12\x04\n\x02\x08\x02"
    "Z\t\n\x01" "b\x12\x04\n\x02\x08\x03" "b\t\n\x01y\x12\x04\n\x02\x08\x06" "B\x04\n\x00\x10\n";

// Of the lowering `native`; null where it is not named.
const char* scans_library() {
    const char* const path = std::getenv("VIDEOSSM_SCANS");
    return path && *path ? path : nullptr;
}

// As runtime/backends/session.py has them, with the reasons: the same numbers come from the same options.
Ort::SessionOptions session_options(const std::string& precision, int threads, const Placement* placement, bool saturates) {
    Ort::SessionOptions options;
    options.SetIntraOpNumThreads(placement ? 1 + static_cast<int>(placement->workers.size()) : threads);
    if (placement && !placement->workers.empty()) {
        std::string workers;
        for (const int processor : placement->workers) {
            workers += (workers.empty() ? "" : ";") + std::to_string(processor + 1);  // it counts from 1
        }
        options.AddConfigEntry("session.intra_op_thread_affinities", workers.c_str());
    }
    options.SetInterOpNumThreads(1);
    options.SetExecutionMode(ORT_SEQUENTIAL);
    options.SetDeterministicCompute(true);
    options.SetLogSeverityLevel(3);
    options.AddConfigEntry("session.force_spinning_stop", "1");
    options.AddConfigEntry("session.intra_op.spin_duration_us", "50");
    if (saturates) {
        options.AddConfigEntry("session.x64quantprecision", "1");
    }
    if (precision == "fp8") {
        options.AddConfigEntry("session.disable_quant_qdq", "1");
    }
    if (const char* const library = scans_library()) {
        if (const int known = placement ? 1 + static_cast<int>(placement->workers.size()) : threads) {
            options.AddConfigEntry("videossm.threads", std::to_string(known).c_str());
        }
        try {
            options.RegisterCustomOpsLibrary(path_of(library).c_str());
        } catch (const Ort::Exception& error) {
            throw backend_error(std::string("VIDEOSSM_SCANS: got ") + library + ", which ONNX Runtime cannot load (" +
                                shown(error.what()) + "), expected libvideossm_onnxruntime of make native; change it, or "
                                "unset it for plans of another lowering than native");
        }
    }
    return options;
}

// Is a product of uint8 by int8 wrong on this processor, if nothing is done about it? One is tried.
bool int8_saturates(Ort::Env& env, const Ort::MemoryInfo& memory) {
    constexpr int64_t kRows = 4, kDepth = 64, kColumns = 16;
    Ort::SessionOptions options;
    options.SetIntraOpNumThreads(1);
    Ort::Session session(env, kInt8Product, sizeof kInt8Product - 1, options);
    std::vector<uint8_t> a(kRows * kDepth, 255);
    std::vector<int8_t> b(kDepth * kColumns, 127);
    const int64_t a_shape[] = {kRows, kDepth}, b_shape[] = {kDepth, kColumns};
    const Ort::Value values[] = {Ort::Value::CreateTensor<uint8_t>(memory, a.data(), a.size(), a_shape, 2),
                                 Ort::Value::CreateTensor<int8_t>(memory, b.data(), b.size(), b_shape, 2)};
    const char* const inputs[] = {"a", "b"};
    const char* const outputs[] = {"y"};
    const auto products = session.Run(Ort::RunOptions(), inputs, values, 2, outputs, 1);
    const int32_t* product = products[0].GetTensorData<int32_t>();
    return std::any_of(product, product + kRows * kColumns, [](int32_t each) { return each != kDepth * 255 * 127; });
}

class OrtBound : public BoundEngine {
public:
    OrtBound(Ort::Session& session, const Placement* placement, std::string file)
        : session_(session), placement_(placement), file_(std::move(file)), binding_(session) {}

    void bind(const Ort::MemoryInfo& memory, const Bound& bound, bool input) {
        auto& buffer = static_cast<HostBuffer&>(*bound.buffer);
        const Ort::Value value = Ort::Value::CreateTensor(memory, buffer.data(), buffer.size_bytes(), buffer.shape.data(),
                                                          buffer.shape.size(), onnx_type(buffer.dtype));
        if (input) {
            binding_.BindInput(bound.name.c_str(), value);
        } else {
            binding_.BindOutput(bound.name.c_str(), value);
        }
    }

    void run() override {
        const Held held(placement_);
        try {
            session_.Run(run_options_, binding_);
        } catch (const Ort::Exception& error) {
            throw backend_error(file_ + ": ONNX Runtime cannot run it (" + shown(error.what()) + "); export the plan again");
        }
    }

private:
    Ort::Session& session_;
    const Placement* placement_;
    const std::string file_;
    Ort::IoBinding binding_;
    Ort::RunOptions run_options_;
};

class OrtEngine : public Engine {
public:
    OrtEngine(Ort::Session session, const Ort::MemoryInfo& memory, const Placement* placement, std::string file)
        : session_(std::move(session)), memory_(memory), placement_(placement), file_(std::move(file)) {}

    std::unique_ptr<BoundEngine> bind(const std::vector<Bound>& inputs, const std::vector<Bound>& outputs) override {
        auto made = std::make_unique<OrtBound>(session_, placement_, file_);
        for (const Bound& each : inputs) {
            made->bind(memory_, each, true);
        }
        for (const Bound& each : outputs) {
            made->bind(memory_, each, false);
        }
        return made;
    }

    Ort::Session& session() { return session_; }

private:
    Ort::Session session_;
    const Ort::MemoryInfo& memory_;
    const Placement* placement_;
    const std::string file_;
};

std::string found_text(const Ort::TypeInfo& info) {
    const auto tensor = info.GetTensorTypeAndShapeInfo();
    const ONNXTensorElementDataType type = tensor.GetElementType();
    const auto known = std::find_if(std::begin(kTypes), std::end(kTypes), [&](const auto& pair) { return pair.second == type; });
    return tensor_text(known == std::end(kTypes) ? "type " + std::to_string(type) : name_of(known->first), tensor.GetShape());
}

class OrtBackend : public Backend {
public:
    OrtBackend(const Manifest& manifest, int threads)
        : env_(ORT_LOGGING_LEVEL_ERROR, "videossm"),
          memory_(Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault)),
          placement_(place(threads)) {
        env_.DisableTelemetryEvents();
        options_ = session_options(manifest.precision, threads, placement(), int8_saturates(env_, memory_));
    }

    std::unique_ptr<Engine> load(const EngineSpec& spec, const std::string& file) override {
        const auto path = path_of(file);
        const std::string name = text_of(path.filename());
        for (const auto& tensors : {dtypes_of(spec.inputs), dtypes_of(spec.outputs)}) {
            if (std::count(tensors.begin(), tensors.end(), DType::bfloat16) != 0) {
                throw backend_error(
                    "device: got cpu for a plan in bf16, expected a GPU, as ONNX Runtime has no such kernels on a CPU; "
                    "export with --precision fp16 or fp32");
            }
        }
        try {
            auto engine = std::make_unique<OrtEngine>(Ort::Session(env_, path.c_str(), options_), memory_, placement(), name);
            TensorTexts inputs, outputs;
            Ort::AllocatorWithDefaultOptions allocator;
            Ort::Session& session = engine->session();
            for (size_t i = 0; i < session.GetInputCount(); ++i) {
                inputs[session.GetInputNameAllocated(i, allocator).get()] = found_text(session.GetInputTypeInfo(i));
            }
            for (size_t i = 0; i < session.GetOutputCount(); ++i) {
                outputs[session.GetOutputNameAllocated(i, allocator).get()] = found_text(session.GetOutputTypeInfo(i));
            }
            check_tensors(name + ": inputs", tensor_texts(spec.inputs), inputs);
            check_tensors(name + ": outputs", tensor_texts(spec.outputs), outputs);
            return engine;
        } catch (const Ort::Exception& error) {
            const std::string why = error.what();
            const bool lacks_scans = !scans_library() && why.find("videossm:") != std::string::npos;
            throw backend_error(name + ": ONNX Runtime " + library().GetVersionString() + " cannot load it (" + shown(why) +
                                "); " + (lacks_scans ? "set VIDEOSSM_SCANS to the path of libvideossm_onnxruntime, which "
                                                       "make native builds" : "export the plan again"));
        }
    }

    std::unique_ptr<Buffer> buffer(DType dtype, const Shape& shape) override {
        return std::make_unique<HostBuffer>(dtype, shape);
    }

    void copy(const Buffer& source, Buffer& target) override {
        static_cast<HostBuffer&>(target).copy_from(static_cast<const HostBuffer&>(source));
    }

    std::unique_ptr<Stopwatch> stopwatch() override { return std::make_unique<HostStopwatch>(); }

private:
    template <typename Tensor>
    static std::vector<DType> dtypes_of(const std::vector<Tensor>& tensors) {
        std::vector<DType> types;
        for (const Tensor& tensor : tensors) {
            types.push_back(tensor.dtype);
        }
        return types;
    }

    const Placement* placement() const { return placement_ ? &*placement_ : nullptr; }

    Ort::Env env_;
    Ort::MemoryInfo memory_;
    const std::optional<Placement> placement_;
    Ort::SessionOptions options_;
};

}  // namespace

std::unique_ptr<Backend> open_onnxruntime(const Manifest& manifest, int threads) {
    library();
    try {
        return std::make_unique<OrtBackend>(manifest, threads);
    } catch (const Ort::Exception& error) {
        throw backend_error(std::string("backend: ONNX Runtime cannot start (") + shown(error.what()) + "); check its library");
    }
}

}  // namespace videossm::internal
