// Do the parts of a manifest fit together? The checks, their order and the fields that they name are those of
// runtime/contract.py. Here is what concerns the program as a whole; contract_engines.cpp has single engines.
#include <algorithm>
#include <map>
#include <set>

#include "contract.h"

namespace videossm::internal {
namespace {

using namespace contract;

constexpr uint64_t kMostStateBytes = uint64_t{1} << 40;

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
                check_run(m_, run);
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
        std::vector<std::string_view> names;
        for (const State& state : m_.states) {
            names.push_back(state.name);
        }
        check_unique("states", names);
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
        check_unique("calls", {each_call.begin(), each_call.end()});
        Words used;
        const auto add = [&](std::string_view moment, const std::string& name, std::string where, const Pass* pass) {
            const EngineSpec* engine = m_.engine(name);
            if (!engine) {
                std::vector<std::string> names;
                for (const auto& [each, spec] : m_.engines) {
                    names.push_back(each);
                }
                fail(where, name, "one of engines: " + listed(names));
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
        const size_t last = m_.passes.size() - 1;
        if (m_.passes[last].commits && m_.passes[last].noise) {  // made again for a new prompt it must leave the same
            fail("passes." + std::to_string(last) + ".noise", "true", "false for the pass that commits");
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
            std::vector<const Run*> writing = found == writers.end() ? std::vector<const Run*>() : found->second;
            if (m_.states[i].kind == "chunk") {  // a pass changes a part of it, in its place
                writing.erase(std::remove_if(writing.begin(), writing.end(), [](const Run* run) { return run->is("pass"); }),
                              writing.end());
            }
            check_writer(m_.states[i], "states." + std::to_string(i), writing);
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
