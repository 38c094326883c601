// manifest.json, field by field in the order of the schema: the first one that is wrong is named, as in Python.
#include <limits>

#include "error.h"
#include "manifest.h"
#include "manifest_fields.h"
#include "sha256.h"

namespace videossm::internal {
namespace {

constexpr std::string_view kEnd = "\"\n}\n";  // of every manifest, after the digits of its checksum
constexpr double kLimit = 1e30;  // of a scalar
const char* const kAgain = "; export the plan again";

void read_tensor(Fields& fields, TensorSpec& tensor) {
    tensor.name = name_in(fields.required("name"), fields.at("name"));
    const std::string& dtype = one_of(fields.required("dtype"), fields.at("dtype"),
                                      {"float32", "float16", "bfloat16", "int64", "int32", "uint8"});
    for (const DType each : {DType::float32, DType::float16, DType::bfloat16, DType::int64, DType::int32, DType::uint8}) {
        if (dtype == name_of(each)) {
            tensor.dtype = each;
        }
    }
    list_in(fields.required("shape"), fields.at("shape"), 0, 8, [&](const Json& side, const std::string& field) {
        tensor.shape.push_back(integer_in(side, field, 1, (int64_t{1} << 40) - 1));
    });
}

EngineSpec read_engine(const Json& value, const std::string& field) {
    Fields fields(value, field);
    EngineSpec engine;
    engine.file = file_in(fields.required("file"), fields.at("file"));
    const Json* weights = fields.optional("weights");
    if (weights && !weights->is(Json::Kind::null)) {
        engine.weights = file_in(*weights, fields.at("weights"));
    }
    list_in(fields.required("inputs"), fields.at("inputs"), 0, kAny, [&](const Json& item, const std::string& at) {
        Fields tensor(item, at);
        Input& input = engine.inputs.emplace_back();
        read_tensor(tensor, input);
        input.source = string_of(tensor.required("source"), tensor.at("source"), 0, 220);
        tensor.end();
    });
    list_in(fields.required("outputs"), fields.at("outputs"), 0, kAny, [&](const Json& item, const std::string& at) {
        Fields tensor(item, at);
        Output& output = engine.outputs.emplace_back();
        read_tensor(tensor, output);
        output.target = string_of(tensor.required("target"), tensor.at("target"), 0, 220);
        tensor.end();
    });
    fields.end();
    return engine;
}

State read_state(const Json& value, const std::string& field) {
    Fields fields(value, field);
    State state;
    read_tensor(fields, state);
    state.kind = one_of(fields.required("kind"), fields.at("kind"), {"prompt", "chunk", "ring", "carry"});
    state.per_pass = flag(fields, "per_pass");
    state.half = flag(fields, "half");
    fields.end();
    return state;
}

Pass read_pass(const Json& value, const std::string& field) {
    Fields fields(value, field);
    Pass pass;
    pass.engine = name_in(fields.required("engine"), fields.at("engine"));
    members_of(fields.required("scalars"), fields.at("scalars"),
               [&](const std::string& key, const Json& scalar, const std::string& at) {
                   check_key(key, fields.at("scalars"), is_name, "a name");
                   pass.scalars[key] = real_in(scalar, at, -kLimit, kLimit);
               });
    pass.noise = flag(fields, "noise");
    pass.commits = flag(fields, "commits");
    fields.end();
    return pass;
}

Call read_call(const Json& value, const std::string& field) {
    Fields fields(value, field);
    Call call;
    call.engine = name_in(fields.required("engine"), fields.at("engine"));
    call.when = one_of(fields.required("when"), fields.at("when"),
                       {"prompt", "before", "evict", "after", "after_first", "after_later"});
    fields.end();
    return call;
}

Stream read_stream(const Json& value, const std::string& field) {
    Fields fields(value, field);
    Stream stream;
    const auto integer = [&](const char* name, int64_t most) {
        return integer_in(fields.required(name), fields.at(name), 1, most);
    };
    stream.batch = integer("batch", 4096);
    stream.fps = real_in(fields.required("fps"), fields.at("fps"), 0.01, 1000);
    stream.height = integer("height", 65536);
    stream.width = integer("width", 65536);
    stream.first_frames = integer("first_frames", 65536);
    stream.later_frames = integer("later_frames", 65536);
    const Json& chunks = fields.required("chunks");
    if (!chunks.is(Json::Kind::null)) {
        stream.chunks = integer_in(chunks, fields.at("chunks"), 1, 1'000'000);
    }
    fields.end();
    return stream;
}

Window read_window(const Json& value, const std::string& field) {
    Fields fields(value, field);
    Window window;
    window.chunks = integer_in(fields.required("chunks"), fields.at("chunks"), 1, 4096);
    window.sink = integer_in(fields.required("sink"), fields.at("sink"), 0, 4096);
    window.chunk_frames = integer_in(fields.required("chunk_frames"), fields.at("chunk_frames"), 1, 4096);
    window.absolute = one_of(fields.required("positions"), fields.at("positions"), {"window", "absolute"}) == "absolute";
    fields.end();
    return window;
}

Text read_text(const Json& value, const std::string& field) {
    Fields fields(value, field);
    Text text;
    text.length = integer_in(fields.required("length"), fields.at("length"), 1, 65536);
    text.padding_id = integer_in(fields.required("padding_id"), fields.at("padding_id"), 0, (int64_t{1} << 31) - 1);
    text.refuses_unknown = one_of(fields.required("unknown"), fields.at("unknown"), {"refuse", "encode"}) == "refuse";
    list_in(fields.required("examples"), fields.at("examples"), 0, 1000,
            [](const Json& item, const std::string& at) { string_of(item, at, 1, 2000); });
    fields.end();
    return text;
}

// What a lower precision may touch: nothing here reads it, but it is refused alike.
void check_lower_precision(const Json& value, const std::string& field) {
    Fields fields(value, field);
    const auto texts = [&](const char* name, const std::string& (*each)(const Json&, const std::string&)) {
        if (const Json* found = fields.optional(name)) {
            list_in(*found, fields.at(name), 0, kAny, [&](const Json& item, const std::string& at) { each(item, at); });
        }
    };
    if (const Json* kept = fields.optional("kept_engines")) {
        members_of(*kept, fields.at("kept_engines"), [&](const std::string& key, const Json& why, const std::string& at) {
            check_key(key, fields.at("kept_engines"), is_name, "a name");
            text200(why, at);
        });
    }
    if (const Json* layers = fields.optional("layers")) {
        list_in(*layers, fields.at("layers"), 0, kAny, [](const Json& item, const std::string& at) {
            Fields layer(item, at);
            text200(layer.required("modules"), layer.at("modules"));
            const Json& keep = layer.required("keep");
            if (!keep.is(Json::Kind::null)) {
                text200(keep, layer.at("keep"));
            }
            layer.end();
        });
    }
    texts("fp32_modules", text200);
    texts("fp32_engines", name_in);
    fields.end();
}

void check_self_test(const Json& value, const std::string& field) {
    Fields fields(value, field);
    constexpr double kMost = std::numeric_limits<double>::max();
    list_in(fields.required("noise"), fields.at("noise"), 1, 64,
            [](const Json& item, const std::string& at) { real_in(item, at, -kMost, kMost); });
    fields.end();
}

// Whether later versions of TensorRT take the engines, which then bring code for that.
bool read_target(const Json& value, const std::string& field) {
    Fields fields(value, field);
    list_in(fields.required("architectures"), fields.at("architectures"), 1, kAny,
            [](const Json& item, const std::string& at) { architecture_in(item, at); });
    flag(fields, "later");
    const bool version_compatible = flag(fields, "version_compatible");
    flag(fields, "weight_streaming");
    fields.end();
    return version_compatible;
}

File read_file(const Json& value, const std::string& field) {
    Fields fields(value, field);
    File file;
    file.sha256 = sha256_in(fields.required("sha256"), fields.at("sha256"));
    const Json& size = fields.required("size_bytes");
    if (size.is(Json::Kind::large_integer) && !size.negative) {
        file.size_bytes = std::numeric_limits<uint64_t>::max();  // no file has that
    } else {
        const int64_t most = std::numeric_limits<int64_t>::max();
        file.size_bytes = static_cast<uint64_t>(integer_in(size, fields.at("size_bytes"), 0, most));
    }
    fields.end();
    return file;
}

Manifest read_manifest(const Json& value) {
    Fields fields(value, "");
    Manifest m;
    integer_in(fields.required("schema_version"), "schema_version", kSchemaVersion, kSchemaVersion);
    m.name = name_in(fields.required("name"), "name");
    text200(fields.required("family"), "family");
    m.precision = one_of(fields.required("precision"), "precision", {"fp32", "fp16", "bf16", "int8", "fp8"});
    m.backend = one_of(fields.required("backend"), "backend", {"onnxruntime", "tensorrt", "tensorrt-rtx"});
    one_of(fields.required("lowering"), "lowering", {"standard", "contrib", "native", "plugin"});
    if (const Json& target = fields.required("target"); !target.is(Json::Kind::null)) {
        m.has_target = true;
        m.version_compatible = read_target(target, "target");
    }
    m.stream_identity = sha256_in(fields.required("stream_identity"), "stream_identity");
    m.stream = read_stream(fields.required("stream"), "stream");
    if (const Json& window = fields.required("window"); !window.is(Json::Kind::null)) {
        m.window = read_window(window, "window");
    }
    if (const Json& text = fields.required("text"); !text.is(Json::Kind::null)) {
        m.text = read_text(text, "text");
    }
    list_in(fields.required("states"), "states", 0, 100'000,
            [&](const Json& item, const std::string& at) { m.states.push_back(read_state(item, at)); });
    members_of(fields.required("engines"), "engines",
               [&](const std::string& key, const Json& engine, const std::string& at) {
                   check_key(key, "engines", is_name, "a name");
                   m.engines.emplace_back(key, read_engine(engine, at));
               });
    list_in(fields.required("passes"), "passes", 1, 4096,
            [&](const Json& item, const std::string& at) { m.passes.push_back(read_pass(item, at)); });
    list_in(fields.required("calls"), "calls", 0, kAny,
            [&](const Json& item, const std::string& at) { m.calls.push_back(read_call(item, at)); });
    check_lower_precision(fields.required("lower_precision"), "lower_precision");
    check_self_test(fields.required("self_test"), "self_test");
    members_of(fields.required("model"), "model", [](const std::string&, const Json&, const std::string&) {});
    members_of(fields.required("files"), "files", [&](const std::string& key, const Json& file, const std::string& at) {
        check_key(key, "files", is_listed_file, "a bare file name inside the plan, or one in report/");
        m.files.emplace_back(key, read_file(file, at));
    });
    members_of(fields.required("versions"), "versions",
               [&](const std::string& key, const Json& version, const std::string& at) {
                   check_key(key, "versions", is_name, "a name");
                   text200(version, at);
               });
    m.checksum = sha256_in(fields.required("checksum"), "checksum");
    fields.end();
    for (size_t i = 0; i < m.engines.size(); ++i) {
        m.engine_index.emplace(m.engines[i].first, i);
    }
    for (size_t i = 0; i < m.states.size(); ++i) {
        m.state_index.emplace(m.states[i].name, i);
    }
    return m;
}

void check_sum(const Manifest& manifest, std::string_view content) {
    const std::string end = manifest.checksum + std::string(kEnd);
    if (content.size() < end.size() || content.substr(content.size() - end.size()) != end) {
        fail_field("checksum", "got it elsewhere, expected it at the end");
    }
    Sha256 hash;
    hash.update(content.data(), content.size() - end.size());
    const std::string found = hash.digits();
    if (found != manifest.checksum) {
        fail_field("checksum", "got " + manifest.checksum.substr(0, 16) + ".., but the content has " + found.substr(0, 16) +
                             ".. (altered), expected the same");
    }
}

}  // namespace

Manifest parse_manifest(std::string_view content) {
    Json value;
    try {
        value = Json::parse(content);
    } catch (const JsonError& error) {
        throw plan_error(std::string(kManifestFile) + ": got no valid JSON (" + shown(error.what) + "); copy or export the plan again");
    }
    const Json* version = value.find("schema_version");
    if (version && version->is(Json::Kind::integer) && version->integer != kSchemaVersion) {
        const char* mend = version->integer > kSchemaVersion ? "; upgrade videossm" : kAgain;
        throw plan_error(std::string(kManifestFile) + ": schema_version: got " + version->shown() + ", expected 2" + mend);
    }
    Manifest manifest = read_manifest(value);
    check_sum(manifest, content);
    check_contract(manifest);
    return manifest;
}

}  // namespace videossm::internal
