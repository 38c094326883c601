// Buffers in the host's memory, where everything is done when a call returns.
#pragma once

#include <chrono>

#include "backend.h"

namespace videossm::internal {

// `batch` rows, each contiguous; a part of another buffer has rows apart from each other.
class HostBuffer : public Buffer {
public:
    // Throws Error where there is too little memory.
    HostBuffer(DType dtype, const Shape& shape);

    bool bindable() const override { return rows_ == 1 || stride_bytes_ == row_bytes_; }
    std::unique_ptr<Buffer> part(int64_t start, int64_t stop) override;
    void write(const void* values) override;
    void read(void* values) const override;
    const void* host() override { return data_; }

    void* data() { return data_; }
    void copy_from(const HostBuffer& source);

private:
    HostBuffer(DType dtype, const Shape& shape, char* data, size_t stride_bytes);

    struct Free {
        void operator()(void* memory) const;
    };
    std::unique_ptr<void, Free> memory_;  // none in a part
    char* data_ = nullptr;
    size_t rows_ = 1, row_bytes_ = 0, stride_bytes_ = 0;
};

class HostStopwatch : public Stopwatch {
public:
    void start() override { started_ = std::chrono::steady_clock::now(); }
    void stop() override { sum_s_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - started_).count(); }
    double seconds() override { return sum_s_; }

private:
    std::chrono::steady_clock::time_point started_;
    double sum_s_ = 0;
};

}  // namespace videossm::internal
