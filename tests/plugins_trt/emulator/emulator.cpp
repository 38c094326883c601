#include "emulator.h"

#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

namespace emulator {
namespace {

constexpr size_t STACK_BYTES = 256 << 10;
constexpr size_t COPY_BYTES = 16;

[[noreturn]] void give_up(const char* what) {
    std::fprintf(stderr, "emulator: %s\n", what);
    std::abort();
}

enum class State { READY, AT_EXCHANGE, AT_BARRIER, DONE };

struct Copy {
    void* shared;
    const void* global;
    bool valid;
};

struct Fiber {
    Place place;
    State state = State::READY;
    bool started = false;
    ucontext_t start = {};
    jmp_buf resume = {};
    std::vector<Copy> open;                // of the group that is not yet committed
    std::deque<std::vector<Copy>> groups;  // committed, not yet landed
};

struct Warp {
    const char* what = nullptr;
    int arrived = 0;
    Lanes lanes = {};
};

/* Pages for the fibers' stacks, kept from launch to launch. */
class Stacks {
public:
    unsigned char* operator[](size_t fiber) {
        while (stacks_.size() <= fiber) {
            stacks_.emplace_back(new unsigned char[STACK_BYTES]);
        }
        return stacks_[fiber].get();
    }

private:
    std::vector<std::unique_ptr<unsigned char[]>> stacks_;
};

/* Memory that ends where a page without access begins. */
class GuardedMemory {
public:
    explicit GuardedMemory(size_t bytes) : bytes_(bytes) {
        const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
        mapped_ = (bytes + page - 1) / page * page + page;
        base_ = static_cast<unsigned char*>(
            mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
        if (base_ == MAP_FAILED || mprotect(base_ + mapped_ - page, page, PROT_NONE) != 0) {
            give_up("no memory for a thread block");
        }
        begin_ = base_ + mapped_ - page - bytes;
    }
    GuardedMemory(const GuardedMemory&) = delete;
    GuardedMemory& operator=(const GuardedMemory&) = delete;
    ~GuardedMemory() { munmap(base_, mapped_); }

    unsigned char* begin() const { return begin_; }
    void poison() { std::memset(begin_, 0xff, bytes_); }

private:
    size_t bytes_, mapped_;
    unsigned char *base_, *begin_;
};

Fiber* current = nullptr;
std::vector<Fiber> fibers;
std::vector<Warp> warps;
const std::function<void()>* running_kernel = nullptr;
jmp_buf scheduler;

[[gnu::noinline]] void yield(State state) {
    current->state = state;
    if (_setjmp(current->resume) == 0) {
        _longjmp(scheduler, 1);
    }
}

void run_fiber() {
    (*running_kernel)();
    if (!current->open.empty() || std::any_of(current->groups.begin(), current->groups.end(),
                                              [](const auto& group) { return !group.empty(); })) {
        give_up("a thread ended before its copies");
    }
    current->state = State::DONE;
    _longjmp(scheduler, 1);
}

/* Of its own, since getcontext may return twice as far as the compiler knows. */
[[gnu::noinline]] void set_up(Fiber& fiber, unsigned char* stack) {
    getcontext(&fiber.start);
    fiber.start.uc_stack.ss_sp = stack;
    fiber.start.uc_stack.ss_size = STACK_BYTES;
    makecontext(&fiber.start, run_fiber, 0);
}

[[gnu::noinline]] void resume(Fiber& fiber) {
    current = &fiber;
    if (_setjmp(scheduler) != 0) {
        return;
    }
    if (fiber.started) {
        _longjmp(fiber.resume, 1);
    }
    fiber.started = true;
    setcontext(&fiber.start);
}

unsigned seed() {
    const char* text = std::getenv("VIDEOSSM_EMULATOR_SEED");
    return text ? static_cast<unsigned>(std::atoi(text)) : 0;
}

/* Until no lane of the warp can go on. */
bool run_warp(size_t warp, std::mt19937& random) {
    std::array<size_t, LANES> order;
    std::iota(order.begin(), order.end(), warp * LANES);
    std::shuffle(order.begin(), order.end(), random);
    bool ran = false, again = true;
    while (again) {
        again = false;
        for (const size_t fiber : order) {
            if (fiber < fibers.size() && fibers[fiber].state == State::READY) {
                resume(fibers[fiber]);
                ran = again = true;
            }
        }
    }
    return ran;
}

void run_block(std::mt19937& random) {
    std::vector<size_t> order(warps.size());
    std::iota(order.begin(), order.end(), size_t{0});
    for (;;) {
        std::shuffle(order.begin(), order.end(), random);
        bool ran = false;
        for (const size_t warp : order) {
            ran |= run_warp(warp, random);
        }
        const auto count = [](State state) {
            return std::count_if(fibers.begin(), fibers.end(), [=](const Fiber& f) { return f.state == state; });
        };
        const auto done = count(State::DONE), waiting = count(State::AT_BARRIER);
        const auto all = static_cast<std::ptrdiff_t>(fibers.size());
        if (done == all) {
            return;
        }
        if (done + waiting == all) {
            for (Fiber& fiber : fibers) {
                fiber.state = fiber.state == State::AT_BARRIER ? State::READY : fiber.state;
            }
        } else if (!ran) {
            give_up("some lanes of a warp wait in an exchange that others never reach");
        }
    }
}

}  // namespace

const Place& place() { return current->place; }

void exchange(const char* what, void* mine, void (*all)(const Lanes& lanes)) {
    const size_t warp = static_cast<size_t>(current - fibers.data()) / LANES;
    Warp& here = warps[warp];
    if (here.arrived > 0 && std::strcmp(here.what, what) != 0) {
        give_up("lanes of a warp are in different exchanges");
    }
    here.what = what;
    here.lanes[static_cast<size_t>(current->place.lane)] = mine;
    if (++here.arrived < LANES) {
        yield(State::AT_EXCHANGE);
        return;
    }
    here.arrived = 0;
    all(here.lanes);
    for (size_t lane = 0; lane < LANES; ++lane) {
        fibers[warp * LANES + lane].state = State::READY;
    }
}

void block_barrier() { yield(State::AT_BARRIER); }

void copy_async(void* shared, const void* global, bool valid) {
    if (reinterpret_cast<uintptr_t>(shared) % COPY_BYTES || reinterpret_cast<uintptr_t>(global) % COPY_BYTES) {
        give_up("an asynchronous copy's address is no multiple of 16");
    }
    std::memset(shared, 0xff, COPY_BYTES);
    current->open.push_back({shared, global, valid});
}

void commit_copies() {
    current->groups.push_back(std::move(current->open));
    current->open.clear();
}

void wait_copies(int groups) {
    while (current->groups.size() > static_cast<size_t>(groups)) {
        for (const Copy& copy : current->groups.front()) {
            if (copy.valid) {
                std::memcpy(copy.shared, copy.global, COPY_BYTES);
            } else {
                std::memset(copy.shared, 0, COPY_BYTES);
            }
        }
        current->groups.pop_front();
    }
}

void launch(Dim grid, Dim block, size_t shared_bytes, const std::function<void()>& kernel) {
    static Stacks stacks;
    static GuardedMemory* shared = nullptr;
    static size_t shared_is = 0;
    shared_bytes = (shared_bytes + COPY_BYTES - 1) / COPY_BYTES * COPY_BYTES;  // so that its start is aligned
    if (!shared || shared_is != shared_bytes) {
        delete shared;
        shared = new GuardedMemory(shared_bytes);
        shared_is = shared_bytes;
    }
    const size_t threads = size_t{block.x} * block.y * block.z;
    if (threads % LANES != 0 || block.y != 1 || block.z != 1) {
        give_up("a thread block of a size that is not emulated");
    }
    std::mt19937 random(seed());
    running_kernel = &kernel;
    for (unsigned number = 0; number < grid.x * grid.y * grid.z; ++number) {
        const Dim index = {number % grid.x, number / grid.x % grid.y, number / grid.x / grid.y};
        shared->poison();
        fibers.assign(threads, Fiber());
        warps.assign(threads / LANES, Warp());
        for (size_t i = 0; i < threads; ++i) {
            Fiber& fiber = fibers[i];
            const unsigned thread = static_cast<unsigned>(i);
            fiber.place = {{thread, 0, 0}, index, block, grid, static_cast<int>(i % LANES), shared->begin()};
            set_up(fiber, stacks[i]);
        }
        run_block(random);
    }
    current = nullptr;
}

}  // namespace emulator
