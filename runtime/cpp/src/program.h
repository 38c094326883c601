// The program of a manifest over one rollout's buffers: every engine call, bound once to where its tensors lie.
//
// Nothing is moved between passes: the sample and each carry lie in a pair of buffers that change roles, and an engine
// is bound for each side that they can be on. Nothing here allocates but the constructor, state() and fork().
#pragma once

#include <array>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "backend.h"
#include "manifest.h"

namespace videossm::internal {

using Engines = std::map<std::string, std::unique_ptr<Engine>>;

class Program {
public:
    // All of them outlive it.
    Program(const Manifest& manifest, Backend& backend, const Engines& engines);
    Program(const Program&) = delete;
    Program& operator=(const Program&) = delete;

    // Can a clean sample go on as if the passes had made it? Not where each pass keeps a state of its own.
    bool takes_samples() const { return of_pass_.empty(); }
    // Does a new prompt change what lies in the window?
    bool recommits() const { return commits_ && !committed_.empty() && manifest_.text.has_value(); }
    size_t sample_count() const { return samples_[0]->size_bytes() / sizeof(float); }

    // Token ids and mask [B, L] become the prompt's states.
    void encode_prompt(const int64_t* ids, const int64_t* mask);
    // Positions of the window's frames and of this chunk's, and rho.
    void place(const int64_t* slots, const int64_t* frames, float rho);
    // The calls before the passes.
    void prepare();
    // The noise [B, ..] that a chunk starts from.
    void start(const float* noise) { samples_[0]->write(noise); }
    // A clean sample [B, ..] from outside, as if the passes had made it; the one that commits still runs.
    void take(const float* sample);
    // Fresh noise [B, ..] for the next pass.
    void freshen(const float* noise) { write("noise", noise); }
    // One pass. What it writes to states is read from the next commit() on, so that a chunk can be given up.
    void run_pass(size_t index) { run(passes_[index]); }
    // The passes of a chunk are done: what they carry moves on.
    void commit();
    // Runs the committing pass again on the clean sample in the chunk slot, where what it writes is kept.
    void recommit(int64_t slot);
    // What lies in the chunk slot goes where the calls at an eviction take it.
    void evict(int64_t slot);
    // What the committing pass wrote for the ring, and the clean sample, into the chunk slot.
    void store(int64_t slot);
    // The calls after the passes. The frames [B, T, H, W, 3], until the next call.
    const uint8_t* finish(bool first);
    // The sample [B, ..] after the last pass.
    void read_clean(float* sample) const { clean_->read(sample); }

    // All that the next chunk depends on beside the prompt, by the names of a state file.
    std::map<std::string, Buffer*> state() const;
    // Makes the state of `other`, of the same plan, this one's too, the prompt's included.
    void copy_from(const Program& other);

    // Seconds inside an engine so far, by its place in the manifest.
    double seconds(size_t engine) const { return stopwatches_[engine]->seconds(); }

private:
    using Owned = std::map<std::string, std::unique_ptr<Buffer>>;

    // States that move on together: of two sets of buffers one is read and the other written.
    struct Carry {
        std::array<Owned, 2> sides;
        size_t side = 0;

        void swap() { side = 1 - side; }
        bool has(const std::string& state) const { return sides[0].count(state) != 0; }
    };

    // An engine with its tensors, for every combination of the sides of the carries that it reads or writes.
    struct Call {
        size_t engine;  // place in the manifest
        std::vector<const Carry*> carries;
        std::vector<std::unique_ptr<BoundEngine>> bound;
    };

    struct Copy {
        const Buffer* source;
        Buffer* target;
    };

    // What a call reads and writes besides what every call may.
    struct Special {
        int pass = -1;
        std::map<std::string, Buffer*> evicted;
        Buffer* frames = nullptr;
    };

    void take_memory();
    void take_carries();
    void take_ring();
    void bind_all();
    void bind_evictions(const std::vector<std::string>& names);
    Call call(const std::string& name, const Special& special);
    Buffer* source_of(const std::string& source, const Special& special, const std::map<std::string, Buffer*>& past);
    size_t side_of(size_t pass) const;
    Owned buffers(const std::vector<const TensorSpec*>& tensors);

    void run(const Call& call);
    void run(const std::vector<Call>& calls);
    void copy(const std::vector<Copy>& copies);
    void write(const char* source, const void* values);

    const Manifest& manifest_;
    Backend& backend_;
    const Engines& engines_;
    const size_t last_;
    bool commits_ = false;
    std::vector<std::unique_ptr<Stopwatch>> stopwatches_;  // by engine

    // Memory. Keys are names of states, but for those of controls_, which are sources.
    std::map<std::string, std::unique_ptr<Buffer>, std::less<>> controls_;
    std::unique_ptr<Buffer> no_noise_;  // zeros for passes that draw none
    std::vector<Owned> scalars_;        // by pass
    std::array<std::unique_ptr<Buffer>, 2> samples_;
    Buffer* clean_ = nullptr;  // the one that the last pass leaves
    std::map<int64_t, std::unique_ptr<Buffer>> frames_;  // by their number
    Owned prompt_, chunk_, present_, ring_;  // present_: what the committing pass wrote for the ring
    Carry evicting_, finishing_, committing_;
    std::vector<Carry> of_pass_;

    // The program.
    std::map<std::string, Buffer*> committed_;  // what a chunk slot keeps, by the names of a state file
    std::vector<std::unique_ptr<Buffer>> parts_;  // of the ring
    std::vector<std::map<std::string, Buffer*>> slots_;
    std::vector<std::vector<Copy>> stored_, staged_;  // by chunk slot
    std::vector<Copy> recommitted_;                   // by chunk slot
    Owned staging_;
    std::vector<Call> on_prompt_, before_, passes_;
    std::array<std::vector<Call>, 2> after_;  // of later chunks, of the first
    std::vector<std::vector<Call>> evict_;    // by chunk slot
};

}  // namespace videossm::internal
