#include <algorithm>
#include <cstdlib>
#include <thread>

#include "common/checks.h"
#include "cpu/threads.h"

namespace videossm {

int environment_threads() {
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

}  // namespace videossm
