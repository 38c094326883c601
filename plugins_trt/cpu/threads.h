/* Threads for a scan: the library's own, or those of whatever else calls it. */
#ifndef VIDEOSSM_CPU_THREADS_H
#define VIDEOSSM_CPU_THREADS_H

#include <cstdint>

namespace videossm {

constexpr int MAX_THREADS = 256;

/* VIDEOSSM_THREADS, read at every call, or as many as this process may run at once. 0, with the error set,
 * where the variable is not a number from 1 to MAX_THREADS. */
int environment_threads();

/* That, or fewer where whoever gives the threads has fewer. Each library has its own one of this function and
 * of run_items: threads.cpp starts threads, custom_ops/threads.cpp takes those of ONNX Runtime's session. */
int thread_limit();

/* task(context, item, thread) */
using Task = void (*)(void* context, int64_t item, int thread);

/* Runs all items from 0 to items - 1, the caller's thread taking part, and returns when they are done.
 * `thread` counts from 0 and is below `threads`; two items at work have different ones. `stream`: what the
 * entry point was given. */
void run_items(void* stream, int64_t items, int threads, Task task, void* context);

/* The same for work(item, thread). */
template <class Work>
void run_items(void* stream, int64_t items, int threads, Work& work) {
    const Task task = [](void* of_work, int64_t item, int thread) {
        (*static_cast<Work*>(of_work))(item, thread);
    };
    run_items(stream, items, threads, task, &work);
}

}  // namespace videossm

#endif
