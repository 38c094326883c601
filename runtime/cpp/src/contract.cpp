// Do the parts of a manifest fit together? The checks, their order and the fields that they name are those of
// runtime/contract.py.
#include <algorithm>
#include <map>
#include <set>

#include "error.h"
#include "manifest.h"

namespace videossm::internal {
namespace {

using Words = std::set<std::string, std::less<>>;

constexpr uint64_t kMostStateBytes = uint64_t{1} << 40;
constexpr size_t kShown = 12;
const char* const kSources =
    "sample, noise, clean, pass.<scalar>, state.<name>, evicted.<name>, window.slot_position, window.frame_position, "
    "window.rho, text.ids, text.mask";
const char* const kTargets = "sample, state.<name>, frames";

// What an engine may read beside states and scalars, and the kinds of states that it may read and write, by when it
// runs.
struct Moment {
    const char* name;
    Words readable, read_kinds, written_kinds;
};

const std::vector<Moment>& moments() {
    static const std::vector<Moment> all = {
        {"pass", {"sample", "noise", "window.slot_position", "window.frame_position", "window.rho"},
         {"prompt", "chunk", "ring", "carry"}, {"ring", "carry"}},
        {"prompt", {"text.ids", "text.mask"}, {"prompt"}, {"prompt"}},
        {"before", {"window.slot_position", "window.frame_position", "window.rho"},
         {"prompt", "chunk", "ring", "carry"}, {"chunk"}},
        {"evict", {}, {"prompt", "carry"}, {"carry"}},
        {"after", {"clean"}, {"prompt", "carry"}, {"carry"}},
    };
    return all;
}

const Moment& moment_named(std::string_view name) {
    return *std::find_if(moments().begin(), moments().end(), [&](const Moment& each) { return name == each.name; });
}

// One engine at one moment of the program. `where`: the field that says so. `pass`: null for a call.
struct Run {
    const Moment* moment;
    std::string name;
    const EngineSpec* engine;
    std::string where;
    const Pass* pass = nullptr;

    bool is(std::string_view other) const { return other == moment->name; }
};

[[noreturn]] void fail(const std::string& field, const std::string& got, const std::string& expected) {
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

template <typename Range, typename Name>
std::string listed(const Range& range, const Name& name) {
    std::string text;
    size_t count = 0;
    for (const auto& each : range) {
        if (count++ == kShown) {
            return text + ", ..";
        }
        text += (text.empty() ? "" : ", ") + std::string(name(each));
    }
    return text.empty() ? "none" : text;
}

// `names` in their order: the first that is there more than once is named.
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

template <typename Range, typename Name>
void check_unique(const std::string& where, const Range& range, const Name& name) {
    std::vector<std::string_view> names;
    for (const auto& each : range) {
        names.push_back(name(each));
    }
    check_unique(where, names);
}

class Contract {
public:
    explicit Contract(const Manifest& manifest) : m_(manifest) {
        for (const auto& [name, file] : m_.files) {
            files_.insert(name);
        }
    }

    void check() {
        check_files();
        if (m_.window && m_.window->sink >= m_.window->chunks) {
            fail("window.sink", std::to_string(m_.window->sink),
                 "less than window.chunks = " + std::to_string(m_.window->chunks));
        }
        check_states();
        list_runs();
        std::set<std::pair<std::string_view, std::string_view>> checked;
        for (const Run& run : runs_) {
            if (checked.insert({run.moment->name, run.name}).second) {  // passes of one engine may be thousands
                check_run(run);
            }
            check_scalars(run);
        }
        check_passes();
        check_frames();
        check_writers();
        check_readers();
    }

private:
    void need(const std::string& file, const std::string& field) const {
        if (files_.count(file) == 0) {
            fail("files", "no " + file, "the file that " + field + " needs");
        }
    }

    void check_files() const {
        if (m_.text) {
            need(kTokenizerFile, "text");
        }
        for (const auto& [name, engine] : m_.engines) {
            need(engine.file, "engines." + name + ".file");
            if (engine.weights) {
                need(*engine.weights, "engines." + name + ".weights");
            }
        }
        if (files_.count(kManifestFile) != 0) {
            fail("files", kManifestFile, "every file but the manifest itself");
        }
        const bool graphs = m_.backend == "onnxruntime";
        for (const auto& [name, engine] : m_.engines) {
            const std::string_view end = ".onnx", file = engine.file;
            const bool graph = file.size() >= end.size() && file.substr(file.size() - end.size()) == end;
            if (graph != graphs) {
                fail("engines." + name + ".file", engine.file, graphs ? "an .onnx file" : "an engine");
            }
            if (graphs && engine.weights) {
                fail("engines." + name + ".weights", *engine.weights, "null for a graph, which has its own");
            }
        }
        if (graphs == m_.has_target) {
            fail("target", m_.has_target ? "one" : "null", "one exactly if engines were built");
        }
    }

    void check_states() const {
        check_unique("states", m_.states, [](const State& state) -> std::string_view { return state.name; });
        uint64_t total = 0;
        for (size_t i = 0; i < m_.states.size(); ++i) {
            const State& state = m_.states[i];
            const std::string where = "states." + std::to_string(i);
            const bool ring = state.kind == "ring";
            if (state.shape.empty() || state.shape[0] != m_.stream.batch) {
                fail(where + ".shape", text_of(state.shape), "[batch = " + std::to_string(m_.stream.batch) + ", ..]");
            }
            if (ring && !m_.window) {
                fail(where + ".kind", "ring", "another kind, as window is null");
            }
            if (ring && state.shape.size() < 2) {
                fail(where + ".shape", text_of(state.shape), "[batch, N, ..]");
            }
            if (state.per_pass && state.kind != "carry") {
                fail(where + ".per_pass", "true", "false for the kind " + state.kind);
            }
            if (state.half && state.dtype != DType::float32 && state.dtype != DType::float16 &&
                state.dtype != DType::bfloat16) {
                fail(where + ".half", "true", std::string("false for the dtype ") + name_of(state.dtype));
            }
            const uint64_t copies = state.per_pass ? m_.passes.size() : ring ? static_cast<uint64_t>(m_.window->chunks) : 1;
            const uint64_t size = state.size_bytes();
            total = size > kMostStateBytes ? kMostStateBytes + 1 : total + size * copies;
            if (total > kMostStateBytes) {
                fail(where + ".shape", text_of(state.shape),
                     "states of at most " + std::to_string(kMostStateBytes) + " bytes together");
            }
        }
    }

    // Every engine at every moment that it runs, in the order of a chunk.
    void list_runs() {
        std::vector<std::string> each_call;
        for (const Call& call : m_.calls) {
            each_call.push_back(call.engine + " " + call.when);
        }
        check_unique("calls", each_call, [](const std::string& name) -> std::string_view { return name; });
        Words used;
        const auto add = [&](std::string_view moment, const std::string& name, std::string where, const Pass* pass) {
            const EngineSpec* engine = m_.engine(name);
            if (!engine) {
                fail(where, name, "one of engines: " + listed(m_.engines, [](const auto& e) { return e.first; }));
            }
            used.insert(name);
            runs_.push_back({&moment_named(moment), name, engine, std::move(where), pass});
        };
        const auto call_field = [](size_t i) { return "calls." + std::to_string(i) + ".engine"; };
        for (const std::string_view moment : {"prompt", "before"}) {
            for (size_t i = 0; i < m_.calls.size(); ++i) {
                if (m_.calls[i].when == moment) {
                    add(moment, m_.calls[i].engine, call_field(i), nullptr);
                }
            }
        }
        for (size_t i = 0; i < m_.passes.size(); ++i) {
            add("pass", m_.passes[i].engine, "passes." + std::to_string(i) + ".engine", &m_.passes[i]);
        }
        for (size_t i = 0; i < m_.calls.size(); ++i) {
            const std::string& when = m_.calls[i].when;
            if (when != "prompt" && when != "before") {
                add(when == "evict" ? "evict" : "after", m_.calls[i].engine, call_field(i), nullptr);
            }
        }
        for (const auto& [name, engine] : m_.engines) {
            if (used.count(name) == 0) {
                fail("engines." + name, "an engine that nothing runs", "one that passes or calls name");
            }
        }
    }

    void check_run(const Run& run) const {
        const std::string where = "engines." + run.name;
        if (run.is("prompt") && !m_.text) {
            fail(run.where, run.name, "no call at a new prompt, as text is null");
        }
        if (run.is("evict") && !m_.window) {
            fail(run.where, run.name, "no call at an eviction, as window is null");
        }
        const auto name = [](const TensorSpec& tensor) -> std::string_view { return tensor.name; };
        check_unique(where + ".inputs", run.engine->inputs, name);
        check_unique(where + ".outputs", run.engine->outputs, name);
        check_unique(where + ".outputs", run.engine->outputs,
                     [](const Output& tensor) -> std::string_view { return tensor.target; });
        Words inputs;
        for (const Input& tensor : run.engine->inputs) {
            inputs.insert(tensor.name);
        }
        for (const Output& tensor : run.engine->outputs) {
            if (inputs.count(tensor.name) != 0) {
                fail(where + ".outputs", tensor.name + " among inputs and outputs", "names of one tensor each");
            }
        }
        for (size_t i = 0; i < run.engine->inputs.size(); ++i) {
            check_input(run, run.engine->inputs[i], where + ".inputs." + std::to_string(i));
        }
        for (size_t i = 0; i < run.engine->outputs.size(); ++i) {
            check_output(run, run.engine->outputs[i], where + ".outputs." + std::to_string(i));
        }
    }

    static void check_scalars(const Run& run) {
        constexpr std::string_view kPrefix = "pass.";
        for (size_t i = 0; i < run.engine->inputs.size(); ++i) {
            const std::string& source = run.engine->inputs[i].source;
            if (source.compare(0, kPrefix.size(), kPrefix) != 0) {
                continue;
            }
            const std::string scalar = source.substr(kPrefix.size());
            if (!run.pass || run.pass->scalars.count(scalar) == 0) {
                fail(run.where.substr(0, run.where.rfind('.')) + ".scalars", "no " + scalar,
                     "the scalar that engines." + run.name + ".inputs." + std::to_string(i) + " reads");
            }
        }
    }

    // The state that a source or target names; null where it names none.
    const State* state_of(const std::string& source, const std::string& where) const {
        const std::string_view name = state_read(source);
        if (name.empty()) {
            return nullptr;
        }
        if (const State* state = m_.state(name)) {
            return state;
        }
        fail(where, source, "one of states: " + listed(m_.states, [](const State& s) { return s.name; }));
    }

    static void check_type(const std::string& where, const TensorSpec& tensor, DType dtype, const Shape& shape) {
        if (tensor.dtype != dtype) {
            fail(where + ".dtype", name_of(tensor.dtype), name_of(dtype));
        }
        if (tensor.shape != shape) {
            fail(where + ".shape", text_of(tensor.shape), text_of(shape));
        }
    }

    void check_input(const Run& run, const Input& tensor, const std::string& where) const {
        const std::string& source = tensor.source;
        const std::string field = where + ".source";
        if (const State* state = state_of(source, field)) {
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
            check_type(where, tensor, state->dtype, evicted ? state->shape : m_.whole_shape(*state));
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
            const std::string allowed = listed(run.moment->readable, [](const std::string& each) { return each; });
            fail(field, source, "one that is there when " + run.where + " runs: " + allowed);
        }
        if (source == "sample" || source == "noise" || source == "clean") {
            if (tensor.shape.empty() || tensor.shape[0] != m_.stream.batch) {
                fail(where + ".shape", text_of(tensor.shape), "[batch = " + std::to_string(m_.stream.batch) + ", ..]");
            }
            check_type(where, tensor, DType::float32, sample_shape());
        } else if (source.compare(0, 5, "text.") == 0) {
            check_type(where, tensor, DType::int64, {m_.stream.batch, m_.text->length});
        } else if (!m_.window) {
            fail(field, source, "none of window, which is null");
        } else if (source == "window.rho") {
            check_type(where, tensor, DType::float32, {1});
        } else {
            const int64_t chunks = source == "window.slot_position" ? m_.window->chunks : 1;
            check_type(where, tensor, DType::int64, {chunks * m_.window->chunk_frames});
        }
    }

    void check_output(const Run& run, const Output& tensor, const std::string& where) const {
        const std::string& target = tensor.target;
        const std::string field = where + ".target";
        if (target == "sample") {
            if (!run.is("pass")) {
                fail(field, target, "the sample as a target of passes alone");
            }
            check_type(where, tensor, DType::float32, sample_shape());
        } else if (target == "frames") {
            if (!run.is("after")) {
                fail(field, target, "frames from a call after the passes alone");
            }
        } else {
            const State* state = target.compare(0, 8, "evicted.") == 0 ? nullptr : state_of(target, field);
            if (!state) {
                fail(field, target, std::string("one of ") + kTargets);
            }
            if (run.moment->written_kinds.count(state->kind) == 0) {
                fail(field, target, "no state of kind " + state->kind + " from an engine that " + run.where + " runs");
            }
            if (state->per_pass && !run.is("pass")) {
                fail(field, target, "a state of each pass from passes alone");
            }
            check_type(where, tensor, state->dtype, state->shape);
        }
    }

    const Shape& sample_shape() const {
        for (const Pass& pass : m_.passes) {
            for (const Input& tensor : m_.engine(pass.engine)->inputs) {
                if (tensor.source == "sample") {
                    return tensor.shape;
                }
            }
        }
        fail("passes", "no engine that reads the sample", "one with an input of source sample");
    }

    static bool writes(const EngineSpec& engine, std::string_view target) {
        return std::any_of(engine.outputs.begin(), engine.outputs.end(),
                           [&](const Output& tensor) { return tensor.target == target; });
    }

    void check_passes() const {
        bool written = false;
        for (size_t i = 0; i + 1 < m_.passes.size(); ++i) {
            if (m_.passes[i].commits) {
                fail("passes." + std::to_string(i) + ".commits", "true", "true for the last pass alone");
            }
        }
        for (size_t i = 0; i < m_.passes.size(); ++i) {
            const EngineSpec& engine = *m_.engine(m_.passes[i].engine);
            written = written || writes(engine, "sample");
            const bool reads = std::any_of(engine.inputs.begin(), engine.inputs.end(),
                                           [](const Input& tensor) { return tensor.source == "noise"; });
            if (m_.passes[i].noise && !reads) {
                fail("passes." + std::to_string(i) + ".noise", "true",
                     "false, as " + m_.passes[i].engine + " reads no noise");
            }
        }
        if (!written) {
            fail("passes", "no engine that writes the sample", "one with an output of target sample");
        }
    }

    void check_frames() const {
        const Stream& stream = m_.stream;
        for (const bool first : {true, false}) {
            std::vector<std::pair<std::string, const Output*>> made;
            for (const std::string& name : m_.called("after", first ? "after_first" : "after_later")) {
                const std::vector<Output>& outputs = m_.engine(name)->outputs;
                for (size_t i = 0; i < outputs.size(); ++i) {
                    if (outputs[i].target == "frames") {
                        made.emplace_back("engines." + name + ".outputs." + std::to_string(i), &outputs[i]);
                    }
                }
            }
            if (made.size() != 1) {
                const char* which = first ? "the first chunk" : "later chunks";
                fail("calls", std::to_string(made.size()) + " engines that make the frames of " + which, "one");
            }
            const int64_t frames = first ? stream.first_frames : stream.later_frames;
            check_type(made[0].first, *made[0].second, DType::uint8, {stream.batch, frames, stream.height, stream.width, 3});
        }
    }

    // Each state has one writer, and is read only after it has been written.
    void check_writers() const {
        std::map<std::string_view, std::vector<const Run*>> writers;
        for (const Run& run : runs_) {
            for (const Output& tensor : run.engine->outputs) {
                writers[tensor.target].push_back(&run);
            }
        }
        for (size_t i = 0; i < m_.states.size(); ++i) {
            const auto found = writers.find("state." + m_.states[i].name);
            check_writer(m_.states[i], "states." + std::to_string(i),
                         found == writers.end() ? std::vector<const Run*>() : found->second);
        }
        Words written;
        for (const Run& run : runs_) {
            if (run.is("prompt") || run.is("before")) {
                check_order(run, written);
                for (const Output& tensor : run.engine->outputs) {
                    written.insert(tensor.target);
                }
            }
        }
    }

    void check_writer(const State& state, const std::string& where, const std::vector<const Run*>& writing) const {
        if (writing.empty()) {
            fail(where, state.name + ", which nothing writes", "an output with it as target");
        }
        const Run& first = *writing[0];
        for (const Run* run : writing) {
            if (run->moment != first.moment) {
                fail(where, state.name + ", which is written " + first.moment->name + " and " + run->moment->name,
                     "one writer");
            }
        }
        if (first.is("pass")) {
            check_written_in_passes(state, where);
        } else if (first.is("after")) {
            for (const char* chunk : {"after_first", "after_later"}) {
                const std::vector<std::string> names = m_.called("after", chunk);
                const auto count = std::count_if(names.begin(), names.end(), [&](const std::string& name) {
                    return writes(*m_.engine(name), "state." + state.name);
                });
                if (count != 1) {
                    fail(where, state.name + ", which " + std::to_string(count) + " engines write at " + chunk, "one writer");
                }
            }
        } else if (writing.size() != 1) {
            fail(where, state.name + ", which " + std::to_string(writing.size()) + " calls write", "one writer");
        }
    }

    // Calls at a new prompt run before those before the passes; within both, in the order of the manifest.
    void check_order(const Run& run, const Words& written) const {
        for (size_t i = 0; i < run.engine->inputs.size(); ++i) {
            const std::string& source = run.engine->inputs[i].source;
            const State* state = source.compare(0, 6, "state.") == 0 ? m_.state(state_read(source)) : nullptr;
            if (state && (state->kind == "prompt" || state->kind == "chunk") && written.count(source) == 0) {
                fail("engines." + run.name + ".inputs." + std::to_string(i) + ".source", source,
                     "a state that an earlier call has written");
            }
        }
    }

    void check_written_in_passes(const State& state, const std::string& where) const {
        const std::string target = "state." + state.name;
        if (state.per_pass) {
            for (size_t i = 0; i < m_.passes.size(); ++i) {
                if (!writes(*m_.engine(m_.passes[i].engine), target)) {
                    fail("passes." + std::to_string(i) + ".engine", m_.passes[i].engine,
                         "one that writes " + state.name + ", as it is per_pass");
                }
            }
            return;
        }
        const Pass& last = m_.passes.back();
        if (!last.commits) {
            fail(where, state.name + ", which passes write and none commits", "a last pass that commits");
        }
        if (!writes(*m_.engine(last.engine), target)) {
            fail(where, state.name + ", which " + last.engine + " does not write", "one that the committing pass writes");
        }
    }

    void check_readers() const {
        std::set<std::string_view> read;
        for (const auto& [name, engine] : m_.engines) {
            for (const Input& tensor : engine.inputs) {
                read.insert(state_read(tensor.source));
            }
        }
        for (size_t i = 0; i < m_.states.size(); ++i) {
            if (read.count(m_.states[i].name) == 0) {
                fail("states." + std::to_string(i), m_.states[i].name + ", which nothing reads", "an input with it as source");
            }
        }
        if (m_.text && m_.called("prompt").empty()) {
            fail("calls", "none at a new prompt", "one that reads text.ids, or text null");
        }
    }

    const Manifest& m_;
    Words files_;
    std::vector<Run> runs_;
};

}  // namespace

void check_contract(const Manifest& manifest) { Contract(manifest).check(); }

}  // namespace videossm::internal
