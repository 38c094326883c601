// Where the threads of a session run: one processor for the thread that calls, and one for each worker. See
// runtime/backends/processors.py for what it gains. It has no part in the numbers.
#pragma once

#include <optional>
#include <vector>

namespace videossm::internal {

struct Placement {
    int caller = 0;
    std::vector<int> workers;
};

// Processors for `threads` threads, each on a core of its own; 0 for one thread a core. None where one thread is asked
// for, where there are fewer cores than threads, and where the system does not say.
std::optional<Placement> place(int threads);

// Ties the calling thread to a processor for as long as it lives.
class Held {
public:
    explicit Held(const Placement* placement);
    ~Held();
    Held(const Held&) = delete;
    Held& operator=(const Held&) = delete;

private:
    alignas(8) unsigned char before_[128];  // a set of processors, as the system has it
    bool moved_ = false;
};

}  // namespace videossm::internal
