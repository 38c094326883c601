/* An operator as ONNX Runtime registers it, around a kernel. */
#ifndef VIDEOSSM_CUSTOM_OPS_OPERATOR_H
#define VIDEOSSM_CUSTOM_OPS_OPERATOR_H

#include "custom_ops/api.h"

namespace videossm {

/* A kernel adds:
 *     static constexpr const char* NAME                in the domain `videossm`, version 1
 *     static constexpr size_t INPUTS, REQUIRED         how many there are, and may not be left out
 *     static constexpr size_t LIKE[2]                  the inputs whose types and shapes the outputs have
 *     Kernel(const OrtKernelInfo* info, int threads)   of the session; 0: not known
 *     void compute(OrtKernelContext* context)
 * The second output is always there, the first where something reads it. */
template <class Kernel>
struct Operator : Ort::CustomOpBase<Operator<Kernel>, Operator<Kernel>, true> {
    explicit Operator(int threads_) : threads(threads_) {
        OrtCustomOp::InferOutputShapeFn = [](const OrtCustomOp*, OrtShapeInferContext* context) {
            return as_status([&] { infer(context); });
        };
        OrtCustomOp::KernelComputeV2 = [](void* kernel, OrtKernelContext* context) {
            return as_status([&] { static_cast<Kernel*>(kernel)->compute(context); });
        };
        OrtCustomOp::KernelDestroy = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
    }

    const char* GetName() const { return Kernel::NAME; }
    size_t GetInputTypeCount() const { return Kernel::INPUTS; }
    size_t GetOutputTypeCount() const { return 2; }
    // Any: a kernel checks what it is given.
    ONNXTensorElementDataType GetInputType(size_t) const { return ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED; }
    ONNXTensorElementDataType GetOutputType(size_t) const { return ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED; }
    OrtCustomOpInputOutputCharacteristic GetInputCharacteristic(size_t index) const {
        return index < Kernel::REQUIRED ? INPUT_OUTPUT_REQUIRED : INPUT_OUTPUT_OPTIONAL;
    }
    OrtCustomOpInputOutputCharacteristic GetOutputCharacteristic(size_t index) const {
        return index == 0 ? INPUT_OUTPUT_OPTIONAL : INPUT_OUTPUT_REQUIRED;
    }
    OrtStatusPtr CreateKernelV2(const OrtApi&, const OrtKernelInfo* info, void** kernel) const {
        return as_status([&] { *kernel = new Kernel(info, threads); });
    }
    OrtStatusPtr ComputeV2(OrtKernelContext*) { return nullptr; }  // for the base class alone: see KernelComputeV2

    const int threads;

private:
    static void infer(OrtShapeInferContext* context) {
        const OrtApi& api = Ort::GetApi();
        for (size_t output = 0; output < 2; ++output) {
            OrtTensorTypeAndShapeInfo* info = nullptr;
            Ort::ThrowOnError(api.ShapeInferContext_GetInputTypeShape(context, Kernel::LIKE[output], &info));
            Ort::ThrowOnError(api.ShapeInferContext_SetOutputTypeShape(context, output, info));
        }
    }
};

}  // namespace videossm

#endif
