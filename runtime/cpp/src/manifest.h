// manifest.json as plain structs: the whole program of a stream. See docs/plan-format.md.
//
// parse_manifest() checks each field by itself; check_contract() whether they fit together.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace videossm::internal {

constexpr int kSchemaVersion = 2;
constexpr const char* kManifestFile = "manifest.json";
constexpr const char* kTokenizerFile = "tokenizer.json";
constexpr const char* kSample = ":sample";  // of the window's clean samples in a state file

enum class DType { float32, float16, bfloat16, int64, int32, uint8 };

const char* name_of(DType dtype);
size_t size_of(DType dtype);  // bytes of an element

using Shape = std::vector<int64_t>;

struct TensorSpec {
    std::string name;
    DType dtype = DType::float32;
    Shape shape;

    uint64_t size_bytes() const;  // the largest number where it does not fit
};

struct Input : TensorSpec {
    std::string source;
};

struct Output : TensorSpec {
    std::string target;
};

struct EngineSpec {
    std::string file;
    std::optional<std::string> weights;
    std::vector<Input> inputs;
    std::vector<Output> outputs;
};

struct State : TensorSpec {
    std::string kind;  // prompt, chunk, ring, carry
    bool per_pass = false;
    bool half = false;
};

struct Pass {
    std::string engine;
    std::map<std::string, double> scalars;
    bool noise = false;
    bool commits = false;
};

struct Call {
    std::string engine;
    std::string when;  // prompt, before, evict, after, after_first, after_later
};

struct Stream {
    int64_t batch = 0, height = 0, width = 0, first_frames = 0, later_frames = 0;
    double fps = 0;
    std::optional<int64_t> chunks;

    double start_s(int64_t chunk) const {
        const int64_t frames = chunk ? first_frames + (chunk - 1) * later_frames : 0;
        return static_cast<double>(frames) / fps;
    }
};

struct Window {
    int64_t chunks = 0, sink = 0, chunk_frames = 0;
    bool absolute = false;
};

struct Text {
    int64_t length = 0, padding_id = 0;
    bool refuses_unknown = false;
};

struct File {
    std::string sha256;
    uint64_t size_bytes = 0;
};

struct Manifest {
    std::string name, precision, backend, stream_identity, checksum;
    bool has_target = false;
    bool version_compatible = false;  // engines bring code of their own, for later versions of TensorRT
    Stream stream;
    std::optional<Window> window;
    std::optional<Text> text;
    std::vector<State> states;
    std::vector<std::pair<std::string, EngineSpec>> engines;  // in the order of the file
    std::vector<Pass> passes;
    std::vector<Call> calls;
    std::vector<std::pair<std::string, File>> files;

    const EngineSpec* engine(std::string_view engine_name) const;
    const State* state(std::string_view state_name) const;
    // What the passes denoise, [B, ..].
    const TensorSpec& sample() const;
    // The engines that run then, in the order of the manifest; a second moment may be empty.
    std::vector<std::string> called(std::string_view when, std::string_view or_when = {}) const;
    // Of a state as engines read it: a ring has the parts of all chunks of the window.
    Shape whole_shape(const State& state) const;
    // All that a stream keeps from chunk to chunk but the prompt, by the names of a state file.
    std::map<std::string, TensorSpec> kept() const;

    std::map<std::string, size_t, std::less<>> engine_index, state_index;  // places in `engines` and `states`
};

// `content`: of manifest.json, whole. Throws Error, with the field named; the checksum and the contract are checked.
Manifest parse_manifest(std::string_view content);

// Throws Error, naming the field, for the first part that does not fit.
void check_contract(const Manifest& manifest);

// `state.x` and `evicted.x` -> x; empty for another source or target.
std::string_view state_read(std::string_view source);

// As of a name of an engine, a state or a tensor.
bool is_name(std::string_view text);

}  // namespace videossm::internal
