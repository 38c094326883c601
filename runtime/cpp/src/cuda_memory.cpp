#include "cuda_memory.h"

#include <algorithm>
#include <cstring>

namespace videossm::internal {

CudaStaging::CudaStaging(const CudaDevice& device)
    : device_(device), memory_(device, CudaMemory::Kind::pinned, kBlocks * kBlockBytes) {
    for (size_t i = 0; i < kBlocks; ++i) {
        copied_.push_back(std::make_unique<CudaEvent>(device));
    }
}

void CudaStaging::send(char* target, const char* source, size_t size_bytes) {
    const CudaDevice::Turn turn(device_);
    for (size_t at = 0; at < size_bytes; at += kBlockBytes) {
        const size_t piece = std::min(kBlockBytes, size_bytes - at), block = next_;
        next_ = (next_ + 1) % kBlocks;
        char* staged = memory_.address() + block * kBlockBytes;
        copied_[block]->wait();
        std::memcpy(staged, source + at, piece);
        device_.call(device_.cuda.MemcpyAsync, target + at, staged, piece, cudaMemcpyHostToDevice, device_.stream());
        copied_[block]->record();
    }
}

CudaBuffer::CudaBuffer(const CudaDevice& device, CudaStaging& staging, DType dtype, const Shape& shape)
    : Buffer(dtype, shape), device_(device), staging_(staging) {
    memory_.emplace(device, CudaMemory::Kind::device, size_bytes());
    address_ = memory_->address();
    rows_ = shape.empty() ? 1 : static_cast<size_t>(shape[0]);
    row_bytes_ = stride_bytes_ = size_bytes() / rows_;
    device.call(device.cuda.MemsetAsync, address_, 0, size_bytes(), device.stream());
}

CudaBuffer::CudaBuffer(const CudaBuffer& whole, const Shape& shape, char* address)
    : Buffer(whole.dtype, shape), device_(whole.device_), staging_(whole.staging_), address_(address), rows_(whole.rows_),
      row_bytes_(size_bytes() / whole.rows_), stride_bytes_(whole.stride_bytes_) {}

std::unique_ptr<Buffer> CudaBuffer::part(int64_t start, int64_t stop) {
    Shape part_shape = shape;
    part_shape[1] = stop - start;
    char* address = address_ + static_cast<size_t>(start) * (row_bytes_ / static_cast<size_t>(shape[1]));
    return std::unique_ptr<Buffer>(new CudaBuffer(*this, part_shape, address));
}

void CudaBuffer::write(const void* values) {
    const size_t rows = contiguous() ? 1 : rows_, each = size_bytes() / rows;
    for (size_t row = 0; row < rows; ++row) {
        staging_.send(address_ + row * stride_bytes_, static_cast<const char*>(values) + row * each, each);
    }
}

void CudaBuffer::read(void* values) const {
    copy_to(static_cast<char*>(values), row_bytes_, cudaMemcpyDeviceToHost);
    device_.settle();
}

// By way of pinned memory, so that other threads queue their work while this one waits.
const void* CudaBuffer::host() {
    {
        const CudaDevice::Turn turn(device_);
        if (!host_) {
            landed_.emplace(device_);
            host_.emplace(device_, CudaMemory::Kind::pinned, size_bytes());
        }
        copy_to(host_->address(), row_bytes_, cudaMemcpyDeviceToHost);
        landed_->record();
    }
    landed_->wait();
    return host_->address();
}

void CudaBuffer::copy_from(const CudaBuffer& source) {
    source.copy_to(address_, stride_bytes_, cudaMemcpyDeviceToDevice);
}

void CudaBuffer::copy_to(char* target, size_t stride_bytes, cudaMemcpyKind kind) const {
    if (contiguous() && (rows_ == 1 || stride_bytes == row_bytes_)) {  // rows may be longer than the largest pitch that CUDA takes
        device_.call(device_.cuda.MemcpyAsync, target, address_, size_bytes(), kind, device_.stream());
    } else {
        device_.call(device_.cuda.Memcpy2DAsync, target, stride_bytes, address_, stride_bytes_, row_bytes_, rows_, kind,
                     device_.stream());
    }
}

CudaStopwatch::CudaStopwatch(const CudaDevice& device) {
    for (size_t i = 0; i < kSpans; ++i) {
        spans_.emplace_back(new Span{CudaEvent(device, true), CudaEvent(device, true), false});
    }
}

// Waits for what was measured kSpans ago, which is long done.
void CudaStopwatch::start() {
    add(*spans_[next_]);
    spans_[next_]->start.record();
}

void CudaStopwatch::stop() {
    spans_[next_]->end.record();
    spans_[next_]->pending = true;
    next_ = (next_ + 1) % kSpans;
}

double CudaStopwatch::seconds() {
    for (const std::unique_ptr<Span>& span : spans_) {
        add(*span);
    }
    return sum_s_;
}

void CudaStopwatch::add(Span& span) {
    if (span.pending) {
        span.pending = false;
        span.end.wait();
        sum_s_ += span.end.seconds_since(span.start);
    }
}

}  // namespace videossm::internal
