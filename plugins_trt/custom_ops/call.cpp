#include "custom_ops/call.h"

#include <memory>
#include <stdexcept>
#include <utility>

namespace videossm {
namespace {

std::string text_of(const Shape& shape) {
    std::string text = "[";
    for (size_t i = 0; i < shape.size(); ++i) {
        text += (i ? ", " : "") + std::to_string(shape[i]);
    }
    return text + "]";
}

ONNXTensorElementDataType element_of(videossm_dtype dtype) {
    switch (dtype) {
        case VIDEOSSM_FP16: return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16;
        case VIDEOSSM_BF16: return ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16;
        default: return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
    }
}

std::string text_of(ONNXTensorElementDataType element) {
    for (const auto& [dtype, name] : {std::pair(VIDEOSSM_FP32, "fp32"), {VIDEOSSM_FP16, "fp16"}, {VIDEOSSM_BF16, "bf16"}}) {
        if (element == element_of(dtype)) {
            return name;
        }
    }
    return "ONNX's type " + std::to_string(element);
}

}  // namespace

Shape Call::shape(size_t index, const char* name, size_t rank) const {
    const Ort::ConstValue value = tensor(index);
    if (!value) {
        refuse(std::string(name) + ": got none, expected one");
    }
    Shape shape = value.GetTensorTypeAndShapeInfo().GetShape();
    if (shape.size() != rank) {
        refuse(std::string(name) + ": got " + text_of(shape) + ", expected " + std::to_string(rank) + " dimensions");
    }
    return shape;
}

videossm_dtype Call::dtype(size_t index, const char* name) const {
    const ONNXTensorElementDataType element = tensor(index).GetTensorTypeAndShapeInfo().GetElementType();
    for (const videossm_dtype dtype : {VIDEOSSM_FP32, VIDEOSSM_FP16, VIDEOSSM_BF16}) {
        if (element == element_of(dtype)) {
            return dtype;
        }
    }
    refuse(std::string(name) + ": got " + text_of(element) + ", expected fp32, fp16 or bf16");
}

const void* Call::input(size_t index, const char* name, const Shape& shape, videossm_dtype dtype) const {
    const Ort::ConstValue value = tensor(index);
    if (!value) {
        return nullptr;
    }
    const auto info = value.GetTensorTypeAndShapeInfo();
    if (info.GetShape() != shape || info.GetElementType() != element_of(dtype)) {
        refuse(std::string(name) + ": got " + text_of(info.GetElementType()) + " " + text_of(info.GetShape()) +
               ", expected " + text_of(element_of(dtype)) + " " + text_of(shape));
    }
    return value.GetTensorRawData();
}

void* Call::output(size_t index, const Shape& shape) const {
    Ort::UnownedValue value = Ort::KernelContext(context).GetOutput(index, shape);
    return value ? value.GetTensorMutableRawData() : nullptr;
}

Ort::ConstValue Call::tensor(size_t index) const {
    const Ort::KernelContext inputs(context);
    return index < inputs.GetInputCount() ? inputs.GetInput(index) : Ort::ConstValue();
}

void Call::refuse(const std::string& why) const { throw std::invalid_argument(std::string(operator_name) + ": " + why); }

void* Call::workspace(size_t bytes) {
    thread_local std::unique_ptr<char[]> kept;
    thread_local size_t kept_bytes = 0;
    if (kept_bytes < bytes) {
        kept.reset();
        kept_bytes = 0;
        kept.reset(new char[bytes]);
        kept_bytes = bytes;
    }
    return kept.get();
}

}  // namespace videossm
