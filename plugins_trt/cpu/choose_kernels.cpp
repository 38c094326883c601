#include <cstdlib>
#include <cstring>

#include "common/checks.h"
#include "cpu/kernels.h"

namespace videossm {
namespace {

const Kernels* const sets[] = {  // the best first
#if defined(VIDEOSSM_X86)
    &avx512::kernels,
    &avx2::kernels,
#endif
    &generic::kernels,
};

bool runs(const Kernels* set) {
#if defined(VIDEOSSM_X86)
    static const bool avx2 =
        __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    static const bool avx512 =
        avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    return set == &avx512::kernels ? avx512 : set == &avx2::kernels ? avx2 : true;
#else
    return set != nullptr;
#endif
}

}  // namespace

const Kernels* choose_kernels() {
    const char* const wanted = std::getenv("VIDEOSSM_CPU");
    const char* best = nullptr;
    for (const Kernels* set : sets) {
        if (runs(set)) {
            if (!wanted || !*wanted || std::strcmp(wanted, set->name) == 0) {
                return set;
            }
            best = best ? best : set->name;
        }
    }
    fail(VIDEOSSM_BAD_ARGUMENT, "VIDEOSSM_CPU: got %.32s, expected %s or less", wanted, best);
    return nullptr;
}

}  // namespace videossm
