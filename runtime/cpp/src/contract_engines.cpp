// Single engines: every input has a source that is there when its engine runs, every output a target that it may
// write, and both are of its type.
#include <algorithm>
#include <map>

#include "contract.h"
#include "error.h"

namespace videossm::internal::contract {
namespace {

constexpr size_t kShown = 12;
const char* const kSources =
    "sample, noise, clean, pass.<scalar>, state.<name>, evicted.<name>, window.slot_position, window.frame_position, "
    "window.rho, text.ids, text.mask";
const char* const kTargets = "sample, state.<name>, frames";

const std::vector<Moment>& moments() {
    static const std::vector<Moment> all = {
        {"pass", {"sample", "noise", "window.slot_position", "window.frame_position", "window.rho"},
         {"prompt", "chunk", "ring", "carry"}, {"chunk", "ring", "carry"}},
        {"prompt", {"text.ids", "text.mask"}, {"prompt"}, {"prompt"}},
        {"before", {"window.slot_position", "window.frame_position", "window.rho"},
         {"prompt", "chunk", "ring", "carry"}, {"chunk"}},
        {"evict", {}, {"prompt", "carry"}, {"carry"}},
        {"after", {"clean"}, {"prompt", "carry"}, {"carry"}},
    };
    return all;
}

// The state that a source or target names; null where it names none.
const State* state_of(const Manifest& m, const std::string& source, const std::string& where) {
    const std::string_view name = state_read(source);
    if (name.empty()) {
        return nullptr;
    }
    if (const State* state = m.state(name)) {
        return state;
    }
    std::vector<std::string> names;
    for (const State& each : m.states) {
        names.push_back(each.name);
    }
    fail(where, source, "one of states: " + listed(names));
}

const Shape& sample_shape(const Manifest& m) {
    for (const Pass& pass : m.passes) {
        for (const Input& tensor : m.engine(pass.engine)->inputs) {
            if (tensor.source == "sample") {
                return tensor.shape;
            }
        }
    }
    fail("passes", "no engine that reads the sample", "one with an input of source sample");
}

void check_input(const Manifest& m, const Run& run, const Input& tensor, const std::string& where) {
    const std::string& source = tensor.source;
    const std::string field = where + ".source";
    if (const State* state = state_of(m, source, field)) {
        const bool evicted = source[0] == 'e';
        if (evicted && (state->kind != "ring" || !run.is("evict"))) {
            fail(field, source, "evicted.<ring> in a call at an eviction alone");
        }
        if (!evicted && run.moment->read_kinds.count(state->kind) == 0) {
            fail(field, source, "no state of kind " + state->kind + " in an engine that runs " + run.where);
        }
        if (state->per_pass && !run.is("pass")) {
            fail(field, source, "a state of each pass in passes alone");
        }
        check_type(where, tensor, state->dtype, evicted ? state->shape : m.whole_shape(*state));
        return;
    }
    if (source.compare(0, 5, "pass.") == 0 && is_name(std::string_view(source).substr(5))) {
        if (!run.is("pass")) {
            fail(field, source, "a scalar of a pass in passes alone");
        }
        check_type(where, tensor, DType::float32, {1});
        return;
    }
    const bool known = std::any_of(moments().begin(), moments().end(),
                                   [&](const Moment& moment) { return moment.readable.count(source) != 0; });
    if (!known) {
        fail(field, source, std::string("one of ") + kSources);
    }
    if (run.moment->readable.count(source) == 0) {
        const std::string allowed = listed({run.moment->readable.begin(), run.moment->readable.end()});
        fail(field, source, "one that is there when " + run.where + " runs: " + allowed);
    }
    if (source == "sample" || source == "noise" || source == "clean") {
        if (tensor.shape.empty() || tensor.shape[0] != m.stream.batch) {
            fail(where + ".shape", text_of(tensor.shape), "[batch = " + std::to_string(m.stream.batch) + ", ..]");
        }
        check_type(where, tensor, DType::float32, sample_shape(m));
    } else if (source.compare(0, 5, "text.") == 0) {
        check_type(where, tensor, DType::int64, {m.stream.batch, m.text->length});
    } else if (!m.window) {
        fail(field, source, "none of window, which is null");
    } else if (source == "window.rho") {
        check_type(where, tensor, DType::float32, {1});
    } else {
        const int64_t chunks = source == "window.slot_position" ? m.window->chunks : 1;
        check_type(where, tensor, DType::int64, {chunks * m.window->chunk_frames});
    }
}

bool reads(const EngineSpec& engine, const std::string& source) {
    return std::any_of(engine.inputs.begin(), engine.inputs.end(), [&](const Input& each) { return each.source == source; });
}

void check_output(const Manifest& m, const Run& run, const Output& tensor, const std::string& where) {
    const std::string& target = tensor.target;
    const std::string field = where + ".target";
    if (target == "sample") {
        if (!run.is("pass")) {
            fail(field, target, "the sample as a target of passes alone");
        }
        check_type(where, tensor, DType::float32, sample_shape(m));
    } else if (target == "frames") {
        if (!run.is("after")) {
            fail(field, target, "frames from a call after the passes alone");
        }
    } else {
        const State* state = target.compare(0, 8, "evicted.") == 0 ? nullptr : state_of(m, target, field);
        if (!state) {
            fail(field, target, std::string("one of ") + kTargets);
        }
        if (run.moment->written_kinds.count(state->kind) == 0) {
            fail(field, target, "no state of kind " + state->kind + " from an engine that " + run.where + " runs");
        }
        if (state->per_pass && !run.is("pass")) {
            fail(field, target, "a state of each pass from passes alone");
        }
        if (state->kind == "chunk" && run.is("pass") && !reads(*run.engine, target)) {
            fail(field, target, "no state of kind chunk from a pass, but one that it reads");
        }
        check_type(where, tensor, state->dtype, state->shape);
    }
}

}  // namespace

const Moment& moment_named(std::string_view name) {
    return *std::find_if(moments().begin(), moments().end(), [&](const Moment& each) { return name == each.name; });
}

void fail(const std::string& field, const std::string& got, const std::string& expected) {
    throw plan_error(std::string(kManifestFile) + ": " + field + ": got " + shown(got) + ", expected " + expected +
                     "; export the plan again");
}

std::string text_of(const Shape& shape) {
    std::string text = "[";
    for (const int64_t side : shape) {
        text += (text.size() > 1 ? ", " : "") + std::to_string(side);
    }
    return text + "]";
}

std::string listed(const std::vector<std::string>& names) {
    std::string text;
    for (size_t i = 0; i < names.size() && i < kShown; ++i) {
        text += (text.empty() ? "" : ", ") + names[i];
    }
    return text.empty() ? "none" : text + (names.size() > kShown ? ", .." : "");
}

void check_unique(const std::string& where, const std::vector<std::string_view>& names) {
    std::map<std::string_view, int> counts;
    for (const std::string_view name : names) {
        ++counts[name];
    }
    for (const std::string_view name : names) {
        if (counts[name] > 1) {
            fail(where, std::string(name) + " " + std::to_string(counts[name]) + " times", "each once");
        }
    }
}

void check_type(const std::string& where, const TensorSpec& tensor, DType dtype, const Shape& shape) {
    if (tensor.dtype != dtype) {
        fail(where + ".dtype", name_of(tensor.dtype), name_of(dtype));
    }
    if (tensor.shape != shape) {
        fail(where + ".shape", text_of(tensor.shape), text_of(shape));
    }
}

void check_run(const Manifest& m, const Run& run) {
    const std::string where = "engines." + run.name;
    if (run.is("prompt") && !m.text) {
        fail(run.where, run.name, "no call at a new prompt, as text is null");
    }
    if (run.is("evict") && !m.window) {
        fail(run.where, run.name, "no call at an eviction, as window is null");
    }
    std::vector<std::string_view> read, written, targets;
    for (const Input& tensor : run.engine->inputs) {
        read.push_back(tensor.name);
    }
    for (const Output& tensor : run.engine->outputs) {
        written.push_back(tensor.name);
        targets.push_back(tensor.target);
    }
    check_unique(where + ".inputs", read);
    check_unique(where + ".outputs", written);
    check_unique(where + ".outputs", targets);
    const std::set<std::string_view> inputs(read.begin(), read.end());
    for (const Output& tensor : run.engine->outputs) {
        if (inputs.count(tensor.name) != 0) {
            fail(where + ".outputs", tensor.name + " among inputs and outputs", "names of one tensor each");
        }
    }
    for (size_t i = 0; i < run.engine->inputs.size(); ++i) {
        check_input(m, run, run.engine->inputs[i], where + ".inputs." + std::to_string(i));
    }
    for (size_t i = 0; i < run.engine->outputs.size(); ++i) {
        check_output(m, run, run.engine->outputs[i], where + ".outputs." + std::to_string(i));
    }
}

}  // namespace videossm::internal::contract
