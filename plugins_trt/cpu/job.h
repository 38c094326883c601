/* The items of one scan, taken one after the other by the threads at work. */
#ifndef VIDEOSSM_CPU_JOB_H
#define VIDEOSSM_CPU_JOB_H

#include <atomic>
#include <cstdint>

#include "cpu/threads.h"

#if defined(__SSE__)
#include <xmmintrin.h>
#endif

namespace videossm {

/* A state that decays passes through subnormal numbers, which cost some processors a hundred cycles each.
 * While this lives they are 0 in its thread: an error of 1e-38. */
class FlushSubnormals {
public:
#if defined(__SSE__)
    FlushSubnormals() : saved(_mm_getcsr()) { _mm_setcsr(saved | FLUSH_TO_ZERO | SUBNORMALS_ARE_ZERO); }
    ~FlushSubnormals() { _mm_setcsr(saved); }

private:
    static constexpr unsigned FLUSH_TO_ZERO = 0x8000, SUBNORMALS_ARE_ZERO = 0x0040;
    unsigned saved;
#else
    FlushSubnormals() {}
#endif

public:
    FlushSubnormals(const FlushSubnormals&) = delete;
    FlushSubnormals& operator=(const FlushSubnormals&) = delete;
};

struct Job {
    Job(int64_t items_, Task task_, void* context_) : task(task_), context(context_), items(items_) {}

    void work(int thread) {
        const FlushSubnormals flush;
        for (int64_t item = next.fetch_add(1); item < items; item = next.fetch_add(1)) {
            task(context, item, thread);
        }
    }

    const Task task;
    void* const context;
    const int64_t items;
    std::atomic<int64_t> next{0};
};

}  // namespace videossm

#endif
