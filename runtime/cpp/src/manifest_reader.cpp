// manifest.json, field by field in the order of the schema: the first one that is wrong is named, as in Python.
#include <algorithm>
#include <functional>
#include <limits>

#include "error.h"
#include "json.h"
#include "manifest.h"
#include "sha256.h"

namespace videossm::internal {
namespace {

constexpr std::string_view kEnd = "\"\n}\n";  // of every manifest, after the digits of its checksum
constexpr size_t kDigits = 64;
constexpr double kLimit = 1e30;  // of a scalar
const char* const kAgain = "; export the plan again";

[[noreturn]] void fail(const std::string& field, const std::string& why) {
    throw plan_error(std::string(kManifestFile) + ": " + shown(field.empty() ? "the whole" : field) + ": " + why + kAgain);
}

std::string joined(const std::string& field, const std::string& name) { return field.empty() ? name : field + "." + name; }

[[noreturn]] void wrong(const std::string& field, const Json& value, const std::string& expected) {
    fail(field, "got " + value.shown() + ", expected " + expected);
}

// An object whose fields are asked for in the order of the schema; the destructor's work is done by end().
class Fields {
public:
    Fields(const Json& value, std::string field) : value_(value), field_(std::move(field)) {
        if (!value.is(Json::Kind::object)) {
            wrong(field_, value, "an object");
        }
    }

    const Json* optional(const std::string& name) {
        known_.push_back(name);
        return value_.find(name);
    }

    const Json& required(const std::string& name) {
        const Json* found = optional(name);
        if (!found) {
            fail(at(name), "got nothing, expected this field");
        }
        return *found;
    }

    std::string at(const std::string& name) const { return joined(field_, name); }

    void end() const {
        for (const Json::Member& member : value_.members) {
            if (std::find(known_.begin(), known_.end(), member.first) == known_.end()) {
                fail(at(member.first), "got an unknown field, expected only those of schema version 2");
            }
        }
    }

private:
    const Json& value_;
    const std::string field_;
    std::vector<std::string> known_;
};

size_t characters(std::string_view text) {
    return static_cast<size_t>(std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xC0) != 0x80; }));
}

bool is_file(std::string_view text) { return is_name(text); }  // bare: no separators, no drive, not hidden, not ".."

bool is_listed_file(std::string_view text) {
    constexpr std::string_view kFolder = "report/";
    return is_name(text.substr(0, kFolder.size()) == kFolder ? text.substr(kFolder.size()) : text);
}

bool is_sha256(std::string_view text) {
    return text.size() == kDigits && text.find_first_not_of("0123456789abcdef") == std::string_view::npos;
}

bool is_architecture(std::string_view text) {
    return text.size() >= 5 && text.size() <= 7 && text.substr(0, 3) == "sm_" && text[3] != '0' &&
           text.find_first_not_of("0123456789", 3) == std::string_view::npos;
}

const std::string& string_of(const Json& value, const std::string& field, size_t least, size_t most) {
    if (!value.is(Json::Kind::string)) {
        wrong(field, value, "a text");
    }
    const size_t length = characters(value.string);
    if (length < least || length > most) {
        wrong(field, value, "a text of " + std::to_string(least) + " to " + std::to_string(most) + " characters");
    }
    return value.string;
}

const std::string& text200(const Json& value, const std::string& field) { return string_of(value, field, 1, 200); }

const std::string& matching(const Json& value, const std::string& field, bool (*fits)(std::string_view), const char* what) {
    const std::string& text = string_of(value, field, 0, 200);
    if (!fits(text)) {
        wrong(field, value, what);
    }
    return text;
}

const std::string& name_in(const Json& value, const std::string& field) {
    return matching(value, field, is_name, "a name of letters, digits and _ . + -");
}

const std::string& file_in(const Json& value, const std::string& field) {
    return matching(value, field, is_file, "a bare file name inside the plan");
}

const std::string& sha256_in(const Json& value, const std::string& field) {
    return matching(value, field, is_sha256, "64 hexadecimal digits");
}

// Of a member's name, as of a field.
void check_key(const std::string& key, const std::string& field, bool (*fits)(std::string_view), const char* what) {
    if (characters(key) > 200 || !fits(key)) {
        fail(joined(field, key), "got " + json_quoted(key.substr(0, 60)) + ", expected " + what);
    }
}

int64_t integer_in(const Json& value, const std::string& field, int64_t least, int64_t most) {
    if (!value.is(Json::Kind::integer) || value.integer < least || value.integer > most) {
        wrong(field, value, "an integer from " + std::to_string(least) + " to " + std::to_string(most));
    }
    return value.integer;
}

double real_in(const Json& value, const std::string& field, double least, double most) {
    const bool number = value.is(Json::Kind::real) || value.is(Json::Kind::integer);
    if (!number || value.real < least || value.real > most) {
        wrong(field, value, "a number from " + std::to_string(least) + " to " + std::to_string(most));
    }
    return value.real;
}

bool boolean_in(const Json& value, const std::string& field) {
    if (!value.is(Json::Kind::boolean)) {
        wrong(field, value, "true or false");
    }
    return value.boolean;
}

const std::string& one_of(const Json& value, const std::string& field, std::initializer_list<const char*> words) {
    std::string expected;
    for (const char* word : words) {
        if (value.is_string(word)) {
            return value.string;
        }
        expected += (expected.empty() ? "one of " : ", ") + std::string(word);
    }
    wrong(field, value, expected);
}

bool flag(Fields& fields, const std::string& name) {
    const Json* found = fields.optional(name);
    return found && boolean_in(*found, fields.at(name));
}

// Calls `each` for every item, with its field.
template <typename Each>
void list_in(const Json& value, const std::string& field, size_t least, size_t most, const Each& each) {
    if (!value.is(Json::Kind::array)) {
        wrong(field, value, "an array");
    }
    if (value.items.size() < least || value.items.size() > most) {
        wrong(field, value, "one of " + std::to_string(least) + " to " + std::to_string(most));
    }
    for (size_t i = 0; i < value.items.size(); ++i) {
        each(value.items[i], joined(field, std::to_string(i)));
    }
}

constexpr size_t kAny = std::numeric_limits<size_t>::max();

template <typename Each>
void members_of(const Json& value, const std::string& field, const Each& each) {
    if (!value.is(Json::Kind::object)) {
        wrong(field, value, "an object");
    }
    for (const Json::Member& member : value.members) {
        each(member.first, member.second, joined(field, member.first));
    }
}

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

void check_target(const Json& value, const std::string& field) {
    Fields fields(value, field);
    list_in(fields.required("architectures"), fields.at("architectures"), 1, kAny,
            [](const Json& item, const std::string& at) { matching(item, at, is_architecture, "sm_ and digits"); });
    flag(fields, "later");
    flag(fields, "version_compatible");
    flag(fields, "weight_streaming");
    fields.end();
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
        check_target(target, "target");
        m.has_target = true;
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
        fail("checksum", "got it elsewhere, expected it at the end");
    }
    Sha256 hash;
    hash.update(content.data(), content.size() - end.size());
    const std::string found = hash.digits();
    if (found != manifest.checksum) {
        fail("checksum", "got " + manifest.checksum.substr(0, 16) + ".., but the content has " + found.substr(0, 16) +
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

std::string shown(const std::string& text, size_t most_bytes) {
    std::string line;
    for (const char c : text) {
        const bool space = static_cast<unsigned char>(c) <= 0x20 || c == 0x7F;
        if (!space) {
            line.push_back(c);
        } else if (!line.empty() && line.back() != ' ') {
            line.push_back(' ');
        }
    }
    if (line.size() > most_bytes) {
        while (most_bytes > 0 && (line[most_bytes] & 0xC0) == 0x80) {
            --most_bytes;
        }
        line = line.substr(0, most_bytes) + "..";
    }
    return line;
}

}  // namespace videossm::internal
