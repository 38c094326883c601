/* TensorRT's side of a plugin, without TensorRT: the objects that it hands to a plugin while it builds an
 * engine and runs it. IDimensionExpr and IExprBuilder have no public constructor, so they are made from their
 * protected parts.
 */
#ifndef VIDEOSSM_TESTS_HARNESS_TENSORRT_H
#define VIDEOSSM_TESTS_HARNESS_TENSORRT_H

#include <NvInferRuntime.h>

#include <algorithm>
#include <limits>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace videossm::harness {

/* A size: a constant of the network, or one that is known at run time only. */
class FakeSize final : public nvinfer1::IDimensionExpr {
public:
    explicit FakeSize(int64_t size) : value_(size) { mImpl = &value_; }

private:
    struct Value final : nvinfer1::apiv::VDimensionExpr {
        explicit Value(int64_t value) : size(value) {}
        bool isConstant() const override { return size >= 0; }
        int64_t getConstantValue() const override {
            return isConstant() ? size : std::numeric_limits<int64_t>::min();
        }
        bool isSizeTensor() const override { return false; }

        int64_t size;
    };

    Value value_;
};

class FakeExprBuilder final : public nvinfer1::IExprBuilder {
public:
    FakeExprBuilder() { mImpl = &builder_; }

    const nvinfer1::IDimensionExpr* size(int64_t value) { return builder_.constant(value); }

private:
    struct Builder final : nvinfer1::apiv::VExprBuilder {
        const nvinfer1::IDimensionExpr* constant(int64_t value) override {
            made.push_back(std::make_unique<FakeSize>(value));
            return made.back().get();
        }
        const nvinfer1::IDimensionExpr* operation(nvinfer1::DimensionOperation,
                                                  const nvinfer1::IDimensionExpr&,
                                                  const nvinfer1::IDimensionExpr&) override {
            return nullptr;
        }
        const nvinfer1::IDimensionExpr* declareSizeTensor(int32_t, const nvinfer1::IDimensionExpr&,
                                                          const nvinfer1::IDimensionExpr&) override {
            return nullptr;
        }

        std::vector<std::unique_ptr<FakeSize>> made;
    };

    Builder builder_;
};

class FakeLogger final : public nvinfer1::ILogger {
public:
    void log(Severity severity, const char* text) noexcept override {
        errors.push_back((severity == Severity::kERROR ? "" : "severity: ") + std::string(text));
    }

    std::vector<std::string> errors;
};

class FakeLoggerFinder final : public nvinfer1::ILoggerFinder {
public:
    nvinfer1::ILogger* findLogger() override {
        if (throws) {
            throw std::runtime_error("no logger today");
        }
        return &logger;
    }

    FakeLogger logger;
    bool throws = false;
};

class FakeRecorder final : public nvinfer1::IErrorRecorder {
public:
    int32_t getNbErrors() const noexcept override { return static_cast<int32_t>(errors.size()); }
    nvinfer1::ErrorCode getErrorCode(int32_t) const noexcept override { return code; }
    ErrorDesc getErrorDesc(int32_t index) const noexcept override {
        return errors[static_cast<size_t>(index)].c_str();
    }
    bool hasOverflowed() const noexcept override { return false; }
    void clear() noexcept override { errors.clear(); }
    bool reportError(nvinfer1::ErrorCode reported, ErrorDesc text) noexcept override {
        code = reported;
        errors.push_back(text);
        return true;
    }
    RefCount incRefCount() noexcept override { return 1; }
    RefCount decRefCount() noexcept override { return 0; }

    nvinfer1::ErrorCode code = nvinfer1::ErrorCode::kSUCCESS;
    std::vector<std::string> errors;
};

class FakeContext final : public nvinfer1::IPluginResourceContext {
public:
    nvinfer1::IGpuAllocator* getGpuAllocator() const noexcept override { return nullptr; }
    nvinfer1::IErrorRecorder* getErrorRecorder() const noexcept override { return recorder; }

    nvinfer1::IErrorRecorder* recorder = nullptr;
};

}  // namespace videossm::harness

#endif
