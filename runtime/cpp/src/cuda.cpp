#include "cuda.h"

#include "error.h"
#include "shared_library.h"

namespace videossm::internal {
namespace {

std::string library_file() {
    const std::string major = std::to_string(CUDART_VERSION / 1000);
#if defined(_WIN32)
    return "cudart64_" + major + ".dll";
#else
    return "libcudart.so." + major;
#endif
}

// Loaded once, whoever comes first, and stays. Throws Error.
const CudaFunctions& functions() {
    static const CudaFunctions found = [] {
        const std::string file = library_file();
        CudaFunctions made;
#define VIDEOSSM_CUDA_FUNCTION(name) \
    made.name = {"cuda" #name, reinterpret_cast<decltype(::cuda##name)*>(symbol_of(file.c_str(), "cuda" #name))};
        VIDEOSSM_CUDA_FUNCTIONS(VIDEOSSM_CUDA_FUNCTION)
#undef VIDEOSSM_CUDA_FUNCTION
        return made;
    }();
    return found;
}

}  // namespace

CudaDevice::CudaDevice(int index) : cuda(functions()), index_(index) {
    int count = 0;
    const cudaError_t status = cuda.GetDeviceCount.call(&count);
    const std::string device = "cuda:" + std::to_string(index);
    if (status != cudaSuccess || count == 0) {
        throw backend_error("device: got " + device + ", but no usable GPU here (" +
                            (status == cudaSuccess ? "none found" : cuda.GetErrorString.call(status)) +
                            "), expected one; a plan for the CPU is made by videossm-export CHECKPOINT --backend onnxruntime");
    }
    if (index < 0 || index >= count) {
        throw backend_error("device: got " + device + ", expected cuda:0 to cuda:" + std::to_string(count - 1) + "; choose another");
    }
    call(cuda.StreamCreateWithFlags, &stream_, static_cast<unsigned>(cudaStreamNonBlocking));
}

CudaDevice::~CudaDevice() { release(cuda.StreamDestroy, stream_); }

std::pair<size_t, size_t> CudaDevice::memory_bytes() const {
    size_t free = 0, total = 0;
    call(cuda.MemGetInfo, &free, &total);
    return {free, total};
}

void CudaDevice::check(const char* function, cudaError_t status) const {
    if (status == cudaSuccess) {
        return;
    }
    const std::string got = std::string(function) + ": got CUDA error " + std::to_string(status) + " (" +
                            cuda.GetErrorString.call(status) + "), expected ";
    if (status == cudaErrorMemoryAllocation) {
        throw Error(VIDEOSSM_ERROR_MEMORY, got + "more room; free memory of the GPU, or export a smaller plan");
    }
    throw backend_error(got + "success; start anew, and if it comes again, check driver and plan with videossm-doctor");
}

// The program that this library is a part of may use another device in the same thread.
CudaDevice::Turn::Turn(const CudaDevice& device) : device_(device), lock_(device.mutex_) {
    device.cuda.GetDevice.call(&before_);
    device.cuda.SetDevice.call(device.index_);  // where it fails, so does what follows
}

CudaDevice::Turn::~Turn() { device_.cuda.SetDevice.call(before_); }

CudaMemory::CudaMemory(const CudaDevice& device, Kind kind, size_t size_bytes)
    : device_(device), kind_(kind), size_bytes_(size_bytes) {
    void* address = nullptr;
    if (kind == Kind::device) {
        device.call(device.cuda.Malloc, &address, size_bytes);
    } else {
        device.call(device.cuda.MallocHost, &address, size_bytes);
    }
    address_ = static_cast<char*>(address);
}

CudaMemory::~CudaMemory() {
    if (kind_ == Kind::device) {
        device_.release(device_.cuda.Free, address_);
    } else {
        device_.release(device_.cuda.FreeHost, address_);
    }
}

CudaEvent::CudaEvent(const CudaDevice& device, bool timed) : device_(device) {
    device.call(device.cuda.EventCreateWithFlags, &event_,
                static_cast<unsigned>(timed ? cudaEventDefault : cudaEventDisableTiming));
}

CudaEvent::~CudaEvent() { device_.release(device_.cuda.EventDestroy, event_); }

void CudaEvent::record() const { device_.call(device_.cuda.EventRecord, event_, device_.stream()); }

// Without a turn: others may queue meanwhile.
void CudaEvent::wait() const {
    device_.check("cudaEventSynchronize", device_.cuda.EventSynchronize.call(event_));
}

double CudaEvent::seconds_since(const CudaEvent& start) const {
    float milliseconds = 0;
    device_.call(device_.cuda.EventElapsedTime, &milliseconds, start.event_, event_);
    return static_cast<double>(milliseconds) / 1000;
}

void CudaGraph::begin() const {
    device_.call(device_.cuda.StreamBeginCapture, device_.stream(), cudaStreamCaptureModeThreadLocal);
}

void CudaGraph::end(bool queued) {
    const CudaFunctions& cuda = device_.cuda;
    cudaGraph_t graph = nullptr;
    cudaError_t status = cuda.StreamEndCapture.call(device_.stream(), &graph);
    const char* failed = cuda.StreamEndCapture.name;
    if (status == cudaSuccess && queued) {
        status = cuda.GraphInstantiate.call(&graph_, graph, 0);
        failed = cuda.GraphInstantiate.name;
    }
    if (graph) {
        cuda.GraphDestroy.call(graph);
    }
    if (status != cudaSuccess) {
        cuda.GetLastError.call();  // libraries would take it for one of their own
        if (queued) {
            device_.check(failed, status);
        }
    }
}

}  // namespace videossm::internal
