// What the tests see of the library's inside, which its C interface does not show.
//
// probe philox C0 C1 C2 C3 KEY    random words, in hexadecimal
// probe noise SEED CHUNK DRAW COUNT    SHA-256 of the numbers
// probe hashes FILE    SHA-256 of it, and whether both ways of a block agree on it
// probe tokens FILE    for each line of the standard input: the ids of tokenizer.json FILE, or none
// probe halves    SHA-256 of all floats of two bytes as fp32 and back, and of fp32 numbers as floats of two bytes
// probe allocations PLAN CHUNKS [PROMPT PROMPT]    how often memory was taken to open it, then in each chunk outside of
//     the engines
// probe resident PLAN CHUNKS [PROMPT]    KiB of resident memory after each hundred chunks
#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iostream>
#include <string>

#include "error.h"
#include "half.h"
#include "noise.h"
#include "rollout.h"
#include "files.h"
#include "sha256.h"

#if defined(__GLIBC__) && !defined(VIDEOSSM_SANITIZED)
#define VIDEOSSM_COUNTS_MALLOC
extern "C" void* __libc_malloc(size_t);
extern "C" void* __libc_calloc(size_t, size_t);
extern "C" void* __libc_realloc(void*, size_t);
#endif

namespace {

thread_local bool counting = false;
thread_local int64_t taken = 0;

}  // namespace

#if defined(VIDEOSSM_COUNTS_MALLOC)
extern "C" void* malloc(size_t size) {
    taken += counting;
    return __libc_malloc(size);
}
extern "C" void* calloc(size_t count, size_t size) {
    taken += counting;
    return __libc_calloc(count, size);
}
extern "C" void* realloc(void* memory, size_t size) {
    taken += counting;
    return __libc_realloc(memory, size);
}
#endif

namespace {

using namespace videossm::internal;

// An engine whose own work is not counted.
class Uncounted : public Engine {
public:
    explicit Uncounted(std::unique_ptr<Engine> engine) : engine_(std::move(engine)) {}

    std::unique_ptr<BoundEngine> bind(const std::vector<videossm::internal::Bound>& inputs,
                                      const std::vector<videossm::internal::Bound>& outputs) override {
        return std::make_unique<Run>(engine_->bind(inputs, outputs));
    }

private:
    struct Run : BoundEngine {
        explicit Run(std::unique_ptr<BoundEngine> bound) : bound(std::move(bound)) {}
        void run() override {
            const bool before = counting;
            counting = false;
            bound->run();
            counting = before;
        }
        std::unique_ptr<BoundEngine> bound;
    };

    std::unique_ptr<Engine> engine_;
};

std::optional<Prompts> prompts_of(const Plan& plan, const char* text) {
    if (!text) {
        return std::nullopt;
    }
    return encode_prompts(plan, std::vector<std::string>(static_cast<size_t>(plan.manifest().stream.batch), text));
}

std::unique_ptr<Rollout> rollout_of(const std::shared_ptr<const Plan>& plan, const char* prompt) {
    std::vector<uint64_t> seeds(static_cast<size_t>(plan->manifest().stream.batch), 5);
    return std::make_unique<Rollout>(plan, prompts_of(*plan, prompt), seeds, Progress());
}

void count_allocations(const char* path, int chunks, const char* first, const char* second) {
    taken = 0;
    counting = true;
    auto plan = std::make_shared<Plan>();
    plan->files = open_plan_files(path);
    plan->tokenizer = first ? WordLevel::read(read_whole(plan->files.folder / kTokenizerFile)) : nullptr;
    plan->backend = open_backend(plan->manifest(), 1, 0);
    for (const auto& [name, spec] : plan->manifest().engines) {
        plan->engines[name] = std::make_unique<Uncounted>(
            plan->backend->load(spec, text_of(plan->files.folder / path_of(spec.file))));
    }
    const auto rollout = rollout_of(plan, first);
    counting = false;
    std::printf("%" PRId64 "\n", taken);
    for (int i = 0; i < chunks; ++i) {
        if (i == chunks / 2 && second) {
            rollout->set_prompts(*prompts_of(*plan, second));
        }
        ChunkView view;
        taken = 0;
        counting = true;
        rollout->next(view);
        counting = false;
        std::printf("%" PRId64 "\n", taken);
    }
}

void show_resident(const char* path, int chunks, const char* prompt) {
    const auto plan = open_plan(path, 1, 0, [](const std::string&) {});
    const auto rollout = rollout_of(plan, prompt);
    for (int i = 1; i <= chunks; ++i) {
        ChunkView view;
        rollout->next(view);
        if (i % 100 == 0) {
            std::ifstream status("/proc/self/status");
            std::string word;
            while (word != "RssAnon:") {  // pages of files come and go as the machine likes
                status >> word;
            }
            int64_t kib = 0;
            status >> kib;
            std::printf("%" PRId64 "\n", kib);
        }
    }
}

void show_halves() {
    Sha256 hash;
    for (uint32_t bits = 0; bits < 0x10000; ++bits) {
        const auto half = static_cast<uint16_t>(bits);
        for (const float value : {from_float16(half), from_bfloat16(half)}) {
            if (std::isfinite(value)) {
                hash.update(&value, sizeof value);
            }
        }
    }
    for (uint32_t bits = 0; bits < 0xFFFF0000; bits += 997) {
        const float value = float_of(bits);
        if (std::isfinite(value)) {
            const uint16_t halves[] = {to_float16(value), to_bfloat16(value)};
            hash.update(halves, sizeof halves);
        }
    }
    std::printf("%s\n", hash.digits().c_str());
}

void show_hashes(const char* file) {
    std::string content = read_whole(path_of(file));
    std::printf("%s\n", sha256_of_file(path_of(file)).c_str());
    content.resize((content.size() + 63) / 64 * 64);
    Sha256State plain = {}, fast = {};
    const bool two_ways = has_sha_instructions();
    for (size_t at = 0; at < content.size(); at += 64) {
        const auto* block = reinterpret_cast<const unsigned char*>(content.data() + at);
        sha256_block_plain(plain, block);
        if (two_ways) {
            sha256_block_fast(fast, block);
        }
    }
    std::printf("%s\n", !two_ways ? "one way" : plain == fast ? "equal" : "different");
}

void show_tokens(const char* file) {
    const auto tokenizer = WordLevel::read(read_whole(path_of(file)));
    std::string prompt;
    while (std::getline(std::cin, prompt)) {
        if (tokenizer) {
            for (const WordLevel::Token& token : tokenizer->tokens(prompt)) {
                std::printf("%" PRId64 ":%zu:%zu ", token.id, static_cast<size_t>(token.text.data() - prompt.data()),
                            token.text.size());
            }
        } else {
            std::printf("none");
        }
        std::printf("\n");
    }
}

uint64_t number(const char* text) { return std::strtoull(text, nullptr, 0); }

}  // namespace

int main(int argc, char** argv) {
    const std::string what = argc > 1 ? argv[1] : "";
    const auto argument = [&](int index) { return index < argc ? argv[index] : nullptr; };
    try {
        if (what == "philox" && argc == 7) {
            Words counter;
            for (size_t i = 0; i < 4; ++i) {
                counter[i] = static_cast<uint32_t>(number(argv[2 + i]));
            }
            for (const uint32_t word : philox4x32(counter, number(argv[6]))) {
                std::printf("%08x ", word);
            }
            std::printf("\n");
        } else if (what == "noise" && argc == 6) {
            std::vector<float> values(number(argv[5]));
            noise(number(argv[2]), number(argv[3]), static_cast<uint32_t>(number(argv[4])), values.data(), values.size());
            Sha256 hash;
            hash.update(values.data(), values.size() * sizeof(float));
            std::printf("%s\n", hash.digits().c_str());
        } else if (what == "hashes" && argc == 3) {
            show_hashes(argv[2]);
        } else if (what == "tokens" && argc == 3) {
            show_tokens(argv[2]);
        } else if (what == "halves") {
            show_halves();
        } else if (what == "allocations" && argc >= 4) {
            count_allocations(argv[2], std::atoi(argv[3]), argument(4), argument(5));
        } else if (what == "resident" && argc >= 4) {
            show_resident(argv[2], std::atoi(argv[3]), argument(4));
        } else {
            return 2;
        }
    } catch (const std::exception& error) {
        std::fprintf(stderr, "%s\n", error.what());
        return 1;
    }
    return 0;
}
