#include "host_memory.h"

#include <cstdlib>
#include <cstring>
#include <limits>

#include "error.h"

namespace videossm::internal {
namespace {

constexpr size_t kAlignment = 64;  // a cache line, and a register of AVX-512

}  // namespace

void HostBuffer::Free::operator()(void* memory) const { std::free(memory); }

HostBuffer::HostBuffer(DType dtype, const Shape& shape) : Buffer(dtype, shape) {
    const uint64_t size = TensorSpec{"", dtype, shape}.size_bytes();
    // Zeros from the system: pages that are never written take no memory.
    if (size < std::numeric_limits<size_t>::max() / 2) {
        memory_.reset(std::calloc(static_cast<size_t>(size) + kAlignment, 1));
    }
    if (!memory_) {
        throw Error(VIDEOSSM_ERROR_MEMORY, "memory: got too little for " + std::to_string(size) + " bytes, expected more; free some");
    }
    const auto address = reinterpret_cast<uintptr_t>(memory_.get());
    data_ = static_cast<char*>(memory_.get()) + (kAlignment - address % kAlignment) % kAlignment;
    rows_ = shape.empty() ? 1 : static_cast<size_t>(shape[0]);
    row_bytes_ = stride_bytes_ = static_cast<size_t>(size) / rows_;
}

HostBuffer::HostBuffer(DType dtype, const Shape& shape, char* data, size_t stride_bytes)
    : Buffer(dtype, shape), data_(data), rows_(static_cast<size_t>(shape[0])), stride_bytes_(stride_bytes) {
    row_bytes_ = size_bytes() / rows_;
}

std::unique_ptr<Buffer> HostBuffer::part(int64_t start, int64_t stop) {
    Shape part_shape = shape;
    part_shape[1] = stop - start;
    const size_t each = row_bytes_ / static_cast<size_t>(shape[1]);
    return std::unique_ptr<Buffer>(new HostBuffer(dtype, part_shape, data_ + static_cast<size_t>(start) * each, stride_bytes_));
}

void HostBuffer::write(const void* values) {
    for (size_t row = 0; row < rows_; ++row) {
        std::memcpy(data_ + row * stride_bytes_, static_cast<const char*>(values) + row * row_bytes_, row_bytes_);
    }
}

void HostBuffer::read(void* values) const {
    for (size_t row = 0; row < rows_; ++row) {
        std::memcpy(static_cast<char*>(values) + row * row_bytes_, data_ + row * stride_bytes_, row_bytes_);
    }
}

void HostBuffer::copy_from(const HostBuffer& source) {
    for (size_t row = 0; row < rows_; ++row) {
        std::memcpy(data_ + row * stride_bytes_, source.data_ + row * source.stride_bytes_, row_bytes_);
    }
}

}  // namespace videossm::internal
