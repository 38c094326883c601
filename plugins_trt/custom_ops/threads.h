/* How many threads the session has whose operator runs. */
#ifndef VIDEOSSM_CUSTOM_OPS_THREADS_H
#define VIDEOSSM_CUSTOM_OPS_THREADS_H

#include "cpu/threads.h"

namespace videossm {

/* While it lives thread_limit() is at most `count` in its thread; 0: not known. */
class SessionThreads {
public:
    explicit SessionThreads(int count);
    ~SessionThreads();
    SessionThreads(const SessionThreads&) = delete;
    SessionThreads& operator=(const SessionThreads&) = delete;
};

}  // namespace videossm

#endif
