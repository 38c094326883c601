/* The threads of ONNX Runtime's session. */
#include "custom_ops/threads.h"

#include <algorithm>

#include "cpu/job.h"
#include "custom_ops/api.h"

namespace videossm {
namespace {

thread_local int threads_of_session = 0;

}  // namespace

SessionThreads::SessionThreads(int count) { threads_of_session = count; }

SessionThreads::~SessionThreads() { threads_of_session = 0; }

int thread_limit() {
    const int limit = environment_threads();
    return threads_of_session ? std::min(limit, threads_of_session) : limit;
}

void run_items(void* stream, int64_t items, int threads, Task task, void* context) {
    Job job(items, task, context);
    if (threads < 2 || items < 2) {
        job.work(0);
        return;
    }
    // Where the session has fewer threads than it said, parts that come last find nothing left to do.
    const auto part = [](void* of, size_t thread) { static_cast<Job*>(of)->work(static_cast<int>(thread)); };
    Ort::KernelContext(static_cast<OrtKernelContext*>(stream)).ParallelFor(part, static_cast<size_t>(threads), 0, &job);
}

}  // namespace videossm
