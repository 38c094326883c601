// TensorRT's library for the tests, as far as runtime/cpp uses it: what it is asked goes to hooks that emulated_gpu.py
// fills. The file stubs.h, made from TensorRT's own header, overrides all other functions of its interfaces: they abort.
#include <NvInferRuntime.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

[[noreturn]] static void unexpected(const char* function) {
    std::fprintf(stderr, "emulated TensorRT: got a call of %s, expected none\n", function);
    std::abort();
}

#include "stubs.h"

extern "C" {
struct Tensor {
    const char* name;
    int32_t mode, type, location, rank;
    int64_t shape[8];
};

int32_t (*hook_runtime)();
int64_t (*hook_deserialize)(const void* blob, size_t size);  // an engine's handle; 0: it fails
int32_t (*hook_tensor)(int64_t engine, int32_t index, Tensor* tensor);  // 0: no more
int64_t (*hook_number)(int64_t engine, const char* what);
int32_t (*hook_set_budget)(int64_t engine, int64_t size);
int64_t (*hook_context)(int64_t engine, int32_t strategy);
int32_t (*hook_memory)(int64_t context, void* memory, int64_t size);
int32_t (*hook_address)(int64_t context, const char* name, void* memory);
int32_t (*hook_enqueue)(int64_t context, void* stream);
int32_t (*hook_host_code)(int32_t allowed);
int32_t (*hook_destroy)(int64_t handle);
}

namespace {

using namespace nvinfer1;

ILogger* logger = nullptr;

class Context final : public IExecutionContext, StubExecutionContext {
public:
    explicit Context(int64_t handle) : handle_(handle) { mImpl = this; }
    ~Context() noexcept override { hook_destroy(handle_); }

    void setDeviceMemoryV2(void* memory, int64_t size) noexcept override { hook_memory(handle_, memory, size); }
    bool setTensorAddress(char const* name, void* data) noexcept override { return hook_address(handle_, name, data) != 0; }
    bool enqueueV3(cudaStream_t stream) noexcept override { return hook_enqueue(handle_, stream) != 0; }

private:
    const int64_t handle_;
};

class Engine final : public ICudaEngine, StubCudaEngine {
public:
    explicit Engine(int64_t handle) : handle_(handle) {
        mImpl = this;
        Tensor tensor;
        while (hook_tensor(handle, static_cast<int32_t>(tensors_.size()), &tensor)) {
            tensors_.push_back(tensor);
        }
    }
    ~Engine() noexcept override { hook_destroy(handle_); }

    int32_t getNbIOTensors() const noexcept override { return static_cast<int32_t>(tensors_.size()); }
    char const* getIOTensorName(int32_t index) const noexcept override { return tensors_[static_cast<size_t>(index)].name; }
    TensorIOMode getTensorIOMode(char const* name) const noexcept override { return static_cast<TensorIOMode>(of(name).mode); }
    DataType getTensorDataType(char const* name) const noexcept override { return static_cast<DataType>(of(name).type); }
    TensorLocation getTensorLocation(char const* name) const noexcept override {
        return static_cast<TensorLocation>(of(name).location);
    }
    Dims getTensorShape(char const* name) const noexcept override {
        const Tensor& tensor = of(name);
        Dims shape = {};
        shape.nbDims = tensor.rank;
        std::copy(tensor.shape, tensor.shape + tensor.rank, shape.d);
        return shape;
    }
    int64_t getStreamableWeightsSize() const noexcept override { return hook_number(handle_, "streamable_weights_size"); }
    int64_t getDeviceMemorySizeV2() const noexcept override { return hook_number(handle_, "device_memory_size_v2"); }
    bool setWeightStreamingBudgetV2(int64_t size) noexcept override { return hook_set_budget(handle_, size) != 0; }
    IExecutionContext* createExecutionContext(ExecutionContextAllocationStrategy strategy) noexcept override {
        const int64_t context = hook_context(handle_, static_cast<int32_t>(strategy));
        return context ? new Context(context) : nullptr;
    }

private:
    const Tensor& of(const std::string& name) const {
        for (const Tensor& tensor : tensors_) {
            if (name == tensor.name) {
                return tensor;
            }
        }
        unexpected(name.c_str());
    }

    const int64_t handle_;
    std::vector<Tensor> tensors_;
};

class Runtime final : public IRuntime, StubRuntime {
public:
    Runtime() { mImpl = this; }

    ICudaEngine* deserializeCudaEngine(void const* blob, std::size_t size) noexcept override {
        const int64_t engine = hook_deserialize(blob, size);
        return engine ? new Engine(engine) : nullptr;
    }
    void setEngineHostCodeAllowed(bool allowed) noexcept override { hook_host_code(allowed); }
};

}  // namespace

extern "C" void* createInferRuntime_INTERNAL(void* given, int32_t version) noexcept {
    if (version != NV_TENSORRT_VERSION) {
        unexpected("createInferRuntime by another version");
    }
    logger = static_cast<ILogger*>(given);
    return hook_runtime() ? static_cast<IRuntime*>(new Runtime) : nullptr;
}

extern "C" void emulated_log(int32_t severity, const char* text) {
    logger->log(static_cast<ILogger::Severity>(severity), text);
}
