#include "cpu/threads.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#include "cpu/job.h"

namespace videossm {
namespace {

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

int thread_limit() { return environment_threads(); }

/* Threads are started when they are first needed and kept, and wait for work between scans. A call while
 * another is at work runs on its caller's thread alone, so that there are never more threads at work than the
 * largest limit and one for each further caller. */
void run_items(void*, int64_t items, int threads, Task task, void* context) {
    Job job(items, task, context);
    if (threads < 2 || items < 2 || !pool().run(job, threads)) {
        job.work(0);
    }
}

}  // namespace videossm
