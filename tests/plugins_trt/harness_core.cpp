/* Drives what the plugins do without TensorRT: fields, checks, workspace and the call of the scan, on host
 * memory with the CPU library. Prints one JSON object a check; test_plugin_harness.py reads them.
 */
#include <algorithm>
#include <cstdio>

#include "harness_problem.h"

namespace {

using namespace videossm;
using namespace videossm::harness;

/* What `body` is refused with; empty: it is not. */
template <typename Body>
std::string refusal(Body&& body) {
    try {
        body();
    } catch (const ScanError& error) {
        return error.what();
    }
    return "";
}

void check_refused(const std::string& name, const std::string& got, const std::string& expected) {
    print_check("refuses/" + name,
                !got.empty() && got.find(expected) != std::string::npos && got.find('\n') == got.npos,
                "got '" + got + "', expected '" + expected + "'");
}

Scan scan_of(const Problem& problem) { return Scan(*problem.kind, FieldStore(problem).fields, true); }

ElementType check(const Scan& scan, const Problem& problem, Sizes& sizes) {
    std::vector<Shape> shapes;
    std::vector<ElementType> types;
    for (const Tensor& tensor : problem.inputs) {
        shapes.push_back(tensor.shape);
        types.push_back(tensor.type);
    }
    const int count = static_cast<int>(shapes.size());
    scan.check_counts(count, OUTPUTS);
    sizes = scan.check_shapes(shapes.data(), count);
    return scan.check_types(types.data(), count);
}

void check_problem(Problem problem) {
    const Scan scan = scan_of(problem);
    Sizes sizes;
    const ElementType activation = check(scan, problem, sizes);
    scan.check_supported(sizes, activation);
    std::vector<unsigned char> workspace(scan.workspace_bytes(sizes, sizes, activation));
    std::vector<const void*> inputs(MAX_INPUTS);
    for (size_t i = 0; i < problem.inputs.size(); ++i) {
        inputs[i] = problem.inputs[i].bytes.data();
    }
    std::vector<Tensor> outputs;
    for (int i = 0; i < OUTPUTS; ++i) {
        outputs.push_back(poisoned(problem.kind->output(i).name, scan.output_shape(i, sizes),
                                   scan.output_type(i, activation)));
    }
    void* const pointers[] = {outputs[0].bytes.data(), outputs[1].bytes.data()};
    scan.run(sizes, activation, {inputs.data(), pointers, workspace.data(), nullptr});
    for (size_t i = 0; i < OUTPUTS; ++i) {
        const std::string name = problem.name + "/" + outputs[i].name;
        if (problem.expected[i].empty()) {
            const auto untouched = poisoned("", outputs[i].shape, outputs[i].type).bytes;
            print_check(name, outputs[i].bytes == untouched && outputs[i].count() == 1,
                        "a placeholder is not written");
            continue;
        }
        const double error = relative_error(outputs[i].values(), problem.expected[i]);
        print_check(name, error <= tolerance(problem, i), "relative error " + std::to_string(error));
    }
}

void check_refusals(const Problem& good) {
    for (const Mistake& mistake : mistakes(good)) {
        Problem wrong = good;
        mistake.make(wrong);
        Sizes sizes;
        check_refused(mistake.name, refusal([&] { check(scan_of(wrong), wrong, sizes); }), mistake.message);
    }
    const FieldStore store(good);
    for (const WrongField& wrong : wrong_fields(good, store)) {
        check_refused(wrong.name, refusal([&] { Scan(*good.kind, wrong.fields, wrong.of_engine); }),
                      wrong.message);
    }
}

/* Sizes that are not known yet pass as long as an engine is built, and no longer. */
void check_unknown_sizes(const Problem& good) {
    Problem open = good;
    for (Tensor& tensor : open.inputs) {
        tensor.shape.size.fill(UNKNOWN_SIZE);
    }
    const Scan scan = scan_of(open);
    Sizes sizes;
    const std::string kind = good.kind->name;
    print_check("unknown-sizes/" + kind, refusal([&] { check(scan, open, sizes); }).empty(),
                "while building");
    check_refused(kind + "/unknown-sizes", refusal([&] { scan.check_supported(sizes, ElementType::FP32); }),
                  "got no size, expected one");
}

/* An engine for sizes from 1 to many has workspace enough for all between. */
void check_workspace(const Problem& good) {
    const Scan scan = scan_of(good);
    Sizes least, most;
    for (const char* axis = good.kind->axes; *axis; ++axis) {
        least[*axis] = *axis == 'N' || *axis == 'K' || *axis == 'V' ? 16 : 1;
        most[*axis] = *axis == 'T' ? 700 : 32;
    }
    const size_t enough = scan.workspace_bytes(least, most, ElementType::FP16);
    size_t needed = 0;
    for (const int64_t tokens : {1, 16, 17, 64, 65, 300, 700}) {
        for (const int64_t others : {1, 2, 5, 32}) {
            Sizes sizes = most;
            sizes['T'] = tokens;
            sizes['B'] = others;
            sizes['H'] = 33 - others;
            needed = std::max(needed, scan.workspace_bytes(sizes, sizes, ElementType::FP16));
        }
    }
    print_check("workspace/" + std::string(good.kind->name), needed <= enough,
                std::to_string(needed) + " of " + std::to_string(enough) + " bytes");
}

/* Equal descriptions are equal scans: TensorRT finds timings by them. */
void check_descriptions(const Problem& good) {
    const std::string kind = good.kind->name;
    bool differ = true;
    const std::string description = scan_of(good).fields().description();
    for (size_t i = 0; i < good.fields.size(); ++i) {
        Problem other = good;
        other.fields[i].second = other.fields[i].second == 1 ? 0 : 1;
        differ = differ && scan_of(other).fields().description() != description;
    }
    print_check("description/" + kind, differ, description);
}

/* What a network leaves out has the default of the operator's schema; flags may come as int64. */
void check_defaults(const Problem& good) {
    const std::string kind = good.kind->name;
    const FieldStore store(good);
    const int64_t one = 1;
    std::vector<Field> least, wide;
    std::string defaults, ones;
    for (size_t i = 0; i < store.fields.size(); ++i) {
        const FieldSpec& spec = good.kind->fields[i];
        const std::string start = std::string(i == 0 ? "" : " ") + spec.name + "=";
        const bool is_number = spec.kind == FieldKind::NUMBER;
        if (spec.missing == Missing::REFUSED) {
            least.push_back(store.fields[i]);
            defaults += start + (is_number ? "0.5" : good.fields[i].second > 0 ? "1" : "0");
        } else {
            defaults += start + (spec.name == std::string("want_output") ? "1" : "0");
        }
        wide.push_back(is_number ? store.fields[i] : Field{spec.name, FieldType::INT64, &one, 1});
        ones += start + (is_number ? "0.5" : "1");
    }
    const std::string got = Scan(*good.kind, least, false).fields().description();
    print_check("defaults/" + kind, got == defaults, "got " + got + ", expected " + defaults);
    const std::string got_wide = Scan(*good.kind, wide, false).fields().description();
    print_check("int64/" + kind, got_wide == ones, "got " + got_wide + ", expected " + ones);
}

/* A library without a kernel for a size says so when an engine is built, and one that fails says so when it
 * runs. */
void check_statuses(const Problem& good) {
    Sizes sizes;
    const std::string kind = good.kind->name;
    Problem unsupported = good;
    ScanKind without_kernel = *good.kind;
    without_kernel.run = [](const Scan&, const Sizes&, ElementType, const Buffers*) {
        return VIDEOSSM_UNSUPPORTED;
    };
    unsupported.kind = &without_kernel;
    const ElementType activation = check(scan_of(unsupported), unsupported, sizes);
    check_refused(kind + "/unsupported",
                  refusal([&] { scan_of(unsupported).check_supported(sizes, activation); }), kind + ": ");

    Problem failing = good;
    ScanKind with_failure = *good.kind;
    with_failure.run = [](const Scan&, const Sizes&, ElementType, const Buffers*) { return VIDEOSSM_FAILED; };
    failing.kind = &with_failure;
    void* some = &sizes;
    void* const outputs[] = {some, some};
    auto cause = ScanError::Cause::ARGUMENT;
    try {
        scan_of(failing).run(sizes, activation, {nullptr, outputs, nullptr, nullptr});
    } catch (const ScanError& error) {
        cause = error.cause;
    }
    print_check("refuses/" + kind + "/failed", cause == ScanError::Cause::DEVICE,
                "the device's failure is told apart");
}

void check_null_output(const Problem& good) {
    const Scan scan = scan_of(good);
    Sizes sizes;
    const ElementType activation = check(scan, good, sizes);
    std::vector<const void*> inputs(MAX_INPUTS);
    void* const none[] = {nullptr, nullptr};
    const std::string kind = good.kind->name;
    check_refused(kind + "/null/" + good.kind->outputs[0].name,
                  refusal([&] { scan.run(sizes, activation, {inputs.data(), none, nullptr, nullptr}); }),
                  ": got null, expected a tensor");
}

std::string described(const TensorSpec& spec) {
    return "{\"name\": " + quoted(spec.name) + ", \"axes\": " + quoted(spec.axes) +
           ", \"single\": " + (spec.role == Role::SINGLE ? "true" : "false") +
           ", \"optional\": " + (spec.field ? "true" : "false") + "}";
}

/* What the ONNX schemas must agree with. */
void print_kind(const ScanKind& kind) {
    std::string inputs, outputs, fields;
    for (const TensorSpec& spec : kind.inputs) {
        inputs += (inputs.empty() ? "" : ", ") + described(spec);
    }
    for (const TensorSpec& spec : kind.outputs) {
        outputs += (outputs.empty() ? "" : ", ") + described(spec);
    }
    for (const FieldSpec& spec : kind.fields) {
        fields += (fields.empty() ? "" : ", ") + quoted(spec.name) + ": " +
                  (spec.kind == FieldKind::NUMBER ? "\"FLOAT\"" : "\"INT\"");
    }
    std::printf(
        "{\"scan\": %s, \"version\": %s, \"namespace\": %s, \"inputs\": [%s], \"outputs\": [%s], \"fields\": "
        "{%s}}\n",
        quoted(kind.name).c_str(), quoted(PLUGIN_VERSION).c_str(), quoted(PLUGIN_NAMESPACE).c_str(),
        inputs.c_str(), outputs.c_str(), fields.c_str());
}

}  // namespace

int main() {
    print_kind(gated_delta_scan());
    print_kind(selective_scan());
    const std::vector<Problem> all = problems();
    for (const Problem& problem : all) {
        check_problem(problem);
        const bool is_whole = problem.name.find("normalized/fp32") != std::string::npos ||
                              problem.name.find("all/fp32") != std::string::npos;
        if (is_whole) {  // one of each scan, with all its inputs
            check_refusals(problem);
            check_unknown_sizes(problem);
            check_workspace(problem);
            check_descriptions(problem);
            check_defaults(problem);
            check_statuses(problem);
            check_null_output(problem);
        }
    }
    return 0;
}
