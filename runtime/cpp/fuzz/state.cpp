// Any bytes as a state file of a small plan with every kind of state.
#include <cstdint>

#include "error.h"
#include "sealed.h"
#include "state.h"

using namespace videossm::internal;

namespace {

Manifest small_manifest() {
    Manifest manifest;
    manifest.name = "small";
    manifest.stream_identity = std::string(64, '0');
    manifest.stream.batch = 2;
    manifest.stream.chunks = 9;
    manifest.window = Window{2, 1, 1, false};
    manifest.text = Text{4, 0, true};
    const auto state = [&](const char* name, DType dtype, Shape shape, const char* kind, bool per_pass) {
        State made;
        made.name = name;
        made.dtype = dtype;
        made.shape = std::move(shape);
        made.kind = kind;
        made.per_pass = per_pass;
        manifest.states.push_back(made);
    };
    state("key", DType::float16, {2, 1, 3}, "ring", false);
    state("old", DType::float32, {2, 2}, "carry", false);
    state("scan", DType::bfloat16, {2, 2}, "carry", true);
    state("count", DType::int64, {2, 1}, "carry", false);
    EngineSpec engine;
    Input sample;
    sample.name = sample.source = "sample";
    sample.shape = {2, 1, 2};
    engine.inputs.push_back(sample);
    manifest.engines.emplace_back("pass", engine);
    manifest.engine_index["pass"] = 0;
    manifest.passes.resize(2, Pass{"pass", {}, false, false});
    return manifest;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    static const Manifest manifest = small_manifest();
    try {
        const StateFile state = parse_state("x", {reinterpret_cast<const char*>(data), size}, manifest);
        if (state.tensors.size() != manifest.kept().size()) {
            __builtin_trap();
        }
    } catch (const Error& error) {
        if (std::string(error.what()).find('\n') != std::string::npos) {
            __builtin_trap();  // not one line
        }
    }
    return 0;
}
