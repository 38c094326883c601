// One GPU through CUDA's runtime library, which is loaded when a plan needs it: a stream where all work queues in turn.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

namespace videossm::internal {

template <typename F>
struct CudaFunction {
    const char* name;
    F* call;
};

// What is used of the library.
#define VIDEOSSM_CUDA_FUNCTIONS(X)                                                                                 \
    X(EventCreateWithFlags) X(EventDestroy) X(EventElapsedTime) X(EventRecord) X(EventSynchronize) X(Free) X(FreeHost) \
    X(GetDevice) X(GetDeviceCount) X(GetErrorString) X(GetLastError) X(GraphDestroy) X(GraphExecDestroy)            \
    X(GraphInstantiate) X(GraphLaunch) X(Malloc) X(MallocHost) X(MemGetInfo) X(Memcpy2DAsync) X(MemcpyAsync)        \
    X(MemsetAsync) X(SetDevice) X(StreamBeginCapture) X(StreamCreateWithFlags) X(StreamDestroy) X(StreamEndCapture) \
    X(StreamSynchronize)

struct CudaFunctions {
#define VIDEOSSM_CUDA_FUNCTION(name) CudaFunction<decltype(::cuda##name)> name;
    VIDEOSSM_CUDA_FUNCTIONS(VIDEOSSM_CUDA_FUNCTION)
#undef VIDEOSSM_CUDA_FUNCTION
};

class CudaDevice;

// Memory of the device, or pinned memory of the host. Its content is arbitrary.
class CudaMemory {
public:
    enum class Kind { device, pinned };

    // Throws Error. `device` outlives it.
    CudaMemory(const CudaDevice& device, Kind kind, size_t size_bytes);
    CudaMemory(const CudaMemory&) = delete;
    CudaMemory& operator=(const CudaMemory&) = delete;
    ~CudaMemory();

    char* address() const { return address_; }
    size_t size_bytes() const { return size_bytes_; }

private:
    const CudaDevice& device_;
    const Kind kind_;
    const size_t size_bytes_;
    char* address_ = nullptr;
};

// A moment in the stream.
class CudaEvent {
public:
    explicit CudaEvent(const CudaDevice& device, bool timed = false);
    CudaEvent(const CudaEvent&) = delete;
    CudaEvent& operator=(const CudaEvent&) = delete;
    ~CudaEvent();

    // It is reached once all that was queued so far is done; one that was never recorded is reached.
    void record() const;
    void wait() const;
    // Both are reached and timed.
    double seconds_since(const CudaEvent& start) const;

private:
    const CudaDevice& device_;
    cudaEvent_t event_ = nullptr;
};

class CudaDevice {
public:
    // Throws Error where there is no such GPU.
    explicit CudaDevice(int index);
    CudaDevice(const CudaDevice&) = delete;
    CudaDevice& operator=(const CudaDevice&) = delete;
    ~CudaDevice();

    // As long as it lives, this device is the thread's current one, and no other thread queues anything on it.
    class Turn {
    public:
        explicit Turn(const CudaDevice& device);
        Turn(const Turn&) = delete;
        Turn& operator=(const Turn&) = delete;
        ~Turn();

    private:
        const CudaDevice& device_;
        const std::lock_guard<std::recursive_mutex> lock_;
        int before_ = 0;
    };

    // A function of CUDA's runtime on this device. Throws Error.
    template <typename F, typename... Arguments>
    void call(const CudaFunction<F>& function, Arguments... arguments) const {
        const Turn turn(*this);
        check(function.name, function.call(arguments...));
    }
    // One that gives something back, once all that is queued is done, as that may use it.
    template <typename F, typename Handle>
    void release(const CudaFunction<F>& function, Handle handle) const {
        const Turn turn(*this);
        cuda.StreamSynchronize.call(stream_);
        function.call(handle);  // its status is about earlier work, and was an error there
    }

    cudaStream_t stream() const { return stream_; }
    // What is free now, and all that there is.
    std::pair<size_t, size_t> memory_bytes() const;
    // Waits for all that is queued.
    void settle() const { call(cuda.StreamSynchronize, stream_); }
    // Throws Error unless `status` is success.
    void check(const char* function, cudaError_t status) const;

    const CudaFunctions& cuda;

private:
    const int index_;
    mutable std::recursive_mutex mutex_;
    cudaStream_t stream_ = nullptr;
};

// Work that was queued once, and can be queued again by one call.
class CudaGraph {
public:
    // Records what `queue` puts on the stream; nothing of it is executed. Throws Error where that cannot be recorded;
    // the stream is as it was.
    template <typename Queue>
    CudaGraph(const CudaDevice& device, const Queue& queue) : device_(device) {
        const CudaDevice::Turn turn(device);
        begin();
        try {
            queue();
        } catch (...) {
            end(false);
            throw;
        }
        end(true);
    }
    CudaGraph(const CudaGraph&) = delete;
    CudaGraph& operator=(const CudaGraph&) = delete;
    ~CudaGraph() { device_.release(device_.cuda.GraphExecDestroy, graph_); }

    void launch() const { device_.call(device_.cuda.GraphLaunch, graph_, device_.stream()); }

private:
    void begin() const;
    void end(bool queued);

    const CudaDevice& device_;
    cudaGraphExec_t graph_ = nullptr;
};

}  // namespace videossm::internal
