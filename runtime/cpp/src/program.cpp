// What a rollout asks for while it runs; program_memory.cpp has how it is set up.
#include "program.h"

namespace videossm::internal {

Program::Program(const Manifest& manifest, Backend& backend, const Engines& engines)
    : manifest_(manifest), backend_(backend), engines_(engines), last_(manifest.passes.size() - 1) {
    take_memory();
    take_carries();
    take_ring();
    bind_all();
}

void Program::encode_prompt(const int64_t* ids, const int64_t* mask) {
    write("text.ids", ids);
    write("text.mask", mask);
    run(on_prompt_);
}

void Program::place(const int64_t* slots, const int64_t* frames, float rho) {
    write("window.slot_position", slots);
    write("window.frame_position", frames);
    write("window.rho", &rho);
}

void Program::prepare() { run(before_); }

void Program::take(const float* sample) {
    if (commits_) {
        samples_[side_of(last_)]->write(sample);
        run_pass(last_);
    } else {
        clean_->write(sample);
    }
}

void Program::commit() {
    for (Carry& carry : of_pass_) {
        carry.swap();
    }
    if (commits_) {
        committing_.swap();
    }
}

void Program::recommit(int64_t slot) {
    const Copy& sample = recommitted_[static_cast<size_t>(slot)];
    backend_.copy(*sample.source, *sample.target);
    run_pass(last_);
    store(slot);
}

void Program::evict(int64_t slot) {
    if (!evict_.empty()) {
        copy(staged_[static_cast<size_t>(slot)]);
        run(evict_[static_cast<size_t>(slot)]);
        evicting_.swap();
    }
}

void Program::store(int64_t slot) { copy(stored_[static_cast<size_t>(slot)]); }

const uint8_t* Program::finish(bool first) {
    run(after_[first]);
    finishing_.swap();
    const Stream& stream = manifest_.stream;
    return static_cast<const uint8_t*>(frames_.at(first ? stream.first_frames : stream.later_frames)->host());
}

std::map<std::string, Buffer*> Program::state() const {
    std::map<std::string, Buffer*> found;
    for (const auto& [name, buffer] : ring_) {
        found[name] = buffer.get();
    }
    for (const Carry* carry : {&evicting_, &finishing_, &committing_}) {
        for (const auto& [name, buffer] : carry->sides[carry->side]) {
            found[name] = buffer.get();
        }
    }
    for (size_t pass = 0; pass < of_pass_.size(); ++pass) {
        for (const auto& [name, buffer] : of_pass_[pass].sides[of_pass_[pass].side]) {
            found[name + "@" + std::to_string(pass)] = buffer.get();
        }
    }
    return found;
}

void Program::copy_from(const Program& other) {
    const std::map<std::string, Buffer*> mine = state(), its = other.state();
    for (const auto& [name, buffer] : its) {
        backend_.copy(*buffer, *mine.at(name));
    }
    for (const auto& [name, buffer] : other.prompt_) {
        backend_.copy(*buffer, *prompt_.at(name));
    }
    backend_.copy(*other.clean_, *clean_);
}

void Program::run(const Call& call) {
    size_t sides = 0;
    for (const Carry* carry : call.carries) {
        sides = 2 * sides + carry->side;
    }
    stopwatches_[call.engine]->start();
    call.bound[sides]->run();
    stopwatches_[call.engine]->stop();
}

void Program::run(const std::vector<Call>& calls) {
    for (const Call& each : calls) {
        run(each);
    }
}

void Program::copy(const std::vector<Copy>& copies) {
    for (const Copy& each : copies) {
        backend_.copy(*each.source, *each.target);
    }
}

// Where an engine reads it.
void Program::write(const char* source, const void* values) {
    const auto found = controls_.find(std::string_view(source));
    if (found != controls_.end()) {
        found->second->write(values);
    }
}

// Which of the two samples pass `pass` reads: a pass that writes none leaves the sample where it is.
size_t Program::side_of(size_t pass) const {
    size_t writes = 0;
    for (size_t i = 0; i < pass; ++i) {
        for (const Output& tensor : manifest_.engine(manifest_.passes[i].engine)->outputs) {
            writes += tensor.target == "sample";
        }
    }
    return writes % 2;
}

}  // namespace videossm::internal
