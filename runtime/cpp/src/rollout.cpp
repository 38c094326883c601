#include "rollout.h"

#include "error.h"
#include "noise.h"

namespace videossm::internal {
namespace {

std::vector<std::string> texts_of(const std::optional<Prompts>& prompts) {
    if (!prompts) {
        return {};
    }
    if (prompts->texts.empty()) {
        throw state_error("state: got a prompt that was given as token ids, which a state file does not hold, expected a "
                          "text; take a snapshot instead");
    }
    return prompts->texts;
}

}  // namespace

Rollout::Rollout(std::shared_ptr<const Plan> plan, std::optional<Prompts> prompts, std::vector<uint64_t> seeds,
                 Progress progress)
    : plan_(std::move(plan)),
      progress_(std::move(progress)),
      program_(plan_->manifest(), *plan_->backend, plan_->engines),
      seeds_(std::move(seeds)),
      noise_(program_.sample_count()),
      pending_(std::move(prompts)) {
    if (plan_->manifest().window) {
        ring_.emplace(*plan_->manifest().window);
    }
}

Rollout::Rollout(std::shared_ptr<const Plan> plan, const Snapshot& snapshot, Progress progress)
    : Rollout(std::move(plan), std::nullopt, snapshot.seeds, std::move(progress)) {
    restore(snapshot);
}

int64_t Rollout::next_frames() const {
    const Stream& stream = plan_->manifest().stream;
    return ended() ? 0 : chunk_ == 0 ? stream.first_frames : stream.later_frames;
}

Rollout::Outcome Rollout::next(ChunkView& view) {
    check_whole();
    if (take_cancel()) {
        return Outcome::cancelled;
    }
    if (ended()) {
        return Outcome::ended;
    }
    switch_prompt();
    if (!denoise()) {
        return Outcome::cancelled;
    }
    keep();
    view = finish();
    return Outcome::chunk;
}

ChunkView Rollout::append(const float* sample, size_t count) {
    check_whole();
    if (ended()) {
        throw argument_error("sample: got one after the " + std::to_string(chunk_) +
                             " chunks of the clip, expected none; start another");
    }
    if (!program_.takes_samples()) {
        throw argument_error("sample: got one for a plan whose passes keep states, expected none; make the chunk");
    }
    if (count != sample_count()) {
        throw argument_error("sample: got " + std::to_string(count) + " numbers, expected " +
                             std::to_string(sample_count()) + "; encode it for this plan");
    }
    switch_prompt();
    prepare(chunk_, ring_ ? ring_->held_count(chunk_) : 0);
    program_.take(sample);
    keep();
    return finish();
}

void Rollout::read_sample(float* sample) const {
    check_whole();
    if (!made_) {
        throw state_error("rollout: got no chunk yet, expected one; make the next one first");
    }
    program_.read_clean(sample);
}

void Rollout::set_prompts(Prompts prompts) {
    const std::lock_guard<std::mutex> lock(mutex_);
    pending_ = std::move(prompts);
}

Snapshot Rollout::snapshot() const {
    check_whole();
    Snapshot made;
    made.prompts = prompts_;
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        made.pending = pending_;
    }
    made.seeds = seeds_;
    made.chunk = chunk_;
    for (const auto& [name, buffer] : program_.state()) {
        std::vector<char>& values = made.tensors[name];
        values.resize(buffer->size_bytes());
        buffer->read(values.data());
    }
    return made;
}

void Rollout::restore(const Snapshot& snapshot) {
    const std::map<std::string, Buffer*> buffers = program_.state();
    bool fits = buffers.size() == snapshot.tensors.size();
    for (const auto& [name, values] : snapshot.tensors) {
        const auto found = buffers.find(name);
        fits = fits && found != buffers.end() && found->second->size_bytes() == values.size();
    }
    if (!fits || snapshot.seeds.size() != seeds_.size()) {
        throw state_error("snapshot: got one of another plan, expected one of this plan; take another");
    }
    torn_ = true;
    for (const auto& [name, values] : snapshot.tensors) {
        buffers.at(name)->write(values.data());
    }
    if (!snapshot.prompts) {
        prompts_.reset();
    } else if (!prompts_ || !prompts_->same_tokens(*snapshot.prompts)) {
        encode(*snapshot.prompts);
    } else {
        prompts_ = snapshot.prompts;
    }
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        pending_ = snapshot.pending;
    }
    seeds_ = snapshot.seeds;
    chunk_ = snapshot.chunk;
    made_ = torn_ = false;
}

std::unique_ptr<Rollout> Rollout::fork() const {
    check_whole();
    std::optional<Prompts> pending;
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        pending = pending_;
    }
    auto other = std::make_unique<Rollout>(plan_, std::move(pending), seeds_, Progress());
    other->program_.copy_from(program_);
    other->prompts_ = prompts_;
    other->chunk_ = chunk_;
    other->made_ = made_;
    return other;
}

void Rollout::check_whole() const {
    if (torn_) {
        throw state_error("rollout: interrupted within a chunk, whose state is lost, expected a whole one; "
                          "resume from a saved state");
    }
}

// A new prompt makes the window again, chunk by chunk in the video's order; what was carried stays.
void Rollout::switch_prompt() {
    torn_ = true;
    std::optional<Prompts> pending;
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        pending.swap(pending_);
    }
    if (pending && prompts_ && pending->same_tokens(*prompts_)) {
        prompts_ = std::move(pending);
    } else if (pending) {
        encode(std::move(*pending));
        recommit();
    }
    torn_ = false;
}

void Rollout::encode(Prompts prompts) {
    program_.encode_prompt(prompts.ids.data(), prompts.mask.data());
    prompts_ = std::move(prompts);
}

void Rollout::recommit() {
    if (!ring_ || !program_.recommits()) {
        return;
    }
    for (int64_t rank = 0; rank < ring_->held_count(chunk_); ++rank) {
        const int64_t chunk = ring_->held(chunk_, rank);
        prepare(chunk, rank);
        program_.recommit(ring_->slot(chunk));
    }
}

bool Rollout::denoise() {
    made_ = false;
    prepare(chunk_, ring_ ? ring_->held_count(chunk_) : 0);
    program_.start(noise_of(0));
    const std::vector<Pass>& passes = plan_->manifest().passes;
    for (size_t i = 0; i < passes.size(); ++i) {
        if (take_cancel()) {
            return false;
        }
        if (passes[i].noise) {
            program_.freshen(noise_of(static_cast<uint32_t>(i + 1)));
        }
        program_.run_pass(i);
        if (progress_) {
            progress_(chunk_, i + 1, passes.size());
        }
    }
    return !take_cancel();
}

// What the passes wrote counts from here on. Makes room in the window, and moves the chunk in.
void Rollout::keep() {
    torn_ = true;
    program_.commit();
    if (ring_) {
        const int64_t slot = ring_->slot(chunk_);
        if (ring_->evicts(chunk_)) {
            program_.evict(slot);
        }
        program_.store(slot);
    }
}

ChunkView Rollout::finish() {
    ChunkView view;
    view.index = chunk_;
    view.start_s = plan_->manifest().stream.start_s(chunk_);
    view.frames = next_frames();
    view.pixels = program_.finish(chunk_ == 0);
    ++chunk_;
    made_ = true;
    torn_ = false;
    return view;
}

// What the passes of `chunk` read beside the sample. `visible`: how many chunks of the window count as present.
void Rollout::prepare(int64_t chunk, int64_t visible) {
    if (ring_) {
        ring_->place(chunk, chunk_, visible);
        program_.place(ring_->slot_position.data(), ring_->frame_position.data(), static_cast<float>(ring_->rho(chunk_)));
    }
    program_.prepare();
}

const float* Rollout::noise_of(uint32_t draw) {
    const size_t each = noise_.size() / seeds_.size();
    for (size_t stream = 0; stream < seeds_.size(); ++stream) {
        noise(seeds_[stream], static_cast<uint64_t>(chunk_), draw, noise_.data() + stream * each, each);
    }
    return noise_.data();
}

StateFile state_file_of(const Snapshot& snapshot) {
    StateFile file;
    file.header.prompts = texts_of(snapshot.prompts);
    if (snapshot.pending) {
        file.header.next_prompts = texts_of(snapshot.pending);
    }
    file.header.seeds = snapshot.seeds;
    file.header.chunk = snapshot.chunk;
    file.tensors = snapshot.tensors;
    return file;
}

Snapshot snapshot_of(const Plan& plan, StateFile file) {
    Snapshot snapshot;
    if (!file.header.prompts.empty()) {
        snapshot.prompts = encode_prompts(plan, file.header.prompts);
    }
    if (file.header.next_prompts && !file.header.next_prompts->empty()) {
        snapshot.pending = encode_prompts(plan, *file.header.next_prompts);
    }
    snapshot.seeds = std::move(file.header.seeds);
    snapshot.chunk = file.header.chunk;
    snapshot.tensors = std::move(file.tensors);
    return snapshot;
}

}  // namespace videossm::internal
