// What a rollout asks of whatever runs the engines.
//
// BoundEngine::run, Backend::copy and Buffer::write take effect in the order of the calls and may return before they
// are done; Buffer::read, Buffer::host and Stopwatch::seconds wait for all that came before. Buffers, bound engines and
// stopwatches belong to one thread at a time; a backend and its engines are shared.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "manifest.h"

namespace videossm::internal {

// A tensor in the device's memory, taken once; zeros at first.
class Buffer {
public:
    Buffer(DType dtype, Shape shape) : dtype(dtype), shape(std::move(shape)) {}
    virtual ~Buffer() = default;

    // May an engine take it as it lies? A whole one always; a part, if it is contiguous.
    virtual bool bindable() const = 0;
    // `[:, start:stop]` over the same memory, which must outlive the part.
    virtual std::unique_ptr<Buffer> part(int64_t start, int64_t stop) = 0;
    // Overwrites it from the host; `values` may change once it returns.
    virtual void write(const void* values) = 0;
    virtual void read(void* values) const = 0;
    // The values of a whole one on the host, until something changes the buffer.
    virtual const void* host() = 0;

    size_t size_bytes() const { return static_cast<size_t>(TensorSpec{"", dtype, shape}.size_bytes()); }

    const DType dtype;
    const Shape shape;
};

// Adds up the device's time for what is queued between start and stop.
class Stopwatch {
public:
    virtual ~Stopwatch() = default;
    virtual void start() = 0;
    virtual void stop() = 0;
    virtual double seconds() = 0;
};

// One engine over fixed buffers. No output is an input.
class BoundEngine {
public:
    virtual ~BoundEngine() = default;
    virtual void run() = 0;
};

// A tensor of an engine by its name, and where it lies.
struct Bound {
    std::string name;
    Buffer* buffer;
};

class Engine {
public:
    virtual ~Engine() = default;
    // Every input and output; the buffers are bindable.
    virtual std::unique_ptr<BoundEngine> bind(const std::vector<Bound>& inputs, const std::vector<Bound>& outputs) = 0;
};

class Backend {
public:
    virtual ~Backend() = default;
    // Throws Error when the engine cannot run here or is not what the manifest says. `file`: its path.
    virtual std::unique_ptr<Engine> load(const EngineSpec& spec, const std::string& file) = 0;
    virtual std::unique_ptr<Buffer> buffer(DType dtype, const Shape& shape) = 0;
    // Of equal shapes.
    virtual void copy(const Buffer& source, Buffer& target) = 0;
    virtual std::unique_ptr<Stopwatch> stopwatch() = 0;
};

// The one that the manifest names. `threads`: of a CPU; 0 for the backend's own number. `device`: index of a GPU. Throws
// Error where it was not built in, or cannot start.
std::unique_ptr<Backend> open_backend(const Manifest& manifest, int threads, int device);

std::unique_ptr<Backend> open_onnxruntime(const Manifest& manifest, int threads);
std::unique_ptr<Backend> open_tensorrt(const Manifest& manifest, int device);

// Type and shape of a tensor, as a message shows them; and those of several by their names.
std::string tensor_text(const std::string& type, const Shape& shape);
using TensorTexts = std::map<std::string, std::string>;

template <typename Tensor>
TensorTexts tensor_texts(const std::vector<Tensor>& tensors) {
    TensorTexts all;
    for (const Tensor& tensor : tensors) {
        all[tensor.name] = tensor_text(name_of(tensor.dtype), tensor.shape);
    }
    return all;
}

// An engine must have exactly the tensors that the manifest lists. Throws Error.
void check_tensors(const std::string& where, const TensorTexts& listed, const TensorTexts& found);

}  // namespace videossm::internal
