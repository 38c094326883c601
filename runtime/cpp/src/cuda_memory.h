// Buffers on a GPU, and the pinned memory that their values pass through.
#pragma once

#include <array>
#include <memory>
#include <optional>

#include "backend.h"
#include "cuda.h"

namespace videossm::internal {

// Pinned blocks on the way to the device, used in turn: a copy from pageable memory would wait for all that is queued.
// The host waits only when it is as many copies ahead as there are blocks.
class CudaStaging {
public:
    explicit CudaStaging(const CudaDevice& device);

    // Queues the copy of `size_bytes` to `target`; `source` may change once it returns.
    void send(char* target, const char* source, size_t size_bytes);

private:
    static constexpr size_t kBlocks = 8, kBlockBytes = 2 << 20;

    const CudaDevice& device_;
    CudaMemory memory_;
    std::vector<std::unique_ptr<CudaEvent>> copied_;  // by block
    size_t next_ = 0;
};

// `batch` rows, each contiguous; a part of another buffer has rows apart from each other.
class CudaBuffer : public Buffer {
public:
    // Throws Error where there is too little memory. The device and the staging outlive it.
    CudaBuffer(const CudaDevice& device, CudaStaging& staging, DType dtype, const Shape& shape);

    // TensorRT wants addresses as cudaMalloc gives them.
    bool bindable() const override { return contiguous() && reinterpret_cast<uintptr_t>(address_) % 256 == 0; }
    std::unique_ptr<Buffer> part(int64_t start, int64_t stop) override;
    void write(const void* values) override;
    void read(void* values) const override;
    const void* host() override;

    char* address() const { return address_; }
    void copy_from(const CudaBuffer& source);

private:
    CudaBuffer(const CudaBuffer& whole, const Shape& shape, char* address);

    bool contiguous() const { return rows_ == 1 || stride_bytes_ == row_bytes_; }
    // Queues the copy of all rows. `stride_bytes`: of the target, where rows may be apart too.
    void copy_to(char* target, size_t stride_bytes, cudaMemcpyKind kind) const;

    const CudaDevice& device_;
    CudaStaging& staging_;
    std::optional<CudaMemory> memory_;  // none in a part
    char* address_ = nullptr;
    size_t rows_ = 1, row_bytes_ = 0, stride_bytes_ = 0;
    std::optional<CudaMemory> host_;  // pinned; once it was asked for
    std::optional<CudaEvent> landed_;
};

class CudaStopwatch : public Stopwatch {
public:
    explicit CudaStopwatch(const CudaDevice& device);

    void start() override;
    void stop() override;
    double seconds() override;

private:
    struct Span {
        CudaEvent start, end;
        bool pending;
    };
    static constexpr size_t kSpans = 32;

    void add(Span& span);

    std::vector<std::unique_ptr<Span>> spans_;  // used in turn
    size_t next_ = 0;
    double sum_s_ = 0;
};

}  // namespace videossm::internal
