#include "plugin/report.h"

#include <atomic>
#include <cstdio>

namespace videossm {
namespace {

std::atomic<nvinfer1::ILoggerFinder*> logger_finder{nullptr};

nvinfer1::ILogger* find_logger() noexcept {
    try {
        nvinfer1::ILoggerFinder* const finder = logger_finder.load();
        return finder ? finder->findLogger() : nullptr;
    } catch (...) {
        return nullptr;
    }
}

}  // namespace

void set_logger_finder(nvinfer1::ILoggerFinder* finder) noexcept { logger_finder.store(finder); }

void report(nvinfer1::ErrorCode code, const char* text, nvinfer1::IErrorRecorder* recorder) noexcept {
    if (nvinfer1::ILogger* const logger = find_logger()) {
        logger->log(nvinfer1::ILogger::Severity::kERROR, text);
    } else {
        std::fprintf(stderr, "videossm: %s\n", text);
    }
    if (recorder) {
        recorder->reportError(code, text);
    }
}

}  // namespace videossm
