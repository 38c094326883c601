// TensorRT and TensorRT-RTX: one stream, one block of activations, CUDA graphs; as runtime/backends/tensorrt in Python,
// where the reasons are. Their libraries are loaded when the first plan asks for them, and not linked.
#include <NvInferRuntime.h>

#include <algorithm>

#include "cuda_memory.h"
#include "error.h"
#include "files.h"
#include "shared_library.h"

namespace videossm::internal {
namespace {

constexpr const char* kExportAgain = "; export the plan for this GPU and this version of TensorRT";
constexpr double kSpare = 0.05;  // of the device's memory, left free beside weights: TensorRT and the driver take some

std::string library_file(const std::string& backend) {
#if defined(_WIN32)
    return backend == "tensorrt" ? "nvinfer_" + std::to_string(NV_TENSORRT_MAJOR) + ".dll" : "tensorrt_rtx.dll";
#else
    return backend == "tensorrt" ? "libnvinfer.so." + std::to_string(NV_TENSORRT_MAJOR) : "libtensorrt_rtx.so.1";
#endif
}

// TensorRT says what fails to a logger, and returns null or false. It keeps to the first logger that it is given, so
// there is one for the process.
class Log : public nvinfer1::ILogger {
public:
    static Log& get() {
        static Log& log = *new Log;
        return log;
    }

    void log(Severity severity, const char* text) noexcept override {
        if (severity <= Severity::kERROR) {
            const std::lock_guard<std::mutex> lock(mutex_);
            errors_ += (errors_.empty() ? "" : "; ") + shown(text);
        }
    }

    // With what was said since the last time.
    Error fail(const std::string& what, const std::string& mend) {
        const std::lock_guard<std::mutex> lock(mutex_);
        std::string said;
        said.swap(errors_);
        return backend_error(what + ": " + (said.empty() ? "TensorRT said nothing" : shown(said, 400)) + mend);
    }

private:
    std::mutex mutex_;
    std::string errors_;
};

constexpr std::pair<DType, nvinfer1::DataType> kTypes[] = {
    {DType::float32, nvinfer1::DataType::kFLOAT}, {DType::float16, nvinfer1::DataType::kHALF},
    {DType::bfloat16, nvinfer1::DataType::kBF16}, {DType::int64, nvinfer1::DataType::kINT64},
    {DType::int32, nvinfer1::DataType::kINT32},   {DType::uint8, nvinfer1::DataType::kUINT8}};

// The tensors of an engine that it reads, or those that it writes.
TensorTexts texts_of(const nvinfer1::ICudaEngine& engine, nvinfer1::TensorIOMode mode) {
    TensorTexts found;
    for (int32_t i = 0; i < engine.getNbIOTensors(); ++i) {
        const char* name = engine.getIOTensorName(i);
        if (engine.getTensorIOMode(name) != mode) {
            continue;
        }
        const nvinfer1::DataType type = engine.getTensorDataType(name);
        const auto known = std::find_if(std::begin(kTypes), std::end(kTypes), [&](const auto& pair) { return pair.second == type; });
        const nvinfer1::Dims shape = engine.getTensorShape(name);
        found[name] = tensor_text(known == std::end(kTypes) ? "type " + std::to_string(static_cast<int>(type)) : name_of(known->first),
                                Shape(shape.d, shape.d + std::max(shape.nbDims, 0)));
        if (engine.getTensorLocation(name) != nvinfer1::TensorLocation::kDEVICE) {
            found[name] += " on the host";
        }
    }
    return found;
}

class TrtBackend;

// Where a run finds its tensors, by their names.
using Addresses = std::vector<std::pair<std::string, char*>>;

// An engine and its one execution context: addresses are set before each run, so all rollouts share it, in turn.
class TrtEngine : public Engine {
public:
    TrtEngine(TrtBackend& backend, std::string file, std::unique_ptr<nvinfer1::ICudaEngine> loaded)
        : backend_(backend), file_(std::move(file)), loaded_(std::move(loaded)) {}
    ~TrtEngine() override;

    std::unique_ptr<BoundEngine> bind(const std::vector<Bound>& inputs, const std::vector<Bound>& outputs) override;

    // Needed while it runs; more of them if its weights are streamed.
    size_t activations_bytes() const { return static_cast<size_t>(std::max<int64_t>(loaded_->getDeviceMemorySizeV2(), 0)); }
    bool is_open() const { return context_ != nullptr; }
    // Makes its context; of weights that can be streamed it keeps `weights_bytes`.
    void open(int64_t weights_bytes);
    void use(const CudaMemory& activations) {
        context_->setDeviceMemoryV2(activations.address(), static_cast<int64_t>(activations.size_bytes()));
    }
    // Queues one run.
    void enqueue(const Addresses& addresses);
    // One run as a graph; null where that is not possible, and then never tried again.
    std::unique_ptr<CudaGraph> capture(const Addresses& addresses);

private:
    TrtBackend& backend_;
    const std::string file_;
    const std::unique_ptr<nvinfer1::ICudaEngine> loaded_;
    std::unique_ptr<nvinfer1::IExecutionContext> context_;
    bool graphs_allowed_ = true;
};

// Its first run is an ordinary one, in which TensorRT does what it does only once; the second is captured and launched
// as a CUDA graph, and so are all that follow. A capture executes nothing, and a run
// reads nothing that an earlier one of the same pass has written.
class TrtBound : public BoundEngine {
public:
    TrtBound(const CudaDevice& device, TrtEngine& engine, Addresses addresses)
        : device_(device), engine_(engine), addresses_(std::move(addresses)) {}

    void run() override {
        const CudaDevice::Turn turn(device_);
        if (warm_ && !graph_) {
            graph_ = engine_.capture(addresses_);
        }
        if (graph_) {
            graph_->launch();
        } else {
            engine_.enqueue(addresses_);
        }
        warm_ = true;
    }

private:
    const CudaDevice& device_;
    TrtEngine& engine_;
    const Addresses addresses_;
    std::unique_ptr<CudaGraph> graph_;
    bool warm_ = false;
};

class TrtBackend : public Backend {
public:
    TrtBackend(const Manifest& manifest, int index) : manifest_(manifest), device_(index), staging_(device_) {
        const CudaDevice::Turn turn(device_);
        const auto create = reinterpret_cast<decltype(&createInferRuntime_INTERNAL)>(
            symbol_of(library_file(manifest.backend).c_str(), "createInferRuntime_INTERNAL"));
        runtime_.reset(static_cast<nvinfer1::IRuntime*>(create(&Log::get(), NV_TENSORRT_VERSION)));
        if (!runtime_) {
            throw Log::get().fail("backend: " + manifest.backend + " cannot start", "; check the driver with videossm-doctor");
        }
        runtime_->setEngineHostCodeAllowed(manifest.version_compatible);
    }

    const CudaDevice& device() const { return device_; }

    std::unique_ptr<Engine> load(const EngineSpec& spec, const std::string& file) override {
        const std::string name = text_of(path_of(file).filename());
        if (spec.weights) {
            throw backend_error(name + ": got an engine without its weights, expected one with them; export the plan "
                                       "without --strip-weights, or run it in Python");
        }
        const CudaDevice::Turn turn(device_);
        const std::string content = read_whole(path_of(file));
        std::unique_ptr<nvinfer1::ICudaEngine> loaded(runtime_->deserializeCudaEngine(content.data(), content.size()));
        if (!loaded) {
            throw Log::get().fail(name + ": " + manifest_.backend + " cannot load it", kExportAgain);
        }
        check_tensors(name + ": inputs", tensor_texts(spec.inputs), texts_of(*loaded, nvinfer1::TensorIOMode::kINPUT));
        check_tensors(name + ": outputs", tensor_texts(spec.outputs), texts_of(*loaded, nvinfer1::TensorIOMode::kOUTPUT));
        auto engine = std::make_unique<TrtEngine>(*this, name, std::move(loaded));
        engines_.push_back({runs_of(spec), engine.get()});
        return engine;
    }

    std::unique_ptr<Buffer> buffer(DType dtype, const Shape& shape) override {
        return std::make_unique<CudaBuffer>(device_, staging_, dtype, shape);
    }

    void copy(const Buffer& source, Buffer& target) override {
        static_cast<CudaBuffer&>(target).copy_from(static_cast<const CudaBuffer&>(source));
    }

    std::unique_ptr<Stopwatch> stopwatch() override { return std::make_unique<CudaStopwatch>(device_); }

    // Makes the contexts of all engines when the first of them is bound: by then a rollout's buffers are taken, so what is
    // still free can hold weights that may be streamed, those of the engine that runs most first. Activations are one
    // block, as engines run in turn.
    void open_engines() {
        std::stable_sort(engines_.begin(), engines_.end(), [](const Loaded& a, const Loaded& b) { return a.runs > b.runs; });
        size_t activations_bytes = 256;  // an engine may need none, and an address is asked for
        for (const Loaded& each : engines_) {
            activations_bytes = std::max(activations_bytes, each.engine->activations_bytes());
        }
        for (const Loaded& each : engines_) {
            if (!each.engine->is_open()) {
                const auto [free, total] = device_.memory_bytes();
                const auto spare = static_cast<size_t>(kSpare * static_cast<double>(total)) + activations_bytes;
                each.engine->open(free > spare ? static_cast<int64_t>(free - spare) : 0);
            }
            activations_bytes = std::max(activations_bytes, each.engine->activations_bytes());
        }
        activations_.emplace(device_, CudaMemory::Kind::device, activations_bytes);
        for (const Loaded& each : engines_) {
            each.engine->use(*activations_);
        }
    }
    bool are_engines_open() const { return activations_.has_value(); }

private:
    struct Loaded {
        int64_t runs;  // in a chunk
        TrtEngine* engine;
    };

    int64_t runs_of(const EngineSpec& spec) const {
        const auto is_it = [&](const std::string& name) { return manifest_.engine(name) == &spec; };
        return std::count_if(manifest_.passes.begin(), manifest_.passes.end(), [&](const Pass& pass) { return is_it(pass.engine); }) +
               std::count_if(manifest_.calls.begin(), manifest_.calls.end(),
                             [&](const Call& call) { return call.when != "prompt" && is_it(call.engine); });
    }

    const Manifest& manifest_;
    const CudaDevice device_;
    CudaStaging staging_;
    std::unique_ptr<nvinfer1::IRuntime> runtime_;
    std::vector<Loaded> engines_;
    std::optional<CudaMemory> activations_;
};

TrtEngine::~TrtEngine() {
    const CudaDevice& device = backend_.device();
    const CudaDevice::Turn turn(device);
    device.cuda.StreamSynchronize.call(device.stream());  // TensorRT does not wait for its own queued work
    context_.reset();
}

std::unique_ptr<BoundEngine> TrtEngine::bind(const std::vector<Bound>& inputs, const std::vector<Bound>& outputs) {
    const CudaDevice::Turn turn(backend_.device());
    if (!backend_.are_engines_open()) {
        backend_.open_engines();
    }
    Addresses addresses;
    for (const std::vector<Bound>* side : {&inputs, &outputs}) {
        for (const Bound& each : *side) {
            addresses.emplace_back(each.name, static_cast<const CudaBuffer&>(*each.buffer).address());
        }
    }
    return std::make_unique<TrtBound>(backend_.device(), *this, std::move(addresses));
}

void TrtEngine::open(int64_t weights_bytes) {
    constexpr const char* kMend = "; free memory of the GPU, or export a smaller plan";
    const int64_t streamable = loaded_->getStreamableWeightsSize();
    if (streamable > 0) {
        const int64_t budget = std::min(weights_bytes, streamable);
        if (!loaded_->setWeightStreamingBudgetV2(budget)) {
            throw Log::get().fail(file_ + ": cannot keep " + std::to_string(budget) + " bytes of weights on the GPU", kMend);
        }
    }
    context_.reset(loaded_->createExecutionContext(nvinfer1::ExecutionContextAllocationStrategy::kUSER_MANAGED));
    if (!context_) {
        throw Log::get().fail(file_ + ": no execution context", kMend);
    }
}

void TrtEngine::enqueue(const Addresses& addresses) {
    for (const auto& [name, address] : addresses) {
        if (!context_->setTensorAddress(name.c_str(), address)) {
            throw Log::get().fail(file_ + ": " + name + ": no such address", "; export the plan again");
        }
    }
    if (!context_->enqueueV3(backend_.device().stream())) {
        throw Log::get().fail(file_ + ": cannot run", "; check the plan's GPU and driver with videossm-doctor");
    }
}

std::unique_ptr<CudaGraph> TrtEngine::capture(const Addresses& addresses) {
    if (graphs_allowed_) {
        try {
            return std::make_unique<CudaGraph>(backend_.device(), [&] { enqueue(addresses); });
        } catch (const Error&) {
            graphs_allowed_ = false;
        }
    }
    return nullptr;
}

}  // namespace

std::unique_ptr<Backend> open_tensorrt(const Manifest& manifest, int device) {
    return std::make_unique<TrtBackend>(manifest, device);
}

}  // namespace videossm::internal
