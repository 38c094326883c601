#include "cpu/threads.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#include "common/checks.h"

#if defined(__SSE__)
#include <xmmintrin.h>
#endif

namespace videossm {
namespace {

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
    Task task = nullptr;
    void* context = nullptr;
    int64_t items = 0;
    std::atomic<int64_t> next{0};

    void work(int thread) {
        const FlushSubnormals flush;
        for (int64_t item = next.fetch_add(1); item < items; item = next.fetch_add(1)) {
            task(context, item, thread);
        }
    }
};

class Pool {
public:
    /* False where the pool is at work for another caller. */
    bool run(Job& job, int threads) {
        const std::unique_lock<std::mutex> alone(busy, std::try_to_lock);
        if (!alone) {
            return false;
        }
        grow(threads - 1);
        {
            const std::lock_guard<std::mutex> lock(mutex);
            current = &job;
            places = std::min(threads - 1, workers());
            joined = 0;
            keep_off_this_cpu();
        }
        wake.notify_all();
        job.work(0);
        // A worker that has not woken by now finds no place: nobody waits for it.
        std::unique_lock<std::mutex> lock(mutex);
        places = 0;
        done.wait(lock, [this] { return at_work == 0; });
        current = nullptr;
        return true;
    }

private:
    int workers() const { return static_cast<int>(handles.size()); }

    /* A worker that last ran where the caller now runs would wake there, behind it in the queue, and some
     * schedulers take as long as a scan to move it: so its processors are the caller's but for this one. */
    void keep_off_this_cpu() {
#if defined(__linux__)
        const int here = sched_getcpu();
        cpu_set_t allowed;
        if (here == caller_cpu || sched_getaffinity(0, sizeof allowed, &allowed) != 0) {
            return;
        }
        caller_cpu = here;
        CPU_CLR(static_cast<size_t>(here), &allowed);
        if (CPU_COUNT(&allowed) > 0) {
            for (const pthread_t worker : handles) {
                pthread_setaffinity_np(worker, sizeof allowed, &allowed);
            }
        }
#endif
    }

    void grow(int wanted) {
        if (workers() >= wanted) {
            return;
        }
        caller_cpu = -1;
        // Signals are for the threads of the program: Python, for one, sleeps on where another thread takes
        // one.
        sigset_t all, before;
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before);
        while (workers() < wanted) {
            try {
                std::thread worker([this] { serve(); });
                handles.push_back(worker.native_handle());
                worker.detach();
            } catch (const std::system_error&) {
                break;  // the system has no more threads: those that there are do the work
            }
        }
        pthread_sigmask(SIG_SETMASK, &before, nullptr);
    }

    void serve() {
        std::unique_lock<std::mutex> lock(mutex);
        for (;;) {
            wake.wait(lock, [this] { return joined < places; });
            const int thread = ++joined;
            ++at_work;
            Job* const job = current;
            lock.unlock();
            job->work(thread);
            lock.lock();
            if (--at_work == 0) {
                done.notify_one();
            }
        }
    }

    std::mutex busy;   // held by the caller whose job it is
    std::mutex mutex;  // over all below
    std::condition_variable wake, done;
    Job* current = nullptr;
    std::vector<pthread_t> handles;  // of the workers
    int places = 0, joined = 0, at_work = 0, caller_cpu = -1;
};

/* Never destroyed: its threads wait on it until the process ends. A forked child has none of them, so it
 * makes a pool of its own. */
Pool& pool() {
    static std::mutex mutex;
    static Pool* pool = nullptr;
    static pid_t owner = 0;
    const std::lock_guard<std::mutex> lock(mutex);
    if (owner != getpid()) {
        pool = new Pool;
        owner = getpid();
    }
    return *pool;
}

}  // namespace

int thread_limit() {
    static const int cores = static_cast<int>(std::thread::hardware_concurrency());  // 0 if not known
    const char* const text = std::getenv("VIDEOSSM_THREADS");
    if (!text || !*text) {
        return std::clamp(cores, 1, MAX_THREADS);
    }
    char* end = nullptr;
    const long number = std::strtol(text, &end, 10);
    if (*end || number < 1 || number > MAX_THREADS) {
        fail(VIDEOSSM_BAD_ARGUMENT, "VIDEOSSM_THREADS: got %.32s, expected a number from 1 to %d", text,
             MAX_THREADS);
        return 0;
    }
    return static_cast<int>(number);
}

void run_items(int64_t items, int threads, Task task, void* context) {
    Job job;
    job.task = task;
    job.context = context;
    job.items = items;
    if (threads < 2 || items < 2 || !pool().run(job, threads)) {
        job.work(0);
    }
}

}  // namespace videossm
