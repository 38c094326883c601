#include "placement.h"

#include <algorithm>
#include <cstring>
#include <fstream>
#include <map>
#include <random>
#include <string>

#if defined(__linux__)
#include <sched.h>
#endif

namespace videossm::internal {

#if defined(__linux__)
namespace {

// One processor of each core that this thread may run on.
std::vector<int> cores() {
    cpu_set_t allowed;
    if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) {
        return {};
    }
    std::map<std::string, int> found;
    for (int processor = 0; processor < CPU_SETSIZE; ++processor) {
        if (!CPU_ISSET(processor, &allowed)) {
            continue;
        }
        std::ifstream file("/sys/devices/system/cpu/cpu" + std::to_string(processor) + "/topology/thread_siblings_list");
        std::string core;
        if (!std::getline(file, core)) {
            core = std::to_string(processor);
        }
        found.emplace(core, processor);
    }
    std::vector<int> processors;
    for (const auto& [core, processor] : found) {
        processors.push_back(processor);
    }
    std::sort(processors.begin(), processors.end());
    return processors;
}

}  // namespace

std::optional<Placement> place(int threads) {
    std::vector<int> all = cores();
    const size_t wanted = threads ? static_cast<size_t>(threads) : all.size();
    if (threads == 0 && wanted == 1) {
        return Placement{all[0], {}};
    }
    if (wanted < 2 || wanted > all.size()) {
        return std::nullopt;
    }
    // Programs beside each other must not all run what is not parallel on the same core.
    std::rotate(all.begin(), all.begin() + static_cast<std::ptrdiff_t>(std::random_device()() % all.size()), all.end());
    return Placement{all[0], {all.begin() + 1, all.begin() + static_cast<std::ptrdiff_t>(wanted)}};
}

Held::Held(const Placement* placement) {
    static_assert(sizeof(cpu_set_t) <= sizeof before_, "the set fits");
    cpu_set_t before, one;
    if (!placement || sched_getaffinity(0, sizeof before, &before) != 0) {
        return;
    }
    CPU_ZERO(&one);
    CPU_SET(static_cast<size_t>(placement->caller), &one);
    std::memcpy(before_, &before, sizeof before);
    moved_ = sched_setaffinity(0, sizeof one, &one) == 0;  // if not: slower, and as right
}

Held::~Held() {
    if (moved_) {
        cpu_set_t before;
        std::memcpy(&before, before_, sizeof before);
        sched_setaffinity(0, sizeof before, &before);
    }
}
#else
std::optional<Placement> place(int) { return std::nullopt; }

Held::Held(const Placement*) {}

Held::~Held() {}
#endif

}  // namespace videossm::internal
