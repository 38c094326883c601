/* How a plugin says what went wrong: by TensorRT's logger and its error recorder, and never by an exception,
 * which must not cross into TensorRT.
 */
#ifndef VIDEOSSM_PLUGIN_REPORT_H
#define VIDEOSSM_PLUGIN_REPORT_H

#include <NvInferRuntime.h>

#include <exception>

#include "plugin/error.h"

namespace videossm {

/* TensorRT's, which keeps it; null: there is none. */
void set_logger_finder(nvinfer1::ILoggerFinder* finder) noexcept;

/* One line to the logger of the calling thread, or to stderr where there is none, and to `recorder`, if any.
 */
void report(nvinfer1::ErrorCode code, const char* text, nvinfer1::IErrorRecorder* recorder) noexcept;

/* What `body` returns; `failure`, after a report, where it throws. */
template <typename Result, typename Body>
Result guarded(Result failure, nvinfer1::IErrorRecorder* recorder, Body&& body) noexcept {
    try {
        return body();
    } catch (const ScanError& error) {
        const bool failed = error.cause == ScanError::Cause::DEVICE;
        report(failed ? nvinfer1::ErrorCode::kFAILED_EXECUTION : nvinfer1::ErrorCode::kINVALID_ARGUMENT,
               error.what(), recorder);
    } catch (const std::exception& error) {
        report(nvinfer1::ErrorCode::kINTERNAL_ERROR, error.what(), recorder);
    } catch (...) {
        report(nvinfer1::ErrorCode::kINTERNAL_ERROR, "got an exception of an unknown type, expected none",
               recorder);
    }
    return failure;
}

}  // namespace videossm

#endif
