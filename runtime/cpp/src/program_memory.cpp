// The buffers of a program, all taken here, and its engine calls, bound here to where their tensors lie.
#include <algorithm>
#include <set>

#include "program.h"

namespace videossm::internal {
namespace {

constexpr const char* kControls[] = {"window.slot_position", "window.frame_position", "window.rho",
                                     "text.ids", "text.mask", "noise"};

std::vector<const TensorSpec*> states_of_kind(const Manifest& manifest, const char* kind) {
    std::vector<const TensorSpec*> found;
    for (const State& state : manifest.states) {
        if (state.kind == kind) {
            found.push_back(&state);
        }
    }
    return found;
}

// The carries that any of `engines` writes.
std::vector<const TensorSpec*> carried(const Manifest& manifest, const std::vector<std::string>& engines, bool per_pass) {
    std::set<std::string> targets;
    for (const std::string& name : engines) {
        for (const Output& tensor : manifest.engine(name)->outputs) {
            targets.insert(tensor.target);
        }
    }
    std::vector<const TensorSpec*> found;
    for (const State& state : manifest.states) {
        if (state.kind == "carry" && state.per_pass == per_pass && targets.count("state." + state.name) != 0) {
            found.push_back(&state);
        }
    }
    return found;
}

}  // namespace

Program::Owned Program::buffers(const std::vector<const TensorSpec*>& tensors) {
    Owned made;
    for (const TensorSpec* tensor : tensors) {
        made[tensor->name] = backend_.buffer(tensor->dtype, tensor->shape);
    }
    return made;
}

void Program::take_memory() {
    for (const auto& [name, engine] : manifest_.engines) {
        stopwatches_.push_back(backend_.stopwatch());
        for (const Input& tensor : engine.inputs) {
            const bool control = std::find(std::begin(kControls), std::end(kControls), tensor.source) != std::end(kControls);
            if (control && controls_.count(tensor.source) == 0) {
                controls_[tensor.source] = backend_.buffer(tensor.dtype, tensor.shape);
            }
        }
    }
    const Shape& sample = manifest_.sample().shape;
    const bool all_draw = std::all_of(manifest_.passes.begin(), manifest_.passes.end(), [](const Pass& p) { return p.noise; });
    if (controls_.count("noise") != 0 && !all_draw) {
        no_noise_ = backend_.buffer(DType::float32, sample);
    }
    for (const Pass& pass : manifest_.passes) {
        Owned& values = scalars_.emplace_back();
        for (const auto& [name, number] : pass.scalars) {
            const auto value = static_cast<float>(number);
            values[name] = backend_.buffer(DType::float32, {1});
            values[name]->write(&value);
        }
    }
    for (std::unique_ptr<Buffer>& each : samples_) {
        each = backend_.buffer(DType::float32, sample);
    }
    clean_ = samples_[side_of(last_ + 1)].get();
    commits_ = manifest_.passes[last_].commits;
    const Stream& stream = manifest_.stream;
    for (const int64_t count : {stream.first_frames, stream.later_frames}) {
        if (frames_.count(count) == 0) {
            frames_[count] = backend_.buffer(DType::uint8, {stream.batch, count, stream.height, stream.width, 3});
            frames_[count]->host();  // takes what it needs on the host now, and not in a chunk
        }
    }
    prompt_ = buffers(states_of_kind(manifest_, "prompt"));
    chunk_ = buffers(states_of_kind(manifest_, "chunk"));
}

void Program::take_carries() {
    std::vector<std::string> passes, after = manifest_.called("after");
    for (const Pass& pass : manifest_.passes) {
        passes.push_back(pass.engine);
    }
    for (const std::string& name : manifest_.called("after_first", "after_later")) {
        after.push_back(name);
    }
    for (const size_t side : {0u, 1u}) {
        evicting_.sides[side] = buffers(carried(manifest_, manifest_.called("evict"), false));
        finishing_.sides[side] = buffers(carried(manifest_, after, false));
        committing_.sides[side] = buffers(carried(manifest_, passes, false));
    }
    const std::vector<const TensorSpec*> per_pass = carried(manifest_, passes, true);
    of_pass_.resize(per_pass.empty() ? 0 : manifest_.passes.size());
    for (Carry& carry : of_pass_) {
        carry.sides = {buffers(per_pass), buffers(per_pass)};
    }
}

// The ring keeps what a commit leaves and, where a new prompt needs it again, the clean sample.
void Program::take_ring() {
    present_ = buffers(states_of_kind(manifest_, "ring"));
    const std::map<std::string, TensorSpec> kept = manifest_.kept();
    for (const auto& [name, buffer] : present_) {
        committed_[name] = buffer.get();
    }
    if (kept.count(kSample) != 0) {
        committed_[kSample] = clean_;
    }
    for (const auto& [name, buffer] : committed_) {
        ring_[name] = backend_.buffer(buffer->dtype, kept.at(name).shape);
    }
    const int64_t chunks = manifest_.window ? manifest_.window->chunks : 0;
    for (int64_t slot = 0; slot < chunks; ++slot) {
        std::map<std::string, Buffer*>& parts = slots_.emplace_back();
        std::vector<Copy>& copies = stored_.emplace_back();
        for (const auto& [name, ring] : ring_) {
            const int64_t size = committed_.at(name)->shape[1];
            parts_.push_back(ring->part(slot * size, (slot + 1) * size));
            parts[name] = parts_.back().get();
            copies.push_back({committed_.at(name), parts_.back().get()});
        }
        if (recommits()) {
            recommitted_.push_back({parts.at(kSample), samples_[side_of(last_)].get()});
        }
    }
}

void Program::bind_all() {
    for (const std::string& name : manifest_.called("prompt")) {
        on_prompt_.push_back(call(name, {}));
    }
    for (const std::string& name : manifest_.called("before")) {
        before_.push_back(call(name, {}));
    }
    for (size_t i = 0; i < manifest_.passes.size(); ++i) {
        Special special;
        special.pass = static_cast<int>(i);
        passes_.push_back(call(manifest_.passes[i].engine, special));
    }
    for (const bool first : {false, true}) {
        Special special;
        special.frames = frames_.at(first ? manifest_.stream.first_frames : manifest_.stream.later_frames).get();
        for (const std::string& name : manifest_.called("after", first ? "after_first" : "after_later")) {
            after_[first].push_back(call(name, special));
        }
    }
    const std::vector<std::string> evictions = manifest_.called("evict");
    if (!evictions.empty()) {
        bind_evictions(evictions);
    }
}

// The engines read the ring in place where a chunk slot is bindable, else a copy of it.
void Program::bind_evictions(const std::vector<std::string>& names) {
    std::set<std::string> wanted;
    for (const std::string& name : names) {
        for (const Input& tensor : manifest_.engine(name)->inputs) {
            if (tensor.source.compare(0, 8, "evicted.") == 0) {
                wanted.insert(std::string(state_read(tensor.source)));
            }
        }
    }
    for (const std::map<std::string, Buffer*>& slot : slots_) {
        Special special;
        std::vector<Copy>& copies = staged_.emplace_back();
        for (const std::string& state : wanted) {
            Buffer* part = slot.at(state);
            if (!part->bindable()) {
                if (staging_.count(state) == 0) {
                    staging_[state] = backend_.buffer(part->dtype, part->shape);
                }
                copies.push_back({part, staging_[state].get()});
                part = staging_[state].get();
            }
            special.evicted["evicted." + state] = part;
        }
        std::vector<Call>& calls = evict_.emplace_back();
        for (const std::string& name : names) {
            calls.push_back(call(name, special));
        }
    }
}

// Engine `name` with its tensors, for every combination of sides.
Program::Call Program::call(const std::string& name, const Special& special) {
    const size_t index = manifest_.engine_index.find(name)->second;
    const EngineSpec& spec = manifest_.engines[index].second;
    Call made;
    made.engine = index;
    std::vector<const Carry*> known = {&evicting_, &finishing_, &committing_};
    if (special.pass >= 0 && !of_pass_.empty()) {
        known.push_back(&of_pass_[static_cast<size_t>(special.pass)]);
    }
    for (const Carry* carry : known) {
        const auto touches = [&](const std::string& tensor) {
            return tensor.compare(0, 6, "state.") == 0 && carry->has(tensor.substr(6));
        };
        if (std::any_of(spec.inputs.begin(), spec.inputs.end(), [&](const Input& t) { return touches(t.source); }) ||
            std::any_of(spec.outputs.begin(), spec.outputs.end(), [&](const Output& t) { return touches(t.target); })) {
            made.carries.push_back(carry);
        }
    }
    for (size_t sides = 0; sides < size_t{1} << made.carries.size(); ++sides) {
        std::map<std::string, Buffer*> past, following;
        for (size_t i = 0; i < made.carries.size(); ++i) {
            const size_t side = sides >> (made.carries.size() - 1 - i) & 1;
            for (const auto& [state, buffer] : made.carries[i]->sides[side]) {
                past["state." + state] = buffer.get();
            }
            for (const auto& [state, buffer] : made.carries[i]->sides[1 - side]) {
                following["state." + state] = buffer.get();
            }
        }
        for (const Owned* written : {&prompt_, &chunk_, &present_}) {
            for (const auto& [state, buffer] : *written) {
                following["state." + state] = buffer.get();
            }
        }
        following["frames"] = special.frames;
        if (special.pass >= 0) {
            following["sample"] = samples_[side_of(static_cast<size_t>(special.pass) + 1)].get();
        }
        std::vector<Bound> inputs, outputs;
        for (const Input& tensor : spec.inputs) {
            inputs.push_back({tensor.name, source_of(tensor.source, special, past)});
        }
        for (const Output& tensor : spec.outputs) {
            outputs.push_back({tensor.name, following.at(tensor.target)});
        }
        made.bound.push_back(engines_.at(name)->bind(inputs, outputs));
    }
    return made;
}

Buffer* Program::source_of(const std::string& source, const Special& special, const std::map<std::string, Buffer*>& past) {
    if (const auto found = past.find(source); found != past.end()) {
        return found->second;
    }
    if (const auto found = special.evicted.find(source); found != special.evicted.end()) {
        return found->second;
    }
    if (source == "clean") {
        return clean_;
    }
    if (special.pass >= 0) {
        const auto pass = static_cast<size_t>(special.pass);
        if (source == "sample") {
            return samples_[side_of(pass)].get();
        }
        if (source == "noise" && !manifest_.passes[pass].noise) {
            return no_noise_.get();
        }
        if (source.compare(0, 5, "pass.") == 0) {
            return scalars_[pass].at(source.substr(5)).get();
        }
    }
    if (const auto found = controls_.find(source); found != controls_.end()) {
        return found->second.get();
    }
    const std::string state(state_read(source));
    for (const Owned* held : {&prompt_, &chunk_, &ring_}) {
        if (const auto found = held->find(state); found != held->end()) {
            return found->second.get();
        }
    }
    return nullptr;
}

}  // namespace videossm::internal
