/* run_items on the threads of ONNX Runtime's session. */
#include "cpu/threads.h"

#include "cpu/job.h"
#include "custom_ops/api.h"

namespace videossm {

void run_items(void* stream, int64_t items, int threads, Task task, void* context) {
    Job job(items, task, context);
    if (threads < 2 || items < 2) {
        job.work(0);
        return;
    }
    // Where the session has fewer threads, parts that come last find nothing left to do.
    const auto part = [](void* of, size_t thread) { static_cast<Job*>(of)->work(static_cast<int>(thread)); };
    Ort::KernelContext(static_cast<OrtKernelContext*>(stream)).ParallelFor(part, static_cast<size_t>(threads), 0, &job);
}

}  // namespace videossm
